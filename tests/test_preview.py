"""``asyncgen preview``: what the model will see, with its tokens, and no torch where none is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncgen.config import Config
from asyncgen.prompts import Plan
from asyncgen.resources import bundled_model
from tests.programs import ECHO, asyncgen, without_torch

needs_model = pytest.mark.skipif(
    not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet"
)


@needs_model
def test_prompts_are_shown_as_the_model_sees_them_without_torch(tmp_path: Path) -> None:
    done = asyncgen("preview", "-n", "2", "--start", "7", cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<|begin|><|im_start|>user\n") == 2
    assert done.stdout.count("<|im_start|>assistant\n") == 6, "two examples and the place of the answer, twice"
    assert "of the context of 2048" in done.stdout
    for index in (7, 8):
        prompt = Plan(Config()).prompt(index)
        assert f"index {index}, from template" in done.stdout
        assert prompt.messages[-1]["content"] in done.stdout
        assert ", ".join(f"{name} {word}" for name, word in prompt.selected_words.items()) in done.stdout
    assert not list(tmp_path.glob("stories*"))


@pytest.mark.parametrize("flags", [ECHO, ("--no-tokens",), ("--no-tokens", "--model-name", "somebody/some-model")])
def test_without_a_tokenizer_the_messages_are_shown(tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = asyncgen("preview", "-n", "1", "--no-k-shot", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"[user]\n{Plan(Config(use_k_shot=False)).prompt(0).messages[-1]['content']}\n" in done.stdout
    assert "tokens" not in done.stdout


@needs_model
def test_a_prompt_that_does_not_fit_is_called_too_long(tmp_path: Path) -> None:
    flags = ("--set", "generation.max_new_tokens=2000")
    done = asyncgen("preview", "-n", "1", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert "TOO LONG" in done.stdout
    assert "max_new_tokens is 2000" in done.stdout


def test_ready_prompts_end_where_their_file_ends(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    flags = (*ECHO, "--set", "sources=[{kind: jsonl, path: p.jsonl}]")
    done = asyncgen("preview", "--start", "1", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "[user]\ntwo\n" in done.stdout
    assert "[user]\none" not in done.stdout
    done = asyncgen("preview", "--start", "2", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert (done.returncode, "before index 2" in done.stderr) == (5, True)


def test_bad_input_is_exit_2(tmp_path: Path) -> None:
    for flags in (("--set", "template=none.txt"), ("--model-name", "./nowhere"), ("-n", "0"), ("nothing.yaml",)):
        done = asyncgen("preview", *flags, cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
