"""SHA-256 of what a run is made from: texts, files and model directories. A path never enters a hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypedDict

from asyncgen.errors import DataError

__all__ = ["Content", "content_of"]

_CHUNK = 1 << 20
_MODEL_FILES = frozenset(
    (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".safetensors", ".bin", ".gguf", ".pt", ".pth")
)


class Content(TypedDict):
    """What stands for an input in a fingerprint."""

    sha256: str
    bytes: int


def content_of(source: Path | str, first: int | None = None) -> Content:
    """The content of a text, of a file (of its ``first`` bytes only, if given), or of a model directory.

    Of a directory count the files that a model is loaded from (configuration, tokenizer, chat templates, weights),
    by their names inside it; notes and hidden files do not. Raises DataError if something cannot be read.
    """
    if isinstance(source, str):
        data = source.encode("utf-8", "surrogatepass")
        return Content(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    try:
        return _of_folder(source) if source.is_dir() else _of_file(source, first)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error


def _of_file(path: Path, first: int | None = None) -> Content:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        while first is None or size < first:
            chunk = file.read(_CHUNK if first is None else min(_CHUNK, first - size))
            if not chunk:
                break
            digest.update(chunk)
            size += len(chunk)
    return Content(sha256=digest.hexdigest(), bytes=size)


def _of_folder(folder: Path) -> Content:
    digest = hashlib.sha256()
    size = 0
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if _belongs(path, folder)}
    for name, path in sorted(names.items()):
        content = _of_file(path)
        digest.update(f"{content['sha256']} {name}\n".encode())
        size += content["bytes"]
    return Content(sha256=digest.hexdigest(), bytes=size)


def _belongs(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in _MODEL_FILES and not hidden and path.is_file()
