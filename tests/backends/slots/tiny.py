"""Tiny random models of many families, in memory; what ``generate`` makes of a prompt; a way to drive the engine.

Weights are large (0.4): with small ones every token is much like any other and faults hide. No end of text, so every
row runs to its limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from asyncgen.backends.decoding import Row
from asyncgen.backends.loading import Loaded
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.cache import LayerShape
from asyncgen.backends.slots.decoder import Decoder
from asyncgen.records import Prompt, Sampling

VOCABULARY = 300
CONTEXT = 512
TIE = 1e-3
"""Two logits this close may be in either order."""

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
}
ONE_GROUP = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "initializer_range": 0.4,
}
OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "init_std": 0.4,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama, tied, yarn": (
        "LlamaConfig",
        LLAMA
        | {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16}),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": None}),
    "mistral, wide window": ("MistralConfig", LLAMA | {"sliding_window": 256}),
    "phi": ("PhiConfig", LLAMA),
    "phi3": ("Phi3Config", LLAMA | {"pad_token_id": 0}),
    "gpt2": ("GPT2Config", GPT2),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT2),
    "gpt_neox": ("GPTNeoXConfig", ONE_GROUP),
    "opt": ("OPTConfig", OPT),
    "olmo": ("OlmoConfig", LLAMA),
    "olmo2": ("Olmo2Config", LLAMA),
    "granite": ("GraniteConfig", LLAMA),
    "gemma": ("GemmaConfig", LLAMA | {"head_dim": 16}),
    "cohere": ("CohereConfig", LLAMA),
    "starcoder2": ("Starcoder2Config", LLAMA | {"sliding_window": None}),
    "smollm3": ("SmolLM3Config", LLAMA | {"pad_token_id": 0}),
    "mixtral": ("MixtralConfig", LLAMA | {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", LLAMA | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "olmoe": ("OlmoeConfig", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
}
"""Name -> transformers' configuration class, and its options. Those that the engine supports."""


def make(config: str, **options: Any) -> Loaded:
    """A model with weights of its own, the same every time."""
    ends = {"bos_token_id": None, "eos_token_id": None}
    made = getattr(transformers, config)(**({"pad_token_id": None} | ends | options))
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(made, attn_implementation="eager")
    return load(model)


def load(model: Any) -> Loaded:
    generation: Any = GenerationConfig
    model.generation_config = generation(pad_token_id=0)
    return Loaded(model.eval(), None, model.device, CONTEXT, VOCABULARY, frozenset(), 0, None)


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, VOCABULARY, (count,), generator=generator).tolist())


@dataclass(frozen=True, slots=True)
class Answer:
    """What ``generate`` makes of a prompt, one by one."""

    tokens: list[int]
    logits: Tensor

    def same(self, tokens: Sequence[int]) -> bool:
        """Whether these are the same tokens, up to the first tie if there is one."""
        for place, (mine, other) in enumerate(zip(self.tokens, tokens, strict=False)):
            if mine != other:
                return bool((self.logits[place, mine] - self.logits[place, other]).abs() < TIE)
        return True


def generate(loaded: Loaded, ids: Sequence[int], count: int) -> Answer:
    """``count`` tokens, greedily."""
    prompt = torch.tensor([list(ids)], device=loaded.device)
    config: Any = GenerationConfig
    settings = config(
        max_new_tokens=count, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    with torch.inference_mode():
        out = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    return Answer(out.sequences[0, -count:].tolist(), torch.cat(out.logits).float())


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt, cut into what it shares with others and what is its own."""

    index: int
    prefix: tuple[int, ...]
    own: tuple[int, ...]
    count: int


def drive(
    loaded: Loaded, layers: Sequence[LayerShape], groups: Sequence[Sequence[Job]], slots: int
) -> dict[int, list[int]]:
    """Tokens by index. Each group (its jobs share a prefix) is admitted as soon as there is room for all of it."""

    def settle(row: Row, token: int, broken: bool, _: float | None) -> None:
        assert not broken
        row.tokens.append(token)
        if len(row.tokens) == row.prompt.max_new_tokens:
            row.end("length")

    done: dict[int, list[int]] = {}

    def note(ended: Sequence[Seat]) -> None:
        done.update((seat.row.prompt.index, seat.row.tokens) for seat in ended)

    with torch.inference_mode():
        decoder = Decoder(loaded.model, layers, slots=slots, pages=64, vocabulary=VOCABULARY, settle=settle)
        cuts = {job.prefix for group in groups for job in group if job.prefix}
        prefixes = {cut: decoder.prefix(cut) for cut in cuts}
        for group in groups:
            while decoder.free < len(group):
                note(decoder.step())
            seats = [_seat(job, prefixes.get(job.prefix)) for job in group]
            note(decoder.admit(seats))
        while decoder.live:
            note(decoder.step())
    assert decoder.cache.pages.reserved == 0
    return done


def _seat(job: Job, prefix: Any) -> Seat:
    return Seat(Row(Prompt(job.index, (), max_new_tokens=job.count), 0.0), job.own, prefix, Sampling(0.0))


def runs(jobs: Sequence[Job], largest: int) -> Iterator[list[Job]]:
    """Neighbours with the same prefix, ``largest`` of them at most."""
    group: list[Job] = []
    for job in jobs:
        if group and (len(group) == largest or group[0].prefix != job.prefix):
            yield group
            group = []
        group.append(job)
    if group:
        yield group
