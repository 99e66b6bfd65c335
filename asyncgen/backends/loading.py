"""Loads a model and its tokenizer with transformers, or says what is wrong with them. Imports torch: import it late.

Safe by default: weights come from safetensors only, Python code that lies beside a model is not run, and neither an
attention implementation nor generation settings are taken from the model's files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from anyio import from_thread
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from asyncgen.backends.chat import Chat
from asyncgen.backends.find import locate
from asyncgen.backends.hub import ask
from asyncgen.backends.model_files import POSITION_FIELDS
from asyncgen.config import Config, LocalModel
from asyncgen.errors import ConfigError, ModelError

_log = logging.getLogger(__name__)

__all__ = ["Loaded", "load", "load_chat"]

_LOADING = Lock()
_PATIENCE = 0.1
_NO_LIMIT = 1_000_000
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to generate, and what must be known of it."""

    model: Any
    """A transformers causal language model, in evaluation mode."""
    tokenizer: Any
    device: torch.device
    """Where its inputs go."""
    context_length: int
    """Tokens of prompt and answer together, at most."""
    embeddings: int
    """Token ids it knows: those below this number."""
    eos_ids: frozenset[int]
    """End-of-text tokens, as named by the model and by its tokenizer."""
    pad_id: int
    revision: str | None
    """The commit of a hub model; None for a directory."""


def load(config: Config, backend: LocalModel, *, cached_only: bool = False) -> Loaded:
    """Loads what ``config.model_name`` means, of a hub model ``cached_only`` what is in the cache. Blocks, for seconds
    or (a download) minutes.

    Raises ModelError naming what was looked for, and ConfigError for a device that is not there or a
    ``max_new_tokens`` that leaves no room for a prompt. The model's own generation settings are replaced, for
    ``generate`` merges them even into explicit ones; only its end and pad ids are kept.
    """
    place = locate(config.model_name)
    device = _device(backend)
    began = perf_counter()
    with _one_at_a_time(), _explained(config.model_name, place, cached_only=cached_only), _quiet():
        common = _common(backend, cached_only=cached_only)
        tokenizer = AutoTokenizer.from_pretrained(place, **common)
        model, info = _load_model(place, device, backend, common)
        if backend.device_map is None and backend.quantization is None:
            model.to(device)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the checkpoint {str(place)!r} lacks {len(missing)} of the model's weights, {missing[0]!r} among them",
            hint="they would be random numbers; save the model again, or correct its config.json",
        )
    loaded = _describe(model.eval(), tokenizer, config, _commit(place, backend.revision))
    took = perf_counter() - began
    where = (loaded.device, model.dtype, loaded.context_length)
    _log.info("%s loaded in %.1f s: on %s, %s, context of %d tokens", config.model_name, took, *where)
    return loaded


def load_chat(config: Config, backend: LocalModel) -> tuple[Chat, int]:
    """The tokenizer alone, and the context length; a hub model's are downloaded if need be, its weights are not.

    Raises ModelError.
    """
    place = locate(config.model_name)
    cached_only = isinstance(place, str) and bool(ask(place, backend.revision).unreachable)
    with _one_at_a_time(), _explained(config.model_name, place, cached_only=cached_only), _quiet():
        common = _common(backend, cached_only=cached_only)
        model = AutoConfig.from_pretrained(place, **common)
        chat = Chat(AutoTokenizer.from_pretrained(place, **common), config.generation.stop)
    return chat, _context_length(model)


def _common(backend: LocalModel, *, cached_only: bool) -> dict[str, Any]:
    """What everything is loaded with. Code that a model takes from another repository is pinned too, or not found."""
    common: dict[str, Any] = {"revision": backend.revision, "trust_remote_code": backend.trust_remote_code}
    common |= {"local_files_only": True} if cached_only else {}
    return common | ({"code_revision": backend.revision} if backend.trust_remote_code else {})


def _commit(place: Path | str, revision: str | None) -> str | None:
    """The commit that a hub model was loaded from, as the cache has it by now."""
    if isinstance(place, Path):
        return None
    file = cached_file(place, "config.json", revision=revision, local_files_only=True)
    commit: str | None = extract_commit_hash(file, None)
    return commit


def _device(backend: LocalModel) -> torch.device:
    if backend.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(backend.device)
    except RuntimeError as error:
        raise ConfigError(
            f"backend.device: {backend.device!r} is no device",
            hint="auto, cpu, cuda, cuda:1, mps ...",
            key="backend.device",
        ) from error
    if device.type == "meta" or (device.type == "mps" and not torch.backends.mps.is_available()):
        message = f"backend.device: {backend.device!r} is not there"
        raise ConfigError(message, hint="use auto or cpu", key="backend.device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"backend.device: {backend.device!r} is not there; torch sees {torch.cuda.device_count()} GPUs",
            hint="use auto or cpu, or install a torch built for your GPU",
            key="backend.device",
        )
    return device


