"""Row 23: a model's directory may hold code, pickles, flags, templates, links and numbers of a stranger's: nothing of
it executes, and what cannot be used without is refused. Remote code needs a pinned revision; offline means offline.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from safetensors.torch import load_file

from asyncgen.backends import open_backend
from asyncgen.backends.model_files import read_model
from asyncgen.backends.static import Static
from asyncgen.config import Config
from asyncgen.errors import ModelError, PromptRefused
from asyncgen.resources import bundled_model
from tests.backends.helpers import complete, config_for, make_messages, make_model, make_prompts, read_json
from tests.faults.conftest import Trials
from tests.programs import asyncgen, environment, without_torch

HASH = "c0ffee" * 6 + "c0de"
CODE = "import pathlib\npathlib.Path({!r}).write_text('executed')\n"
OWN_CODE = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}


class Trap:
    """Pickled, it leaves a file behind where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._canary, "executed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy, with code beside it that leaves a file behind if anything runs it."""
    folder = shutil.copytree(made, tmp_path / "model")
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(CODE.format(str(canary_of(folder))))
    return folder


def canary_of(folder: Path) -> Path:
    return folder.parent / "canary"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((read_json(path) if path.exists() else {}) | changes))


def load(config: Config) -> None:
    async def main() -> None:
        async with open_backend(config):
            pass

    anyio.run(main)


def needs_its_own_code(folder: Path) -> None:
    edit(folder / "config.json", model_type="evil", auto_map=OWN_CODE)


def pickled(folder: Path, name: str = "pytorch_model.bin") -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(canary_of(folder))))


def with_index(folder: Path, *files: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if any(file != "model.safetensors" for file in files):
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "a.safetensors").touch()
    (folder / "evil.bin").write_bytes(pickle.dumps(Trap(canary_of(folder))))
    places = dict.fromkeys(weights, files[0]) | dict(zip(weights, files, strict=False))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def numbered(**numbers: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **numbers)


