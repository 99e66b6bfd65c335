"""All targets by name."""

from __future__ import annotations

from tests.fuzz.configs import CONFIG
from tests.fuzz.outputs import RESUME
from tests.fuzz.sessions import SESSION
from tests.fuzz.target import Target
from tests.fuzz.texts import CONVERSATION, FEATURES, PROMPTS, VOCABULARY

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    "config": CONFIG,
    "resume": RESUME,
    "session": SESSION,
    "conversation": CONVERSATION,
    "features": FEATURES,
    "vocabulary": VOCABULARY,
    "prompts": PROMPTS,
}
