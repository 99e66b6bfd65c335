"""Row 15: logits that are not finite in one row. Only that row is rejected; all its neighbours say what they would have
said, whatever cells and pages they take over from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import torch

from asyncgen.backends import open_backend
from asyncgen.records import Completion, Message
from tests.backends.helpers import (
    Wrapped,
    complete,
    config_for,
    make_messages,
    make_model,
    make_prompts,
    make_tokenizer,
    run,
)
from tests.backends.slots.running import opened, said, slots_for

Forward = Callable[..., Any]


def test_a_row_with_nan_logits_fails_alone(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    poison = tokenizer.convert_tokens_to_ids("Q")
    assert isinstance(poison, int)
    # Tied to the output, the poisoned embedding would make that token's logit NaN in every row.
    sick = make_model(tmp_path / "sick", nan_token=poison, tie_word_embeddings=False)
    well = make_model(tmp_path / "well", tie_word_embeddings=False)
    conversations = make_messages(4)
    expected = run(config_for(well, temperature=0.7), conversations)
    conversations[2] = ({"role": "user", "content": "Q"},)
    found = run(config_for(sick, temperature=0.7), conversations)
    assert found[2].finish_reason == "error"
    assert found[2].error.startswith("logits not finite: ")
    assert not found[2].retryable
    for i in (0, 1, 3):
        assert (found[i].text, found[i].finish_reason) == (expected[i].text, expected[i].finish_reason)


def test_a_row_whose_logits_turn_nan_later_may_be_tried_again(llama: Path) -> None:
    steps = 0

    def poison(forward: Forward, **inputs: Any) -> Any:
        nonlocal steps
        out = forward(**inputs)
        if steps == 3:
            out.logits[0, -1, 5] = torch.inf
        steps += 1
        return out

    async def main() -> list[Completion]:
        async with open_backend(config_for(llama)) as backend:
            Wrapped(backend, poison)
            return await complete(backend, make_prompts(backend, make_messages(1), 12))

    [found] = anyio.run(main)
    assert (found.finish_reason, found.retryable, found.tokens) == ("error", True, 3)


def test_a_row_of_nan_fails_alone_and_so_do_its_pages(tmp_path: Path) -> None:
    poison = make_tokenizer().convert_tokens_to_ids("Q")
    assert isinstance(poison, int)
    sick = make_model(tmp_path / "sick", nan_token=poison, tie_word_embeddings=False)
    well = make_model(tmp_path / "well", tie_word_embeddings=False)
    texts = ["a", "Q", "b" * 70, "c" * 70 + "Q", "Q" * 3, "d" * 200]
    conversations = [(Message(role="user", content=texts[i % 6]),) for i in range(24)]
    found = {}
    for directory in (well, sick):

        async def main(directory: Path) -> list[Completion]:
            async with opened(slots_for(directory, batch_size=3, max_new_tokens=70)) as backend:
                return await complete(backend, make_prompts(backend, conversations, 70))

        found[directory] = anyio.run(main, directory)
    for expected, mine in zip(found[well], found[sick], strict=True):
        if "Q" in mine.prompt.messages[0]["content"]:
            assert mine.finish_reason == "error"
            assert mine.error.startswith("logits not finite: ")
            assert not mine.retryable
        elif "Q" in expected.text[:-1]:  # it has said it itself
            assert mine.finish_reason == "error"
        else:
            assert said([mine]) == said([expected])
