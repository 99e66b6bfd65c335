"""What happened between two looks at the same run, or at the same backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from asyncgen.metrics import BackendSnapshot

__all__ = ["since"]

_Look = TypeVar("_Look", bound=BackendSnapshot)

_STATES = (
    "goal",
    "runs",
    "accepted_before",
    "rejected_before",
    "recent",
    "recent_rejected",
    "stops_at",
    "rows_running",
    "slots",
    "unanswered_seconds",
    "seconds_per_token",
    "stopping",
    "finishing",
    "drain_seconds",
    "device_bytes",
    "in_flight_limit",
    "depths",
)


def since(snapshot: _Look, earlier: _Look) -> _Look:
    """What happened between two snapshots: counters and clocks subtracted, states as they are now."""
    changes: dict[str, Any] = {}
    for name in (each.name for each in fields(snapshot) if each.name not in _STATES):
        now, then = getattr(snapshot, name), getattr(earlier, name)
        if isinstance(now, Mapping):
            changes[name] = MappingProxyType({key: value - then.get(key, 0) for key, value in now.items()})
        else:
            changes[name] = now - then
    return replace(snapshot, **changes)
