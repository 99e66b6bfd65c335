"""``python -m benchmarks.fuzz``: hypothesis makes inputs until the time is up; each is used, or refused with one error.

    python -m benchmarks.fuzz                                # ten minutes for each target
    python -m benchmarks.fuzz --minutes 2 --target resume
    python -m benchmarks.fuzz --write                        # and keeps the table in benchmarks/results/

Targets and their properties are in ``tests/fuzz``, a small share of which is in ``make test``. An input for which a
property does not hold is made as small as possible, printed, and kept in a folder; then it goes on, to find others.
An input that takes a minute fails like any other. Exit code 1 if one failed, or if none of a target was used.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import hypothesis
from hypothesis import HealthCheck, given, settings

from benchmarks.environment import ROOT, describe, save
from tests.fuzz.target import ACCEPTED, Target, fast_folder
from tests.fuzz.targets import TARGETS

_ROUND = 200
"""Inputs from one seed."""
LIMIT = 60.0
"""Seconds that an input may take. After three times that, where no exception reaches what hangs, the process ends."""


class TookTooLongError(BaseException):
    """Raised in the main thread; no ``except Exception`` of what is tried catches it."""


@dataclass(slots=True)
class Found:
    """What became of one target."""

    target: str
    seconds: float = 0.0
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """One line each, with the folder that has the input; that none was used is one too."""

    @property
    def accepted(self) -> int:
        """Inputs that were used."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith(ACCEPTED))


class Fuzzer:
    """Tries inputs of one target, in rounds from new seeds."""

    def __init__(self, name: str, target: Target, kept_in: Path, limit: float = LIMIT) -> None:
        """``limit``: seconds that an input may take."""
        self._limit = limit
        self.found = Found(name)
        self._target = target
        self._kept_in = kept_in
        self._known: set[str] = set()
        self._failing: list[tuple[Any, BaseException]] = []

    def run(self, seconds: float, seeds: random.Random) -> Found:
        """Until the time is up; making a failing input small may take a few minutes more."""
        began = monotonic()
        while (spent := monotonic() - began) < seconds:
            self._round(seeds.getrandbits(64), began + seconds)
            self.found.seconds = round(spent, 1)
        self.found.seconds = round(monotonic() - began, 1)
        if not self.found.accepted:
            self.found.failures.append(f"all of {self.found.inputs} inputs were refused: nothing was tried")
            print(f"{self.found.target}: {self.found.failures[-1]}", flush=True)
        return self.found

    def _round(self, seed: int, until: float) -> None:
        @hypothesis.seed(seed)
        @settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(self._target.inputs)
        def tries(given_input: Any) -> None:
            if monotonic() < until or self._failing:
                self._try(given_input)

        self._failing.clear()
        try:
            tries()
        except Exception:
            if not self._failing:  # it is hypothesis itself that failed
                raise
            self._keep(*self._failing[-1])  # the last one to come there is the smallest

    def _try(self, given_input: Any) -> None:
        self.found.inputs += 1
        try:
            with _limited(self._limit), fast_folder() as folder:
                outcome = self._target.check(given_input, folder)
        except Exception as error:
            if _where(error) in self._known:
                return
            self._failing.append((given_input, error))
            raise
        self.found.outcomes[outcome] += 1

    def _keep(self, given_input: Any, error: BaseException) -> None:
        """The smallest failing input: printed, and in a folder of its own."""
        self._known.add(_where(error))
        folder = self._kept_in / f"{self.found.target}-{len(self.found.failures) + 1}"
        folder.mkdir(parents=True)
        told = "".join(traceback.format_exception(error))
        (folder / "input.txt").write_text(f"{given_input!r}\n", encoding="utf-8", errors="backslashreplace")
        (folder / "traceback.txt").write_text(told, encoding="utf-8", errors="backslashreplace")
        summary = f"{type(error).__name__} at {_where(error)}: {str(error)[:300]!r}; kept in {folder}"
        self.found.failures.append(summary)
        shown = f"{self.found.target}: {summary}\n  the smallest input: {given_input!r}\n{told}"
        print(shown.encode("utf-8", "backslashreplace").decode(), flush=True)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError from wherever the main thread is when the time is up."""

    def late(*_: object) -> NoReturn:
        raise TookTooLongError

    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again, for what a finalizer raises is swallowed
    try:
        yield
    except TookTooLongError as error:
        raise TimeoutError(f"the input took more than {seconds:g} s").with_traceback(error.__traceback__) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
        faulthandler.cancel_dump_traceback_later()


def _where(error: BaseException) -> str:
    """The innermost line of the checkout that raised: what tells one failure from another."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    place = (ours or list(frames))[-1]
    return f"{Path(place.filename).name}:{place.lineno}"


def table(rows: list[Found]) -> str:
    """The targets as a markdown table."""
    lines = [
        "| target | minutes | inputs | used | refused | in different words | failures |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        words = sum(not outcome.startswith(ACCEPTED) for outcome in row.outcomes)
        refused = sum(row.outcomes.values()) - row.accepted
        lines.append(
            f"| {row.target} | {row.seconds / 60:.1f} | {row.inputs} | {row.accepted} | {refused} | {words} "
            f"| {len(row.failures)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs, prints, and with ``--write`` keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target (10)")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="this one only; may be given again")
    parser.add_argument("--seed", type=int, default=None, help="of the inputs (a new one each time)")
    parser.add_argument("--failing", type=Path, default=None, help="folder for inputs that fail (a temporary one)")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    facts = describe(
        f"hypothesis {hypothesis.__version__} on tests/fuzz, {options.minutes:g} minutes each; seed {seed}"
    )
    print(json.dumps(facts, indent=2), flush=True)
    kept_in = options.failing or Path(tempfile.mkdtemp(prefix="asyncgen-fuzz-failing-"))
    seeds = random.Random(seed)
    rows: list[Found] = []
    try:
        for name in options.target or TARGETS:
            rows.append(Fuzzer(name, TARGETS[name], kept_in).run(60 * options.minutes, seeds))
            print(f"{name}: {rows[-1].inputs} inputs, {len(rows[-1].failures)} failures", flush=True)
    except KeyboardInterrupt:
        print("interrupted; so far:")
    print(f"\n{table(rows)}")
    if options.write:
        results = {"targets": [asdict(row) | {"outcomes": dict(row.outcomes.most_common())} for row in rows]}
        print(f"kept in {save('fuzz', facts, results)}")
    if not any(row.failures for row in rows) and options.failing is None:
        kept_in.rmdir()
    sys.exit(any(row.failures for row in rows))


if __name__ == "__main__":
    main()
