"""Accepts a completion or gives the reasons against it, with a quality score.

text -> words -> builtin facts, banned words, patterns, readability -> Judge -> Verdict -> Functions -> Verdict
"""

from __future__ import annotations

from asyncgen.validators.asking import Functions
from asyncgen.validators.inflections import inflections
from asyncgen.validators.judge import BUILT_IN, KINDS, Judge
from asyncgen.validators.opening import Validators, open_validators, validator_files
from asyncgen.validators.text import count_words, fingerprint64, normalise

__all__ = [
    "BUILT_IN",
    "KINDS",
    "Functions",
    "Judge",
    "Validators",
    "count_words",
    "fingerprint64",
    "inflections",
    "normalise",
    "open_validators",
    "validator_files",
]
