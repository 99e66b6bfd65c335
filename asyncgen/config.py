"""What the configuration may say: frozen pydantic models that refuse what they do not know.

The names are the brief's where it has one. Reading files and overrides is ``config_file.py``'s business; here every
path is already absolute. Knows nothing about torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    field_validator,
    model_validator,
)

from asyncgen.records import Sampling
from asyncgen.resources import BUNDLED_MODEL

__all__ = [
    "AutoBackend",
    "Backend",
    "Config",
    "EchoBackend",
    "FunctionReference",
    "FunctionValidator",
    "Generation",
    "JsonlSource",
    "LocalModel",
    "PythonSource",
    "QualityWeights",
    "Readability",
    "SlotsBackend",
    "Source",
    "StaticBackend",
    "TemplateSource",
    "Validation",
    "may_be_empty",
]

_REFERENCE = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*", re.DOTALL)


def _is_reference(text: str) -> str:
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"found {text!r}, expected module:function, package.module:function or file.py:function")
    return text


FunctionReference = Annotated[str, AfterValidator(_is_reference)]
"""``module:function``, or ``file.py:function`` with the file relative to the configuration."""


def _is_finite(parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(parameters, allow_nan=False)
    except ValueError as error:
        raise ValueError("found a number that is infinite or none; a manifest cannot hold it") from error
    return parameters


Parameters = Annotated[dict[str, JsonValue], AfterValidator(_is_finite)]
"""Passed to a function of the user's by name."""
_Weight = Annotated[float, Field(ge=0, le=1e6)]


def may_be_empty(model: type[BaseModel]) -> Iterator[str]:
    """The fields of ``model`` that are sections with defaults: null in a file is such a section without any key."""
    return (name for name, field in model.model_fields.items() if isinstance(field.default, BaseModel))


def _let_sections_be_null(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Says so in the schema."""
    for name in may_be_empty(model):
        section = schema["properties"][name]
        about = {key: section.pop(key) for key in ("description", "default", "title") if key in section}
        schema["properties"][name] = about | {"anyOf": [section, {"type": "null"}]}


class _Section(BaseModel):
    """Base of every part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        json_schema_extra=_let_sections_be_null,
    )


class LocalModel(_Section):
    """Settings shared by the backends that run a transformers model in this process."""

    device: str = "auto"
    """Where the model runs: `auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps` ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; `auto` is the checkpoint's own on a GPU and float32 on a CPU."""
    device_map: str | dict[str, int | str] | None = None
    """Passed to transformers to spread one model over devices (extra `accelerate`); null keeps it on `device`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    quantization: Literal["8bit", "4bit"] | None = None
    """bitsandbytes quantization (needs the extra `quantization`)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code; needs a pinned `revision`."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> LocalModel:
        if self.trust_remote_code and self.revision is None:
            raise ValueError("trust_remote_code needs a pinned revision (a commit hash)")
        return self


class AutoBackend(LocalModel):
    """The fastest local backend that the model allows."""

    kind: Literal["auto"] = "auto"
    """`auto` (`slots` where the model allows it, else `static`), `slots` (our in-flight engine), `static` (works for
    every model) or `echo` (no model at all: for trying things out)."""


class SlotsBackend(LocalModel):
    """Our in-flight engine: rows that finish make room at once, shared beginnings are computed once."""

    kind: Literal["slots"]
    """`slots`."""


class StaticBackend(LocalModel):
    """`model.generate` on length-sorted batches: works for every transformers causal language model."""

    kind: Literal["static"]
    """`static`."""


class EchoBackend(_Section):
    """A deterministic stand-in for a model, without torch: tests, crash suites, benchmarks of the pipeline."""

    kind: Literal["echo"]
    """`echo`."""
    seconds_per_batch: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Time that a batch takes, in seconds."""
    bad_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of texts, in [0, 1], that are too short to be accepted; drawn from the attempt's sampling seed."""
    distinct: Annotated[int, Field(ge=1)] | None = None
    """Number of different texts it knows, so that repeats occur; null is no limit."""
    context_length: Annotated[int, Field(ge=1)] = 1_000_000
    """Context length it claims, in tokens (it counts words)."""


def _kind(section: Any) -> str:
    """Which member of a union of sections is meant; a backend section without a kind is `auto`."""
    return str(section.get("kind", "auto")) if isinstance(section, dict) else str(getattr(section, "kind", ""))


Backend = Annotated[
    Annotated[AutoBackend, Tag("auto")]
    | Annotated[SlotsBackend, Tag("slots")]
    | Annotated[StaticBackend, Tag("static")]
    | Annotated[EchoBackend, Tag("echo")],
    Discriminator(_kind),
]


class Generation(_Section):
    """How texts are generated."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = 8
    """Rows generated at once; `auto` chooses by the backend and the device."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.8
    """Sampling temperature; 0 always takes the likeliest token, and then an index has one attempt."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the likeliest tokens that together reach this probability; 1.0 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability; 0.0 drops none."""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Above 1.0 makes tokens that prompt or answer already hold less likely, as in CTRL (Keskar et al. 2019) and
    transformers; 1.0 changes nothing."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest text, in tokens."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a generation; they are not part of the result."""

    @property
    def sampling(self) -> Sampling:
        """How a prompt is sampled that does not say so itself."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


class Readability(_Section):
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


