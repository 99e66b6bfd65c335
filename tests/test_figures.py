"""Snapshots in words: rates, the estimate, what limits a run, and lines that fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from unicodedata import east_asian_width

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends import open_backend
from asyncgen.bottleneck import bottleneck
from asyncgen.dashboard.figures import Figure, Memory, figures, lay_out, one_line, printable, size, time_left
from asyncgen.differences import since
from asyncgen.metrics import Snapshot, batches_to, duration
from asyncgen.packing import PromptPool, Window
from asyncgen.pipeline import Flow
from asyncgen.prompts import open_source
from asyncgen.records import Prompt
from asyncgen.report import Report
from asyncgen.validators import open_validators
from tests.flows import Finite, config_for, flow_for

SNAPSHOT = Snapshot(
    goal=200,
    accepted=60,
    rejected=3,
    accepted_before=10,
    rejected_before=1,
    attempts=80,
    accepted_attempts=50,
    first_attempts=60,
    accepted_first=45,
    tokens=8000,
    generated=8000,
    seconds=100.0,
    busy_seconds=97.0,
    batches=10,
    rows_filled=80,
    rows_offered=160,
    cells=1000,
    padded_cells=120,
    reasons=MappingProxyType({"missing words": 20, "too short": 10}),
    depths=MappingProxyType({"prompts": 5, "in order": 2, "undecided": 7, "window": 256}),
)

SLOTS = replace(  # of 16 slots, 12 are in use on average; 3 now
    SNAPSHOT,
    batches=0,
    rows_offered=0,
    padded_cells=0,
    slots=16,
    rows_running=3,
    slot_seconds=16 * 97.0,
    row_seconds=12 * 97.0,
    seconds_per_token=0.05,
    prefix_hits=98,
    prefix_misses=2,
)

# Rates and the estimate.


def test_rates_leave_out_what_earlier_sessions_made() -> None:
    assert (SNAPSHOT.new, SNAPSHOT.new_rejected) == (50, 2)
    assert SNAPSHOT.stories_per_second == 0.5
    assert (SNAPSHOT.busy, SNAPSHOT.fill, SNAPSHOT.padding) == (0.97, 0.5, 0.12)
    assert (SNAPSHOT.acceptance, SNAPSHOT.first_acceptance) == (0.625, 0.75)
    assert Snapshot(goal=5).tokens_per_second == 0.0
    assert Snapshot().busy == Snapshot().fill == Snapshot().padding == Snapshot().acceptance == 0.0


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 301.201),  # 132 to go at one in two seconds, and the last 8 take 2.1 batches of 10 s and 1.6 for the last
        ({"accepted": 10}, 301.201),  # all 50 wait for an early one: the pace is the same
        ({"generated": 8160}, 293.335),  # a row is about done: one more at a pace of 51 in 100 s
        ({"goal": 61}, 16.0),  # one to go: 1.6 attempts of 10 s
        ({"goal": 61, "attempts": 50, "generated": 15_800}, 4.85),  # about done: half of a batch's 9.7 s
        ({"goal": 60}, 0.0),
        ({"tokens": 0, "generated": 0}, 301.201),  # a backend that counts no tokens
        ({"goal": None}, None),
        ({"accepted_attempts": 0}, None),
        ({"seconds": 0.0}, None),
    ],
)
def test_the_estimate(changes: Mapping[str, object], seconds: float | None) -> None:
    eta = replace(SNAPSHOT, **changes).eta_seconds  # type: ignore[arg-type]
    assert eta == (None if seconds is None else pytest.approx(seconds, abs=0.001))


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 268.83),  # 140 to go: 128 at one in two seconds; the last 12 take a stay of 5 s, and 3.1 that are quicker
        ({"goal": 61}, 6.5),  # one to go: 100 tokens at the pace of now, and 0.6 attempts more that are quicker
        ({"goal": 61, "seconds_per_token": 0.025}, 3.25),  # fewer rows run, and each is faster for it
        ({"goal": 61, "generated": 8150}, 4.0),  # about done: half of a row's stay, and what may come after it
        ({"goal": 70, "generated": 8800}, 9.869),  # ten to go, half done
        ({"goal": 60}, 0.0),
    ],
)
def test_the_estimate_for_slots(changes: Mapping[str, object], seconds: float) -> None:
    assert replace(SLOTS, **changes).eta_seconds == pytest.approx(seconds, abs=0.01)  # type: ignore[arg-type]


@given(
    goal=st.integers(1, 10**6),
    accepted=st.integers(0, 10**6),
    new=st.integers(0, 10**6),
    tokens=st.integers(0, 10**6),
    more=st.integers(0, 10**6),
    seconds=st.floats(0, 1e7),
)
def test_the_estimate_is_never_negative_and_falls_as_tokens_come(
    goal: int, accepted: int, new: int, tokens: int, more: int, seconds: float
) -> None:
    now = Snapshot(
        goal=goal, accepted_before=accepted, accepted_attempts=new, tokens=tokens, generated=tokens, seconds=seconds
    )
    eta, later = now.eta_seconds, replace(now, generated=tokens + more).eta_seconds
    assert (eta is None) == (later is None) == (new == 0 or seconds == 0)
    if eta is not None and later is not None:
        assert 0 <= later <= eta


@given(left=st.floats(0, 1e6), more=st.floats(0, 1e6), acceptance=st.floats(1e-6, 1), rows=st.floats(0, 1000))
def test_more_left_takes_longer_and_never_less_than_the_attempts_it_needs(
    left: float, more: float, acceptance: float, rows: float
) -> None:
    batches = batches_to(left, acceptance, rows)
    assert batches <= batches_to(left + more, acceptance, rows) * (1 + 1e-9)
    assert batches >= left / acceptance / max(1, rows) * (1 - 1e-9)
    assert batches_to(left, 1, rows) == pytest.approx(max(left / max(1, rows), min(1, left)))


@pytest.mark.anyio
@pytest.mark.parametrize(("bad_share", "goal"), [(0.5, 300), (0.5, 60), (0.8, 120)])
async def test_the_estimate_is_within_a_factor_of_two_to_the_end(bad_share: float, goal: int) -> None:
    """By a clock that goes on by one with each batch, once enough is judged; luck may make up three batches."""
    config = config_for(num_stories=goal, bad_share=bad_share, generation={"batch_size": 16}, max_attempts=4)
    seen: list[Snapshot] = []

    async with flow_for(config) as flow:

        async def sink(_: object) -> None:
            now = flow.snapshot()
            seen.append(replace(now, seconds=float(now.batches), busy_seconds=float(now.batches)))

        await flow.run(sink)
        end = flow.snapshot().batches
    judged = [each for each in seen if each.attempts >= 64 and each.attempts == each.rows_filled]
    assert judged
    for snapshot in judged:
        rest, eta = end - snapshot.batches, snapshot.eta_seconds
        assert eta is not None
        assert rest / 2 - 3 <= eta <= 2 * rest + 3, f"{snapshot.accepted} of {goal}: {eta} where {rest} were left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (18_420, "5 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# Snapshots add up, and can be subtracted.

NUMBERS = st.integers(0, 99)
SNAPSHOTS = st.builds(
    Snapshot,
    **{
        each.name: st.dictionaries(st.sampled_from(["prompts", "validators", "disk", "in order", "window"]), NUMBERS)
        if "Mapping" in str(each.type)
        else st.booleans()
        if each.type == "bool"
        else st.integers(1, 9)
        if each.name == "runs"
        else NUMBERS
        for each in fields(Snapshot)
    },
)


@given(SNAPSHOTS, SNAPSHOTS)
def test_what_two_snapshots_add_up_to_less_one_is_the_other(one: Snapshot, other: Snapshot) -> None:
    total = one + other
    assert total.stopping is (one.stopping or other.stopping)
    assert (total.goal, total.tokens) == ((one.goal or 0) + (other.goal or 0), one.tokens + other.tokens)
    assert sum(total.reasons.values()) == sum(one.reasons.values()) + sum(other.reasons.values())
    lately = since(total, one)
    assert lately.tokens == other.tokens
    assert {name: n for name, n in lately.starved_by.items() if n} == {k: n for k, n in other.starved_by.items() if n}
    assert (Snapshot(goal=None) + Snapshot(goal=3)).goal is None


def test_runs_side_by_side_have_the_sum_of_their_paces_and_the_mean_of_their_shares() -> None:
    one = Snapshot(goal=100, accepted_attempts=50, accepted=50, tokens=5000, generated=5000, seconds=10, busy_seconds=9)
    both = one + one
    assert both.tokens_per_second == 2 * one.tokens_per_second == 1000
    assert both.stories_per_second == 2 * one.stories_per_second
    assert both.busy == one.busy == 0.9
    assert one.eta_seconds is not None
    assert both.eta_seconds == pytest.approx(one.eta_seconds)
    both = SLOTS + SLOTS
    assert (both.slots, both.rows_running, both.fill, both.prefix_share) == (32, 6, SLOTS.fill, SLOTS.prefix_share)
    assert both.eta_seconds == pytest.approx(SLOTS.eta_seconds)


def test_slots_are_a_state_and_their_use_a_share_of_the_time_between() -> None:
    later = replace(SLOTS, slot_seconds=SLOTS.slot_seconds + 160, row_seconds=SLOTS.row_seconds + 40)
    assert (SLOTS.fill, SLOTS.prefix_share) == (0.75, 0.98)
    lately = since(later, SLOTS)
    assert (lately.slots, lately.rows_running, lately.seconds_per_token, lately.fill) == (16, 3, 0.05, 0.25)


def test_slots_in_words() -> None:
    generator = figures(SLOTS)[0]
    assert generator.items[-2:] == ("slots 3 of 16 (mean 75%)", "prefix hits 98%")
    assert not any("batches" in item or "padding" in item for item in generator.items)
    line = "  engine    16 slots, on average 75% of them in use; prefix hits 98%"
    assert line in Report("complete", SLOTS, Path("s"), Path("r")).summary().splitlines()
    assert "engine" not in Report("complete", SNAPSHOT, Path("s"), Path("r")).summary()


SERVED = replace(SNAPSHOT, rows_running=5, in_flight_limit=8, tries=20, tried_again=3, prompt_tokens=4567, batches=0)


def test_a_server_in_words() -> None:
    generator = figures(replace(SERVED, rows_offered=0, cells=0))[0]
    assert generator.items[-2:] == ("requests 5 of 8 in flight", "tried again 3")
    line = "  server    20 requests, 3 of them again; 4,567 tokens of prompts"
    assert line in Report("complete", SERVED, Path("s"), Path("r")).summary().splitlines()
    assert "server" not in Report("complete", SNAPSHOT, Path("s"), Path("r")).summary()
    assert bottleneck(replace(SERVED, seconds=10, busy_seconds=10, rows_offered=0, depths={})) == "the server (good)"
    away = replace(SERVED, seconds=10, busy_seconds=10, unanswered_seconds=12.3)
    assert bottleneck(away) == "the server, which has not answered for 12 s"
    assert away.eta_seconds is None


def test_requests_are_counted_and_their_limit_is_a_state() -> None:
    both = SERVED + SERVED
    assert (both.tries, both.tried_again, both.prompt_tokens, both.in_flight_limit) == (40, 6, 9134, 16)
    lately = since(replace(SERVED, tries=25), SERVED)
    assert (lately.tries, lately.tried_again, lately.in_flight_limit) == (5, 0, 8)


def test_a_report_tells_what_was_let_go() -> None:
    stopped = Report("stopped", SNAPSHOT, Path("s"), Path("r"))
    line = "  let go    2 texts that waited for earlier ones; they are made again, the same"
    assert line in stopped.summary().splitlines()
    assert "let go" not in replace(stopped, outcome="complete").summary()
    assert "prefix" not in one_line(SNAPSHOT, figures(SNAPSHOT))


# What limits the run.

AT_WORK = Snapshot(seconds=10, busy_seconds=9.5, batches=5, rows_offered=80, rows_filled=78)
IDLE = replace(AT_WORK, busy_seconds=4)
SPARSE = Snapshot(seconds=10, busy_seconds=10, slots=8, slot_seconds=80, row_seconds=16, rows_filled=30)
FULL_WINDOW = {"undecided": 256, "window": 256}


@pytest.mark.parametrize(
    ("snapshot", "limit"),
    [
        (Snapshot(), ""),
        (Snapshot(seconds=3), ""),  # no batch yet
        (AT_WORK, "the generator (good)"),
        (replace(AT_WORK, attempts=200, accepted_attempts=5), "the generator, with 2% of its texts accepted"),
        (replace(AT_WORK, attempts=200, accepted_attempts=20), "the generator (good)"),
        (replace(AT_WORK, attempts=19), "the generator (good)"),  # too early to tell
        (
            replace(IDLE, starved_by={"prompts": 5}, source_seconds={"python": 5}, validator_blocked={"kindness": 4}),
            "validator kindness, which blocks the event loop",
        ),
        (replace(AT_WORK, rows_filled=30), "the generator, with batches 38% full"),
        (replace(IDLE, starved_by={"disk": 5, "prompts": 1}), "the disk"),
        (replace(IDLE, starved_by={"prompts": 5}), "preparing prompts"),
        (
            replace(IDLE, starved_by={"prompts": 5}, source_seconds={"template": 0.1, "prompts.jsonl": 4.8}),
            "source prompts.jsonl",
        ),
        (
            replace(IDLE, starved_by={"validators": 5}, validator_seconds={"built-in": 0.2, "kindness": 80}),
            "validator kindness",
        ),
        (replace(IDLE, starved_by={"validators": 5}), "the validators"),
        (replace(IDLE, validator_seconds={"kindness": 5.5}), "validator kindness"),  # it blocks the loop
        (IDLE, "the event loop"),
        (
            replace(
                AT_WORK, goal=100, accepted=60, depths={"undecided": 40, "in order": 39, "retries": 1, "window": 256}
            ),
            "one prompt tried again holds up 39 finished ones",
        ),
        (
            replace(AT_WORK, depths={"undecided": 256, "in order": 253, "retries": 1, "window": 256}),
            "3 prompts (1 tried again) hold up 253 finished ones",
        ),
        (
            replace(AT_WORK, depths={"undecided": 256, "in order": 240, "window": 256}),  # a whole batch is at work
            "the generator (good)",
        ),
        (
            replace(AT_WORK, depths={"undecided": 40, "in order": 39, "window": 256}),  # more may be planned
            "the generator (good)",
        ),
        (replace(SPARSE, row_seconds=60), "the generator (good)"),
        (SPARSE, "the generator, with 20% of its slots in use"),
        # A few rows are always running; what would fill the other slots is still to come.
        (replace(SPARSE, source_seconds={"template": 0.1, "prompts.jsonl": 9}), "source prompts.jsonl"),
        (replace(SPARSE, source_seconds={"prompts.jsonl": 2}), "the generator, with 20% of its slots in use"),
        (
            replace(SPARSE, validator_seconds={"kindness": 80}, depths=FULL_WINDOW | {"judging": 250}),
            "validator kindness",
        ),
        (
            replace(SPARSE, rows_running=100, depths=FULL_WINDOW | {"completions": 70, "judging": 16, "in order": 70}),
            "the validators",
        ),
        (replace(SPARSE, disk_seconds=9, depths=FULL_WINDOW), "the disk"),
        (replace(SPARSE, depths=FULL_WINDOW), "the generator, with 20% of its slots in use"),
        (
            replace(SPARSE, depths={"undecided": 256, "in order": 254, "retries": 1, "window": 256}),
            "2 prompts (1 tried again) hold up 254 finished ones",
        ),
    ],
)
def test_what_limits_a_run(snapshot: Snapshot, limit: str) -> None:
    assert bottleneck(snapshot) == limit
    before = replace(AT_WORK, seconds=1000, busy_seconds=1)
    lately = replace(before + snapshot, depths=snapshot.depths, goal=snapshot.goal, runs=1)
    if limit:
        assert bottleneck(lately, before) == limit, "what was before does not count"


@given(SNAPSHOTS, SNAPSHOTS)
def test_there_is_always_something_to_show(one: Snapshot, other: Snapshot) -> None:
    shown = figures(one + other, one, Memory(5, 6))
    assert [figure.label for figure in shown][:4] == ["generator", "limit", "waiting", "accepted"]
    assert all(figure.items and all(figure.items) for figure in shown)


async def _run(config_changes: dict[str, object], sink_seconds: float = 0, source_seconds: float = 0) -> Flow:
    config = config_for(num_stories=None, **config_changes)

    class Slow(Finite):
        async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
            await anyio.sleep(source_seconds)
            return await super().take(start, min(count, 2))

    async def sink(_: object) -> None:
        await anyio.sleep(sink_seconds)

    async with open_source(config) as source, open_backend(config) as backend:
        flow = Flow(config, Slow(source, 30), backend, open_validators(config))
        await flow.run(sink)
        return flow


@pytest.mark.anyio
async def test_a_flow_knows_whom_its_generator_waits_for(tmp_path: Path) -> None:
    tight: dict[str, object] = {"window": 4, "generation": {"batch_size": 2}}
    slow_source = (await _run(tight, source_seconds=0.04)).snapshot()
    slow_disk = (await _run(tight, sink_seconds=0.04)).snapshot()
    assert max(slow_source.starved_by, key=lambda cause: slow_source.starved_by[cause]) == "prompts"
    assert bottleneck(slow_disk) == "the disk"
    path = tmp_path / "checks.py"
    path.write_text("import anyio\nasync def kindness(completion):\n    await anyio.sleep(0.04)\n")
    function = {"function": f"{path}:kindness", "concurrency": 1}
    slow_check = (await _run(tight | {"validation": {"functions": [function]}})).snapshot()
    assert bottleneck(slow_check) == "validator kindness"
    path = tmp_path / "blocking" / "checks.py"
    path.parent.mkdir()
    path.write_text("import time\nasync def kindness(completion):\n    time.sleep(0.04)\n")
    function = {"function": f"{path}:kindness"}
    blocking = (await _run(tight | {"validation": {"functions": [function]}})).snapshot()
    assert bottleneck(blocking) == "validator kindness, which blocks the event loop"
    assert 0 < slow_source.starved <= 1
    assert slow_source.busy + slow_source.starved <= 1.01


@pytest.mark.anyio
async def test_waiting_is_counted_while_it_lasts_and_when_it_is_cancelled() -> None:
    pool = PromptPool(Window(8, None), lambda: "disk")
    async with anyio.create_task_group() as group:
        group.start_soon(pool.take, 2)
        await anyio.wait_all_tasks_blocked()
        one = pool.starved_by["disk"]
        await anyio.sleep(0.01)
        two = pool.starved_by["disk"]
        assert one < two
        group.cancel_scope.cancel()
    three = pool.starved_by["disk"]
    await anyio.sleep(0.01)
    assert two <= three == pool.starved_by["disk"]


# Lines.


def test_every_figure_is_there() -> None:
    text = one_line(SNAPSHOT, figures(SNAPSHOT, None, Memory(512_000_000, 14_200_000_000)))
    assert text.split(" | ") == [
        "60 of 200 stories, about 5 min 1 s left",
        "generator busy 97%, starved 0%, 80 tokens/s now, 80 overall, batches 50% full, padding 12%",
        "limit the generator, with batches 50% full",
        "waiting prompts 5, completions 0, judging 0, verdicts 0, in order 2, undecided 7 of 256",
        "accepted 62% of 80 attempts, 75% of first ones, 2 prompts given up (3 with earlier sessions)",
        "refused missing words 20, too short 10",
        "memory 512 MB, peak 14.2 GB",
    ]
    hopeless = replace(SNAPSHOT, recent=168, recent_rejected=160, stops_at=181)
    assert figures(hopeless)[3].items[2].endswith(", 160 of the last 168: the run stops at 181 of the last 200")
    assert figures(replace(hopeless, recent=19, recent_rejected=19))[3] == figures(SNAPSHOT)[3]
    assert figures(replace(hopeless, stops_at=0))[3] == figures(SNAPSHOT)[3]
    held = figures(replace(SNAPSHOT, device_bytes=3_000_000, out_of_memory=2))
    assert held[-1] == Figure("memory", ("GPU 3 MB",))
    assert "out of memory 2" in held[0].items
    assert time_left(replace(SNAPSHOT, goal=60)) == ""
    assert time_left(replace(SNAPSHOT, goal=62, accepted_attempts=52)) == "nearly done"
    stopping = replace(SNAPSHOT, stopping=True, finishing=16, drain_seconds=20.0)
    assert stopping.eta_seconds is None
    assert one_line(stopping, ()) == "60 of 200 stories, finishing 16 prompts, at most 20 s"
    assert time_left(replace(stopping, finishing=1, drain_seconds=3.21)) == "finishing 1 prompt, at most 3.2 s"
    assert time_left(replace(stopping, finishing=0)) == "stopping"
    assert time_left(replace(stopping, goal=None)).startswith("finishing 16 prompts")
    assert size(999_600_000) == "1000 MB"


def test_tokens_now_are_those_of_late() -> None:
    later = replace(SNAPSHOT, seconds=110.0, generated=9000)
    assert figures(later, SNAPSHOT)[0].items[2:4] == ("100 tokens/s now", "82 overall")


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "M", "Z"]), min_size=1, max_size=30)


@given(
    st.lists(st.builds(Figure, st.sampled_from(["generator", "limit"]), st.lists(WORDS, min_size=1).map(tuple))),
    st.integers(1, 300),
    st.integers(0, 20),
)
def test_no_line_is_too_long_and_none_is_too_many(shown: list[Figure], columns: int, most: int) -> None:
    lines = lay_out(shown, columns, most)
    assert len(lines) <= most
    for line in lines:
        assert sum(1 + (east_asian_width(character) in "WF") for character in line) <= columns


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    figure = Figure("waiting", ("prompts 5", "completions 0", "in order 2"))
    assert lay_out([figure], 100, 5) == ["waiting    prompts 5, completions 0, in order 2"]
    assert lay_out([figure], 40, 5) == ["waiting    prompts 5, completions 0", "           in order 2"]
    assert lay_out([figure], 40, 1) == ["waiting    prompts 5, completions 0"]
    assert lay_out([figure], 24, 5) == ["waiting    prompts 5", "           completions 0"]
    assert lay_out([figure] * 3, 200, 5)[0].count("waiting") == 2
    assert lay_out([Figure("limit", ("validator with a long name",))], 30, 5) == ["limit      validator with a .."]


def test_what_a_stream_cannot_say_is_a_question_mark() -> None:
    assert printable("nai\u0308ve\n\x1b[31m", "ascii") == "nai?ve??[31m"
    assert printable("naïve", "utf-8") == printable("naïve", None) == "naïve"


# The summary.


def test_the_summary_says_what_was_made_and_where() -> None:
    text = Report("complete", SNAPSHOT, Path("/x/s.jsonl"), Path("/x/s.rejected.jsonl")).summary()
    assert text.startswith("complete: 60 of 200 stories, 50 of them made now in 1 min 40 s")
    assert "75% of the prompts at the first attempt, 62% of 80 attempts" in text
    assert "missing words 20, too short 10 (this time)" in text
    assert "/x/s.rejected.jsonl (3 failed all attempts, 1 of them earlier)" in text
    assert "limit" not in text


def test_the_summary_names_what_held_the_generator_up() -> None:
    held = replace(SNAPSHOT, busy_seconds=41, starved_by={"validators": 58.0}, validator_seconds={"kindness": 300.0})
    text = Report("complete", held, Path("s.jsonl"), Path("r.jsonl")).summary()
    assert "limit     validator kindness (the generator waited for prompts 58% of the time)" in text
