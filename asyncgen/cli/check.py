"""``check``: everything that can be wrong is found without loading a model."""

from __future__ import annotations

from asyncgen.check import describe
from asyncgen.cli.options import Settings
from asyncgen.cli.speak import say

__all__ = ["check_command"]


def check_command(settings: Settings) -> None:
    """Check a configuration and everything it names, without loading a model."""
    say(describe(settings.config))
