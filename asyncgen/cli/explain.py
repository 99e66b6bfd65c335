"""Errors in the words of the command line: each with the place at which the setting behind it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from asyncgen.cli.options import Settings
from asyncgen.config_file import Origins
from asyncgen.errors import InputError, ModelError, ResumeRefused
from asyncgen.problems import Problem, find_no_room, find_problems

__all__ = ["as_error", "explained", "placed"]


@contextmanager
def explained(settings: Settings) -> Iterator[Callable[..., None]]:
    """Raises, in place of an InputError, one that names everything that is wrong, and where it was set. What cannot be
    found without a model leaves as it was raised; so does all that comes after the inner block called what it is given,
    to say that its inputs are sound: files that were edited since are not the cause.
    """
    sound = False

    def begin(*_: object) -> None:
        nonlocal sound
        sound = True

    try:
        yield begin
    except InputError as error:
        if not sound and (problems := find_problems(settings.config).problems or find_no_room(settings.config)):
            raise as_error(problems, settings.origins) from error
        raise placed(error, settings) from error
    except ResumeRefused as error:
        raise error.placed(settings.origins.of) from error.__cause__


def placed(error: InputError, settings: Settings) -> InputError:
    """The error, with the place where the setting was made that is at fault, as far as that is known."""
    origin = settings.origins.exactly(error.key or ("model_name" if isinstance(error, ModelError) else ""))
    return InputError(f"{origin}: {error.message}", hint=error.hint) if origin else error


def as_error(problems: Sequence[Problem], origins: Origins) -> InputError:
    """All of ``problems`` in one message, each with the place where its key was set."""
    if len(problems) == 1:
        return InputError(_placed(problems[0], origins), hint=problems[0].hint)
    lines = [str(InputError(_placed(each, origins), hint=each.hint)) for each in problems]
    return InputError(f"{len(problems)} problems\n" + "\n".join(lines))


def _placed(problem: Problem, origins: Origins) -> str:
    """``config.yaml:7: vocabulary_path: ...``; what nobody set has no place, and its message says enough."""
    origin = origins.of(problem.key)
    return f"{origin}: {problem.key}: {problem.message}" if origin else f"{problem.key}: {problem.message}"
