"""Which stage holds the others up, as a pure function of two snapshots."""

from __future__ import annotations

from collections.abc import Mapping

from asyncgen.differences import since
from asyncgen.metrics import Snapshot

__all__ = ["SATURATED", "bottleneck"]

SATURATED = 0.9
"""Share of the time at work from which the generator is what limits a run: as it should be."""
WELL_FILLED = 0.6
"""Share of rows that hold a prompt below which a busy generator could do more."""

FEW_ACCEPTED = 0.1
"""Share of accepted attempts below which a busy generator is nothing good."""
ENOUGH = 20
"""Attempts from which that can be told."""


def bottleneck(snapshot: Snapshot, earlier: Snapshot | None = None) -> str:
    """What limits the run since ``earlier`` (its beginning unless given), in words; empty if nothing can be said yet.

    A generator that is at work nine tenths of the time is the limit itself, unless it works on next to nothing because
    finished stories wait for an earlier one. Else it is who it waits for: a source, the preparation of prompts, a
    validator, the disk; unless a validator blocked the event loop for as long, and with it all the others. What is
    neither work nor waiting is the event loop's: somebody blocks it.
    """
    if snapshot.is_unanswered:
        return f"the server, which has not answered for {snapshot.unanswered_seconds:.0f} s"
    lately = since(snapshot, Snapshot() if earlier is None else earlier)
    if lately.seconds <= 0 or not snapshot.rows_filled:
        return ""
    if held_up := _held_up(snapshot, lately):
        return held_up
    if lately.busy >= SATURATED:
        if lately.slot_seconds > 0 and lately.fill < WELL_FILLED:
            return _who_keeps_slots_empty(lately) or f"the generator, with {lately.fill:.0%} of its slots in use"
        if lately.rows_offered > 0 and lately.fill < WELL_FILLED:
            return f"the generator, with batches {lately.fill:.0%} full"
        judged = lately if lately.attempts >= ENOUGH else snapshot
        few = judged.attempts >= ENOUGH and judged.acceptance < FEW_ACCEPTED
        who = "the server" if lately.in_flight_limit else "the generator"
        return f"{who}, with {judged.acceptance:.0%} of its texts accepted" if few else f"{who} (good)"
    idle = lately.seconds - lately.busy_seconds
    name, seconds = _most(lately.validator_blocked)
    if seconds >= idle / 2:  # whatever else is waited for, it cannot come meanwhile
        return f"validator {name}, which blocks the event loop"
    if lately.starved_seconds < idle / 2:
        return _who_blocks(lately, idle)
    match max(lately.starved_by, key=lambda cause: lately.starved_by[cause]):
        case "disk":
            return "the disk"
        case "validators":
            return _slowest_validator(lately)
        case _:
            return _slow_prompts(lately)


def _held_up(snapshot: Snapshot, lately: Snapshot) -> str:
    """When nothing more may be planned and most of what is undecided is finished but for a lower index."""
    depths = snapshot.depths
    undecided, finished, window = (depths.get(name, 0) for name in ("undecided", "in order", "window"))
    may_plan = undecided < window and (snapshot.goal is None or snapshot.accepted + undecided < snapshot.goal)
    late = undecided - finished
    rows = _rows(lately) or _rows(snapshot)
    if may_plan or not 0 < late < min(finished, rows / 2):
        return ""
    who = "one prompt" if late == 1 else f"{late} prompts"
    retries = depths.get("retries", 0)
    again = " tried again" if retries >= late else f" ({retries} tried again)" if retries else ""
    return f"{who}{again} {'holds' if late == 1 else 'hold'} up {finished} finished ones"


def _who_keeps_slots_empty(lately: Snapshot) -> str:
    """Rows of slots begin one by one: while a few run, the generator is at work however long others wait for what
    would fill the rest. Empty if nobody is to blame: no more is to be done.
    """
    depths, half = lately.depths, lately.seconds / 2
    undecided = depths.get("undecided", 0)
    if undecided >= depths.get("window", 0) > 0:  # nothing may be planned before something is decided
        if depths.get("judging", 0) + depths.get("completions", 0) >= (undecided - lately.rows_running) / 2:
            return _slowest_validator(lately)
        return "the disk" if lately.disk_seconds >= half else ""
    name, seconds = _most(lately.source_seconds)
    return f"source {name}" if seconds >= half else ""


def _rows(snapshot: Snapshot) -> float:
    if snapshot.slots:
        return snapshot.slots / snapshot.runs
    return snapshot.rows_offered / snapshot.batches if snapshot.batches > 0 else 0.0


def _who_blocks(lately: Snapshot, idle: float) -> str:
    """The generator neither works nor waits for prompts: it waits for the event loop."""
    name, seconds = _most(lately.validator_seconds)
    return f"validator {name}" if seconds >= idle / 2 else "the event loop"


def _slowest_validator(lately: Snapshot) -> str:
    name, seconds = _most(lately.validator_seconds)
    return f"validator {name}" if seconds > 0 else "the validators"


def _slow_prompts(lately: Snapshot) -> str:
    name, seconds = _most(lately.source_seconds)
    return f"source {name}" if seconds >= lately.starved_seconds / 2 else "preparing prompts"


def _most(seconds: Mapping[str, float]) -> tuple[str, float]:
    return max(seconds.items(), key=lambda item: item[1], default=("", 0.0))
