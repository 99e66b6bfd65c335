"""The models that are measured: shapes of real ones, random weights, and the least time that a GPU needs for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen2Config

from asyncgen.backends.loading import Loaded
from asyncgen.resources import bundled_model

__all__ = ["H200", "KINDS", "Kind", "Roofline", "load", "tokenizer_of"]

ENTROPY = 2.5
"""Nats, of the next token at temperature 1: about that of the bundled model. Random logits are nearly flat."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A Qwen2 of some size."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    head_size: int = 128
    context: int = 32_768

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each matrix product, fused ones too."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "qkv, fused": (q + 2 * kv, self.hidden),
            "q": (q, self.hidden),
            "k or v": (kv, self.hidden),
            "o": (self.hidden, q),
            "gate and up, fused": (2 * self.intermediate, self.hidden),
            "gate or up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "head": (self.vocabulary, self.hidden),
        }

    @property
    def body(self) -> int:
        """Weights of all layers."""
        fused = ("qkv, fused", "o", "gate and up, fused", "down")
        return self.layers * sum(out * into for name, (out, into) in self.products.items() if name in fused)

    @property
    def head(self) -> int:
        """Weights of the vocabulary's product."""
        return self.vocabulary * self.hidden

    def kv_bytes(self, item: int = 2) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_size * item


KINDS = {
    "3b": Kind("3b", 36, 2048, 11_008, 16, 2, 151_936, tied=True),
    "7b": Kind("7b", 28, 3584, 18_944, 28, 4, 152_064, tied=False),
    "3b, 4 layers": Kind("3b, 4 layers", 4, 2048, 11_008, 16, 2, 151_936, tied=True),
    "tiny": Kind("tiny", 2, 64, 128, 4, 2, 4096, tied=True, head_size=16, context=1024),
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """What a GPU can do at best, in FLOP/s and bytes/s."""

    flops: float
    bandwidth: float

    def step(self, kind: Kind, rows: int, *, prefix: float, own: float) -> float:
        """Least seconds of a token for each row: own tokens are read for each, the prefix once for all."""
        weights = max(2 * (kind.body + kind.head) / self.bandwidth, 2 * (kind.body + kind.head) * rows / self.flops)
        cached = (rows * own + prefix) * kind.kv_bytes() / self.bandwidth
        over_prefix = 4 * kind.layers * kind.heads * kind.head_size * prefix * rows / self.flops
        logits = 2 * 2 * rows * kind.vocabulary / self.bandwidth
        return weights + cached + over_prefix + logits

    def prompts(self, kind: Kind, tokens: float) -> float:
        """Least seconds to compute so many prompt tokens."""
        return 2 * kind.body * tokens / self.flops

    def stories(self, kind: Kind, rows: int, *, prefix: float, own: float, new: float) -> float:
        """Most stories a minute: ``own`` prompt tokens and ``new`` ones each, behind a prefix that is computed once."""
        a_step = self.step(kind, rows, prefix=prefix, own=own + new / 2)
        return 60 * rows / (new * a_step + rows * self.prompts(kind, own))


H200 = Roofline(flops=790e12, bandwidth=4.3e12)


def load(kind: Kind, device: torch.device, seed: int = 0) -> tuple[Loaded, dict[str, Any]]:
    """A model with random weights made on the device, ready for the engine, and what is to be known of it.

    bfloat16, on a CPU float32; the last norm is scaled until the logits are as sharp as a trained model's. No end of
    text.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = Qwen2Config(
        hidden_size=kind.hidden,
        intermediate_size=kind.intermediate,
        num_hidden_layers=kind.layers,
        num_attention_heads=kind.heads,
        num_key_value_heads=kind.kv_heads,
        vocab_size=kind.vocabulary,
        max_position_embeddings=kind.context,
        tie_word_embeddings=kind.tied,
        initializer_range=0.02 if kind.hidden > 1000 else 0.1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    auto: Any = AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device=device).eval()
    for each in model.parameters():
        each.requires_grad_(requires_grad=False)
    model.generation_config = GenerationConfig(pad_token_id=0)  # type: ignore[no-untyped-call]  # transformers is typed in parts
    entropy = _sharpen(model, kind, device)
    size = sum(each.nbytes for each in model.parameters())
    about = {
        "kind": kind.name,
        "parameters": sum(each.numel() for each in model.parameters()),
        "bytes": size,
        "dtype": str(model.dtype),
        "mean entropy, nats": round(entropy, 3),
    }
    tokens = tokenizer_of(kind.vocabulary)
    return Loaded(model, tokens, model.device, kind.context, kind.vocabulary, frozenset(), 0, None), about


def _sharpen(model: Any, kind: Kind, device: torch.device) -> float:
    """Scales the last norm, by bisection, and gives the entropy that it leads to."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, kind.vocabulary, (2, 96), generator=generator).to(device)
    with torch.inference_mode():
        logits = model(ids).logits[:, 32:].flatten(0, 1).float()
    low, high = 1e-3, 1e3
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _entropy(logits, middle) > ENTROPY else (low, middle)
    model.model.norm.weight.data.mul_(low)
    return _entropy(logits, low)


def _entropy(logits: Tensor, scale: float) -> float:
    logarithms = (logits * scale).log_softmax(-1)
    return float(-(logarithms.exp() * logarithms).sum(-1).mean())


def tokenizer_of(vocabulary: int) -> Any:
    """The bundled tokenizer with made-up words up to ``vocabulary``, so that whatever is drawn is a text; without an
    end of text.
    """
    folder = bundled_model()
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known: dict[str, int] = whole["model"]["vocab"]
    first = 1 + max(*known.values(), *(each["id"] for each in whole["added_tokens"]))
    new = (word for word in map(_word, count()) if word not in known)
    known.update(zip(islice(new, max(0, vocabulary - first)), count(first)))
    from tokenizers import Tokenizer

    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    made: Any = PreTrainedTokenizerFast
    return made(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)),
        padding_side="left",
        chat_template=template,
        bos_token="<|begin|>",
        pad_token="<|pad|>",
    )


def _word(number: int) -> str:
    """A word of syllables, with the sign for a space before it."""
    consonants, vowels = "bcdfghjklmnprstvwyzq", "aeiou"
    syllables = []
    for _ in range(3):
        number, rest = divmod(number, 100)
        syllables.append(consonants[rest // 5] + vowels[rest % 5])
    return "\u0120" + "".join(syllables)
