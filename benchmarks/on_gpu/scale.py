"""How much is measured: on the device, and, for a test of the program itself, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from asyncgen.backends.slots.gpu.opening import Means
from benchmarks.on_gpu.card import Card
from benchmarks.on_gpu.device import alive, memory
from benchmarks.on_gpu.kinds import KINDS, load
from benchmarks.on_gpu.results import Results
from benchmarks.on_gpu.scenes import Heads
from benchmarks.on_gpu.workload import STORIES, TINY, Sizes, Workload

__all__ = ["FULL", "SMOKE", "Scale", "bounded", "card_of", "means_of"]

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of everything."""

    small: str = "3b"
    large: str = "7b"
    few_layers: str = "3b, 4 layers"
    sizes: Sizes = STORIES
    main: int = 512
    """Slots of peers and ablation, and where a sweep begins."""
    sweep: tuple[int, ...] = (512, 1024, 256, 128)
    large_sweep: tuple[int, ...] = (512, 256, 1024)
    long_run: int = 8000
    large_long_run: int = 4000
    short_run: int = 5
    """Times the slots: stories of a run in a sweep."""
    least_run: int = 1500
    peer_stories: int = 3000
    peer_rows: tuple[int, ...] = (256, 128, 512, 64)
    peer_requests: int = 1024
    batch_requests: int = 192
    batch_seconds: float = 60.0
    batch_defaults: bool = True
    """Whether its defaults are tried too: on a CPU they allocate what there is."""
    batch_settings: dict[str, Any] = field(
        default_factory=lambda: {"num_blocks": 1024, "block_size": 256, "max_batch_tokens": 1024}
    )
    ablation_stories: int = 1536
    tricks: tuple[str, ...] = ()
    """Those that are switched off, by the beginning of their name; all if none are named."""
    heads: tuple[Heads, ...] = (Heads(16, 2, 128), Heads(28, 4, 128))
    more_heads: tuple[Heads, ...] = (Heads(8, 8, 64),)
    attention_slots: int = 96
    attention_tokens: int = 512
    micro_slots: tuple[int, ...] = (256, 512, 1024)
    micro_rows: tuple[int, ...] = (256, 512, 1024)
    steady_rows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    same_rows: int = 1000
    same_slots: int = 256
    greedy: tuple[int, int] = (12, 40)
    startup_slots: int = 512
    startup_rows: int = 64
    startups: dict[str, list[int]] = field(
        default_factory=lambda: {
            "ballast": [size * MEGABYTE for size in (600, 20, 60, 150, 300, 1000, 1600, 3000)],
            "fraction": [size * MEGABYTE for size in (40, 120, 250, 500, 900, 1400, 2500)],
            "another process": [size * MEGABYTE for size in (100, 300, 600, 1000, 2000)],
        }
    )
    groups: int = 8
    profile_seconds: float = 0.4
    goals: dict[str, float] = field(default_factory=lambda: {"small": 17_000, "large": 8_000})


FULL = Scale()
SMOKE = Scale(
    small="tiny",
    large="tiny",
    few_layers="tiny",
    sizes=TINY,
    main=6,
    sweep=(6, 4),
    large_sweep=(6,),
    long_run=8,
    large_long_run=7,
    short_run=1,
    least_run=5,
    peer_stories=7,
    peer_rows=(4,),
    peer_requests=8,
    batch_requests=3,
    batch_seconds=10.0,
    batch_defaults=False,
    batch_settings={"num_blocks": 16, "block_size": 64, "max_batch_tokens": 128},
    ablation_stories=5,
    tricks=("without shared", "without fused"),
    heads=(Heads(4, 2, 16), Heads(7, 1, 16)),
    more_heads=(),
    attention_slots=9,
    attention_tokens=64,
    micro_slots=(8,),
    micro_rows=(16,),
    steady_rows=(16,),
    same_rows=8,
    same_slots=4,
    greedy=(2, 4),
    startup_slots=4,
    startup_rows=2,
    startups={"fraction": [MEGABYTE]},
    groups=2,
    profile_seconds=0.05,
)


def means_of(device: torch.device) -> Means | None:
    """What the engine has on a GPU; None where it has nothing of the kind, and says why by itself."""
    if device.type != "cuda":
        return None
    try:
        from asyncgen.backends.slots.gpu.triton_means import triton_means

        return triton_means()
    except Exception as error:  # noqa: BLE001  # the engine meets it again, and says so
        print(f"no Triton: {type(error).__name__}: {error}", flush=True)
        return None


def card_of(
    results: Results,
    kind: str,
    scale: Scale,
    device: torch.device,
    means: Callable[[], Means | None],
    *,
    again: str = "",
) -> Card:
    """A model on the device, and the workload for it; what it is is kept."""
    alive(device)  # the context is there from now on
    started = memory(device)
    loaded, about = load(KINDS[kind], device)
    workload = Workload(loaded.tokenizer, scale.sizes)
    results.device = device
    drawn = [workload.new_tokens(index) for index in range(2000)]
    asked = [workload.own_tokens(index) for index in range(2000)]
    about |= {
        "workload": scale.sizes.describe(),
        "mean new tokens": sum(drawn) / 2000,
        "mean own tokens": sum(asked) / 2000,
    }
    results.keep(f"model{again}", about)
    return Card(loaded, KINDS[kind], workload, means, started["driver"] - started["reserved"])


def bounded(first: dict[str, Any], stories: int, seconds: float) -> int:
    """Stories, or as many as take about ``seconds`` at the pace of a ``first`` run."""
    pace = float(first["stories/min"]) / 60
    return max(1, min(stories, round(pace * seconds)))
