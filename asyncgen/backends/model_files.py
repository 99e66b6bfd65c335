"""What a model's files tell without torch and transformers: its tokenizer and chat template, its context, its size.

Exactly what transformers makes of the same files (``tests/backends/test_model_files.py`` compares them), for a
tokenizer that is one ``tokenizer.json``, as those of nearly all models are. Where something else would be needed
``read_model`` gives None, and whoever asks estimates or loads transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from asyncgen.backends.chat import Chat
from asyncgen.backends.find import locate
from asyncgen.config import Config, LocalModel

__all__ = ["POSITION_FIELDS", "ModelFiles", "read_model"]

POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""Names under which models' configurations keep their context length."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model as its files describe it."""

    place: Path
    chat: Chat
    context_length: int | None
    """Tokens of prompt and answer together; None for a model without a limit of its own."""
    dtype: str
    """Number format of the weights, as ``config.json`` has it; empty if it does not."""
    weight_bytes: int
    """Of all ``*.safetensors``."""


def read_model(config: Config) -> ModelFiles | None:
    """The model of ``config`` if its files are on this machine and can be read without transformers; imports no torch.

    Raises ModelError for a name that means nothing. Code that comes with a model is not run.
    """
    if not isinstance(config.backend, LocalModel):
        return None
    place = _folder(locate(config.model_name), config.backend.revision)
    if place is None:
        return None
    try:
        model, tokens = _json(place / "config.json"), _json(place / "tokenizer_config.json")
        rust = Tokenizer.from_file(str(place / "tokenizer.json"))
        chat = Chat(_FileTokenizer(rust, tokens, _chat_template(place, tokens)), config.generation.stop)
    except Exception:  # noqa: BLE001  # tokenizers raises bare ones; whatever is wrong here, loading says it better
        return None
    text = model.get("text_config") or model
    lengths = (text.get(name) for name in POSITION_FIELDS)
    context = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    dtype = model.get("dtype") or model.get("torch_dtype") or text.get("dtype") or ""
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    return ModelFiles(place, chat, context, str(dtype), weights)


def _folder(place: Path | str, revision: str | None) -> Path | None:
    """Where the model's files lie: its directory, or that of the hub's cache; None if they are not on this machine."""
    if isinstance(place, Path):
        return place
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  # a tenth of a second, and only for hub models

    found = try_to_load_from_cache(place, "tokenizer.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not isinstance(value, dict):
        raise TypeError(f"{file}: not a mapping")
    return value


def _chat_template(place: Path, tokens: Mapping[str, Any]) -> str | None:
    """The chat template: its own file outweighs the tokenizer's settings, and ``default`` is the one of several."""
    file = place / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    found = tokens.get("chat_template")
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default")
    if found is not None and not isinstance(found, str):
        raise TypeError("no chat template that is known here")
    return found


class _FileTokenizer:
    """As much of a transformers tokenizer as ``Chat`` asks for."""

    is_fast = True

    def __init__(self, rust: Tokenizer, settings: Mapping[str, Any], template: str | None) -> None:
        self.backend_tokenizer = rust
        self.chat_template = template
        texts = {name: _content(settings.get(name)) for name in _SPECIAL}
        self._special = {name: text for name, text in texts.items() if text is not None}
        self._environment = _environment()

    def get_chat_template(self) -> str:
        """The template's text."""
        assert self.chat_template is not None
        return self.chat_template

    def apply_chat_template(self, conversation: Any, *, chat_template: str, **values: Any) -> str:
        """The conversation as text; raises what the template raises."""
        values.pop("tokenize")
        compiled = self._environment.from_string(chat_template)
        return compiled.render(messages=conversation, tools=None, documents=None, **self._special, **values)

    def decode(self, tokens: Any, **_: Any) -> str:
        """The text of tokens, without special ones."""
        text: str = self.backend_tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def _content(token: Any) -> str | None:
    """A special token's text: it stands there alone, or with how it is to be matched."""
    return token.get("content") if isinstance(token, dict) else token


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says, for training; here it is what is inside."""

    tags = {"generation"}  # noqa: RUF012  # jinja's way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Takes the marks away."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers renders templates in: they come from strangers, so nothing but texts is in their reach."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005  # theirs
    return environment


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
