"""The output: ordered files that are their own checkpoint, recovered after any crash, never mixed, never rewritten."""

from __future__ import annotations

from asyncgen.output.fingerprint import Difference, compare, fingerprint
from asyncgen.output.manifest import Manifest, State
from asyncgen.output.opening import MAY_BE_MENDED, Progress, holds_records, is_full, peek
from asyncgen.output.places import Places
from asyncgen.output.repair import Salvage, repair
from asyncgen.output.repeats import Seen
from asyncgen.output.verify import VerifyReport, verify
from asyncgen.output.writer import Output, open_output

__all__ = [
    "MAY_BE_MENDED",
    "Difference",
    "Manifest",
    "Output",
    "Places",
    "Progress",
    "Salvage",
    "Seen",
    "State",
    "VerifyReport",
    "compare",
    "fingerprint",
    "holds_records",
    "is_full",
    "open_output",
    "peek",
    "repair",
    "verify",
]
