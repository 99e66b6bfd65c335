"""What a run will take, reckoned beforehand: different prompts, tokens, bytes on disk. Pure arithmetic, and each number
says whether it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asyncgen.config import Config

__all__ = ["TOKENS_PER_WORD", "Distinct", "Tokens", "bytes_per_record", "count_distinct", "longest_words", "of_lengths"]

TOKENS_PER_WORD = 1.35
"""Of English text, in the tokenizers of today's models; what is reckoned with it is called "about"."""
_RECORD_BYTES = 500
"""Of a record's keys and figures, its text apart."""
_BYTES_PER_WORD = 5.5


@dataclass(frozen=True, slots=True)
class Distinct:
    """How many prompts of a template differ."""

    words: int
    """Choices of words, their order counted; 1 for a template without words."""
    conditions: int
    """Different conditions; 1 for a template without."""
    examples: int
    """Choices of examples that the run comes by; 1 where they never change."""
    round: int | None
    """With diversity: prompts in which every word of the vocabulary is used once. None without."""

    @property
    def prompts(self) -> int:
        """All combinations."""
        return self.words * self.conditions * self.examples


@dataclass(frozen=True, slots=True)
class Tokens:
    """Lengths of prompts, from a sample."""

    exact: bool
    """Counted by the model's tokenizer; else words x ``TOKENS_PER_WORD``."""
    sample: int
    """Prompts that were looked at."""
    fewest: int
    mean: float
    most: int


def count_distinct(config: Config, *, words: int, places: int, conditions: int, examples: int) -> Distinct:
    """The prompts that a template can make: ``places`` different words of ``words``, one of ``conditions`` different
    conditions, and ``config.shots`` of ``examples``.
    """
    choices = math.perm(examples, config.shots) if config.k_shot_rotate else 1
    if config.k_shot_rotate and config.num_stories is not None:
        choices = min(choices, math.ceil(config.num_stories / config.k_shot_rotate))
    return Distinct(
        words=math.perm(words, places),
        conditions=max(1, conditions),
        examples=choices,
        round=math.ceil(words / places) if places and config.ensure_diversity else None,
    )


def of_lengths(lengths: Sequence[int], *, exact: bool) -> Tokens | None:
    """The lengths of a sample in short; None for an empty one."""
    if not lengths:
        return None
    return Tokens(exact, len(lengths), min(lengths), sum(lengths) / len(lengths), max(lengths))


def bytes_per_record(config: Config) -> int:
    """About how long a line of the stories will be: a text in the middle of what is allowed."""
    validation = config.validation
    words = longest_words(config)
    if validation.enabled:
        words = min(words, (validation.min_words + validation.max_words) / 2)
    return round(_RECORD_BYTES + _BYTES_PER_WORD * words)


def longest_words(config: Config) -> float:
    """About how many words ``max_new_tokens`` hold."""
    return config.generation.max_new_tokens / TOKENS_PER_WORD
