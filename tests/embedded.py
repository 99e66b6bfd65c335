"""Runs of a real (tiny, random) model inside a test's own event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncgen
from tests.backends.helpers import make_model

FREE = {"min_words": 0, "max_words": 9999, "require_words": False, "require_ending": False, "max_repetition": 1.0}
"""Validation that random weights can pass."""


def tiny_model(folder: Path) -> Path:
    return make_model(folder, "llama", context=2048)


def config_for(model: Path, folder: Path, **changes: object) -> asyncgen.Config:
    return asyncgen.Config.model_validate(
        {
            "model_name": str(model),
            "output_path": folder / "stories.jsonl",
            "backend": {"kind": "static", "device": "cpu"},
            "generation": {"batch_size": 4, "max_new_tokens": 24},
            "validation": FREE | {"min_quality": 0.0, "reject_repeats": False, "copy_words": 0},
            "use_k_shot": False,
            "num_stories": 8,
            **changes,
        }
    )


def other_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
