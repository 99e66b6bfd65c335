"""Counters and clocks of a run. ``Snapshot`` is what views read: immutable, and addable across runs or workers."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar

from asyncgen.records import Verdict

__all__ = ["BackendSnapshot", "Metrics", "Snapshot", "View", "Watched", "batches_to", "byte_size", "duration"]


QUICKER = 0.5
"""About what a row takes beside a few others, of what it takes beside many: a quarter on a CPU, all of it on a GPU."""

UNANSWERED = 5.0
"""Seconds without an answer of a server that fails, after which it is worth saying."""

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class BackendSnapshot:
    """What a backend has done so far; immutable, and two of them add up (several engines, one display)."""

    busy_seconds: float = 0.0
    """Time spent generating, the batch in progress included."""
    generated: int = 0
    """Tokens generated for prompts (end-of-text not counted), those of rows in progress included."""
    batches: int = 0
    """Batches begun; a batch that was split counts once for each part that was tried."""
    rows_running: int = 0
    """Prompts being generated now and not yet finished."""
    rows_filled: int = 0
    """Rows of all batches that held a prompt."""
    rows_offered: int = 0
    """Rows that all batches had room for."""
    cells: int = 0
    """Prompt tokens computed, padding and dummy rows included."""
    padded_cells: int = 0
    """Those of ``cells`` that were padding or dummy rows."""
    out_of_memory: int = 0
    """Batches that did not fit into memory and were tried again in parts."""
    slots: int = 0
    """Slots of an in-flight engine, which knows no batches; 0 for backends that generate in batches."""
    slot_seconds: float = 0.0
    """Time at work times slots."""
    row_seconds: float = 0.0
    """Of ``slot_seconds``, those in which a slot held a row."""
    seconds_per_token: float = 0.0
    """Time in which each row of an in-flight engine gets a token, at the pace of now; 0 if it is not known."""
    prefix_hits: int = 0
    """Prompts whose shared beginning was computed already."""
    prefix_misses: int = 0
    """Shared beginnings that were computed."""
    device_bytes: int = 0
    """Memory of accelerators that the model's process holds; 0 without one."""
    unanswered_seconds: float = 0.0
    """For how long a server has given no answer, if it fails; 0 while it answers."""
    in_flight_limit: int = 0
    """Requests that a server may have of us at once, as it looks now; 0 for engines in this process."""
    tries: int = 0
    """Requests that a server was sent, those tried again among them."""
    tried_again: int = 0
    """Of ``tries``, those that repeat one that failed."""
    prompt_tokens: int = 0
    """Tokens of prompts, as a server counted them in its answers."""

    @property
    def fill(self) -> float:
        """Share of the rows of all batches that held a prompt; of slots, over the time at work."""
        return _share(self.row_seconds, self.slot_seconds) or _share(self.rows_filled, self.rows_offered)

    @property
    def prefix_share(self) -> float:
        """Share of the prompts with a shared beginning that found it computed."""
        return _share(self.prefix_hits, self.prefix_hits + self.prefix_misses)

    @property
    def padding(self) -> float:
        """Share of the prompt tokens computed that were padding."""
        return _share(self.padded_cells, self.cells)

    def __add__(self, other: Self) -> Self:
        mine, theirs = (each.values() for each in (self, other))
        return type(self)(**{name: _sum(mine[name], theirs[name]) for name in mine})

    def values(self) -> dict[str, Any]:
        """The fields by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Snapshot(BackendSnapshot):
    """The state of a run at one moment: what its backend has done, and its stages. Times in seconds.

    ``+`` adds up runs that go on side by side, as one that has all of their machines: counts, times and paces are
    sums, shares are means; it is stopping if one of them is.
    """

    goal: int | None = None
    """Accepted stories wanted; None: no end."""
    accepted: int = 0
    """Stories accepted, those of earlier sessions of the same output included."""
    rejected: int = 0
    """Indices rejected after all their attempts, earlier sessions included."""
    accepted_before: int = 0
    """Stories that were on disk when this session began."""
    rejected_before: int = 0
    """Those of ``rejected`` that earlier sessions wrote."""
    recent: int = 0
    """Indices decided in this session, the last 200 at most."""
    recent_rejected: int = 0
    """Of these, rejected."""
    stops_at: int = 0
    """Rejected ones of the last 200 at which ``max_rejection_rate`` stops the run; 0: never."""
    attempts: int = 0
    """Completions judged in this session."""
    accepted_attempts: int = 0
    """Of these, accepted."""
    first_attempts: int = 0
    """Completions judged that were first attempts."""
    accepted_first: int = 0
    """Of these, accepted."""
    tokens: int = 0
    """Tokens of the completions judged in this session."""
    seconds: float = 0.0
    """Since generation began."""
    runs: int = 1
    """Runs that are added up here."""
    starved_by: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Time the generator waited for prompts, by who had what it needed: ``prompts`` (sources, or their preparation),
    ``validators`` or ``disk`` (the window was full, and nothing was waiting but what they held)."""
    stopping: bool = False
    """Whether the run was asked to stop and finishes what was begun."""
    finishing: int = 0
    """Prompts that a stopped run has still to decide: what was begun, and what must be decided before it."""
    drain_seconds: float = 0.0
    """Time that it may still take for that."""
    source_seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Time the producer had room and waited for a prompt, by source; a wait that goes on included."""
    let_go: int = 0
    """Items that sources which only begin at their beginning made again, to come to those that are due."""
    validator_seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Time in each validator, summed over calls (which may overlap); the built-in checks are ``built-in``."""
    validator_blocked: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Time for which each async validator kept everybody else from the event loop, in stretches of 10 ms or more. The
    waits of others that lasted longer for it count as theirs too."""
    validator_calls: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Completions that each validator was asked about."""
    disk_seconds: float = 0.0
    """Time spent handing records to the sink."""
    reasons: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Rejected attempts by kind of reason."""
    depths: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """What waits where: ``prompts`` before the generator, groups of ``completions``, ``judging`` (in validators of the
    user's), groups of ``verdicts``, ``in order`` (finished, waiting for a lower index), ``retries`` (prompts whose
    earlier attempt was rejected, wherever they are), and ``undecided`` of ``window``."""

    @property
    def new(self) -> int:
        """Stories accepted in this session."""
        return self.accepted - self.accepted_before

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second since generation began."""
        return _share(self.tokens, self._elapsed)

    @property
    def stories_per_second(self) -> float:
        """Stories accepted a second since generation began."""
        return _share(self.new, self._elapsed)

    @property
    def new_rejected(self) -> int:
        """Indices rejected for good in this session."""
        return self.rejected - self.rejected_before

    @property
    def busy(self) -> float:
        """Share of the time the generator was at work, in [0, 1]."""
        return min(1.0, _share(self.busy_seconds, self.seconds))

    @property
    def starved_seconds(self) -> float:
        """Time the generator waited for prompts."""
        return sum(self.starved_by.values())

    @property
    def starved(self) -> float:
        """Share of the time the generator waited for prompts, in [0, 1]."""
        return min(1.0, _share(self.starved_seconds, self.seconds))

    @property
    def acceptance(self) -> float:
        """Share of the attempts that were accepted."""
        return _share(self.accepted_attempts, self.attempts)

    @property
    def first_acceptance(self) -> float:
        """Share of the first attempts that were accepted."""
        return _share(self.accepted_first, self.first_attempts)

    @property
    def is_unanswered(self) -> bool:
        """Whether a server has given no answer for longer than that means nothing."""
        return self.unanswered_seconds >= UNANSWERED

    @property
    def eta_seconds(self) -> float | None:
        """Time to the goal; None if there is no goal or no pace (yet), or the run is stopping before it.

        Counts accepted completions, not stories on disk: what is finished and waits for a lower index is done, or one
        early prompt that is tried again would make a run look slower than it is. Rows in progress count as far as their
        tokens go, so the estimate falls steadily while a long batch runs. The last stories take as many batches as the
        unluckiest of them has attempts (``batches_to``), each as long as any other however few they are: never less
        than half of one, which is what is left of it on average.

        In slots a batch is the work of as many rows as run on average. The last stories take what is left of the rows
        that run, at the pace of now, and then their further attempts, which are ``QUICKER`` for having more room.
        """
        if self.goal is None or self.stopping or not self.accepted_attempts or self.seconds <= 0 or self.is_unanswered:
            return None
        wanted = self.goal - self.accepted_before - self.accepted_attempts
        if wanted <= 0:
            return 0.0
        begun = max(0.0, _share(self.generated, self.tokens) - 1)
        rows = self._rows
        attempts = max(self.attempts, self.accepted_attempts)
        each = self.seconds * rows / (attempts * (1 + begun))
        share = self.accepted_attempts / attempts
        left = (wanted - self.accepted_attempts * begun) / self.runs
        full, last = _batches(left, share, rows)
        stay = self.seconds_per_token / self.runs * _share(self.tokens, attempts)
        if stay > 0:
            running = min(wanted / self.runs, rows)
            again = _batches(running, share, rows)[1] - min(running, 1)
            return each * full + stay * (max(0.5, min(1, left / running)) + QUICKER * again)
        return max(each * (full + last), _share(self.busy_seconds, self.batches) / 2)

    @property
    def _rows(self) -> float:
        """Rows of a batch, on average; of slots, those in use while there is work."""
        if self.slots:
            return max(1.0, _share(self.row_seconds, self.busy_seconds))
        return _share(self.rows_filled, self.batches) or 1.0

    @property
    def _elapsed(self) -> float:
        """Seconds by the clock on the wall; of runs side by side, the mean."""
        return self.seconds / self.runs