def _load_model(
    place: Path | str, device: torch.device, backend: LocalModel, common: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' loading report. ``eager`` attention on the CPU: see static.py on sameness."""
    on_cpu = device.type == "cpu"
    arguments: dict[str, Any] = {
        "dtype": "float32" if backend.dtype == "auto" and on_cpu else backend.dtype,
        "device_map": backend.device_map,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    if backend.quantization is not None:
        bits = {f"load_in_{backend.quantization}": True}
        arguments["quantization_config"] = BitsAndBytesConfig(**bits)  # type: ignore[no-untyped-call]  # transformers is typed in parts
        arguments["device_map"] = backend.device_map or {"": device}
    if not on_cpu:
        with suppress(ValueError):  # models without sdpa say so before any weight is read
            return _pretrained(place, "sdpa", common, arguments)
    return _pretrained(place, "eager", common, arguments)


def _pretrained(
    place: Path | str, attention: str, common: dict[str, Any], arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    # Read beforehand: from a config.json read by the model class itself, an attention implementation would outweigh the
    # argument, and a name with a slash in it makes transformers fetch code from the hub (seen with 5.23).
    config = AutoConfig.from_pretrained(place, **common)
    _check_layers(config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        place, config=config, attn_implementation=attention, **common, **arguments
    )
    model, info = loaded
    return model, info


def _check_layers(config: Any) -> None:
    """A number in a file costs a module each: ten million layers would take the machine before any weight is missed."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
    if isinstance(layers, int) and not 1 <= layers <= _MOST_LAYERS:
        raise ValueError(f"config.json has {layers} layers; 1 to {_MOST_LAYERS} are possible")


def _describe(model: Any, tokenizer: Any, config: Config, revision: str | None) -> Loaded:
    context = _context_length(model.config)
    if config.generation.max_new_tokens >= context:
        raise ConfigError(
            f"generation.max_new_tokens: {config.generation.max_new_tokens} leaves no room for a prompt in the context "
            f"of {config.model_name!r}, {context} tokens",
            hint=f"at most {context - 1}, less the length of your prompts",
        )
    eos = _ids(model.generation_config) | _ids(model.config) | _ids(tokenizer)
    embeddings = int(model.get_input_embeddings().num_embeddings)
    pads = (tokenizer.pad_token_id, getattr(model.generation_config, "pad_token_id", None), *sorted(eos), 0)
    pad = next(pad for pad in pads if pad is not None and 0 <= pad < embeddings)
    kept = {"eos_token_id": sorted(eos) or None, "pad_token_id": pad}
    model.generation_config = GenerationConfig(**kept)  # type: ignore[no-untyped-call]  # transformers is typed in parts
    return Loaded(model, tokenizer, model.device, context, embeddings, eos, pad, revision)


def _context_length(config: Any) -> int:
    """As the model's configuration has it; a million for models without a limit of their own."""
    text_config = config.get_text_config(decoder=True)
    lengths = (getattr(text_config, field, None) for field in POSITION_FIELDS)
    return next((length for length in lengths if isinstance(length, int) and length > 0), _NO_LIMIT)


def _ids(source: Any) -> frozenset[int]:
    """The end-of-text ids that a configuration or a tokenizer names: one, several or none."""
    ids = getattr(source, "eos_token_id", None)
    return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Loading is a matter of the whole process: transformers replaces methods of its classes meanwhile (weights are
    not tied, or not initialised), and two loads that overlap would leave them replaced for ever. Waits for another
    load to end, looking for cancellation.
    """
    while not _LOADING.acquire(timeout=_PATIENCE):
        from_thread.check_cancelled()
    try:
        yield
    finally:
        _LOADING.release()


@contextmanager
def _explained(model_name: str, place: Path | str, *, cached_only: bool) -> Iterator[None]:
    """Turns whatever transformers raises about a model into a ModelError that names it."""
    try:
        yield
    except ImportError as error:
        raise ModelError(f"the model {model_name!r} needs a package that is missing: {error}") from error
    except Exception as error:  # loading runs a lot of code of others, whose errors have no common base
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise ModelError(
                f"the model {model_name!r} needs Python code of its own, which is not run",
                hint="read that code first; then set backend.trust_remote_code and pin backend.revision",
            ) from error
        what = f"directory {str(place)!r}" if isinstance(place, Path) else f"hub model {place!r}"
        hint = None if isinstance(place, Path) else "check the name, the network and (for a gated model) HF_TOKEN"
        if cached_only:
            hint = "the hub could not be reached, and not all that is needed may be in the cache; check the network"
        raise ModelError(f"the model cannot be loaded from {what}: {text}", hint=hint) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars while loading. They are a switch of the process, so it is put back; no argument does it."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is typed in parts
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is typed in parts
