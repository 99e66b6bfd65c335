"""Accepts a completion or gives the reasons against it, with a quality score.

text -> words -> inflections -> builtin facts, banned words and patterns, readability -> Judge -> Verdict
"""

from __future__ import annotations

from asyncgen.validators.inflections import inflections
from asyncgen.validators.judge import KINDS, Judge
from asyncgen.validators.opening import Validators, input_files, open_validators
from asyncgen.validators.text import fingerprint64, normalise

__all__ = [
    "KINDS",
    "Judge",
    "Validators",
    "fingerprint64",
    "inflections",
    "input_files",
    "normalise",
    "open_validators",
]
