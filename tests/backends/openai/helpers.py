"""Configurations for the faulty server, and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from asyncgen.config import Config
from tests.backends.openai.faulty import MODEL, TEMPLATE, Faulty

__all__ = ["config_for", "engine_settings", "settings_for", "write_config"]

QUICK = {"timeout": 5.0, "patience": 30.0}


def settings_for(server: Faulty, **backend: object) -> dict[str, Any]:
    return {
        "model_name": MODEL,
        "backend": {"kind": "openai", "base_url": server.url, **QUICK, **backend},
        "generation": {"batch_size": 8, "max_new_tokens": 220},
        "template": TEMPLATE,
        "num_stories": 30,
        "use_k_shot": False,
        "drain_timeout": 1.0,
    }


def config_for(server: Faulty, folder: Path, **backend: object) -> Config:
    return Config.model_validate(settings_for(server, **backend) | {"output_path": folder / "stories.jsonl"})


def engine_settings(server: Faulty, *, rows: int = 8, **backend: object) -> Config:
    """For ``Engine``."""
    settings = settings_for(server, **backend) | {"validation": {"enabled": False}}
    return Config.model_validate(settings | {"generation": {"batch_size": rows, "max_new_tokens": 220}})


def write_config(folder: Path, server: Faulty, changes: dict[str, Any] | None = None, **backend: object) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(settings_for(server, **backend) | (changes or {})), encoding="utf-8")
    return path
