"""Reads the word lists: text files in which a line "[name]" begins a section of words."""

from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def sections(file: str) -> dict[str, tuple[str, ...]]:
    """All sections of a file in this directory, in its order."""
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in (HERE / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            found[name] = ()
        elif not line.startswith("#"):
            found[name] = found.get(name, ()) + tuple(line.split())
    return found


def words(section: str) -> tuple[str, ...]:
    """One section of `cast.txt`."""
    return sections("cast.txt")[section]
