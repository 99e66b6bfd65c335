"""Snapshots in words, and the words in lines that fit. Pure: knows neither terminals nor clocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from asyncgen.bottleneck import bottleneck
from asyncgen.differences import since
from asyncgen.metrics import Snapshot, duration

__all__ = ["Figure", "Memory", "figures", "lay_out", "one_line", "printable", "time_left"]

LABEL = 11
"""Columns of a label and the space after it."""
TWO_COLUMNS = 160
"""Columns from which two figures stand beside each other."""
LINES_EACH = 2
"""Lines that one figure may take where it does not fit into one."""
MOST_REASONS = 5
MANY_DECIDED = 20
"""Decided prompts from which it is said how many of them may be given up."""

_QUEUES = ("prompts", "completions", "judging", "verdicts", "in order")


@dataclass(frozen=True, slots=True)
class Figure:
    """One subject: a label, and items of which the first matter most."""

    label: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process holds, in bytes, and the most that it was seen to hold."""

    now: int = 0
    peak: int = 0


def figures(snapshot: Snapshot, earlier: Snapshot | None = None, memory: Memory | None = None) -> list[Figure]:
    """All there is to say; "now" and the limit are about the time since ``earlier`` (else since the beginning)."""
    found = [_generator(snapshot, since(snapshot, Snapshot() if earlier is None else earlier))]
    found.append(Figure("limit", (bottleneck(snapshot, earlier) or "too early to say",)))
    found += [_waiting(snapshot), _accepted(snapshot)]
    if snapshot.reasons:
        found.append(
            Figure("refused", tuple(f"{kind} {n}" for kind, n in list(snapshot.reasons.items())[:MOST_REASONS]))
        )
    held = [f"{size(memory.now)}", f"peak {size(memory.peak)}"] if memory is not None and memory.now else []
    if snapshot.device_bytes:
        held.append(f"GPU {size(snapshot.device_bytes)}")
    if held:
        found.append(Figure("memory", tuple(held)))
    return found


def time_left(snapshot: Snapshot) -> str:
    """The estimate in words, empty without one; of a run that stops, what it finishes instead."""
    if snapshot.stopping:
        if not snapshot.finishing:
            return "stopping"
        return f"finishing {_count(snapshot.finishing, 'prompt')}, at most {duration(snapshot.drain_seconds)}"
    seconds = snapshot.eta_seconds
    if seconds is None or snapshot.accepted == snapshot.goal:
        return ""
    return f"about {duration(seconds)} left" if seconds >= 1 else "nearly done"


def one_line(snapshot: Snapshot, shown: Sequence[Figure]) -> str:
    """How far the run is and all figures, for a log: ``60 of 200 stories | generator busy 97%, ... | ...``."""
    goal = "" if snapshot.goal is None else f" of {snapshot.goal}"
    left = f", {text}" if (text := time_left(snapshot)) else ""
    return " | ".join(
        [f"{snapshot.accepted}{goal} stories{left}", *(f"{figure.label} {', '.join(figure.items)}" for figure in shown)]
    )


def lay_out(shown: Sequence[Figure], columns: int, most: int) -> list[str]:
    """The figures in at most ``most`` lines of at most ``columns``: beside each other where there is much room, else
    one below the other; what does not fit into ``LINES_EACH`` lines is left out, the last items first.
    """
    if columns >= TWO_COLUMNS:
        return _two_columns(shown, columns)[:most]
    for each in range(LINES_EACH, 0, -1):
        lines = [line for figure in shown for line in _wrapped(figure, columns, each)]
        if len(lines) <= most:
            break
    return lines[:most]


def size(count: int) -> str:
    """``512 MB``, ``14.2 GB``; a MB is 10**6 bytes."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def printable(text: str, encoding: str | None) -> str:
    """The text without control characters, and with a question mark for what ``encoding`` does not have."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")


