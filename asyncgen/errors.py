"""Every error asyncgen raises on purpose.

    AsyncgenError
    ├── InputError                what the user gave cannot be used
    │   ├── ConfigError           the configuration: unknown key, wrong type, value out of range
    │   ├── DataError             vocabulary, features, conversation, template or prompts file
    │   └── ModelError            the model: not found, unreachable, refused, or a package it needs is missing
    ├── PromptTooLong             prompt and new tokens exceed the model's context (one record, not the run)
    ├── PromptRefused             the model's chat template refuses a conversation (one record, not the run)
    ├── OutputError
    │   ├── OutputInUse           another run holds the lock of this output
    │   ├── OutputDamaged         a file on disk is not what a run of ours left there
    │   ├── ResumeRefused         the configuration differs from the one that began this output
    │   └── OutputFailed          the disk failed; everything committed is safe, the run can be resumed
    ├── RunStopped                the run ended short of its goal; everything decided is on disk
    │   ├── TooManyRejections     more than max_rejection_rate of the last indices were rejected, or a check failed
    │   ├── TooManyFailures       more than half of the last indices failed with errors: a model or a machine is broken
    │   └── SourcesEnded          the sources ended before num_stories were accepted
    ├── BackendFailed             generation failed in a way no retry can mend
    │   └── ServerFailed          the server that generates refuses, or does not answer; the run can be resumed
    └── EngineError               an engine has no answer for this caller
        ├── CompletionFailed      this answer could not be made; others can
        ├── EngineFull            as many requests wait and run as may
        └── EngineClosed          the engine was closed, or not opened yet

A message states what was found and what is allowed; ``hint`` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
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
]


class AsyncgenError(Exception):
    """Base of all errors of asyncgen; ``str()`` is one message, the hint on a line of its own."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class InputError(AsyncgenError):
    """What the user gave cannot be used. ``key`` is that of the configuration which is at fault, where it is known."""

    def __init__(self, message: str, *, hint: str | None = None, key: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key


class ConfigError(InputError):
    """The configuration cannot be used; the message names the file and the key."""


class DataError(InputError):
    """A data file cannot be used; the message names the file and the line."""


class ModelError(InputError):
    """The model cannot be used: not found, unreachable, refused, or a package is missing."""


class PromptTooLong(AsyncgenError):
    """A prompt and its new tokens do not fit the model's context.

    ``prompt_tokens``, ``max_new_tokens`` and ``context_length`` are counts of tokens.
    """

    def __init__(self, prompt_tokens: int, max_new_tokens: int, context_length: int) -> None:
        super().__init__(
            f"prompt too long: {prompt_tokens} prompt tokens + {max_new_tokens} new tokens "
            f"> context of {context_length} tokens"
        )
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.context_length = context_length


class PromptRefused(AsyncgenError):
    """The model's chat template refuses a conversation; the message says why."""


class OutputError(AsyncgenError):
    """The output files cannot be opened or written."""


class OutputInUse(OutputError):
    """Another run is writing this output."""


class OutputDamaged(OutputError):
    """A file on disk is not what a run of ours left there; the message names file and line."""


class ResumeRefused(OutputError):
    """The configuration differs, in fields that change records, from the one that began this output; ``changes`` are
    these keys and what changed, if they are the reason.
    """

    def __init__(self, message: str, *, hint: str | None = None, changes: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.changes = dict(changes or {})

    def __str__(self) -> str:
        lines = [f"{key}: {change}" for key, change in self.changes.items()]
        listed = ":\n  " + "\n  ".join(lines) if lines else ""
        return str(AsyncgenError(self.message + listed, hint=self.hint))

    def placed(self, origin: Callable[[str], str]) -> ResumeRefused:
        """The same, each key with the place where ``origin`` says that it was set."""
        changes = {": ".join(filter(None, (origin(key), key))): change for key, change in self.changes.items()}
        return ResumeRefused(self.message, hint=self.hint, changes=changes)


class OutputFailed(OutputError):
    """Writing failed; what was committed is safe and the run can be resumed."""


class RunStopped(AsyncgenError):
    """The run ended short of its goal; what was decided is on disk, and ``report`` (a Report) says how far it came. Out
    of ``open_pipeline``, which has no output, that is None.
    """

    def __init__(self, message: str, *, hint: str | None = None, report: Any = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


class TooManyRejections(RunStopped):
    """More than ``max_rejection_rate`` of the last decided indices were rejected, or a check of the user's failed in
    more than half of its last calls.
    """


class TooManyFailures(RunStopped):
    """More than half of the last decided indices failed with errors, and not for reasons: generating is broken."""


class SourcesEnded(RunStopped):
    """The sources ended before ``num_stories`` stories were accepted."""


class BackendFailed(AsyncgenError):
    """Generation failed in a way that no retry can mend."""


class ServerFailed(BackendFailed):
    """The server that generates refuses, or did not answer for too long; what was decided is safe, and the run can be
    resumed.
    """


class EngineError(AsyncgenError):
    """An engine has no answer for a caller."""


class CompletionFailed(EngineError):
    """One answer could not be made, though the engine goes on; ``completion`` says how far it came, and why no further
    (``finish_reason``, ``error``).
    """

    def __init__(self, message: str, *, hint: str | None = None, completion: Any = None) -> None:
        super().__init__(message, hint=hint)
        self.completion = completion


class EngineFull(EngineError):
    """As many requests wait and run as may, and this one was not to wait for room."""


class EngineClosed(EngineError):
    """The engine was closed, or was not opened yet."""
