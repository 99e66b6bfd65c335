"""The models that engines are compared on: random ones made from a seed, and the bundled one.

Random logits of usual initialisations are nearly flat, which no trained model's are. So the last norm is scaled until
the mean entropy of the next token is ``ENTROPY`` nats at temperature 1, about that of the bundled model. The random
models have no end-of-text token: every length is the one that was drawn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from asyncgen.resources import bundled_model

__all__ = ["MODELS", "Model", "Shape", "build"]

ENTROPY = 2.5
CONTEXT = 2048
_SPREAD = 0.08
"""Standard deviation of random weights: large enough for layers to matter beside the embedding."""

_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"class": Qwen2Config, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 4096},
    "6m": {"class": Qwen2Config, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
           "num_key_value_heads": 2, "intermediate_size": 768, "vocab_size": 4096},
    "30m": {"class": LlamaConfig, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 2, "intermediate_size": 1536, "vocab_size": 8192},
}  # fmt: skip
MODELS = (*_SHAPES, "bundled")


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic of a decoder with gated feed-forward layers depends on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        """Weights that multiply every token, in all layers: attention and feed-forward projections."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the vocabulary projection."""
        return self.hidden * self.vocabulary


@dataclass(frozen=True, slots=True)
class Model:
    """A model on disk."""

    name: str
    folder: Path
    shape: Shape
    parameters: int
    entropy: float
    """Mean entropy of the next token at temperature 1, in nats, after prompts of the workload."""
    end: int | None
    """The token with which it ends its texts itself; None for a random model."""

    @property
    def natural(self) -> bool:
        """Whether texts end by themselves."""
        return self.end is not None

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return {
            "name": self.name,
            "shape": asdict(self.shape),
            "parameters": self.parameters,
            "mean entropy, nats": round(self.entropy, 2),
            "endings": "natural" if self.natural else "drawn beforehand",
        }


def build(name: str, folder: Path, seed: int) -> Model:
    """The model ``name``, saved with its tokenizer below ``folder`` if it is a random one."""
    natural = name == "bundled"
    place = bundled_model() if natural else folder / name
    model: Any
    if natural:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        entropy = _entropy(_logits(model), 1.0)
    else:
        model = _random(_SHAPES[name], seed)
        entropy = _sharpen(model)
        model.save_pretrained(place)
        _save_tokenizer(place)
    end = model.config.eos_token_id if natural else None
    return Model(name, place, _shape(model.config), sum(p.numel() for p in model.parameters()), entropy, end)


def _random(shape: dict[str, Any], seed: int) -> Any:
    sizes = {name: value for name, value in shape.items() if name != "class"}
    config = shape["class"](
        **sizes,
        max_position_embeddings=CONTEXT,
        initializer_range=_SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]  # transformers is typed in parts
    model.eval()
    model.generation_config.pad_token_id = 0
    return model


def _sharpen(model: Any) -> float:
    """Scales the last norm until the mean entropy is ``ENTROPY``, by bisection, and returns what it is then."""
    logits = _logits(model)
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _entropy(logits, middle) > ENTROPY else (low, middle)
    with torch.no_grad():
        model.model.norm.weight.mul_(low)
    return _entropy(logits, low)


def _logits(model: Any) -> Tensor:
    """Next-token logits [positions, vocabulary] after random tokens, the first ones of each text left out."""
    ids = torch.randint(4, 4096, (4, 96), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids).logits[:, 32:].flatten(0, 1).clone()  # type: ignore[no-any-return]  # transformers is untyped here


def _entropy(logits: Tensor, scale: float) -> float:
    logarithms = (logits * scale).log_softmax(-1)
    return float(-(logarithms.exp() * logarithms).sum(-1).mean())


def _save_tokenizer(place: Path) -> None:
    """The bundled tokenizer without an end-of-text token: engines would stop at it."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    tokenizer.save_pretrained(place)
    file = place / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    # Said and not left out: a Qwen2 tokenizer would put tokens of its own in their place.
    settings |= {"eos_token": None, "unk_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(settings), encoding="utf-8")


def _shape(config: Any) -> Shape:
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
    )
