"""``asyncgen check``: everything that is wrong at once, with file and line; and what a run would take. Never torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.check import examine
from asyncgen.config import Config
from asyncgen.config_file import load_config
from asyncgen.estimate import count_distinct, of_lengths
from asyncgen.prompts import Plan
from asyncgen.prompts.words import WordPlan
from asyncgen.resources import bundled_model
from tests.programs import ECHO, ROOT, asyncgen, records, without_torch

needs_model = pytest.mark.skipif(
    not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet"
)
BROKEN = """\
vocabulary_path: w.txt
features_path: f.json
conversation_path: c.txt
template: 'a {wrod1}'
model_name: ./m
output_path: w.txt/x.jsonl
validation:
  forbid_patterns: ["("]
  banned_words_path: none.txt
sources:
- {kind: template}
- {kind: jsonl, path: p.jsonl}
- {kind: python, function: nope:f}
"""


def facts(folder: Path, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = asyncgen("check", *arguments, "--json", cwd=folder, env=without_torch(folder))
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", ["check", "run", "preview"])
def test_all_problems_are_named_at_once_with_file_line_and_key(tmp_path: Path, command: str) -> None:
    (tmp_path / "config.yaml").write_text(BROKEN)
    (tmp_path / "w.txt").write_text("moon\nst*r\n")
    (tmp_path / "f.json").write_text("{")
    (tmp_path / "c.txt").write_text("[]")
    (tmp_path / "p.jsonl").write_text('{"prompt": 3}\n')
    before = sorted(path.name for path in tmp_path.iterdir())
    done = asyncgen(command, "config.yaml", cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("asyncgen: error: 10 problems\n"), "and no banner before it"
    for expected in (
        "config.yaml:1: vocabulary_path: ",
        "w.txt:2: 'st*r'",
        "config.yaml:2: features_path: ",
        "config.yaml:3: conversation_path: ",
        "config.yaml:4: template: ",
        "did you mean {word1}",
        "config.yaml:5: model_name: ",
        "config.yaml:6: output_path: ",
        "is not a folder",
        "config.yaml:8: validation.forbid_patterns[0]: ",
        "config.yaml:9: validation.banned_words_path: ",
        "config.yaml:12: sources[1].path: ",
        "p.jsonl:1: prompt is a number",
        "config.yaml:13: sources[2].function: there is no module 'nope'",
    ):
        assert expected in done.stderr, expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "poison"])


def test_one_problem_reads_the_same_in_check_and_run(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("num_stories: 5\nvocabulary_path: none.txt\n")
    texts = {asyncgen(command, "c.yaml", cwd=tmp_path).stderr for command in ("check", "run")}
    (text,) = texts
    assert text == f"asyncgen: error: c.yaml:2: vocabulary_path: vocabulary file not found: {tmp_path / 'none.txt'}\n"


def test_parts_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("moon\nsun\n")
    found = facts(tmp_path, "--set", "vocabulary_path=w.txt", "--set", "k_shot_count=11", code=2)
    assert [problem["key"] for problem in found["problems"]] == ["vocabulary_path", "k_shot_count"]
    assert [problem["origin"] for problem in found["problems"]] == [
        "--set vocabulary_path=w.txt",
        "--set k_shot_count=11",
    ]


@needs_model
def test_tokens_and_fit_are_exact_for_a_model_whose_files_are_here(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert found["tokens"]["exact"]
    assert 100 < found["tokens"]["fewest"] <= found["tokens"]["mean"] <= found["tokens"]["most"] < 1000
    assert found["model"]["context_length"] == 2048
    too_many = facts(tmp_path, "--set", "generation.max_new_tokens=2000", code=2)
    (problem,) = too_many["problems"]
    assert problem["origin"] == "--set generation.max_new_tokens=2000"
    assert "do not fit the context of 2048" in problem["message"]
    room = 2048 - found["tokens"]["most"]
    assert f"at most {room} fit" in problem["hint"]
    assert facts(tmp_path, "--set", f"generation.max_new_tokens={room}")["ok"]


def test_without_the_files_of_a_model_numbers_are_called_about(tmp_path: Path) -> None:
    env = without_torch(tmp_path) | {"HF_HUB_OFFLINE": ""}
    done = asyncgen("check", "--model-name", "somebody/some-model", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "tokens    about " in done.stdout
    assert "downloaded when the run begins" in done.stdout


@pytest.mark.parametrize("name", ["quickstart", "bedtime-3b", "bedtime-7b"])
def test_the_shipped_configurations_are_well(tmp_path: Path, name: str) -> None:
    env = without_torch(tmp_path) | {"HF_HUB_OFFLINE": ""}
    done = asyncgen("check", ROOT / "configs" / f"{name}.yaml", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all is well\n")
    assert "caution" not in done.stdout


def test_cautions(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("moon\nsun\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' * 4)
    few = facts(tmp_path, *ECHO, "--set", "template='{word1} and {word2}'", "--set", "vocabulary_path=w.txt")
    assert any("2 different prompts for 1,000 stories" in caution for caution in few["cautions"])
    short = facts(tmp_path, *ECHO, "--set", "sources=[{kind: jsonl, path: p.jsonl}]", "--num-stories", "5")
    assert any("4 prompts, num_stories is 5" in caution for caution in short["cautions"])
    cut = facts(tmp_path, *ECHO, "--set", "generation.max_new_tokens=100")
    assert any("is cut off is refused" in caution for caution in cut["cautions"])
    huge = facts(tmp_path, *ECHO, "--num-stories", str(10**15))
    assert any("bytes are to be written" in caution for caution in huge["cautions"])


def test_a_function_of_the_users_is_not_called(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("async def prompts(start):\n    open('called', 'w')\n    yield 'a'\n")
    flags = (*ECHO, "--set", "sources=[{kind: python, function: 'mine:prompts'}]")
    done = asyncgen("check", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "those of mine:prompts" in done.stdout
    assert not (tmp_path / "called").exists()


def test_what_is_on_disk_is_told_and_measured(tmp_path: Path) -> None:
    flags = (*ECHO, "--output-path", "s.jsonl", "--num-stories")
    assert asyncgen("run", *flags, "20", cwd=tmp_path).returncode == 0
    output = facts(tmp_path, *flags, "50")["output"]
    assert (output["progress"]["accepted"], output["disk"]["records"]) == (20, 30)
    assert output["disk"]["measured"]
    assert output["disk"]["bytes_per_record"] == (tmp_path / "s.jsonl").stat().st_size // 20
    done = asyncgen("check", *flags, "50", "--set", "generation.temperature=0.3", cwd=tmp_path)
    assert done.returncode == 2
    assert "temperature: was 0.8, now 0.3" in done.stderr


def test_the_estimate_of_a_record_is_near_what_a_run_writes(tmp_path: Path) -> None:
    reckoned = facts(tmp_path, *ECHO)["output"]["disk"]["bytes_per_record"]
    assert asyncgen("run", *ECHO, "--num-stories", "50", cwd=tmp_path).returncode == 0
    lines = records(tmp_path / "stories.jsonl")
    written = (tmp_path / "stories.jsonl").stat().st_size / len(lines)
    assert 0.6 < reckoned / written < 1.6


def test_distinct_prompts_are_all_that_a_small_plan_makes(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("moon\nsun\nstar\n")
    (tmp_path / "f.json").write_text('{"a": ["calm", "loud"], "b": ["calm"]}')
    config = Config(
        vocabulary_path=tmp_path / "w.txt",
        features_path=tmp_path / "f.json",
        template="{word1} {word2} {additional_condition}",
        use_k_shot=False,
        ensure_diversity=False,
    )
    distinct = count_distinct(config, words=3, places=2, conditions=2, examples=0)
    plan = Plan(config)
    made = {plan.prompt(index).messages[-1]["content"] for index in range(500)}
    assert len(made) == distinct.prompts == math.perm(3, 2) * 2


@given(st.lists(st.integers(0, 10**6), min_size=1), st.booleans())
def test_lengths_in_short(lengths: list[int], exact: bool) -> None:
    tokens = of_lengths(lengths, exact=exact)
    assert tokens is not None
    assert tokens.fewest <= tokens.mean <= tokens.most
    assert (tokens.sample, tokens.exact) == (len(lengths), exact)


@pytest.mark.parametrize(("goal", "choices"), [(None, 90), (10, 1), (11, 2), (10**6, 90)])
def test_examples_that_rotate_make_more_prompts(goal: int | None, choices: int) -> None:
    config = Config(num_stories=goal, k_shot_count=2, k_shot_rotate=10)
    assert count_distinct(config, words=1666, places=3, conditions=1, examples=10).examples == choices
    fixed = config.model_copy(update={"k_shot_rotate": 0})
    assert count_distinct(fixed, words=1666, places=3, conditions=1, examples=10).examples == 1


@given(st.integers(1, 60), st.integers(1, 5))
def test_every_word_is_used_within_the_round_that_is_told_and_not_before(words: int, places: int) -> None:
    if words < places:
        return
    told = count_distinct(Config(), words=words, places=places, conditions=1, examples=0).round
    vocabulary = tuple(f"w{number}" for number in range(words))
    plan = WordPlan(vocabulary, places, seed=1, where="the vocabulary")
    assert told is not None
    first = [{word for index in range(count) for word in plan.pick(index)} for count in (told - 1, told)]
    assert (len(first[0]) < words, len(first[1])) == (True, words)


def test_a_file_of_ready_prompts_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its first lines once more, to count their tokens."""
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "tell {number}"}}\n' for number in range(20_000)))
    config = load_config(None, ["backend.kind=echo", f"sources=[{{kind: jsonl, path: {tmp_path / 'p.jsonl'}}}]"])
    parsed = 0
    real = json.loads

    def loads(*arguments: Any, **named: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", loads)
        found = anyio.run(examine, config)
    assert found.sources[0].prompts == 20_000
    assert 20_000 <= parsed < 25_000
