"""``asyncgen preview``: what the model will see, with its tokens, and no torch where none is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncgen.config import Config
from asyncgen.prompts import Plan
from asyncgen.resources import bundled_model
from tests.programs import ECHO, asyncgen, records, without_torch

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


def test_generate_shows_every_attempt_and_what_a_run_makes_of_them(tmp_path: Path) -> None:
    flags = ("--set", "backend={kind: echo, bad_share: 0.5}", "--set", "seed=3")
    env = without_torch(tmp_path)
    done = asyncgen("preview", "-n", "8", "--start", "2", "--generate", *flags, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("stories*"))
    shown = {}
    for part in done.stdout.split("index ")[1:]:
        number, _, rest = part.partition(",")
        shown[int(number)] = rest
    assert list(shown) == list(range(2, 10))
    assert asyncgen("run", *flags, "--num-stories", "12", cwd=tmp_path, env=env).returncode == 0
    made = {
        record["metadata"]["index"]: record
        for name in ("stories.jsonl", "stories.rejected.jsonl")
        for record in records(tmp_path / name)
    }
    refused = 0
    for index, text in shown.items():
        record, attempts = made[index], text.count("\nattempt ")
        assert record["content"] in text
        assert attempts == record["metadata"]["attempt"]
        assert text.count(": refused, ") == (len(record["reasons"]) if "reasons" in record else attempts - 1)
        refused += attempts - 1
    assert refused
    assert "  too short: 6 words, at least 30\n" in done.stdout


def test_generate_shows_what_cannot_be_generated_and_what_repeats(tmp_path: Path) -> None:
    echo = "backend={kind: echo, context_length: 600, distinct: 1}"
    flags = ("--set", echo, "--set", "max_attempts=1", "--set", 'template="tell\\na story"', "--no-k-shot")
    done = asyncgen("preview", "-n", "2", "--generate", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "attempt 1: accepted" in done.stdout
    assert "  repeat: equal to an earlier story" in done.stdout
    done = asyncgen(
        "preview",
        "--generate",
        *flags,
        "--set",
        "generation.max_new_tokens=599",
        cwd=tmp_path,
        env=without_torch(tmp_path),
    )
    assert done.stdout.count("  prompt too long: 3 prompt tokens") == 3
    assert "not generated" in done.stdout


@needs_model
def test_generate_with_the_bundled_model(tmp_path: Path) -> None:
    rules = "{min_words: 20, require_words: false, require_ending: false}"  # the first attempt is accepted
    config = f"generation: {{max_new_tokens: 100, batch_size: 2}}\nmax_attempts: 1\nvalidation: {rules}\n"
    (tmp_path / "c.yaml").write_text(config)
    done = asyncgen("preview", "c.yaml", "-n", "2", "--generate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nattempt 1: ") == 2
    assert asyncgen("run", "c.yaml", "--num-stories", "1", cwd=tmp_path).returncode == 0
    paths = list(tmp_path.glob("stories*.jsonl"))
    made = {record["metadata"]["index"]: record["content"] for path in paths for record in records(path)}
    assert made[0].strip() in done.stdout


def test_a_check_that_always_fails_does_not_hide_the_attempts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def bad(completion):\n    raise KeyError('oops')\n")
    flags = (*ECHO, "--set", "validation.functions=[{function: mine.py:bad}]", "--set", "max_attempts=1")
    done = asyncgen("preview", "-n", "20", "--generate", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 4
    assert done.stdout.count("index ") == 20
    assert done.stdout.count("  bad: raised KeyError: 'oops' (mine.py:2)\n") >= 8, "those of the batches before"
    assert "the check 'bad' failed in 20 of its last 20 calls" in done.stderr
    assert "kept" not in done.stderr
