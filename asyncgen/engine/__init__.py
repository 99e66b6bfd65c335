"""The model alone, shared by many tasks: ``Engine``."""

from asyncgen.engine.asking import Asking, Question, checked
from asyncgen.engine.blocking import BlockingEngine, BlockingIterator, BlockingStream
from asyncgen.engine.engine import Engine, EngineSnapshot
from asyncgen.engine.mapping import Answers
from asyncgen.engine.opening import engine_for
from asyncgen.engine.streams import TextStream

__all__ = [
    "Answers",
    "Asking",
    "BlockingEngine",
    "BlockingIterator",
    "BlockingStream",
    "Engine",
    "EngineSnapshot",
    "Question",
    "TextStream",
    "checked",
    "engine_for",
]
