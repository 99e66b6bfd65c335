"""asyncgen: synthetic text data sets from a language model, validated, never lost, never repeated.

    report = await asyncgen.run(config)                          # the whole run, files included
    async with asyncgen.open_pipeline(config) as stories: ...    # accepted stories into your own loop
    config = asyncgen.load_config("config.yaml")

Importing this loads neither torch nor transformers.
"""

from asyncgen.config import Config
from asyncgen.config_file import load_config
from asyncgen.errors import (
    AsyncgenError,
    BackendFailed,
    ConfigError,
    DataError,
    InputError,
    ModelError,
    OutputDamaged,
    OutputError,
    OutputFailed,
    OutputInUse,
    PromptTooLong,
    ResumeRefused,
    RunStopped,
    SourcesEnded,
    TooManyRejections,
)
from asyncgen.metrics import Snapshot
from asyncgen.pipeline import Stories, open_pipeline
from asyncgen.records import Message, Rejection, Story
from asyncgen.report import Report
from asyncgen.session import run

__version__ = "0.1.0"

__all__ = [
    "AsyncgenError",
    "BackendFailed",
    "Config",
    "ConfigError",
    "DataError",
    "InputError",
    "Message",
    "ModelError",
    "OutputDamaged",
    "OutputError",
    "OutputFailed",
    "OutputInUse",
    "PromptTooLong",
    "Rejection",
    "Report",
    "ResumeRefused",
    "RunStopped",
    "Snapshot",
    "SourcesEnded",
    "Stories",
    "Story",
    "TooManyRejections",
    "load_config",
    "open_pipeline",
    "run",
]
