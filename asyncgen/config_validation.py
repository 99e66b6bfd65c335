"""What the configuration may say about the checks: the section ``validation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from asyncgen.config_section import FunctionReference, Parameters, Section

__all__ = ["FunctionValidator", "QualityWeights", "Readability", "Validation"]

_Weight = Annotated[float, Field(ge=0, le=1e6)]


class Readability(Section):
    """How hard a text is to follow for a small child. Signals, not judgements: all limits are off unless set."""

    max_sentence_words: Annotated[int, Field(ge=1)] | None = None
    """Longest sentence, in words."""
    max_mean_sentence_words: Annotated[float, Field(gt=0)] | None = None
    """Mean length of a sentence, in words."""
    max_mean_syllables: Annotated[float, Field(ge=1)] | None = None
    """Mean syllables of a word, estimated by where pyphen hyphenates it."""
    max_grade: float | None = None
    """Highest Flesch-Kincaid grade level (US school years; below 1 is easier than first grade)."""
    min_known_words: Annotated[float, Field(ge=0, le=1)] | None = None
    """Smallest share of a text's words, in [0, 1], that are known; names and the selected words count as known."""
    known_words_path: Path | None = None
    """Known words, one a line; null is the packaged list of words that small children know."""
    language: str = "en_US"
    """Hyphenation dictionary of pyphen by which syllables are counted."""


class FunctionValidator(Section):
    """A check of your own, a plain or an async function."""

    function: FunctionReference
    """`module:function`, or `file.py:function` relative to this file: called with a Completion and the parameters."""
    parameters: Parameters = Field({})
    """Passed to the function by name."""
    name: Annotated[str, Field(min_length=1, pattern=r"^[^:\n]+$")] | None = None
    """What reasons and statistics call it; null is the function's name."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Calls that may be under way at once, beside those that took too long and have not ended."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds that one call may take; longer counts as a failed check."""
    weight: _Weight = 0.0
    """Weight, in the quality score, of the score that it returns."""


class QualityWeights(Section):
    """Weights of the quality score, which is the weighted mean of scores in [0, 1]. They need not add up to 1."""

    length: _Weight = 0.25
    """1 within the bounds, else the share of the nearer bound that is reached or kept."""
    words: _Weight = 0.30
    """Share of the selected words that occur."""
    ending: _Weight = 0.15
    """1 if the text reached its end with a closed sentence, else 0."""
    variety: _Weight = 0.15
    """Share of the word 4-grams that do not repeat an earlier one."""
    originality: _Weight = 0.15
    """Share of the different word 4-grams that occur in no k-shot answer."""
    readability: _Weight = 0.0
    """1 for a Flesch-Kincaid grade of 3 or less, 0 for 9 or more, linear between."""


class Validation(Section):
    """What a story must fulfil. Each check gives reasons; together they make a quality score."""

    enabled: bool = True
    """False accepts every text there is, repeats too, with quality 1.0."""

    min_words: Annotated[int, Field(ge=0)] = 30
    """Fewest words."""
    max_words: Annotated[int, Field(ge=1)] = 150
    """Most words."""
    require_words: bool = True
    """All selected words must occur, as they are or simply inflected (dance, danced, dancing)."""
    require_ending: bool = True
    """The text must have reached its end, with its last sentence closed."""
    max_repetition: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Largest share of word 4-grams that may repeat earlier ones of the same text; 1.0 switches the check off."""
    copy_words: Annotated[int, Field(ge=0)] = 8
    """Refuse a text that shares this many words in a row with a k-shot answer; 0 switches the check off."""
    banned_words: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Words or phrases that must not occur, as they are or simply inflected (`kill`: kills, killed); case and
    typography aside. Where only an exact form is meant, use `forbid_patterns`."""
    banned_words_path: Path | None = None
    """More of them in a file, one a line."""
    forbid_patterns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Regular expressions (of the package `regex`) that must match nowhere in the text; `(?i)` ignores case, `\\b` is
    the edge of a word."""
    require_patterns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Regular expressions that must match somewhere in the text."""
    readability: Readability = Readability()
    """Sentence length, syllables, school grade and known words."""
    functions: tuple[FunctionValidator, ...] = ()
    """Checks of your own, asked about texts that nothing else speaks against."""
    reject_repeats: bool = True
    """Refuse a text equal (case, spacing and punctuation aside) to an earlier story of the run."""
    min_quality: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Lowest quality score, in [0, 1]. What passes the other checks with their defaults scores 0.8 or more, so the
    default refuses nothing by itself."""
    weights: QualityWeights = QualityWeights()
    """Weights of the quality score."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Validation:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is greater than max_words ({self.max_words})")
        return self

    @model_validator(mode="after")
    def _something_weighs(self) -> Validation:
        weights = {f"weights.{name}": weight for name, weight in self.weights.model_dump().items()}
        weights |= {f"functions[{k}].weight": each.weight for k, each in enumerate(self.functions)}
        if not any(weights.values()):
            raise ValueError(f"the quality score has no weight: {', '.join(weights)} are all 0; one must be more")
        return self
