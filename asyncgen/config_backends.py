"""What the configuration may say about engines: the section ``backend``, one model for each kind."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from asyncgen.config_section import Parameters, Section

__all__ = ["AutoBackend", "Backend", "EchoBackend", "LocalModel", "OpenAIBackend", "SlotsBackend", "StaticBackend"]

_OURS = {
    *("model", "messages", "prompt", "stream", "stream_options", "n", "best_of", "echo", "seed", "stop"),
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
}
"""Fields of a request that asyncgen sets itself."""


def _is_base_url(url: str) -> str:
    # What is refused is not shown: it may hold a password.
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("found no URL, expected one such as http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("found no URL of a server, expected one such as http://localhost:8000/v1")
    if "@" in parts.netloc:
        raise ValueError("found a user or a password in the URL; name the variable with the key in api_key_env")
    if "?" in url or "#" in url:
        raise ValueError("found a query or a fragment in the URL, expected it to end with its path, such as /v1")
    return url


def _is_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):  # and it is not shown: it may be the key
        raise ValueError("found no name of an environment variable; the key itself belongs into one, never here")
    return name


def _is_extra(body: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(_OURS & body.keys()):
        raise ValueError(f"found {', '.join(taken)}, which asyncgen sets itself")
    return body


_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "mtia", "npu", "mlu", "musa", "xla", "privateuseone")


def _device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|([a-z]+)(:\d+)?", device) or device.partition(":")[0] not in _DEVICES:
        raise ValueError(f"found {device!r}, allowed: auto, cpu, cuda, cuda:1 and so on, mps, xpu")
    return device


class LocalModel(Section):
    """Settings shared by the engines that run a transformers model in this process."""

    device: Annotated[str, AfterValidator(_device)] = "auto"
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

    cuda_graphs: bool = True
    """For `slots` on a CUDA GPU: capture a decode step once and replay it, with kernels of our own for attention and
    sampling. It needs Triton (comes with torch on Linux); where it does not work, or is off, plain torch code does."""
    compile: bool = False
    """With `cuda_graphs`: let `torch.compile` fuse the small operations of the model's layers, which makes the start
    longer."""

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
    every model), `openai` (a server, which wants a `base_url`: docs/servers.md) or `echo` (no model at all: for trying
    things out).
    """


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


class OpenAIBackend(Section):
    """A server that speaks OpenAI's protocol: vLLM, llama.cpp, OpenAI itself and others. `model_name` is the model's
    name there. Needs the extra `openai`; docs/servers.md tells all about it.
    """

    kind: Literal["openai"]
    """`openai`."""
    base_url: Annotated[str, AfterValidator(_is_base_url)]
    """Where the server is, with the path below which `chat/completions` lies: `http://localhost:8000/v1`."""
    api_key_env: Annotated[str, AfterValidator(_is_variable)] | None = None
    """Name of the environment variable that holds the key; null sends none."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 180.0
    """Seconds that one try may take until its answer is there; of an answer that is streamed, until its next piece."""
    patience: Annotated[float, Field(gt=0, le=86_400)] = 420.0
    """Seconds without any answer after which the run stops, resumable; must be more than `timeout`."""
    max_retries: Annotated[int, Field(ge=0, le=1000)] = 5
    """How often a prompt is tried again after failures that may be its own (status 500, a timeout, an answer that is
    cut off or means nothing); a server that is busy or away does not count."""
    seed_bits: Annotated[int, Field(ge=0, le=63)] = 63
    """Low bits of each attempt's seed that are sent as `seed`; 0 sends none. llama.cpp takes 32."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field by which the server takes `generation.max_new_tokens`."""
    extra_body: Annotated[Parameters, AfterValidator(_is_extra)] = {}  # noqa: RUF012  # pydantic copies it
    """Further fields of each request, as the server understands them: `{top_k: -1}`."""

    @model_validator(mode="after")
    def _patience_outlasts_a_try(self) -> OpenAIBackend:
        if self.patience <= self.timeout:
            raise ValueError(
                f"patience ({self.patience:g}) would end the run before a try's timeout ({self.timeout:g}); it must be "
                "more"
            )
        return self


def _kind(section: Any) -> str:
    """Which member of a union of sections is meant; a backend section without a kind is `auto`."""
    return str(section.get("kind", "auto")) if isinstance(section, dict) else str(getattr(section, "kind", ""))


Backend = Annotated[
    Annotated[AutoBackend, Tag("auto")]
    | Annotated[SlotsBackend, Tag("slots")]
    | Annotated[StaticBackend, Tag("static")]
    | Annotated[OpenAIBackend, Tag("openai")]
    | Annotated[EchoBackend, Tag("echo")],
    Discriminator(_kind),
]