def _generator(snapshot: Snapshot, lately: Snapshot) -> Figure:
    items = [f"busy {snapshot.busy:.0%}", f"starved {snapshot.starved:.0%}"]
    overall = snapshot.generated / snapshot.seconds if snapshot.seconds > 0 else 0.0
    now = lately.generated / lately.seconds if lately.seconds > 0 else overall
    items += [f"{now:,.0f} tokens/s now", f"{overall:,.0f} overall"]
    if snapshot.in_flight_limit:
        items.append(f"requests {snapshot.rows_running} of {snapshot.in_flight_limit} in flight")
    elif snapshot.slots:
        items.append(f"slots {snapshot.rows_running} of {snapshot.slots} (mean {snapshot.fill:.0%})")
    elif snapshot.rows_offered:
        items.append(f"batches {snapshot.fill:.0%} full")
    if snapshot.prefix_hits or snapshot.prefix_misses:
        items.append(f"prefix hits {snapshot.prefix_share:.0%}")
    if snapshot.cells and not snapshot.slots:  # slots need no padding
        items.append(f"padding {snapshot.padding:.0%}")
    if snapshot.tried_again:
        items.append(f"tried again {snapshot.tried_again}")
    if snapshot.out_of_memory:
        items.append(f"out of memory {snapshot.out_of_memory}")
    return Figure("generator", tuple(items))


def _waiting(snapshot: Snapshot) -> Figure:
    depths = snapshot.depths
    undecided = f"undecided {depths.get('undecided', 0)} of {depths.get('window', 0)}"
    return Figure("waiting", (*(f"{name} {depths.get(name, 0)}" for name in _QUEUES), undecided))


def _accepted(snapshot: Snapshot) -> Figure:
    if not snapshot.attempts:
        return Figure("accepted", ("no attempt judged yet",))
    given_up = f"{_count(snapshot.new_rejected, 'prompt')} given up"
    if snapshot.rejected_before:
        given_up += f" ({snapshot.rejected} with earlier sessions)"
    if snapshot.stops_at and snapshot.recent >= MANY_DECIDED and 2 * snapshot.recent_rejected > snapshot.recent:
        stops = f"the run stops at {snapshot.stops_at} of the last 200"
        given_up += f", {snapshot.recent_rejected} of the last {snapshot.recent}: {stops}"
    first = f"{snapshot.first_acceptance:.0%} of first ones" if snapshot.first_attempts else "no first ones"
    return Figure("accepted", (f"{snapshot.acceptance:.0%} of {_count(snapshot.attempts, 'attempt')}", first, given_up))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _wrapped(figure: Figure, columns: int, most: int) -> list[str]:
    """Label and items in at most ``most`` lines; those after the first are indented."""
    room = max(1, columns - LABEL)
    rows: list[str] = []
    for item in figure.items:
        if rows and _width(rows[-1]) + _width(item) + 3 <= room:
            rows[-1] += f", {item}"
            continue
        if len(rows) == most:
            break
        if rows:
            rows[-1] += ","
        rows.append(_cut(item, room))
    label = _cut(figure.label.ljust(LABEL), columns - 1)
    return [_cut((label if n == 0 else " " * LABEL) + row.removesuffix(","), columns) for n, row in enumerate(rows)]


def _two_columns(shown: Sequence[Figure], columns: int) -> list[str]:
    half = columns // 2
    cells = [_wrapped(figure, half - 2, 1)[0] for figure in shown]
    pairs = [cells[at : at + 2] for at in range(0, len(cells), 2)]
    return [pair[0] if len(pair) == 1 else pair[0] + " " * (half - _width(pair[0])) + pair[1] for pair in pairs]


def _width(text: str) -> int:
    return sum(1 + (east_asian_width(character) in "WF") for character in text)


def _cut(text: str, columns: int) -> str:
    """The text, or its beginning and two dots."""
    if _width(text) <= columns:
        return text
    while text and _width(text) > columns - 2:
        text = text[:-1]
    return (text + "..")[:columns]
