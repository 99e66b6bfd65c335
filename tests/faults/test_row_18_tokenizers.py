"""Row 18: a tokenizer without a chat template, without a pad token, that pads on the right: the documented fallback is
taken and told, or an error names the fix; and in float32 a batch says what ``generate`` makes of each prompt alone.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncgen.backends import open_backend
from asyncgen.backends.chat import PLAIN_STOP
from asyncgen.backends.stops import cut_at_stop
from asyncgen.config import Config
from asyncgen.errors import ModelError
from tests.backends.helpers import CHATML, config_for, make_messages, make_model, make_tokenizer, run
from tests.backends.test_static import generate_alone
from tests.faults.conftest import Trials
from tests.programs import asyncgen, without_torch

NEW = 24
ODD = list(product((CHATML, None), (True, False), ("right", "left"), (False, True)))
"""The chat template, whether there is a pad token, where it pads, whether it puts special tokens around a text."""
QUICK = (0, 5, 12, 15)
"""With all of it; without a pad token; without a template too; on the left."""
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
NO_EXAMPLES = "{% if messages | length > 1 %}{{ raise_exception('one question only') }}{% endif %}" + CHATML


def odd_model(folder: Path, number: int) -> Path:
    template, pad, side, special = ODD[number]
    tokenizer = make_tokenizer(template=template, pad=pad, side=side, bos=special)
    return make_model(folder / str(number), ("llama", "gpt2")[number % 3 == 0], seed=number, tokenizer=tokenizer)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["static", "slots"])
def test_a_batch_says_what_each_prompt_says_alone(tmp_path: Path, engine: str, trials: Trials) -> None:
    conversations = make_messages(5, first=2)
    count = trials(len(QUICK), len(ODD))
    for number in QUICK if count == len(QUICK) else range(len(ODD)):
        model = odd_model(tmp_path, number)
        batch = run(config_for(model, max_new_tokens=NEW, backend={"kind": engine}), conversations)
        single = run(config_for(model, max_new_tokens=NEW, backend={"kind": engine}, batch_size=1), conversations)
        assert [(c.text, c.tokens) for c in batch] == [(c.text, c.tokens) for c in single], ODD[number]
        for completion, messages in zip(batch, conversations, strict=True):
            text, tokens = generate_alone(model, messages, NEW)
            assert cut_at_stop(text, (PLAIN_STOP,)) is None, "then it would be no comparison"
            assert (completion.text, completion.tokens) == (text, tokens), ODD[number]


def notices_of(config: Config) -> tuple[str, ...]:
    async def main() -> tuple[str, ...]:
        async with open_backend(config) as backend:
            return backend.notices

    return anyio.run(main)


@pytest.mark.parametrize("engine", ["static", "slots"])
def test_the_fallback_is_told_where_there_is_no_template(tmp_path: Path, engine: str) -> None:
    model = make_model(tmp_path / "bare", tokenizer=make_tokenizer(template=None))
    (notice,) = notices_of(config_for(model, backend={"kind": engine}))
    assert notice == (
        "The model has no chat template: prompts are written as 'User: ...' and 'Assistant: ...' turns, "
        "and a text ends where the next 'User:' begins."
    )
    whole = make_model(tmp_path / "whole")
    assert notices_of(config_for(whole, backend={"kind": engine})) == ()


@pytest.mark.parametrize(
    ("template", "settings", "said"),
    [
        (NO_SYSTEM, {"system_prompt": "Be kind."}, ("no system here", "hint: set system_prompt to null")),
        (NO_EXAMPLES, {}, ("one question only", "beginning with the user")),
        ("{{ messages[0].content", {}, ("does not take the conversation",)),
    ],
)
def test_a_template_that_takes_no_such_conversation_is_refused_with_the_fix(
    tmp_path: Path, template: str, settings: dict[str, Any], said: tuple[str, ...]
) -> None:
    model = make_model(tmp_path / "model", tokenizer=make_tokenizer(template=template))
    for engine in ("static", "slots"):
        config = config_for(model, backend={"kind": engine}).model_copy(update=settings)
        with pytest.raises(ModelError) as caught:
            notices_of(config)
        for text in said:
            assert text in str(caught.value)


def test_the_command_line_checks_it_without_torch(tmp_path: Path) -> None:
    env = without_torch(tmp_path)
    make_model(tmp_path / "model", context=4096, tokenizer=make_tokenizer(template=NO_SYSTEM))
    done = asyncgen("check", "--model-name", "model", "--set", "system_prompt=Be kind.", cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    assert "no system here" in done.stderr
    assert "hint: set system_prompt to null" in done.stderr
    assert asyncgen("check", "--model-name", "model", cwd=tmp_path, env=env).returncode == 0
