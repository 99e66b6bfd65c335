"""Row 16: an empty answer, endless repetition, no end of text. Tried again, then rejected with the reason of each
attempt: 100 % labelled, and the good ones beside them are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import asyncgen
from asyncgen import seeds
from tests.backends.helpers import make_model, make_tokenizer
from tests.faults.conftest import Trials
from tests.programs import records

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("llama"), pytest.mark.timeout(600)]

ATTEMPTS, NEW_TOKENS = (1, 2, 3), 60
HABITS: dict[str, tuple[Mapping[str, float], str, int]] = {
    "says nothing": ({"</s>": 90}, "empty", 0),
    "says nothing that is a word": ({".": 20, "</s>": 18}, "empty", -1),
    "repeats itself for ever": ({"a": 60}, "unfinished: the token limit was reached", NEW_TOKENS),
    "never ends": ({"<|im_end|>": -90, "</s>": -90}, "unfinished: the token limit was reached", NEW_TOKENS),
}
"""Logits of tokens (all others have 0), how each attempt is rejected, and the tokens it has (-1: it varies)."""


def model_with(habit: Mapping[str, float], folder: Path) -> Path:
    """A real model whose logits do not depend on what it reads: its layers add nothing to an embedding that is the same
    for every token.
    """
    directory = make_model(folder, tie_word_embeddings=False)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = make_tokenizer()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name:
                weight.zero_()
        model.get_input_embeddings().weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        for token, logit in habit.items():
            number = tokenizer.convert_tokens_to_ids(token)
            assert isinstance(number, int)
            assert number >= 0, token
            model.lm_head.weight[number] = logit / model.config.hidden_size
    model.save_pretrained(directory)
    return directory


def config(folder: Path, **changes: Any) -> asyncgen.Config:
    plain = {"output_path": folder / "s.jsonl", "use_k_shot": False, "max_attempts": len(ATTEMPTS), "num_stories": None}
    return asyncgen.Config.model_validate(plain | {"max_rejection_rate": 1.0} | changes)


@pytest.mark.parametrize("kind", ["slots", "static"])
@pytest.mark.parametrize("habit", HABITS)
async def test_a_model_with_a_bad_habit(tmp_path: Path, habit: str, kind: str, trials: Trials) -> None:
    wanted = trials(6, 40)
    logits, reason, tokens = HABITS[habit]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Say {number}."}}\n' for number in range(wanted)))
    report = await asyncgen.run(
        config(
            tmp_path,
            model_name=str(model_with(logits, tmp_path / "model")),
            backend={"kind": kind, "device": "cpu"},
            generation={"max_new_tokens": NEW_TOKENS, "batch_size": 4, "temperature": 1.0},
            sources=[{"kind": "jsonl", "path": str(prompts)}],
        )
    )
    assert (report.snapshot.accepted, report.snapshot.rejected) == (0, wanted)
    assert records(tmp_path / "s.jsonl") == []
    for record in records(tmp_path / "s.rejected.jsonl"):
        assert len(record["reasons"]) == len(ATTEMPTS)
        for reasons in record["reasons"]:
            assert reason in {each[: len(reason)] for each in reasons}, reasons
        assert tokens in (-1, record["tokens_generated"])


async def test_the_good_ones_beside_them_are_kept(tmp_path: Path, trials: Trials) -> None:
    """Two of three attempts of echo are too short: which, is known beforehand."""
    wanted, share = trials(300, 5000), 2 / 3
    stories = {"num_stories": wanted, "backend": {"kind": "echo", "bad_share": share}}
    report = await asyncgen.run(config(tmp_path, **stories))
    rejected = {record["metadata"]["index"]: record for record in records(tmp_path / "s.rejected.jsonl")}
    kept = {record["metadata"]["index"]: record for record in records(tmp_path / "s.jsonl")}
    assert report.complete
    assert len(kept) == wanted
    assert set(kept) | set(rejected) == set(range(len(kept) + len(rejected)))
    for index in range(len(kept) + len(rejected)):
        bad = [seeds.sampling_seed(0, index, attempt) * GOLDEN % 2**64 / 2**64 < share for attempt in ATTEMPTS]
        assert (index in rejected) == all(bad)
        if all(bad):
            assert [reasons[0][:11] for reasons in rejected[index]["reasons"]] == ["too short: "] * len(ATTEMPTS)
        else:
            assert kept[index]["metadata"]["attempt"] == bad.index(False) + 1


GOLDEN = 0x9E3779B97F4A7C15
"""What echo spreads seeds with."""
