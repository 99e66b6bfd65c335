"""What the configuration may say about engines: the section ``backend``, one model for each kind."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from asyncgen.config_section import Section

__all__ = ["AutoBackend", "Backend", "EchoBackend", "LocalModel", "SlotsBackend", "StaticBackend"]


class LocalModel(Section):
    """Settings shared by the engines that run a transformers model in this process."""

    device: str = "auto"
    """Where the model runs: `auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps` ...
    `slots` computes on a CPU or a CUDA GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; `auto` is the checkpoint's own on a GPU and float32 on a CPU."""
    device_map: str | dict[str, int | str] | None = None
    """Passed to transformers to spread one model over devices (extra `accelerate`); null keeps it on `device`. `slots`
    wants a model that is on one device."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    quantization: Literal["8bit", "4bit"] | None = None
    """bitsandbytes quantization (needs the extra `quantization`)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code; needs a pinned `revision`: the
    hash of the commit that you read, for a branch may move."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> LocalModel:
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code needs a pinned revision (the 40 hexadecimal digits of a commit's hash)")
        return self


class AutoBackend(LocalModel):
    """The faster of the two local engines that the model allows: `slots`, else `static` and one sentence that says why.
    docs/engines.md compares them.
    """

    kind: Literal["auto"] = "auto"
    """`auto` (`slots` where the model allows it, else `static`), `slots` (our in-flight engine), `static` (works for
    every model) or `echo` (no model at all: for trying things out)."""


class SlotsBackend(LocalModel):
    """Our in-flight engine: a row that ends makes room for the next at once, and what prompts share (examples, system
    prompt) is computed once. A model that it cannot run is refused; `auto` falls back to `static` instead.
    """

    kind: Literal["slots"]
    """`slots`."""


class StaticBackend(LocalModel):
    """`model.generate` on length-sorted batches: works for every transformers causal language model."""

    kind: Literal["static"]
    """`static`."""


class EchoBackend(Section):
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
