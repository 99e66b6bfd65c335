"""The command line: the only place with signals, printing and exit codes.

    asyncgen init config.yaml       python -m asyncgen is the same
    asyncgen check config.yaml
    asyncgen run config.yaml

``app.py`` lists the commands and ``entry.py`` runs them. Nothing here imports torch: a run does when its backend opens,
and ``preview`` where it must.
"""

from __future__ import annotations

from asyncgen.cli.app import app
from asyncgen.cli.entry import EXIT_CODES, main

__all__ = ["EXIT_CODES", "app", "main"]