def rendered_by(template: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(template)


def linked(name: str, target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return link


def piped(folder: Path) -> None:
    (folder / "added_tokens.json").unlink(missing_ok=True)
    os.mkfifo(folder / "added_tokens.json")


def index_of(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "its own code": (needs_its_own_code, "needs Python code of its own, which is not run"),
    "pickled weights": (pickled, "there is no *.safetensors file, only pytorch_model.bin"),
    "a template that looks for classes": (
        rendered_by("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "does not take the conversation",
    ),
    "a pickle under a safe name": (
        lambda folder: pickled(folder, "model.safetensors"),
        "cannot be loaded from directory",
    ),
    "an index of pickles": (lambda folder: with_index(folder, "a.safetensors", "evil.bin"), "it names 'evil.bin'"),
    "an index that leads out": (lambda folder: with_index(folder, "../outside.safetensors"), "it names '../outside"),
    "an index of the whole disk": (lambda folder: with_index(folder, "/etc/passwd.safetensors"), "it names '/etc/pa"),
    "an index of nothing": (index_of("[]"), "not an index of weights"),
    "an index of numbers": (index_of('{"weight_map": {"a": 1}}'), "it names 1"),
    "an index without end": (index_of("[" * 100_000), "not an index of weights"),
    "a template that reaches for globals": (rendered_by("{{ raise_exception.__globals__['os'] }}"), "does not take"),
    "a template that reaches by filter": (rendered_by("{{ (messages|attr('append'))(1) }}"), "does not take"),
    "a template that formats": (rendered_by("{{ '{0.__class__.__mro__}'.format(1).x.y }}"), "does not take"),
    "a template that changes the conversation": (rendered_by("{{ messages.append(1) }}"), "does not take"),
    "a template that imports": (rendered_by("{% include '/etc/passwd' %}"), "does not take"),
    "a template that counts": (rendered_by("{% for i in range(10 ** 9) %}{% endfor %}"), "does not take"),
    "a template that divides": (rendered_by("{{ 1 // 0 }}"), "does not take"),
    "a template that is none": (rendered_by("{% for %}{{"), "does not take"),
    "ten million layers": (numbered(num_hidden_layers=10**7), "has 10000000 layers"),
    "fewer than no layers": (numbered(num_hidden_layers=-3), "has -3 layers"),
    "a width of a million million": (numbered(hidden_size=10**12), "cannot be loaded"),
    "fewer than no tokens": (numbered(vocab_size=-5), "cannot be loaded"),
    "no heads": (numbered(num_attention_heads=0), "cannot be loaded"),
    "a width in words": (numbered(hidden_size="__import__('os')"), "cannot be loaded"),
    "a tokenizer without end": (linked("tokenizer.json", "/dev/zero"), "tokenizer.json is a pipe or a device"),
    "a pipe": (piped, "added_tokens.json is a pipe or a device"),
    "a link to something else": (linked("config.json", "/etc/passwd"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_executes_and_the_model_is_refused(model: Path, name: str) -> None:
    make_hostile, expected = HOSTILE[name]
    make_hostile(model)
    with pytest.raises(ModelError) as caught:
        load(config_for(model))
    assert expected in str(caught.value)
    assert "root:" not in str(caught.value), "what a link leads to is not told"
    assert not canary_of(model).exists()


@pytest.mark.parametrize("kind", ["auto", "slots"])
def test_whatever_the_engine(model: Path, kind: str) -> None:
    needs_its_own_code(model)
    with pytest.raises(ModelError, match=r"which is not run[\s\S]*backend\.trust_remote_code"):
        load(config_for(model, backend={"kind": kind}))
    assert not canary_of(model).exists()


def test_flags_and_code_beside_a_known_model_change_nothing(model: Path) -> None:
    edit(
        model / "config.json",
        auto_map=OWN_CODE,
        trust_remote_code=True,
        use_kernels=True,
        attn_implementation="evil/kernel",
        _attn_implementation="evil/kernel",
    )
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    edit(model / "generation_config.json", custom_generate="custom_generate", trust_remote_code=True)

    async def main() -> None:
        async with open_backend(config_for(model)) as backend:
            assert isinstance(backend, Static)
            assert backend._loaded.model.config._attn_implementation == "eager"
            [found] = await complete(backend, make_prompts(backend, make_messages(1), 12))
            assert found.finish_reason in {"stop", "length"}

    anyio.run(main)
    assert not canary_of(model).exists()


def test_what_reads_a_model_without_torch_runs_nothing_either(model: Path) -> None:
    for name, (make_hostile, _) in HOSTILE.items():
        if name.startswith("a template"):
            make_hostile(model)
            files = read_model(config_for(model))
            assert files is not None
            with pytest.raises(PromptRefused):
                files.chat.render(make_messages(1)[0])


def test_the_traps_work(model: Path) -> None:
    """Else their silence would say nothing."""
    needs_its_own_code(model)
    with pytest.raises(ModelError):  # there is no class in that code
        load(config_for(model, backend={"trust_remote_code": True, "revision": HASH}))
    assert canary_of(model).read_text() == "executed"
    canary_of(model).unlink()
    pickled(model)
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert canary_of(model).read_text() == "executed"


@pytest.mark.parametrize("revision", ["null", "main", "v1.0", "c0ffee", HASH.upper()])
def test_remote_code_is_for_a_pinned_revision_only(tmp_path: Path, revision: str) -> None:
    settings = ("--set", f"backend={{trust_remote_code: true, revision: {revision}}}", "--model-name", "owner/name")
    done = asyncgen("run", *settings, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "trust_remote_code needs a pinned revision (the 40 hexadecimal digits of a commit's hash)" in done.stderr


@pytest.mark.timeout(300)
def test_the_command_line_ends_with_2(model: Path, tmp_path: Path, trials: Trials) -> None:
    kept = shutil.copytree(model, tmp_path / "kept")
    for name, (make_hostile, expected) in list(HOSTILE.items())[: trials(2, 6)]:
        shutil.rmtree(model)
        shutil.copytree(kept, model)
        make_hostile(model)
        short = ("--no-k-shot", "--set", "template='a {word1}'", "--set", "generation.max_new_tokens=100")
        done = asyncgen("run", "--model-name", model, *short, cwd=tmp_path)
        assert done.returncode == 2, (name, done.stderr)
        assert expected in done.stderr, name
        assert "Traceback" not in done.stderr, name
        assert not canary_of(model).exists()
        assert not (tmp_path / "stories.jsonl").exists()


def listening(
    folder: Path, *arguments: str | Path, offline: bool
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The command line, and which addresses it asked for."""
    settings = environment(HF_HUB_OFFLINE="1" if offline else "", HF_HOME=str(folder / "home"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.listening", "asked", *map(str, arguments)],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done, (folder / "asked").read_text().splitlines()


def test_offline_a_hub_model_is_not_asked_for(tmp_path: Path) -> None:
    done, asked = listening(tmp_path, "run", "--model-name", "owner/absent", offline=True)
    assert (done.returncode, asked) == (2, []), done.stderr
    assert (
        "HF_HUB_OFFLINE forbids to download it\n  hint: unset HF_HUB_OFFLINE once, or name a directory" in done.stderr
    )


def test_nor_if_its_cache_is_empty(tmp_path: Path) -> None:
    (tmp_path / "home" / "hub" / "models--owner--half").mkdir(parents=True)
    done, asked = listening(tmp_path, "run", "--model-name", "owner/half", offline=True)
    assert (done.returncode, asked) == (2, []), done.stderr
    assert "'owner/half'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_trap_for_that_works_too(tmp_path: Path) -> None:
    program = """
import pathlib, socket, sys, urllib.request
from tests.faults.listening import listen
listen(pathlib.Path("asked"))
for reach in (
    lambda: urllib.request.urlopen("https://huggingface.co"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.socket().connect(("127.0.0.1", 9)),
):
    try:
        reach()
    except OSError:
        pass
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), timeout=60, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["getaddrinfo huggingface.co", "getaddrinfo 127.0.0.1", "connect ('127.0.0.1', 9)"]


@pytest.mark.skipif(not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet")
def test_a_model_on_this_machine_needs_no_other(tmp_path: Path) -> None:
    short = ("--num-stories", "2", "--set", "validation.enabled=false", "--set", "generation.max_new_tokens=8")
    done, asked = listening(tmp_path, "run", *short, offline=False)
    assert (done.returncode, asked) == (0, []), done.stderr
