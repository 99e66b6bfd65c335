"""What transformers itself does with the same weights, prompts and lengths."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from time import monotonic, perf_counter
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.on_gpu.card import TEMPERATURE, Card
from benchmarks.on_gpu.device import memory, synchronize, tidy

__all__ = ["generate", "generate_batch"]

Request = tuple[tuple[int, ...], int]
"""Token ids, and how many new ones are to come."""


def requests_of(card: Card, opened: Any, count: int) -> list[Request]:
    """The workload's, as token ids."""
    return [(each.prepared.token_ids, each.max_new_tokens) for each in card.prepared(opened, range(count))]


def generate(card: Card, requests: Sequence[Request], rows: int) -> dict[str, Any]:
    """One batch of ``rows`` through ``model.generate``, of neighbours in the order of length, from the middle: as if
    all requests had been sorted. Left-padded; it ends with its longest row, and only drawn tokens count.
    """
    ordered = sorted(requests, key=lambda request: request[1])
    first = max(0, (len(ordered) - rows) // 2)
    batch = ordered[first : first + rows]
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (text, _) in enumerate(batch):
        ids[row, longest - len(text) :] = torch.tensor(text)
        mask[row, longest - len(text) :] = 1
    ids, mask = ids.to(card.device), mask.to(card.device)
    most = max(limit for _, limit in batch)
    tidy(card.device)
    with card.as_it_came() as model, torch.inference_mode():
        model.generate(ids, attention_mask=mask, generation_config=_sampling(3))
        synchronize(card.device)
        began = perf_counter()
        found = model.generate(ids, attention_mask=mask, generation_config=_sampling(most))
        synchronize(card.device)
        seconds = perf_counter() - began
    made = int(found.shape[1]) - longest
    if made != most:
        raise RuntimeError(f"it made {made} tokens a row, not {most}")
    tokens = sum(limit for _, limit in batch)
    peak = torch.cuda.max_memory_allocated(card.device) if card.device.type == "cuda" else memory(card.device)["driver"]
    return {
        "rows": len(batch),
        "steps": most,
        "seconds": round(seconds, 3),
        "step ms": round(1e3 * seconds / most, 3),
        "tokens": tokens,
        "tokens/s": round(tokens / seconds, 1),
        "stories/min": round(60 * len(batch) / seconds, 1),
        "tokens computed and let go": len(batch) * most - tokens,
        "peak bytes": peak,
        "note": "one batch, and no loading, tokenizing, checking or writing; stories a minute by its rate",
    }


def generate_batch(card: Card, requests: Sequence[Request], limit: float, **settings: Any) -> dict[str, Any]:
    """Continuous batching through its manager, where each request has a length of its own; ``settings`` are of its
    configuration, none: its defaults. What is finished after ``limit`` seconds counts.
    """
    from transformers import ContinuousBatchingConfig

    known = inspect.signature(ContinuousBatchingConfig).parameters
    if "block_size" in settings and "block_size" not in known:
        settings["page_size"] = settings.pop("block_size")
    config = ContinuousBatchingConfig(**settings)
    longest = max(most for _, most in requests)
    tokens = finished = 0
    last = 0.0
    tidy(card.device)
    with card.as_it_came() as model:
        began = perf_counter()
        with model.continuous_batching_context_manager(
            generation_config=_sampling(longest, eos=-1), continuous_batching_config=config, timeout=5
        ) as manager:
            ready = perf_counter()
            for place, (ids, most) in enumerate(requests):
                manager.add_request(list(ids), request_id=str(place), max_new_tokens=most, eos_token_id=-1)
            until = monotonic() + limit
            while finished < len(requests) and monotonic() < until:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if error := getattr(result, "error", None):
                        raise RuntimeError(f"it failed: {error}")
                    finished += 1
                    tokens += len(result.generated_tokens)
                    last = perf_counter()
                elif result is None and not manager.is_running():
                    raise RuntimeError("its thread ended before all requests were done")
            stopped = perf_counter()
    tidy(card.device)
    seconds = (last if finished == len(requests) else stopped) - ready
    return {
        "requests": len(requests),
        "finished": finished,
        "settings": settings or "its defaults",
        "seconds": round(seconds, 3),
        "seconds to begin": round(ready - began, 3),
        "tokens": tokens,
        "tokens/s": round(tokens / seconds, 1),
        "stories/min": round(60 * finished / seconds, 1),
        "note": "" if finished == len(requests) else f"ended after {limit:g} s; rows that were not done do not count",
    }


def _sampling(new: int, eos: int | None = None) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is typed in parts
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new,
        pad_token_id=0,
        eos_token_id=eos,
    )
