"""Questions about paths that a person wrote, which have an answer whatever that is.

``pathlib`` raises for a name that is too long, for a folder that may not be looked into, and for ``~nobody/file``:
nothing is to be found at such a place, and whoever opens it is told why.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["exists", "expanded", "is_dir", "is_file"]


def exists(path: Path) -> bool:
    """Whether something is there that can be looked at."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Whether a regular file is there."""
    return os.path.isfile(path)  # noqa: PTH113


def is_dir(path: Path) -> bool:
    """Whether a folder is there."""
    return os.path.isdir(path)  # noqa: PTH112


def expanded(path: str) -> Path:
    """The path with ``~`` replaced; one of a user who does not exist stays as it is, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111
