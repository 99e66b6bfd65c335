"""Finds the model that a configuration names and refuses what obviously cannot work, without torch or transformers.

``loading.py`` finds out what only transformers can tell: whether a hub model exists, whether its code is known.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from asyncgen.config import Config, LocalModel, OpenAIBackend
from asyncgen.errors import ConfigError, ModelError
from asyncgen.paths import expanded, is_dir
from asyncgen.resources import BUNDLED_MODEL, bundled_model

__all__ = ["INSTALL", "api_key", "cautions", "check_model", "locate"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_ID_LENGTH = 96
INSTALL = "in a clone of asyncgen: pip install -c constraints.txt -e"
"""How to get the packages of an extra, whose name follows (``'.[serve]'``)."""
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_PATTERNS = ("tokenizer.*", "vocab*", "*.model", "*.spm", "tekken.json")


def check_model(config: Config) -> None:
    """Raises ModelError for a model that cannot be loaded: an absent or incomplete directory, something that is no
    hub id, a hub model that is not cached while offline mode is on, an optional package that is missing.

    Reads names of files and the index of the weights, and nothing else; takes milliseconds. The echo backend needs no
    model, and which models a server has is known to the server alone.
    """
    if isinstance(config.backend, OpenAIBackend):
        _check_client()
    if not isinstance(config.backend, LocalModel):
        return
    place = locate(config.model_name)
    if isinstance(place, Path):
        _check_directory(place)
    else:
        _check_cache(place)
    _check_packages(config.backend)


def api_key(config: Config) -> str | None:
    """The key for the server that ``config`` names; None for another engine, and where no key is to be sent.

    Raises ConfigError, which never shows the key, if the variable that is to hold it does not, or holds what cannot be
    sent.
    """
    if not isinstance(config.backend, OpenAIBackend) or (name := config.backend.api_key_env) is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"backend.api_key_env: the environment variable {name} is {'empty' if name in os.environ else 'not set'}",
            hint=f"set {name} to the key of {config.backend.base_url}; null sends none",
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(
            f"backend.api_key_env: the environment variable {name} holds characters that cannot be sent in a header",
            hint="a key is of ASCII letters, digits and signs, without spaces",
        )
    return key


def cautions(config: Config) -> tuple[str, ...]:
    """Sentences on what will hardly work, or is hardly meant, although nothing forbids it."""
    backend = config.backend
    if isinstance(backend, OpenAIBackend):
        if backend.api_key_env is None or _is_private(backend.base_url):
            return ()
        return (f"the key in {backend.api_key_env} goes to {backend.base_url} unencrypted: http, and not this machine",)
    uses_model = isinstance(config.backend, LocalModel)
    own_prompts = config.template is not None or config.sources is not None
    if uses_model and own_prompts and config.model_name == BUNDLED_MODEL:
        return (f"{BUNDLED_MODEL} is a toy: expect nonsense with prompts that are not like the built-in template's",)
    return ()


def locate(model_name: str) -> Path | str:
    """The directory that ``model_name`` means, or the hub id that it is. Raises ModelError if it is neither.

    A name that could be either is a directory if that exists.
    """
    if model_name == BUNDLED_MODEL:
        return bundled_model()
    directory = expanded(model_name)
    if is_dir(directory):
        return directory.resolve()
    if _looks_like_path(model_name):
        raise ModelError(
            f"model not found: there is no directory {str(directory.absolute())!r}",
            hint="model_name is a directory, a hub id such as Qwen/Qwen2.5-3B-Instruct, or bedtime-tiny",
        )
    if "/" not in model_name and get_close_matches(model_name, [BUNDLED_MODEL], cutoff=0.8):
        raise ModelError(f"model not found: {model_name!r}; did you mean {BUNDLED_MODEL!r}, the bundled model?")
    if (
        len(model_name) > _HUB_ID_LENGTH
        or not _HUB_ID.fullmatch(model_name)
        or ".." in model_name
        or "--" in model_name
    ):
        raise ModelError(
            f"model not found: {model_name!r} is neither a directory nor a possible hub id",
            hint="a hub id is name or owner/name, of letters, digits, '-', '_' and '.'",
        )
    return model_name


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise ModelError(f"model not found: there is no directory {str(directory)!r}", hint="reinstall asyncgen")
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"no model in {str(directory)!r}: there is no config.json",
            hint="name the directory that save_pretrained wrote",
        )
    if not any(directory.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLE_PATTERNS for path in directory.glob(pattern))
        raise ModelError(
            f"no usable weights in {str(directory)!r}: there is no *.safetensors file"
            + (f", only {', '.join(pickles)}" if pickles else ""),
            hint="pickled weights can run code when they are loaded; convert them to safetensors" if pickles else None,
        )
    for path in sorted(directory.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"no model in {str(directory)!r}: {path.name} is a pipe or a device, which may never end")
    _check_index(directory)
    if not any(any(directory.glob(pattern)) for pattern in _TOKENIZER_PATTERNS):
        raise ModelError(
            f"no tokenizer in {str(directory)!r}: there is no tokenizer.json, tokenizer.model or vocab file",
            hint="save the tokenizer beside the model with tokenizer.save_pretrained",
        )


def _check_index(directory: Path) -> None:
    """Weights in several files: the index may name no file elsewhere, and none that is pickled."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ModelError(f"{index}: not an index of weights: {type(error).__name__}: {error}") from error
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: it names {name!r}; weights are *.safetensors files in the same folder",
                hint="pickled weights can run code when they are loaded; save the model again with save_pretrained",
            )


def _check_cache(hub_id: str) -> None:
    """With offline mode on, a hub model must be in the cache; the environment variables are huggingface_hub's."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in {"1", "ON", "YES", "TRUE"}:
        return
    folder = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    if not folder.is_dir():
        raise ModelError(
            f"model not found: {hub_id!r} is neither a directory nor in the cache {str(folder.parent)!r}, "
            "and HF_HUB_OFFLINE forbids to download it",
            hint="unset HF_HUB_OFFLINE once, or name a directory",
        )


def _hub_cache() -> Path:
    environment = os.environ.get
    home = environment("HF_HOME") or Path(environment("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(environment("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _is_private(url: str) -> bool:
    """Whether what is sent there is encrypted, or does not leave this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def _check_client() -> None:
    if find_spec("openai") is None:
        raise ModelError(
            "the backend openai needs the package openai", hint=f"{INSTALL} '.[openai]'", key="backend.kind"
        )


def _check_packages(backend: LocalModel) -> None:
    if backend.quantization is not None and find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization {backend.quantization} needs the package bitsandbytes",
            hint=f"{INSTALL} '.[quantization]'",
            key="backend.quantization",
        )
    if backend.device_map is not None and find_spec("accelerate") is None:
        hint = f"{INSTALL} '.[accelerate]'"
        raise ModelError("device_map needs the package accelerate", hint=hint, key="backend.device_map")
