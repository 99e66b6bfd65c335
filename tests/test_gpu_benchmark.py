"""The benchmark of the GPU engine, in small on a CPU: it runs to its end, finds faults, and says what it did not do."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends.sampling import Sampler
from asyncgen.backends.slots.gpu.lanes import Lanes, Packed
from asyncgen.backends.slots.gpu.opening import Means
from benchmarks import gpu
from benchmarks.on_gpu import correct, kinds, results
from benchmarks.on_gpu.device import Timed, Watch
from benchmarks.on_gpu.idle import Interval, by_name, idle
from benchmarks.on_gpu.kinds import H200, KINDS
from benchmarks.on_gpu.picture import draw, points
from benchmarks.on_gpu.results import Gone, Results
from benchmarks.on_gpu.scenes import Heads
from benchmarks.on_gpu.workload import STORIES, TINY, Workload
from tests.backends.slots.gpu.plain import PlainAttention

CPU = torch.device("cpu")
MEANS = Means(PlainAttention(), Sampler, captured=False)
ON: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
ABOUT = {"date": "2026-01-01", "commit": "abc"}
ONLY_ON_A_GPU = "torch's attention"

PIPELINE = {
    "stories",
    "tokens",
    "stories/min",
    "tokens/s",
    "steady stories/min",
    "share of slots in use",
    "starved by",
    "seconds in checks",
    "seconds on disk",
    "device",
    "share of the roofline",
}
STEPS = {"slots", "step ms", "floor ms", "floor / step", "prompts ms", "tokens/s at that pace"}


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Opening an engine collects garbage a few times, over all that was ever imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def measured(part: str, out: Path, means: Callable[[], Means | None] = lambda: MEANS, **more: Any) -> dict[str, Any]:
    file = gpu.measure(part, out=out, minutes=5, device="cpu", tiny=True, commit="abc", means=means, **more)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert set(found) == {"environment", "results", "failed", "not measured", "seconds"}
    assert found["environment"]["commit"] == "abc"
    assert {"date", "hardware", "versions"} <= set(found["environment"])
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    return found


def test_the_check(tmp_path: Path) -> None:
    found = measured("check", tmp_path)
    failed = [name for name in found["failed"] if not name.startswith(ONLY_ON_A_GPU)]
    assert (failed, found["not measured"]) == ([], {})
    results = found["results"]
    assert results["same rows"]["different rows"] == 0
    assert results["same rows"]["fixed shapes"]
    assert results["same rows"]["lengths as drawn"]
    assert results["greedy against float64 and generate"]["texts that equal generate's"] == 2
    assert set(results["a step"]) >= STEPS
    assert results["start-ups"]["failed later"] == 0
    assert results["products and places, tiny"]["that depend on a row's place or neighbours"] == []
    assert results["attention, S=8, group of 7"]["with prefix"]["us"] > 0
    assert set(results["products, tiny"]["down"]) == {"N", "K", "16"}
    assert set(results["sampling, S=6"]) == {"greedy", "temperature", "top-k 50", "top-p 0.95"}


def test_speed_and_the_picture(tmp_path: Path) -> None:
    found = measured("3b", tmp_path)
    assert (found["failed"], found["not measured"]) == ({}, {})
    results = found["results"]
    for slots in (6, 4):
        assert set(results[f"steps, S={slots}"]) >= STEPS
        assert set(results[f"pipeline, S={slots}"]) >= PIPELINE
        assert results[f"pipeline, S={slots}"]["slots"] == slots
    run = results["pipeline, S=6"]
    assert run["stories"] == 8
    assert run["checked"]["waits"] == run["checked"]["built-in"] >= 8
    assert 0 <= run["device"]["idle share"] < 1
    assert run["device"]["step"]["passes"] > 0
    assert results["checks that compute"]["seconds in checks"]["computes"] >= 0.03
    assert results["profile of steps"]["kernels"]["number"] > 100
    assert results["goals"]["goal stories/min"] == 17_000
    [file] = tmp_path.glob("gpu-3b-*.json")
    (tmp_path / file.name.replace("3b", "7b")).write_bytes(file.read_bytes())
    path = gpu.draw(tmp_path)
    assert path is not None
    picture = ET.fromstring(path.read_text(encoding="utf-8"))
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) == 4
    assert {"3b", "7b"} <= {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}


def test_peers(tmp_path: Path) -> None:
    found = measured("peers", tmp_path)
    assert (found["failed"], found["not measured"]) == ({}, {})
    results = found["results"]
    assert results["generate, 4 rows"]["rows"] == 4
    assert results["generate_batch, bounded cache"]["finished"] == 3
    for peer, goal in (("generate", 10), ("generate_batch", 3)):
        assert results["ratios"][peer]["goal"] == goal
        assert results["ratios"][peer]["ours is times"] > 0


def test_ablation(tmp_path: Path) -> None:
    found = measured("ablation", tmp_path)
    assert (found["failed"], found["not measured"]) == ({}, {})
    results = found["results"]
    assert results["without shared prefixes"]["prefix hits, misses"] == [0, 0]
    assert results["full, 2"]["prefix hits, misses"][1] == 1
    gains = results["the full engine is times as fast as"]
    assert set(gains) == {"without shared prefixes", "without fused products"}
    assert all(each["stories/min"] > 0 for each in gains.values())


class NoPrefix(PlainAttention):
    """Forgets the prefix of a step."""

    def decode(self, queries: Any, keys: Any, values: Any, pool: Any, lanes: Lanes, scale: float) -> Any:
        nothing = torch.full_like(lanes.tile_prefix, -1)
        alone = replace(lanes, prefix=torch.full_like(lanes.prefix, -1), tile_prefix=nothing)
        return super().decode(queries, keys, values, pool, alone, scale)


class Elsewhere(PlainAttention):
    """Writes to a page that is nobody's business, beside its own."""

    def prefill(self, queries: Any, keys: Any, values: Any, pool: Any, packed: Packed, scale: float) -> Any:
        found = super().prefill(queries, keys, values, pool, packed, scale)
        pool[0][-1, :, -1] = 1.0
        return found


