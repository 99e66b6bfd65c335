"""What the configuration may say: frozen pydantic models that refuse what they do not know.

The names are the brief's where it has one. Reading files and overrides is ``config_file.py``'s business; here every
path is already absolute. Knows nothing about torch. Everybody imports the models from here; those of the larger
sections are written down in ``config_backends.py``, ``config_sources.py`` and ``config_validation.py``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from asyncgen.config_backends import (
    AutoBackend,
    Backend,
    EchoBackend,
    LocalModel,
    OpenAIBackend,
    SlotsBackend,
    StaticBackend,
)
from asyncgen.config_section import FunctionReference, Section, may_be_empty, without_secrets
from asyncgen.config_server import Server, is_loopback
from asyncgen.config_sources import JsonlSource, PythonSource, Source, TemplateSource
from asyncgen.config_validation import FunctionValidator, QualityWeights, Readability, Validation
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
    "OpenAIBackend",
    "PythonSource",
    "QualityWeights",
    "Readability",
    "Server",
    "SlotsBackend",
    "Source",
    "StaticBackend",
    "TemplateSource",
    "Validation",
    "check_config",
    "is_loopback",
    "may_be_empty",
    "without_secrets",
]


class Generation(Section):
    """How texts are generated."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = 8
    """Rows generated at once: slots of `slots`, rows of a batch of `static`, requests in flight of `openai` at most.
    `auto` is 128 for `slots` on a CPU, 512 on a GPU, fewer if memory holds fewer; for `static` 16 on a CPU, and on a
    GPU what its memory holds; 64 for `openai`."""
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


class Config(Section):
    """A run of asyncgen. Every field has a default; the bundled model needs no network."""

    model_name: Annotated[str, Field(min_length=1)] = BUNDLED_MODEL
    """`bedtime-tiny` (the bundled model), a hub id such as `Qwen/Qwen2.5-3B-Instruct`, or a directory; of a server, the
    name that the model has there."""
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
    watchdog: Annotated[float, Field(gt=0, le=86_400)] | None = 600.0
    """Seconds without progress (no token, verdict or record) after which `asyncgen run` prints where every thread and
    task stands and ends with exit code 75, resumable; null waits for ever. Before and after the generating, each step
    and whatever is read or written is progress, so a large model may take its time to load."""
    validation: Validation = Validation()
    """What a story must fulfil."""
    server: Server = Server()
    """How `asyncgen serve` answers other programs."""

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

    @model_validator(mode="after")
    def _watchdog_is_the_most_patient(self) -> Config:
        waits = {
            f"sources[{place}].timeout": getattr(each, "timeout", None) for place, each in enumerate(self.sources or ())
        }
        waits |= {f"backend.{name}": getattr(self.backend, name, None) for name in ("timeout", "patience")}
        waits |= {
            f"validation.functions[{at}].timeout": each.timeout for at, each in enumerate(self.validation.functions)
        }
        for key, seconds in waits.items():
            if seconds is not None and self.watchdog is not None and self.watchdog <= seconds:
                raise ValueError(
                    f"watchdog ({self.watchdog:g}) would end the run before {key} ({seconds:g}) does; it must be more"
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
        """The configuration as plain JSON values, defaults included; secrets among parameters are hidden."""
        return {name: without_secrets(value) for name, value in self.model_dump(mode="json").items()}


def check_config(value: object) -> None:
    """Raises TypeError for anything else than a Config."""
    if not isinstance(value, Config):
        raise TypeError(
            f"config: found {type(value).__name__}, expected a Config; asyncgen.load_config(path) reads one from a file"
        )
