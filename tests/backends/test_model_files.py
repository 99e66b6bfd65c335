"""A tokenizer read from its files gives what transformers gives; its templates reach nothing but texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from asyncgen.backends.chat import Chat
from asyncgen.backends.loading import load
from asyncgen.backends.model_files import ModelFiles, read_model
from asyncgen.config import AutoBackend, Config
from asyncgen.errors import PromptRefused
from asyncgen.prompts import Plan
from asyncgen.records import Message
from asyncgen.resources import BUNDLED_MODEL, bundled_model
from tests.backends.helpers import CHATML, config_for, make_tokenizer

TALK: list[Message] = [
    {"role": "system", "content": "Be <kind> & 'quiet'."},
    {"role": "user", "content": "Tell me a story.\n\n"},
    {"role": "assistant", "content": "Once “upon” a time 🌙."},
    {"role": "user", "content": "Another{{ bos_token }}."},
]
TEMPLATES = [
    CHATML,
    "{{ bos_token }}" + CHATML + "{{ pad_token }}{{ unk_token }}{{ eos_token }}",
    (
        "{% for message in messages %}\n    {%- if loop.index0 == 2 %}{% continue %}{% endif %}\n"
        "{{ message | tojson }}\n{% endfor %}{{ messages | tojson(indent=2) }}"
        "{% if tools %}tools{% endif %}{{ documents is none }}"
    ),
    (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m['content'] | trim }}{% endif %}{% endfor %}"
    ),
    (
        "{% set ns = namespace(found=false) %}{% for m in messages %}{% set ns.found = true %}{% endfor %}"
        "{{ ns.found }}{{ strftime_now('%d %b %Y') }}{{ date_string }}{{ messages[0].content.split(' ')[1] }}"
    ),
    None,
]


def files(config: Config) -> ModelFiles:
    found = read_model(config)
    assert found is not None
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("own_file", [True, False])
def test_what_is_rendered_and_counted_is_what_transformers_makes_of_it(
    tmp_path: Path, llama: Path, template: str | None, own_file: bool
) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    make_tokenizer(template=template, bos=True).save_pretrained(tmp_path, save_jinja_files=own_file)
    ours = files(config_for(tmp_path)).chat
    theirs = Chat(AutoTokenizer.from_pretrained(tmp_path))
    assert ours.render(TALK) == theirs.render(TALK)
    assert ours.encode(TALK) == theirs.encode(TALK)
    assert ours.decode(ours.encode(TALK)) == theirs.decode(theirs.encode(TALK))


def test_a_template_that_refuses_refuses_here_too(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    make_tokenizer(template="{{ raise_exception('no system') }}").save_pretrained(tmp_path)
    with pytest.raises(PromptRefused, match="no system"):
        files(config_for(tmp_path)).chat.render(TALK)


@pytest.mark.skipif(not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet")
def test_the_bundled_model_sees_the_plan_as_transformers_does() -> None:
    config = Config(model_name=BUNDLED_MODEL)
    ours, plan = files(config), Plan(config)
    loaded = load(config, AutoBackend(device="cpu"))
    theirs = Chat(loaded.tokenizer)
    assert ours.context_length == loaded.context_length
    assert ours.weight_bytes > 1_000_000
    for index in range(50):
        messages = plan.prompt(index).messages
        assert ours.chat.encode(messages) == theirs.encode(messages)


def test_files_that_are_not_enough_give_nothing(tmp_path: Path, llama: Path) -> None:
    assert read_model(Config(model_name="somebody/not-in-the-cache")) is None
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    assert read_model(config_for(tmp_path)) is None, "there is no tokenizer.json"
    make_tokenizer().save_pretrained(tmp_path)
    assert files(config_for(tmp_path)).context_length == 512
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": {"a": "b"}}))
    (tmp_path / "chat_template.jinja").unlink()
    assert read_model(config_for(tmp_path)) is None, "a template of a kind that is not known"


def test_a_model_of_the_hub_is_read_from_its_cache(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    snapshot = folder / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for path in llama.iterdir():
        (snapshot / path.name).symlink_to(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert files(Config(model_name="a/b")).place == snapshot
