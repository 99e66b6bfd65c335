"""Conversations as token rows with a loss weight per token, grouped by length into batches of one token budget.

Weight 0 means "read, not learnt": questions, system messages, noise and padding. Rows are padded on the right and need
no attention mask, because attention looks only back.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from tools.bedtime_tiny import cast, conversation
from tools.bedtime_tiny.conversation import Conversation
from tools.bedtime_tiny.tokenizer import BEGIN, END, PAD, TURN

NAME_WEIGHT = 2.0
NAMES = frozenset(cast.BOYS + cast.GIRLS)


@dataclass(frozen=True)
class Mix:
    """What a phase reads: the number of example turns with their weights, and the shares of unusual things."""

    shots: tuple[int, ...]
    weights: tuple[float, ...]
    unknown: float
    foreign: float
    word_weight: float  # loss weight of the tokens of required words; all other answer tokens weigh 1
    max_length: int  # tokens; longer conversations are dropped


@dataclass(frozen=True)
class Row:
    """One conversation: token ids and the loss weight of each."""

    ids: list[int]
    weights: list[float]


Batch = tuple[torch.Tensor, torch.Tensor]  # ids and weights, both (rows, length)


def _pieces(drawn: Conversation) -> Iterator[tuple[str, str, float, tuple[str, ...]]]:
    """(role, content, weight, words to copy) of each message."""
    if drawn.system:
        yield "system", drawn.system, 0.0, ()
    for turn in drawn.turns:
        yield "user", turn.question, 0.0, ()
        yield "assistant", turn.answer, 1.0 if turn.learn else 0.0, turn.words if turn.learn else ()


def _word_spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where the required words stand, plain inflections included."""
    pattern = r"(?<![a-z])(?:" + "|".join(map(re.escape, words)) + r")(?:e?s|e?d|ing)?(?![a-z])"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)] if words else []


def _name_spans(text: str) -> list[tuple[int, int]]:
    """Where a name comes back after its first mention."""
    spans: list[tuple[int, int]] = []
    met: set[str] = set()
    for match in re.finditer(r"[A-Z][a-z]+", text):
        if match[0] in met:
            spans.append(match.span())
        elif match[0] in NAMES:
            met.add(match[0])
    return spans


class Encoder:
    """Turns conversations into rows; the same ids as the chat template's text would give."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._core = tokenizer.backend_tokenizer
        ids = {token: self._core.token_to_id(token) or 0 for token in (PAD, BEGIN, TURN, END)}
        self._begin, self._turn, self._end, self.pad = ids[BEGIN], ids[TURN], ids[END], ids[PAD]
        self._heads = {role: self._core.encode(f"{role}\n").ids for role in ("system", "user", "assistant")}
        self._newline = self._core.encode("\n").ids

    def row(self, drawn: Conversation, word_weight: float) -> Row:
        """One conversation as a row; required words weigh `word_weight`, repeated names NAME_WEIGHT."""
        ids, weights = [self._begin], [0.0]
        for role, content, weight, words in _pieces(drawn):
            encoded = self._core.encode(content)
            marked = [(span, word_weight) for span in _word_spans(content, words)]
            marked += [(span, NAME_WEIGHT) for span in (_name_spans(content) if weight else ())]
            head = [self._turn, *self._heads[role]]
            ids += [*head, *encoded.ids, self._end, *self._newline]
            weights += [0.0] * len(head)
            for start, end in encoded.offsets:
                weights.append(
                    max((heavy for (low, high), heavy in marked if start < high and low < end), default=weight)
                )
            weights += [weight] + [0.0] * len(self._newline)
        return Row(ids, weights)


def batches(encoder: Encoder, mix: Mix, seed: int, tokens_per_batch: int) -> Iterator[Batch]:
    """Endless batches of about `tokens_per_batch` tokens, rows of like length together, in random order."""
    rng = random.Random(seed)
    while True:
        drawn = (
            conversation.draw(rng, rng.choices(mix.shots, mix.weights)[0], unknown=mix.unknown, foreign=mix.foreign)
            for _ in range(1024)
        )
        rows = [row for item in drawn if len((row := encoder.row(item, mix.word_weight)).ids) <= mix.max_length]
        rows.sort(key=lambda row: len(row.ids))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row.ids) > tokens_per_batch:
                groups.append([])
            groups[-1].append(row)
        groups.pop()  # the last one is not full
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, encoder.pad)


def _padded(rows: Sequence[Row], pad: int) -> Batch:
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    weights = torch.zeros((len(rows), length))
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        weights[at, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights
