"""A model that is on the card already, the engine over it, and the whole pipeline over the engine.

``asyncgen.run`` is called as it is, files and all. Three things are put in its way while it runs, for there is no
directory to load the model from, and noise is no story: the opening of the backend hands out one that is open, the plan
has the workload's prompts and lengths, and the built-in checks judge in earnest but their verdict counts for nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import anyio
import torch
from transformers import AttentionInterface

import asyncgen
from asyncgen.backends import Backend
from asyncgen.backends.loading import Loaded
from asyncgen.backends.slots import decoders
from asyncgen.backends.slots.backend import Slots
from asyncgen.backends.slots.gpu import opening
from asyncgen.backends.slots.gpu.opening import Fixed, Means
from asyncgen.backends.slots.gpu.recording import Called, Captured
from asyncgen.backends.slots.passes import NAME, attention
from asyncgen.config import Config
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Prompt, Verdict
from asyncgen.validators import Validators, open_validators
from benchmarks.on_gpu.device import Timed, Watch, memory, synchronize, tidy
from benchmarks.on_gpu.idle import idle
from benchmarks.on_gpu.kinds import Kind
from benchmarks.on_gpu.workload import Workload

__all__ = ["CHECKS", "Card", "Opened"]

TEMPERATURE = 0.8
CHECKS = """
import hashlib
from time import perf_counter

import anyio


async def waits(completion, seconds):
    await anyio.sleep(seconds)


def computes(completion, seconds):
    until, block = perf_counter() + seconds, b"asyncgen" * 131072
    while perf_counter() < until:
        hashlib.sha256(block).digest()  # without the interpreter's lock
"""

_Overrides = dict[Any, Any]
"""Module -> what its ``forward`` is replaced with."""


@dataclass(slots=True, eq=False)
class Opened:
    """The engine, open."""

    backend: Slots
    config: Config
    fixed: Fixed | None
    """The decoder with fixed shapes; None where it is the plain one, and ``notices`` say why."""
    watch: Watch
    overrides: _Overrides
    compiled: bool
    seconds: float
    """To open it."""
    grown: dict[str, int] = field(default_factory=dict)
    """Bytes that it took, by who says so."""
    whole: dict[str, Any] = field(default_factory=dict)
    """Bytes of everything, against what was predicted."""

    def describe(self) -> dict[str, Any]:
        """For the results."""
        found: dict[str, Any] = {
            "slots": self.backend.limits.rows,
            "fixed shapes": self.fixed is not None,
            "notices": list(self.backend.notices),
            "seconds to open": round(self.seconds, 2),
            "bytes taken": self.grown,
            "bytes in all": self.whole,
        }
        if self.fixed is not None:
            plan = self.fixed.memory
            found["bytes planned"] = {
                "all": plan.planned,
                "state": plan.state,
                "activations, twice": 2 * plan.activations,
                "pages": plan.pages,
                "prefix pages": plan.prefix_pages,
                "a page": plan.page,
            }
            for who in ("allocated", "reserved", "driver"):
                if plan.planned and self.grown.get(who):
                    found[f"planned / {who}"] = round(plan.planned / self.grown[who], 4)
        return found


class Card:
    """One model on one device. Engines that are open at the same time share its weights."""

    def __init__(
        self, loaded: Loaded, kind: Kind, workload: Workload, means: Callable[[], Means | None], context: int = 0
    ) -> None:
        """``means`` gives what the engine is made with; None, and it is what it finds by itself. ``context``: bytes of
        the device that were taken before anything was there.
        """
        self.loaded, self.kind, self.workload, self.means = loaded, kind, workload, means
        self.device: torch.device = loaded.device
        self.context = context
        self.weights = sum(each.nbytes for each in loaded.model.parameters())
        self._fused: _Overrides = {}

    def config(self, slots: int, output: Path | None = None, *settings: str, longest: int | None = None) -> Config:
        """A run's, of the model's engine."""
        where = "cpu" if self.device.type == "cpu" else str(self.device)
        longest = longest or self.workload.sizes.longest
        return asyncgen.load_config(
            None,
            [
                f"backend={{kind: slots, device: '{where}'}}",
                f"generation.batch_size={slots}",
                f"generation.max_new_tokens={longest}",
                f"generation.temperature={TEMPERATURE}",
                "max_attempts=3",
                "validation.min_words=1",
                *([f"output_path={output}"] if output else []),
                *settings,
            ],
        )

    def open(self, slots: int, *, longest: int | None = None, **changes: Any) -> Opened:
        """The engine with so many slots; ``changes`` of its means switch single tricks off. Raises what that does.

        Weights that were laid together for one engine stay so for all: their graphs read them where they are.
        """
        means = self.means()
        if means is not None and changes:
            means = replace(means, **changes)
        fused, compiled = means is None or means.fused, means is not None and means.compiled
        self._activate(self._fused if fused else {}, compiled=False)
        self.loaded.model.set_attn_implementation("sdpa")  # what it is compared with, and goes back to
        tidy(self.device)
        before, began = memory(self.device), perf_counter()
        config, watch = self.config(slots, longest=longest), Watch(self.device)
        found: list[Fixed] = []

        def spy(*arguments: Any, **named: Any) -> Fixed:
            made = opening.open_fixed(*arguments, **named)
            found.append(made)
            return made

        with ExitStack() as patches:
            if means is not None:
                patches.enter_context(patch.object(decoders, "_means", lambda *_: means))
            patches.enter_context(patch.object(decoders, "open_fixed", spy))
            patches.enter_context(patch.object(opening, "Captured", lambda *given: Timed(Captured(*given), watch)))
            patches.enter_context(patch.object(opening, "Called", lambda: Timed(Called(), watch)))
            backend = Slots(self.loaded, config)
        took = perf_counter() - began
        overrides = self._overrides()
        if fused and found and not self._fused:
            self._fused = {each: forward for each, forward in overrides.items() if isinstance(each, torch.nn.Linear)}
        tidy(self.device)
        now = memory(self.device)
        grown = {name: value - before[name] for name, value in now.items()}
        return Opened(
            backend,
            config,
            found[0] if found else None,
            watch,
            overrides,
            compiled,
            took,
            grown,
            self._whole(now, found),
        )

    def _whole(self, now: dict[str, int], found: Sequence[Fixed]) -> dict[str, Any]:
        """Weights and what was planned, against all that is taken; of the driver's, without what was there before."""
        if not found or not now["driver"]:
            return {}
        planned = self.weights + found[0].memory.planned
        taken = now | {"driver": now["driver"] - self.context}
        ratios = {f"predicted / {who}": round(planned / value, 4) for who, value in taken.items() if value}
        return {"predicted": planned, "weights": self.weights, "context": self.context, **taken, **ratios}

    def close(self, opened: Opened) -> None:
        """Frees what the engine has, but for the model."""
        synchronize(self.device)
        opened.backend.close()
        opened.fixed = None
        opened.watch.marks.clear()
        tidy(self.device)

    def activate(self, opened: Opened) -> None:
        """Makes the model's code what this engine was opened with."""
        self._activate(opened.overrides, compiled=opened.compiled)

    @contextmanager
    def as_it_came(self) -> Iterator[Any]:
        """The model with transformers' own attention and products, for peers; afterwards the engine's again."""
        overrides = self._overrides()
        self._clear()
        self.loaded.model.set_attn_implementation("sdpa")
        try:
            yield self.loaded.model
        finally:
            self._activate(overrides, compiled=False)

    def prepared(self, opened: Opened, indices: Sequence[int]) -> list[Prompt]:
        """Prompts of the workload, ready for the engine."""
        prompts = [self.workload.prompt(index) for index in indices]
        prepare = opened.backend.prepare
        return [each.with_prepared(prepare(each.messages, each.max_new_tokens, each.shared)) for each in prompts]

    def tokens(self, opened: Opened, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """What the engine says to each of ``prompts``, which it gets in this order. RuntimeError if one fails."""
        self.activate(opened)
        said: list[list[int]] = [[] for _ in prompts]
        asked = [replace(prompt, index=place, streamed=True) for place, prompt in enumerate(prompts)]

        def hear(prompt: Prompt, at: int, piece: Any) -> None:
            assert at == len(said[prompt.index])
            said[prompt.index] += piece

        done = anyio.run(_complete, opened.backend, asked, hear)
        if failed := next((each for each in done if each.finish_reason not in ("stop", "length")), None):
            raise RuntimeError(f"prompt {failed.prompt.index}: {failed.finish_reason} {failed.error}")
        return [tuple(tokens) for tokens in said]

    def run(
        self,
        opened: Opened,
        stories: int,
        *,
        check: str = "waits",
        seconds: float = 0.005,
        sharing: bool = True,
        amid: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """The whole pipeline: makes ``stories``, on disk at the end. ``check`` is a function of ``CHECKS``, which
        takes so many seconds a story. ``amid`` is called once, in a thread of its own, when a third of them is judged.
        """
        self.activate(opened)
        judged, refused = _Judged(stories // 3, amid), [0]
        with TemporaryDirectory() as name, ExitStack() as patches:
            folder = Path(name)
            (folder / "checks.py").write_text(CHECKS, encoding="utf-8")
            function = {
                "function": f"{folder / 'checks.py'}:{check}",
                "parameters": {"seconds": seconds},
                "concurrency": 64,
            }
            settings = (f"num_stories={stories}", f"validation.functions={json.dumps([function])}")
            config = self.config(opened.backend.limits.rows, folder / "stories.jsonl", *settings)
            plan = self.workload.plan(sharing=sharing)
            patches.enter_context(patch("asyncgen.engine.engine.open_backend", _given(opened.backend)))
            patches.enter_context(patch("asyncgen.prompts.sources.Plan", plan))
            patches.enter_context(patch("asyncgen.session.open_validators", lambda c: _lenient(c, judged, refused)))
            before, began = opened.backend.snapshot(), perf_counter()
            with opened.watch.watching():
                report = anyio.run(asyncgen.run, config)
            wall = perf_counter() - began
            judged.join()
            lines = (folder / "stories.jsonl").read_bytes().count(b"\n")
        after, s = opened.backend.snapshot(), report.snapshot
        slot_seconds = after.slot_seconds - before.slot_seconds
        return {
            "stories": lines,
            "tokens": s.tokens,
            "seconds": round(s.seconds, 3),
            "seconds with opening and closing of files": round(wall, 3),
            "stories/min": round(60 * lines / s.seconds, 1),
            "tokens/s": round(s.tokens / s.seconds, 1),
            "steady stories/min": round(judged.steady(opened.backend.limits.rows), 1),
            "slots": opened.backend.limits.rows,
            "share of slots in use": round((after.row_seconds - before.row_seconds) / slot_seconds, 4)
            if slot_seconds
            else 0.0,
            "starved by": {key: round(value, 3) for key, value in s.starved_by.items()},
            "out of memory": after.out_of_memory - before.out_of_memory,
            "prefix hits, misses": [after.prefix_hits - before.prefix_hits, after.prefix_misses - before.prefix_misses],
            "checks": f"built-in, verdict ignored ({refused[0]} had been refused), and {check} {seconds * 1e3:g} ms",
            "seconds in checks": {key: round(value, 3) for key, value in s.validator_seconds.items()},
            "checked": dict(s.validator_calls),
            "seconds on disk": round(s.disk_seconds, 3),
            "device": passes(opened.watch),
        }

    def _overrides(self) -> _Overrides:
        return {each: vars(each)["forward"] for each in self.loaded.model.modules() if "forward" in vars(each)}

    def _clear(self) -> None:
        for each in self.loaded.model.modules():
            vars(each).pop("forward", None)

    def _activate(self, overrides: _Overrides, *, compiled: bool) -> None:
        self._clear()
        for module, forward in overrides.items():
            module.__dict__["forward"] = forward
        mine: Any = torch.compiler.disable(attention) if compiled else attention  # type: ignore[no-untyped-call]  # torch is typed in parts
        AttentionInterface.register(NAME, mine)
        self.loaded.model.set_attn_implementation(NAME)


def passes(watch: Watch) -> dict[str, Any]:
    """What the device did between its first and its last pass, by events around each of them."""
    intervals = watch.intervals()
    if not intervals:
        return {}
    found: dict[str, Any] = {"by": "events around each pass"} | idle(intervals).describe()
    end = max(each.end for each in intervals)
    middle_part = [each for each in intervals if 0.1 * end <= each.start and each.end <= 0.9 * end]
    found["idle share of the middle 80 %"] = round(idle(middle_part).share, 5)
    for name in ("step", "prompts"):
        times = sorted(each.end - each.start for each in intervals if each.name == name)
        if times:
            middle, late = times[len(times) // 2], times[int(len(times) * 0.95)]
            found[name] = {"passes": len(times), "median ms": round(1e3 * middle, 4), "p95 ms": round(1e3 * late, 4)}
    return found


class _Judged:
    """When each story was judged."""

    def __init__(self, third: int, amid: Callable[[], object] | None) -> None:
        self.times: list[float] = []
        self._third = max(1, third)
        self._amid = threading.Thread(target=amid, daemon=True) if amid is not None else None

    def note(self) -> None:
        """One more."""
        self.times.append(perf_counter())
        if self._amid is not None and len(self.times) == self._third:
            self._amid.start()

    def join(self) -> None:
        """Waits for what was begun amid."""
        if self._amid is not None and self._amid.ident is not None:
            self._amid.join(120)

    def steady(self, slots: int) -> float:
        """Stories a minute while all slots were in use: without the first and the last ones, as many as slots."""
        first, last = slots, len(self.times) - slots - 1
        if last - first < 2:
            return 0.0
        return 60 * (last - first) / (self.times[last] - self.times[first])


def _lenient(config: Config, judged: _Judged, refused: list[int]) -> Validators:
    """The configured validators, whose verdict is noted and then set aside."""
    real = open_validators(config)

    def judge(completion: Completion) -> Verdict:
        verdict = real.judge(completion)
        judged.note()
        refused[0] += not verdict.accepted
        failed = completion.finish_reason in ("error", "refused", "cancelled")
        return verdict if failed else replace(verdict, reasons=())

    made: Any = Validators
    return made(_Judge(judge, may_take_long=real.judge.may_take_long), real.functions)  # type: ignore[no-any-return]


class _Judge:
    """What the pipeline wants of a judge."""

    def __init__(self, judge: Callable[[Completion], Verdict], *, may_take_long: bool) -> None:
        self._judge, self.may_take_long = judge, may_take_long

    def __call__(self, completion: Completion) -> Verdict:
        return self._judge(completion)


def _given(backend: Backend) -> Callable[..., Any]:
    """Opens nothing, and closes nothing."""

    @asynccontextmanager
    async def given(*_: Any) -> AsyncIterator[Backend]:
        yield backend

    return given


async def _complete(backend: Backend, prompts: Sequence[Prompt], hear: Any) -> list[Completion]:
    """What becomes of ``prompts``, all of which wait from the beginning."""
    window = Window(len(prompts), len(prompts))
    window.plan(len(prompts))
    window.end()
    pool = PromptPool(window)
    pool.put(prompts)
    send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](len(prompts))
    done: list[Completion] = []
    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.run, pool, send, hear)
            while len(done) < len(prompts):
                done += await receive.receive()
            pool.close()
    return done
