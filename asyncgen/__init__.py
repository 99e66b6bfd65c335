"""asyncgen: synthetic text data sets from a language model, validated, never lost, never repeated.

    report = await asyncgen.run(config)                          # the whole run, files included
    async with asyncgen.open_pipeline(config) as stories: ...    # accepted stories into your own loop
    async with asyncgen.Engine(model_name) as engine: ...        # the model alone, shared by many tasks
    config = asyncgen.load_config("config.yaml")

The names below are imported when they are first used; none of them loads torch or transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncgen.config import Config
    from asyncgen.config_file import load_config
    from asyncgen.dashboard import progress
    from asyncgen.engine import (
        Answers,
        Asking,
        BlockingEngine,
        BlockingIterator,
        BlockingStream,
        Engine,
        EngineSnapshot,
        TextStream,
    )
    from asyncgen.errors import (
        AsyncgenError,
        BackendFailed,
        CompletionFailed,
        ConfigError,
        DataError,
        EngineClosed,
        EngineError,
        EngineFull,
        InputError,
        ModelError,
        OutputDamaged,
        OutputError,
        OutputFailed,
        OutputInUse,
        PromptRefused,
        PromptTooLong,
        ResumeRefused,
        RunStopped,
        ServerFailed,
        SourcesEnded,
        TooManyFailures,
        TooManyRejections,
    )
    from asyncgen.metrics import Snapshot, Watched
    from asyncgen.records import Completion, Message, Prompt, Rejection, Sampling, Story
    from asyncgen.report import Report
    from asyncgen.session import run
    from asyncgen.stream import Stories, open_pipeline

__version__ = "0.1.0"

__all__ = [
    "Answers",
    "Asking",
    "AsyncgenError",
    "BackendFailed",
    "BlockingEngine",
    "BlockingIterator",
    "BlockingStream",
    "Completion",
    "CompletionFailed",
    "Config",
    "ConfigError",
    "DataError",
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineFull",
    "EngineSnapshot",
    "InputError",
    "Message",
    "ModelError",
    "OutputDamaged",
    "OutputError",
    "OutputFailed",
    "OutputInUse",
    "Prompt",
    "PromptRefused",
    "PromptTooLong",
    "Rejection",
    "Report",
    "ResumeRefused",
    "RunStopped",
    "Sampling",
    "ServerFailed",
    "Snapshot",
    "SourcesEnded",
    "Stories",
    "Story",
    "TextStream",
    "TooManyFailures",
    "TooManyRejections",
    "Watched",
    "load_config",
    "open_pipeline",
    "progress",
    "run",
]

_HOMES = {
    "asyncgen.config": ("Config",),
    "asyncgen.config_file": ("load_config",),
    "asyncgen.dashboard": ("progress",),
    "asyncgen.engine": (
        "Answers",
        "Asking",
        "BlockingEngine",
        "BlockingIterator",
        "BlockingStream",
        "Engine",
        "EngineSnapshot",
        "TextStream",
    ),
    "asyncgen.errors": (
        "AsyncgenError",
        "BackendFailed",
        "CompletionFailed",
        "ConfigError",
        "DataError",
        "EngineClosed",
        "EngineError",
        "EngineFull",
        "InputError",
        "ModelError",
        "OutputDamaged",
        "OutputError",
        "OutputFailed",
        "OutputInUse",
        "PromptRefused",
        "PromptTooLong",
        "ResumeRefused",
        "RunStopped",
        "ServerFailed",
        "SourcesEnded",
        "TooManyFailures",
        "TooManyRejections",
    ),
    "asyncgen.metrics": (
        "Snapshot",
        "Watched",
    ),
    "asyncgen.records": ("Completion", "Message", "Prompt", "Rejection", "Sampling", "Story"),
    "asyncgen.report": ("Report",),
    "asyncgen.session": ("run",),
    "asyncgen.stream": (
        "Stories",
        "open_pipeline",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
