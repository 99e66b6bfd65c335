"""Counts that outlive the process that counts, however it ends: a few numbers in a file that is mapped into memory."""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Tally"]

_BYTES = 8


class Tally:
    """One count for each of ``names``, shared by all who open ``path``; one process at a time counts."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._places = {name: _BYTES * number for number, name in enumerate(names)}
        self._turn = threading.Lock()
        with path.open("a+b") as file:
            file.truncate(_BYTES * len(names))
            self._counts = mmap.mmap(file.fileno(), _BYTES * len(names))

    def add(self, name: str) -> None:
        """Counts one more; in any thread."""
        with self._turn:
            struct.pack_into("<Q", self._counts, self._places[name], self[name] + 1)

    def __getitem__(self, name: str) -> int:
        count: int = struct.unpack_from("<Q", self._counts, self._places[name])[0]
        return count

    def counts(self) -> dict[str, int]:
        """All of them."""
        return {name: self[name] for name in self._places}