class ByPlace(PlainAttention):
    """What a row gets depends on its slot, by little."""

    def decode(self, queries: Any, *others: Any) -> Any:
        found = super().decode(queries, *others)
        return found * (1 + 1e-6 * torch.arange(len(found))[:, None, None])


class Reads(PlainAttention):
    """Reads a cell too many."""

    def decode(self, queries: Any, keys: Any, values: Any, pool: Any, lanes: Lanes, scale: float) -> Any:
        return super().decode(queries, keys, values, pool, replace(lanes, lengths=lanes.lengths + 1), scale)


@pytest.mark.parametrize(
    ("attention", "what"),
    [(NoPrefix(), "off by"), (Elsewhere(), "something else was written"), (Reads(), "a step")],
)
def test_a_wrong_attention_is_found(attention: PlainAttention, what: str) -> None:
    sizes = {"slots": 9, "tokens": 64, "rounds": 1}
    correct.attention_is_right(PlainAttention(), [Heads(4, 2, 16)], **sizes, **ON)
    with pytest.raises(correct.Wrong, match=what):
        correct.attention_is_right(attention, [Heads(4, 2, 16)], **sizes, **ON)


def test_bits_that_depend_on_the_slot_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(4, 2, 16)
    with pytest.raises(correct.Wrong, match="other bits in another slot"):
        correct.slots_are_alike(ByPlace(), heads, slots=16, **ON)
    real = torch.nn.functional.linear

    def by_place(some: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        found = real(some, weight, bias)
        if weight.shape == (256, 64):
            found[len(found) // 2 :] *= 1 + 1e-6
        return found

    monkeypatch.setattr(torch.nn.functional, "linear", by_place)
    found = correct.products_are_steady(KINDS["tiny"], [32], CPU, torch.float32)
    [one] = [each for each in found["that depend on a row's place or neighbours"] if each["rows that differ elsewhere"]]
    assert (one["product"], one["M"], one["N"], one["K"]) == ("tiny: gate and up, fused", 32, 256, 64)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=12),
)
def test_idle_time_is_what_no_interval_covers(drawn: list[tuple[int, int]]) -> None:
    found = idle([Interval("", start, start + length) for start, length in drawn])
    covered = {at for start, length in drawn for at in range(start, start + length)}
    span = max(covered) + 1 - min(covered)
    assert (found.span, found.busy) == (span, len(covered))
    assert found.share == pytest.approx(1 - len(covered) / span)
    assert sum(found.gaps) == span - len(covered)


def test_idle_time_of_made_up_kernels() -> None:
    kernels = [
        Interval("b", 10e-3, 11e-3),
        Interval("a", 0.0, 4e-3),
        Interval("a", 3e-3, 5e-3),
        Interval("b", 5.01e-3, 9.9e-3),
    ]
    found = idle(kernels)
    assert found.span == pytest.approx(11e-3)
    assert found.share == pytest.approx(0.11 / 11)
    assert found.longer() == pytest.approx(0.1 / 11)
    assert found.describe()["gaps over 20 us"] == 1
    first, second = by_name(kernels)
    assert (first["name"], first["calls"], second["calls"]) == ("a", 2, 2)
    assert idle([]).share == 0.0


