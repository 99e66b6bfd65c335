"""From conversations to the token ids of a local model, with everything that can be wrong about them."""

from __future__ import annotations

from asyncgen.backends.chat import Chat
from asyncgen.config import Config
from asyncgen.errors import ModelError, PromptRefused, PromptTooLong
from asyncgen.records import Given, Message, conversation_of

__all__ = ["check_template", "encode"]


def encode(chat: Chat, given: Given, max_new_tokens: int, *, context_length: int, embeddings: int) -> tuple[int, ...]:
    """The prompt's token ids. Raises PromptTooLong if they and ``max_new_tokens`` exceed the context, PromptRefused if
    the chat template does not take the conversation, or if token ids were given that are none of the model's,
    ModelError if the tokenizer does not fit the model.
    """
    ids = chat.encode(given)
    if len(ids) > context_length - max_new_tokens:
        raise PromptTooLong(len(ids), max_new_tokens, context_length)
    if not ids:
        if isinstance(given, str):
            raise PromptRefused(f"prompt refused: the text {given!r} holds no token")
        raise PromptRefused("prompt refused: the model's chat template renders the conversation to nothing")
    if not isinstance(given, str) and conversation_of(given) is None and not 0 <= min(ids) <= max(ids) < embeddings:
        odd = next(token for token in ids if not 0 <= token < embeddings)
        raise PromptRefused(f"prompt refused: {odd} is no token of the model, which knows 0 to {embeddings - 1}")
    if max(ids) >= embeddings:
        raise ModelError(
            f"the tokenizer gives token {max(ids)}, but the model knows only {embeddings} tokens",
            hint="tokenizer and model do not belong together",
        )
    return ids


def check_template(chat: Chat, config: Config) -> None:
    """Raises ModelError if the chat template refuses every conversation of the shape that ``config`` makes."""
    roles = ["system"] * (config.system_prompt is not None) + ["user", "assistant"] * config.shots + ["user"]
    try:
        chat.render([Message(role=role, content="a") for role in roles])
    except PromptRefused as error:
        raise ModelError(error.message, hint=error.hint) from error
