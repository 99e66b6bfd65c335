"""The benchmark of engines runs, and its numbers mean what they say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.generation.child import Child
from benchmarks.generation.floor import Demand, Machine, floor_seconds, operations
from benchmarks.generation.models import Shape, build
from benchmarks.generation.rounds import Block, Measured, baseline, play, summary, table
from benchmarks.generation.workload import WORKLOADS, draw_lengths, make, save
from tests.programs import ROOT, environment

SHAPE = Shape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocabulary=100)
MACHINE = Machine(flops=1e9, bandwidth=1e9)


def test_the_quick_run_measures_both_engines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engines", "--quick"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["engine", "brief@passive", "static@passive"]
    assert "cannot" not in done.stdout
    assert "1.00 (1.00 to 1.00)" in rows[1]


@pytest.mark.parametrize("engine", ["brief", "static"])
def test_an_engine_delivers_exactly_what_was_drawn(engine: str, tmp_path: Path) -> None:
    model = build("tiny", tmp_path, 0)
    stream = make("tiny", model.folder, 10, natural=False, seed=3)
    file = tmp_path / "workload.json"
    save(stream, file)
    setting = {
        "model": str(model.folder), "workload": str(file), "threads": 1, "seed": 0, "temperature": 0.8, "top_k": 0,
        "top_p": 1.0, "rows": 4, "trial": 4, "eos": None,
    }  # fmt: skip
    with Child(f"{engine}@passive", setting, tmp_path, 100) as child:
        (measured,) = play([child], {child.name: 7}, stream, 2, lambda: MACHINE)
    assert not measured.cannot
    limits = [request.limit for request in stream.requests]
    # The second block begins where the first ended, and goes on at the stream's beginning.
    assert [block.tokens for block in measured.blocks] == [sum(limits[:7]), sum(limits[7:] + limits[:4])]
    assert [block.machine for block in measured.blocks] == [None if engine == "brief" else MACHINE] * 2
    assert all(
        block.rows == 4 and block.demand.outputs == block_lengths
        for block, block_lengths in zip(measured.blocks, (limits[:7], limits[7:] + limits[:4]), strict=True)
    )


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    model = build("tiny", tmp_path, 0)
    file = tmp_path / "workload.json"
    save(make("tiny", model.folder, 2, natural=False, seed=3), file)
    setting = {
        "model": str(tmp_path / "absent"), "workload": str(file), "threads": 1, "seed": 0, "temperature": 0.8,
        "top_k": 0, "top_p": 1.0, "rows": 4, "trial": 4, "eos": None,
    }  # fmt: skip
    with Child("static", setting, tmp_path, 100) as child:
        assert "absent" in child.cannot
    with Child("static", setting, tmp_path, 0.01) as child:
        assert child.cannot == "it took longer than 0.01 s and was ended"


@pytest.mark.parametrize(("name", "shared", "own"), [("tiny", 120, (24, 40)), ("A", 400, (40, 90)), ("B", 0, (40, 90))])
def test_prompts_have_the_wanted_lengths(name: str, shared: int, own: tuple[int, int], tmp_path: Path) -> None:
    folder = build("tiny", tmp_path, 0).folder
    stream = make(name, folder, 60, natural=False, seed=1)
    assert abs(stream.prefix - shared) <= 10
    assert all(request.ids[: stream.prefix] == stream.requests[0].ids[: stream.prefix] for request in stream.requests)
    assert all(own[0] <= len(request.ids) - stream.prefix <= own[1] for request in stream.requests)
    assert all(request.shared == (4 if shared else 0) for request in stream.requests)
    assert stream == make(name, folder, 60, natural=False, seed=1)


@given(st.sampled_from(sorted(WORKLOADS)), st.integers(0, 2**32))
def test_output_lengths_stay_in_their_range(name: str, seed: int) -> None:
    kind = WORKLOADS[name]
    lengths = draw_lengths(kind, 50, seed)
    assert all(kind.shortest <= length <= kind.longest for length in lengths)
    assert lengths[:20] == draw_lengths(kind, 20, seed)  # a longer stream begins as a shorter one


def test_the_floor_counts_what_its_formula_says() -> None:
    counted = operations(SHAPE, Demand(prefix=10, prompts=[3], outputs=[4]), rows=1)
    layers, head = 2 * (8 * 4 * 2 * 3 + 3 * 8 * 16), 8 * 100
    own = (1 + 2 + 3) + (
        4 + 5 + 6
    )  # prompt tokens see themselves and those before; so do three fed tokens, but for one
    assert counted == {
        "prompts": (2 * layers * 13, 0),
        "decoding": (2 * layers * 3, 4 * layers * 3),
        "vocabulary": (2 * head * 4, 4 * head * 3),
        "prefix": (2 * 4 * 2 * 4 * 10 * (5 + 3 + 3), 2 * 8 * 4 * 10 * 3),
        "own": (2 * 4 * 2 * 4 * own, 2 * 8 * 4 * (4 + 5 + 6)),
    }


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 300)), min_size=1, max_size=20),
    st.integers(0, 500),
    st.integers(1, 64),
)
def test_the_floor_grows_with_what_is_asked(own: list[tuple[int, int]], prefix: int, rows: int) -> None:
    demand = Demand(prefix, [p for p, _ in own], [n for _, n in own])
    floor = floor_seconds(SHAPE, demand, rows, MACHINE)
    longer = Demand(prefix, demand.prompts, [n + 1 for n in demand.outputs])
    assert 0 < floor < floor_seconds(SHAPE, longer, rows, MACHINE)
    assert floor_seconds(SHAPE, demand, rows + 1, MACHINE) <= floor * (1 + 1e-9)  # weights are read less often
    assert math.isclose(floor_seconds(SHAPE, demand, rows, Machine(2e9, 2e9)), floor / 2)


def test_ratios_are_taken_round_by_round() -> None:
    asked = Demand(prefix=10, prompts=[3], outputs=[4])
    here, twice = Machine(1e5, 1e5), Machine(2e5, 2e5)
    least = floor_seconds(SHAPE, asked, 2, here)
    assert least > 0.1

    def block(seconds: float, tokens: int, machine: Machine | None = None) -> Block:
        return Block(seconds, tokens, asked, 2, machine)

    slow = Measured("brief", 4, blocks=[block(2.0, 100), block(1.0, 100), block(4.0, 100)])
    fast = Measured("slots", 8, blocks=[block(1.0, 200, here), block(1.0, 300, twice), block(1.0, 100, here)])
    out = Measured("pipeline", 4, cannot="it is tired", blocks=[block(0.1, 100)])
    base = baseline([slow, fast, out])
    assert base is slow
    result = summary(fast, base, SHAPE)
    assert result["ratio"] == {"median": 4.0, "min": 3.0, "max": 4.0}
    assert result["fraction of floor"] == _rounded(least, least / 2, least)
    assert result["with the best rates of all rounds"] == _rounded(*[least / 2] * 3)
    assert "fraction of floor" not in summary(slow, base, SHAPE)
    text = table({each.name: summary(each, base, SHAPE) for each in (slow, fast, out)}, base.name)
    assert f"| slots | 200 | 4.00 (3.00 to 4.00) | {least:.2f} | 8 |" in text
    assert "cannot: it is tired" in text
    json.dumps(result)


def _rounded(*values: float) -> dict[str, float]:
    found = {"median": sorted(values)[len(values) // 2], "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in found.items()}
