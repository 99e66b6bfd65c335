"""The plan: a prompt is a function of (configuration, seed, index)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.errors import DataError
from asyncgen.prompts import Plan
from asyncgen.records import Prompt

WORDS = ("sun", "moon", "star", "cloud", "rain", "snow", "wind")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Configuration values that name small files."""
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    (tmp_path / "features.json").write_text(json.dumps({"one": ["a"], "two": ["b", "c", "d"]}))
    turns = [{"role": role, "content": f"{role} {k}"} for k in range(4) for role in ("user", "assistant")]
    (tmp_path / "conversation.txt").write_text(json.dumps(turns))
    return {
        "vocabulary_path": tmp_path / "words.txt",
        "features_path": tmp_path / "features.json",
        "conversation_path": tmp_path / "conversation.txt",
    }


def test_a_prompt(settings: dict[str, Any]) -> None:
    config = Config(**settings, seed=3, system_prompt="be kind", generation={"max_new_tokens": 99})
    prompt = Plan(config).prompt(5)
    assert prompt.index == 5
    assert (prompt.attempt, prompt.source, prompt.max_new_tokens, prompt.history) == (1, "template", 99, ())
    assert prompt.seed == seeds.sampling_seed(3, 5, 1)
    assert list(prompt.selected_words) == ["word1", "word2", "word3"]
    assert set(prompt.selected_words.values()) <= set(WORDS)
    assert prompt.additional_condition in "abcd"
    assert prompt.shots == ("assistant 0", "assistant 1")
    assert [m["role"] for m in prompt.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert prompt.messages[0]["content"] == "be kind"
    assert prompt.messages[-1]["content"] == (
        "Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old\n"
        f"containing words {' '.join(prompt.selected_words.values())}\n\n"
        f"{prompt.additional_condition}\n\nkeep story coherent and gramatically correct"
    )


def test_the_plan_is_pure(settings: dict[str, Any]) -> None:
    config = Config(**settings, seed=8, k_shot_rotate=4)
    plan, again = Plan(config), Plan(config)
    expected = [plan.prompt(index) for index in range(100)]
    assert [again.prompt(index) for index in reversed(range(100))] == expected[::-1]
    assert plan.prompt(50) == expected[50]
    assert Plan(Config(**settings, seed=9)).prompt(0) != expected[0]


def test_messages_of_examples_are_shared(settings: dict[str, Any]) -> None:
    plan = Plan(Config(**settings))
    first, second = plan.prompt(0), plan.prompt(1)
    assert all(a is b for a, b in zip(first.messages[:-1], second.messages[:-1], strict=True))
    assert first.shots is second.shots


def test_groups_are_drawn_first_then_texts(settings: dict[str, Any]) -> None:
    plan = Plan(Config(**settings))
    counts = Counter(plan.prompt(index).additional_condition for index in range(6000))
    assert 2800 < counts["a"] < 3200
    assert all(850 < counts[text] < 1150 for text in "bcd")


def test_no_diversity(settings: dict[str, Any]) -> None:
    plan = Plan(Config(**settings, ensure_diversity=False))
    words = [tuple(plan.prompt(index).selected_words.values()) for index in range(50)]
    assert all(len(set(picked)) == 3 for picked in words)
    even = [tuple(Plan(Config(**settings)).prompt(index).selected_words.values()) for index in range(50)]
    assert words != even


def test_only_files_in_use_are_read(settings: dict[str, Any], tmp_path: Path) -> None:
    nowhere = dict.fromkeys(settings, tmp_path / "none")
    prompt: Prompt = Plan(Config(**nowhere, template="Tell a story.\n", k_shot_count=0)).prompt(0)
    assert prompt.messages == ({"role": "user", "content": "Tell a story."},)
    assert (prompt.selected_words, prompt.additional_condition, prompt.shots) == ({}, "", ())
    for key, what in (("vocabulary_path", "vocabulary"), ("features_path", "features"), ("conversation_path", "conv")):
        with pytest.raises(DataError, match=what):
            Plan(Config(**{**settings, key: tmp_path / "none"}))


def test_k_shot_switches(settings: dict[str, Any]) -> None:
    assert Plan(Config(**settings, use_k_shot=False)).prompt(0).shots == ()
    assert len(Plan(Config(**settings, k_shot_count=4)).prompt(0).shots) == 4
    with pytest.raises(DataError, match=r"conversation\.txt holds 4 examples, and k_shot_count asks for 5"):
        Plan(Config(**settings, k_shot_count=5))


def test_too_small_a_vocabulary(settings: dict[str, Any]) -> None:
    settings["vocabulary_path"].write_text("sun\nmoon\n")
    with pytest.raises(DataError, match=r"words\.txt has 2 words, the template 3 word placeholders"):
        Plan(Config(**settings))


def test_a_system_prompt_must_be_text(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"system_prompt: character U\+0000"):
        Plan(Config(**settings, system_prompt="\x00"))


def test_packaged_files_are_the_default() -> None:
    plan = Plan(Config())
    prompt = plan.prompt(0)
    assert len(plan.words) > 3
    assert len(prompt.shots) == 2
    assert prompt.additional_condition


def test_neither_prompts_nor_validators_load_torch() -> None:
    code = "import sys, asyncgen.prompts, asyncgen.validators; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
