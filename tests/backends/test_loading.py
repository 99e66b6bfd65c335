"""Loading: what is refused and how, what never runs, and what importing costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from asyncgen.backends import check_model, open_backend
from asyncgen.backends.static import Static
from asyncgen.config import Config
from asyncgen.errors import ConfigError, InputError, ModelError
from tests.backends.helpers import config_for, make_model, read_json


def open_and_close(config: Config) -> None:
    async def main() -> None:
        async with open_backend(config):
            pass

    anyio.run(main)


def refused(config: Config, error: type[InputError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        open_and_close(config)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "model")


def test_a_checkpoint_that_lacks_weights_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the model's weights, 'model.layers.1.mlp.up_proj.weight' among them" in refused(config_for(copy))


def test_a_checkpoint_of_another_shape_is_refused(copy: Path) -> None:
    edit(copy / "config.json", intermediate_size=128)
    assert str(copy) in refused(config_for(copy))


def test_an_unknown_model_type_is_refused(copy: Path) -> None:
    edit(copy / "config.json", model_type="no-such-thing")
    assert "no-such-thing" in refused(config_for(copy))


def test_a_broken_config_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    assert str(copy) in refused(config_for(copy))


def test_too_many_new_tokens_are_refused_with_the_numbers(llama: Path) -> None:
    message = refused(config_for(llama, max_new_tokens=512), ConfigError)
    assert "generation.max_new_tokens: 512 leaves no room for a prompt" in message
    assert "512 tokens" in message
    open_and_close(config_for(llama, max_new_tokens=511))


def test_a_device_that_is_not_there_is_refused(llama: Path) -> None:
    assert "backend.device: 'cuda:99'" in refused(config_for(llama, backend={"device": "cuda:99"}), ConfigError)


def test_a_hub_model_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, when it was imported
    message = refused(config_for("nobody-at-all/no-such-model"))
    assert "the model cannot be loaded from hub model 'nobody-at-all/no-such-model'" in message
    assert "check the name, the network" in message


def test_the_dtype_is_float32_on_a_cpu_whatever_the_checkpoint_has(tmp_path: Path) -> None:
    directory = make_model(tmp_path, dtype="bfloat16")
    assert read_json(directory / "config.json")["dtype"] == "bfloat16"

    async def dtype(config: Config) -> torch.dtype:
        async with open_backend(config) as backend:
            assert isinstance(backend, Static)
            found: torch.dtype = backend._loaded.model.dtype
            return found

    assert anyio.run(dtype, config_for(directory)) == torch.float32
    assert anyio.run(dtype, config_for(directory, backend={"dtype": "bfloat16"})) == torch.bfloat16


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantization_without_its_package_names_the_extra(llama: Path, bits: str) -> None:
    config = config_for(llama, backend={"quantization": bits})
    with pytest.raises(ModelError, match=r"pip install -c constraints.txt -e '.\[quantization\]'"):
        check_model(config)


@pytest.mark.skipif(find_spec("accelerate") is not None, reason="accelerate is installed")
def test_a_device_map_without_its_package_names_the_extra(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install -c constraints.txt -e '.\[accelerate\]'"):
        check_model(config_for(llama, backend={"device_map": "auto"}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/directory", "there is no directory '/no/such/directory'"),
        ("./nothing", "there is no directory"),
        ("~nobody-at-all/model", "there is no directory"),
        ("a/b/c", "there is no directory"),
        ("owner/", "there is no directory"),
        ("two words", "neither a directory nor a possible hub id"),
        ("owner/na--me", "neither a directory nor a possible hub id"),
        ("x" * 97, "neither a directory nor a possible hub id"),
    ],
)
def test_names_that_cannot_be_models_are_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(config_for(name))
    assert message in str(caught.value)


def test_possible_hub_ids_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("gpt2", "Qwen/Qwen2.5-3B-Instruct", "a_b/c.d-e"):
        check_model(config_for(name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--owner--cached").mkdir()
    check_model(config_for("owner/cached"))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids to download"):
        check_model(config_for("owner/absent"))


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_directory_is_refused_without_torch(copy: Path, absent: str) -> None:
    (copy / absent).unlink()
    with pytest.raises(ModelError, match=r"config\.json|safetensors|tokenizer"):
        check_model(config_for(copy))


WITHOUT_TORCH = """
import sys, anyio
from asyncgen.backends import check_model, open_backend
from asyncgen.config import Config
from asyncgen.errors import ModelError
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Prompt

async def main(config):
    async with open_backend(config) as backend:
        window = Window(4, goal=None)
        pool = PromptPool(window)
        window.plan(1)
        prepared = backend.prepare([{"role": "user", "content": "hello there"}], 10)
        pool.put([Prompt(0, (), seed=1, prepared=prepared)])
        window.end()
        send, receive = anyio.create_memory_object_stream(4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.run, pool, send)
            print((await receive.receive())[0].text)
            pool.close()
        send.close(); receive.close()

anyio.run(main, Config.model_validate({"backend": {"kind": "echo"}}))
for name in ("/no/such/model", "not a model"):
    config = Config.model_validate({"model_name": name})
    for use in (lambda: check_model(config), lambda: anyio.run(main, config)):
        try:
            use()
        except ModelError:
            pass
        else:
            raise SystemExit("not refused")
heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy"} & set(sys.modules)
raise SystemExit(f"imported: {heavy}" if heavy else 0)
"""


def test_echo_and_refusals_import_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 60


@pytest.mark.anyio
async def test_loads_at_the_same_time_leave_transformers_as_it_was(tmp_path: Path) -> None:
    """While it loads, transformers replaces methods of its classes; overlapping loads would leave them replaced."""
    models = [make_model(tmp_path / str(number), seed=number, tie_word_embeddings=True) for number in range(4)]
    before = PreTrainedModel.tie_weights

    async def load(model: Path) -> None:
        async with open_backend(config_for(model)):
            pass

    for _ in range(3):
        async with anyio.create_task_group() as group:
            for model in models:
                group.start_soon(load, model)
    assert PreTrainedModel.tie_weights is before