class Watched(Protocol):
    """What a view looks at."""

    def snapshot(self) -> Snapshot:
        """The state now."""


View = Callable[[Watched], Coroutine[object, object, None]]
"""Shows what it is given until it is cancelled."""


class Metrics:
    """What the stages count; one object a run, touched on the event loop only."""

    def __init__(self) -> None:
        self.attempts = 0
        self.accepted_attempts = 0
        self.first_attempts = 0
        self.accepted_first = 0
        self.tokens = 0
        self.reasons: Counter[str] = Counter()
        self.last_reasons: dict[str, str] = {}
        """The last of each kind, whole."""
        self.validator_seconds: defaultdict[str, float] = defaultdict(float)
        self.validator_calls: Counter[str] = Counter()
        self.disk_seconds = 0.0
        self._began: float | None = None
        self._ended: float | None = None

    def begin(self) -> None:
        """Starts the clock."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Stops the clock."""
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time on the clock."""
        if self._began is None:
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    def judged(self, verdicts: Iterable[Verdict]) -> None:
        """Counts verdicts of the validators."""
        for verdict in verdicts:
            first = verdict.completion.prompt.attempt == 1
            self.attempts += 1
            self.first_attempts += first
            self.tokens += verdict.completion.tokens
            if verdict.accepted:
                self.accepted_attempts += 1
                self.accepted_first += first
            else:
                self._refuse(verdict.reasons)

    def repeated(self, verdicts: Iterable[Verdict]) -> None:
        """Counts verdicts that the validators had accepted and that turned out to repeat an earlier story."""
        for verdict in verdicts:
            self.accepted_attempts -= 1
            self.accepted_first -= verdict.completion.prompt.attempt == 1
            self._refuse(verdict.reasons)

    def validated(self, validator: str, seconds: float, calls: int = 1) -> None:
        """Counts ``calls`` of a validator, which took ``seconds`` together."""
        self.validator_seconds[validator] += seconds
        self.validator_calls[validator] += calls

    def _refuse(self, reasons: Iterable[str]) -> None:
        kinds = {reason.partition(":")[0]: reason for reason in reasons}
        self.reasons.update(kinds.keys())
        self.last_reasons.update(kinds)


def batches_to(left: float, acceptance: float, rows: float) -> float:
    """Batches until ``left`` texts are accepted, of ``rows`` attempts each, of which ``acceptance`` in (0, 1] succeed.

    While at least ``rows`` are left every batch is full. After that there is one attempt a batch for each that is left,
    and each batch leaves ``1 - acceptance`` of them; the last one takes ``1 / acceptance``.
    """
    return sum(_batches(left, acceptance, rows))


def _batches(left: float, acceptance: float, rows: float) -> tuple[float, float]:
    """``batches_to`` in two parts: the full ones, and those after them."""
    if left <= 1:
        return 0.0, max(0.0, left) / acceptance
    last = min(left, max(1.0, rows))
    full = (left - last) / (last * acceptance)
    thin = math.log(last) / -math.log1p(-acceptance) if acceptance < 1 else 0.0
    return full, thin + 1 / acceptance


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``5 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def byte_size(count: int) -> str:
    """``8.1 MB``; a MB is 10**6 bytes."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _sum(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return None
    if isinstance(one, Mapping):
        return _added(one, other)
    return one or other if isinstance(one, bool) else one + other


def _added(one: Mapping[str, _Number], other: Mapping[str, _Number]) -> Mapping[str, _Number]:
    return MappingProxyType({key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}})
