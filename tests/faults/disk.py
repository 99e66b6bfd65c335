"""A disk under the real one's eyes: every write, fsync, truncate, rename and open in a folder is shown to a hook first,
which may let it fail, or make a write short.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiofiles.threadpool

OPERATIONS = ("write", "fsync", "truncate", "rename", "open")

Hook = Callable[[str, Path, int], int | None]
"""Told an operation, the file or folder, and of a write the number of bytes; how many of these are to be written, or
None. Raises OSError if the operation is to fail.
"""


class _File(io.FileIO):
    """A file whose writes and cuts are shown."""

    def __init__(self, path: Path, mode: str, hook: Hook) -> None:
        self._path, self._hook = path, hook
        super().__init__(path, mode)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        most = self._hook("write", self._path, len(view))
        return super().write(view if most is None else view[:most])

    def truncate(self, size: int | None = None, /) -> int:
        self._hook("truncate", self._path, 0)
        return super().truncate(size)


@contextmanager
def shown(folder: Path, hook: Hook) -> Iterator[None]:
    """Shows what is done in ``folder``, and to it, to ``hook``, in whatever thread."""
    folder = folder.resolve()
    paths: dict[int, Path] = {}
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "truncate", "open")}

    def inside(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and folder in (Path(path), *Path(path).parents)

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        if not inside(file):
            return real_open(file, mode, buffering, *more, **options)
        hook("open", Path(file), 0)
        if mode.strip("b") in ("", "r"):
            return real_open(file, mode, buffering, *more, **options)
        assert "b" in mode, "the output is written in bytes"
        raw = _File(Path(file), mode, hook)
        paths[raw.fileno()] = Path(file)
        return raw if buffering == 0 else io.BufferedWriter(raw)

    def open_descriptor(path: Any, *arguments: Any, **options: Any) -> int:
        if inside(path):
            hook("open", Path(path), 0)
        descriptor = int(real["open"](path, *arguments, **options))
        paths[descriptor] = Path(path)
        return descriptor

    def fsync(descriptor: int) -> None:
        if inside(paths.get(descriptor)):
            hook("fsync", paths[descriptor], 0)
        real["fsync"](descriptor)

    def on_path(name: str, operation: str) -> Callable[..., object]:
        def call(path: Any, *arguments: Any, **options: Any) -> object:
            if inside(path):
                hook(operation, Path(path), 0)
            return real[name](path, *arguments, **options)

        return call

    ours: dict[str, Any] = {
        "fsync": fsync,
        "open": open_descriptor,
        "replace": on_path("replace", "rename"),
        "rename": on_path("rename", "rename"),
        "truncate": on_path("truncate", "truncate"),
    }
    real_open, openers = io.open, ((io, "open"), (aiofiles.threadpool, "sync_open"))  # pathlib opens by the first
    try:
        for name, function in ours.items():
            setattr(os, name, function)
        for module, name in openers:
            setattr(module, name, open_file)
        yield
    finally:
        for module, name in openers:
            setattr(module, name, real_open)
        for name, function in real.items():
            setattr(os, name, function)


class FailAt:
    """Lets the ``at``-th of one kind of operation fail with ``number``, and if it is ``lasting`` all that follow too.
    ``short``: a half of the ``at``-th write is done, without an error. ``cuts``: from then on nothing can be cut.
    """

    def __init__(
        self, operation: str, at: int, number: int, *, lasting: bool = False, short: bool = False, cuts: bool = False
    ) -> None:
        self._operation, self._at, self._number = operation, at, number
        self._lasting, self._short, self._cuts = lasting, short, cuts
        self.counts: Counter[str] = Counter()

    @property
    def reached(self) -> bool:
        """Whether it came to that."""
        return self.counts[self._operation] >= self._at

    def __call__(self, operation: str, path: Path, size: int) -> int | None:
        self.counts[operation] += 1
        count = self.counts[operation]
        fails = self._cuts and self.reached and operation == "truncate"
        if operation == self._operation and count >= self._at:
            if self._short and count == self._at and size > 1:
                return size // 2
            fails = fails or self._lasting or count == self._at
        if fails:
            raise OSError(self._number, os.strerror(self._number), str(path))
        return None
