"""Tiny random models with tokenizers of their own, saved to disk, and a way to run a backend on a few prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from asyncgen.backends import Backend, open_backend
from asyncgen.backends.static import Static
from asyncgen.config import Config
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Message, Prompt

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(SPECIALS)
WORDS = (
    "the",
    "moon",
    "and",
    "a",
    "boat",
    "sail",
    "over",
    "quiet",
    "water",
    "while",
    "small",
    "birds",
    "sing",
    "of",
    "bread",
)


def make_tokenizer(
    *, template: str | None = CHATML, pad: bool = True, side: str = "right", bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every byte is a token, so any text can be written. Pads on the right unless told."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    rust = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.Fuse()  # the bytes' printable names: text and tokens can be told from each other
    rust.add_special_tokens(SPECIALS)
    if bos:
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=rust, padding_side=side, **named)
    tokenizer.chat_template = template
    return tokenizer


def make_config(kind: str, *, context: int = 512, **options: Any) -> PretrainedConfig:
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2} | options
    if kind == "gpt2":
        gpt2: Any = GPT2Config
        small: PretrainedConfig = gpt2(**({"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": context} | common))
        return small
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
    }
    make: Any = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    made: PretrainedConfig = make(**(shape | common))
    return made


def make_model(
    directory: Path,
    kind: str = "llama",
    *,
    seed: int = 0,
    context: int = 512,
    tokenizer: PreTrainedTokenizerFast | None = None,
    nan_token: int | None = None,
    **options: Any,
) -> Path:
    """Saves a tiny random model with its tokenizer; ``nan_token``'s embedding is NaN."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(make_config(kind, context=context, **options))
    if nan_token is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight[nan_token] = torch.nan
    model.save_pretrained(directory)
    (tokenizer or make_tokenizer()).save_pretrained(directory)
    return directory


def config_for(directory: Path | str, *, backend: dict[str, Any] | None = None, **generation: Any) -> Config:
    defaults = {"max_new_tokens": 12, "batch_size": 4, "temperature": 0.0}
    return Config.model_validate(
        {
            "model_name": str(directory),
            "backend": {"kind": "static", "device": "cpu"} | (backend or {}),
            "generation": defaults | generation,
            "validation": {"enabled": False},
        }
    )


def make_messages(count: int, *, first: int = 1) -> list[tuple[Message, ...]]:
    """Conversations of different lengths: ``first``, ``first + 1`` ... words."""
    return [
        (Message(role="user", content=" ".join(WORDS[(i + k) % len(WORDS)] for k in range(first + i))),)
        for i in range(count)
    ]


def make_prompts(backend: Backend, conversations: Sequence[Sequence[Message]], max_new_tokens: int) -> list[Prompt]:
    """Prompts with seeds of their own, prepared by ``backend``."""
    return [
        Prompt(
            index,
            tuple(messages),
            seed=(index + 1) * 0x1234567890ABCDE,
            max_new_tokens=max_new_tokens,
            prepared=backend.prepare(messages, max_new_tokens),
        )
        for index, messages in enumerate(conversations)
    ]


async def complete(backend: Backend, prompts: Sequence[Prompt]) -> list[Completion]:
    """Runs the backend on ``prompts`` and returns their completions in index order."""
    window = Window(max(1, len(prompts)), goal=None)
    pool = PromptPool(window)
    window.plan(len(prompts))
    pool.put(prompts)
    window.end()
    send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](len(prompts) or 1)
    found: list[Completion] = []
    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.run, pool, send)
            while len(found) < len(prompts):
                found.extend(await receive.receive())
            pool.close()
    assert sorted(c.prompt.index for c in found) == sorted(p.index for p in prompts)
    return sorted(found, key=lambda completion: completion.prompt.index)


async def collect(config: Config, conversations: Sequence[Sequence[Message]]) -> list[Completion]:
    """Opens the backend and completes ``conversations``."""
    async with open_backend(config) as backend:
        return await complete(backend, make_prompts(backend, conversations, config.generation.max_new_tokens))


def run(config: Config, conversations: Sequence[Sequence[Message]]) -> list[Completion]:
    """``collect`` in an event loop of its own."""
    return anyio.run(collect, config, conversations)


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


class Wrapped:
    """Puts ``around(forward, **inputs)`` in the place of a loaded model's forward."""

    def __init__(self, backend: object, around: Callable[..., Any]) -> None:
        assert isinstance(backend, Static)
        model = backend._loaded.model
        forward = model.forward
        model.forward = lambda **inputs: around(forward, **inputs)
