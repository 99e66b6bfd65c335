"""Finds what ships with asyncgen: inside the installed package, else in the checkout around it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUNDLED_MODEL", "bundled_model", "data_file"]

BUNDLED_MODEL = "bedtime-tiny"
_PACKAGE = Path(__file__).resolve().parent


def data_file(name: str) -> Path:
    """The path of a file of ``data/`` (``vocabulary.txt``, ``story_features.json``, ``example_conversation.txt``)."""
    return _find("data", name)


def bundled_model() -> Path:
    """The directory of the bundled model."""
    return _PACKAGE / "models" / "bedtime_tiny"


def _find(folder: str, name: str) -> Path:
    installed = _PACKAGE / folder / name
    return installed if installed.exists() else _PACKAGE.parent / folder / name