class FunctionValidator(_Section):
    """A check of your own, a plain or an async function."""

    function: FunctionReference
    """`module:function`, or `file.py:function` relative to this file: called with a Completion and the parameters."""
    parameters: Parameters = {}
    """Passed to the function by name."""
    name: Annotated[str, Field(min_length=1, pattern=r"^[^:\n]+$")] | None = None
    """What reasons and statistics call it; null is the function's name."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Calls that may be under way at once, beside those that took too long and have not ended."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds that one call may take; longer counts as a failed check."""
    weight: _Weight = 0.0
    """Weight, in the quality score, of the score that it returns."""


class QualityWeights(_Section):
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


class Validation(_Section):
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
    """Lowest quality score, in [0, 1]."""
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


class _Source(_Section):
    """Settings that every kind of source has."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """What records and the dashboard call it (`metadata.source`); null is its kind. No two are called the same."""
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Prompts that it gives in each round of all sources."""


class TemplateSource(_Source):
    """Prompts made from the template, the vocabulary and the story features."""

    kind: Literal["template"]
    """`template`."""


class JsonlSource(_Source):
    """Ready prompts from a JSON Lines file: a `prompt` text or a `messages` list on each line."""

    kind: Literal["jsonl"]
    """`jsonl`."""
    path: Path
    """The file."""


class PythonSource(_Source):
    """Prompts from an async generator function of yours, which begins at item `start`."""

    kind: Literal["python"]
    """`python`."""
    function: FunctionReference
    """`module:function`, or `file.py:function` relative to this file: `async def function(start: int, **parameters)`
    yields a prompt's text, or an object like a line of a JSONL source."""
    parameters: Parameters = {}
    """Passed to the function by name."""


Source = Annotated[TemplateSource | JsonlSource | PythonSource, Field(discriminator="kind")]


class Config(_Section):
    """A run of asyncgen. Every field has a default; the bundled model needs no network."""

    model_name: Annotated[str, Field(min_length=1)] = BUNDLED_MODEL
    """`bedtime-tiny` (the bundled model), a hub id such as `Qwen/Qwen2.5-3B-Instruct`, or a directory."""
    num_stories: Annotated[int, Field(ge=1)] | None = 1000
    """Accepted stories to make; null goes on until the sources end (for ready prompts)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the whole run: words, conditions, examples and sampling follow from it."""
    output_path: Path = Path("stories.jsonl")
    """Accepted stories, one JSON object a line; rejects and the manifest lie beside it."""
    backend: Backend = AutoBackend()
    """What generates."""
    generation: Generation = Generation()
    """Sampling, lengths and batch size."""
    system_prompt: str | None = None
    """First message of every conversation; null sends none (some chat templates then insert their own)."""
    template: str | None = None
    """The prompt's text, or a file that holds it, with {word1}, {word2} ... (as many words as there are such places are
    drawn) and {additional_condition}; null is the built-in template."""
    vocabulary_path: Path | None = None
    """Words, one a line; null is the packaged list."""
    features_path: Path | None = None
    """JSON: {group: [condition, ...]} or [condition, ...]; null is the packaged file."""
    conversation_path: Path | None = None
    """JSON: alternating user and assistant turns for k-shot examples; null is the packaged file."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)] | None = None
    """Where prompts come from, mixed by weight; null is the template."""
    use_k_shot: bool = True
    """Put examples from the conversation in front of each prompt."""
    k_shot_count: Annotated[int, Field(ge=0)] = 2
    """Number of examples in front of each prompt."""
    k_shot_rotate: Annotated[int, Field(ge=0)] = 0
    """Change the examples every this many indices, in a seeded order; 0 always takes the first ones."""
    ensure_diversity: bool = True
    """Use every word of the vocabulary once before any is used twice; false draws words independently."""
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """Attempts at one index before it goes to the rejected file."""
    record_messages: bool = False
    """Put the conversation that the model saw, examples included, into `metadata.messages`."""
    max_rejection_rate: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Stop the run when more than this share of the last 200 decided indices was rejected."""
    window: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Indices planned and not yet decided, at most (never below twice the rows); null is 4 x rows x max_attempts (of
    which at most 8 count), at least 256."""
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = 20.0
    """Seconds that a run which is stopped may take to finish what was begun; then it ends within a decode step."""
    validation: Validation = Validation()
    """What a story must fulfil."""

    @field_validator("sources")
    @classmethod
    def _sources_are_told_apart(cls, sources: tuple[Source, ...] | None) -> tuple[Source, ...] | None:
        if sum(source.kind == "template" for source in sources or ()) > 1:
            raise ValueError("two sources are the template and would give the same prompts; keep one, and weigh it")
        names = Counter(source.name or source.kind for source in sources or ())
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"{names[twice[0]]} sources are called {twice[0]!r}; give each a `name` of its own")
        return sources

    @model_validator(mode="after")
    def _stories_can_be_long_enough(self) -> Config:
        if self.validation.enabled and self.generation.max_new_tokens < self.validation.min_words:
            raise ValueError(
                f"generation.max_new_tokens ({self.generation.max_new_tokens}) leaves no room for "
                f"validation.min_words ({self.validation.min_words})"
            )
        return self

    @property
    def shots(self) -> int:
        """Examples in front of each prompt, both switches considered."""
        return self.k_shot_count if self.use_k_shot else 0

    @property
    def attempts(self) -> int:
        """Attempts an index has: one at temperature 0, where another could not differ."""
        return 1 if self.generation.temperature == 0 else self.max_attempts

    def resolved(self) -> dict[str, Any]:
        """The configuration as plain JSON values, defaults included."""
        return self.model_dump(mode="json")