def test_passes_are_noted_only_while_somebody_watches() -> None:
    class Plain:
        def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:  # noqa: ARG002
            return call

    calls: list[int] = []
    watch = Watch(CPU)
    step = Timed(Plain(), watch).record("a step, Needs()", lambda: calls.append(1))
    step()
    with watch.watching():
        step()
        step()
    step()
    assert (len(calls), [each.name for each in watch.intervals()]) == (4, ["step", "step"])


def test_the_roofline_is_that_of_the_notes() -> None:
    """Worked out by hand for the two shapes: milliseconds of a step, stories a minute."""
    for name, rows, step, stories in (("3b", 512, 4.83, 28_100), ("7b", 256, 5.20, 12_900), ("3b", 64, 1.54, 12_600)):
        kind = KINDS[name]
        assert 1e3 * H200.step(kind, rows, prefix=500, own=150) == pytest.approx(step, rel=0.01)
        assert H200.stories(kind, rows, prefix=500, own=60, new=180) == pytest.approx(stories, rel=0.01)


def test_prompts_and_lengths_are_as_drawn() -> None:
    tokenizer = kinds.tokenizer_of(9000)
    assert len(tokenizer) == 9000
    assert all(tokenizer.decode([token]).strip() for token in (5000, 8999))
    for sizes in (STORIES, TINY):
        workload = Workload(tokenizer, sizes)
        assert len(workload.prefix) == sizes.shared
        for index in (0, 7, 123):
            prompt = workload.prompt(index)
            text = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tuple(ids[: sizes.shared]) == workload.prefix
            assert len(ids) - sizes.shared == workload.own_tokens(index)
            assert sizes.shortest <= prompt.max_new_tokens <= sizes.longest
    workload = Workload(tokenizer, STORIES)
    drawn = [workload.new_tokens(index) for index in range(500)]
    assert sum(drawn) / 500 == pytest.approx(180, abs=6)


def test_a_failure_is_kept_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = Results("check", tmp_path, ABOUT, 100, resume=False)
    assert some.measure("good", lambda: {"ms": 1}) == {"ms": 1}
    assert some.measure("bad", lambda: 1 / 0) is None
    assert some.measure("long", dict, needs=1000) is None
    monkeypatch.setattr(results, "alive", lambda _: False)
    with pytest.raises(Gone):
        some.measure("fatal", lambda: 1 / 0)
    found = json.loads(some.file.read_text(encoding="utf-8"))
    assert found["results"] == {"good": {"ms": 1}}
    assert "ZeroDivisionError" in found["failed"]["bad"]
    assert "not measured" in found["not measured"]["long"]
    calls: list[str] = []
    again = Results("check", tmp_path, ABOUT, 100, resume=True)
    for name in ("good", "bad", "fatal", "next"):
        again.measure(name, lambda name=name: calls.append(name))  # type: ignore[misc]  # mypy knows no such default
    assert calls == ["next"]
    assert json.loads(some.file.read_text(encoding="utf-8"))["results"]["good"] == {"ms": 1}


def test_where_there_are_no_means_that_is_what_it_says(tmp_path: Path) -> None:
    """Without Triton the plain decoder runs, and what needs the other one is among the failures."""
    found = measured("7b", tmp_path, lambda: None)
    assert "no decoder with fixed shapes" in found["failed"]["steps, S=6"]
    assert found["results"]["pipeline, S=6"]["stories"] == 7
    assert not found["results"]["engine, S=6"]["fixed shapes"]


def test_each_part_has_its_share_of_the_time_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, bool]] = []
    given_to: dict[str, float] = {}

    def child(_: Any, part: str, seconds: float, *, resume: bool) -> int:
        started.append((part, resume))
        given_to.setdefault(part, seconds)
        return 75 if part == "check" else 0

    monkeypatch.setattr(gpu, "_child", child)
    gpu.supervise(gpu.options(["--minutes", "10", "--out", str(tmp_path)]))
    assert started[:4] == [("check", False), ("check", True), ("check", True), ("3b", False)]
    assert [part for part, _ in started[3:]] == ["3b", "peers", "ablation", "7b"]
    assert given_to["check"] == pytest.approx(600 * gpu.SHARES["check"], rel=0.01)
    assert given_to["7b"] == pytest.approx(600, rel=0.01)  # nobody before took anything
    assert sum(gpu.SHARES.values()) == pytest.approx(1)
    assert gpu.draw(tmp_path) is None


def test_the_picture_shows_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "gpu-3b-2026-01-01-abc.json"
    steps = {
        f"steps, S={slots}": {"slots": slots, "step ms": slots / 50, "floor ms": slots / 100} for slots in (512, 128)
    }
    file.write_text(json.dumps({"results": steps | {"goals": {}}}), encoding="utf-8")
    found = points([file])
    assert found == {"3b": [(128, 2.56, 1.28), (512, 10.24, 5.12)]}
    assert "10.24 (50%)" in draw(found, "a < b")
