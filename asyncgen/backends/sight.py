"""How a model sees prompts: its tokenizer and context without its weights, and where possible without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncgen.backends.find import check_model
from asyncgen.config import Config, LocalModel
from asyncgen.tasks import tell_nobody

if TYPE_CHECKING:
    from asyncgen.backends.chat import Chat
    from asyncgen.backends.model_files import ModelFiles

__all__ = ["Sight", "files_of", "see"]


@dataclass(frozen=True, slots=True)
class Sight:
    """How a model sees prompts."""

    chat: Chat
    context_length: int | None
    """Tokens of prompt and answer together; None where there is no limit."""


def see(config: Config, notice: Callable[[str], object] = tell_nobody) -> Sight | None:
    """The tokenizer of ``config``'s model; None for a backend without one, or whose model is a server's.

    Read from the model's files where that is enough. Else torch and transformers are imported, which ``notice`` is
    told, and a hub model's tokenizer is downloaded. Raises ModelError.
    """
    if not isinstance(config.backend, LocalModel):
        return None
    check_model(config)
    if files := files_of(config):
        return Sight(files.chat, files.context_length)
    notice("the tokenizer needs transformers, which imports torch: this takes some seconds")
    from asyncgen.backends.loading import load_chat  # noqa: PLC0415  # imports torch and transformers

    return Sight(*load_chat(config, config.backend))


def files_of(config: Config) -> ModelFiles | None:
    """What the model's files tell; None for no model, for files that are not here, or that only transformers reads."""
    from asyncgen.backends.model_files import read_model  # noqa: PLC0415  # --help need not wait for jinja

    return read_model(config)
