"""Norms, rotations and gated activations by kernels of our own: what the model's code says, and only where it does.

Interpreted where there is no CUDA device, as in ``test_kernels``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from asyncgen.backends.slots.fusing import Fusing
from tests.backends.slots.gpu.ptxas import compiled
from tests.backends.slots.test_faster import logits, model_of

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if CUDA else (torch.float32, torch.float16)

with pytest.MonkeyPatch.context() as patch:
    if not CUDA:
        patch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton", reason="triton is not installed")
    kernels: Any = importlib.import_module("asyncgen.backends.slots.gpu.pointwise_kernels")
    pointwise: Any = importlib.import_module("asyncgen.backends.slots.gpu.pointwise")

pytestmark = pytest.mark.skipif(
    not CUDA and isinstance(kernels.rotate, triton.runtime.JITFunction), reason="no CUDA, nor triton's interpreter"
)
interleaved: Any = modeling_cohere.apply_rotary_pos_emb
apply_rotary_pos_emb: Any = modeling_llama.apply_rotary_pos_emb
FEW = settings(deadline=None, max_examples=6)
dtypes = st.sampled_from(DTYPES)
sizes = st.sampled_from((4, 16, 48, 64, 130))


def random(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor) -> None:
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * eps, atol=2 * eps * float(expected.abs().mean()))


@FEW
@given(dtype=dtypes, rows=st.integers(1, 5), size=sizes, seed=st.integers(0, 99))
@torch.inference_mode()
def test_norms(dtype: torch.dtype, rows: int, size: int, seed: int) -> None:
    norm = Qwen2RMSNorm(size, 1e-5).to(DEVICE, dtype)
    norm.weight = nn.Parameter(random(dtype, size, seed=seed + 1))
    hidden = 30 * random(dtype, 1, rows, size, seed=seed)
    close(pointwise.rms_norm(hidden, norm.weight, 1e-5), norm(hidden))


@FEW
@given(dtype=dtypes, rows=st.integers(1, 5), size=sizes, apart=st.booleans())
def test_gated_activations(dtype: torch.dtype, rows: int, size: int, apart: bool) -> None:
    """Also of the two halves of one product."""
    both = 5 * random(dtype, 1, rows, 2 * size)
    gate, up = both[..., :size], both[..., size:]
    if not apart:
        gate, up = gate.contiguous(), up.contiguous()
    close(pointwise.silu_product(gate, up), nn.functional.silu(gate) * up)


@FEW
@given(dtype=dtypes, tokens=st.integers(1, 5), size=sizes, heads=st.integers(1, 6), seed=st.integers(0, 99))
def test_rotations(dtype: torch.dtype, tokens: int, size: int, heads: int, seed: int) -> None:
    """Of slices of one product, as heads lie in it."""
    fused = random(dtype, tokens, (heads + 2) * size, seed=seed)
    parts = fused[:, : heads * size], fused[:, heads * size :]
    queries, keys = (part.view(1, tokens, -1, size).transpose(1, 2) for part in parts)
    angles = torch.cat([random(torch.float32, 1, tokens, size // 2, seed=seed + 1)] * 2, -1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for mine, theirs in zip(
        pointwise.rotate(queries, keys, cos, sin), apply_rotary_pos_emb(queries, keys, cos, sin), strict=True
    ):
        assert mine.shape == theirs.shape
        assert mine.transpose(1, 2).is_contiguous()
        close(mine, theirs)


@pytest.mark.parametrize(
    ("family", "norms", "gated", "rotating"),
    [
        ("llama", 5, 2, 2),
        ("qwen2", 5, 2, 2),
        ("qwen3", 9, 2, 2),  # with norms of queries and keys, which lie apart where they are one product
        ("olmo2", 9, 2, 2),
        ("gemma", 0, 0, 2),  # norms with one more than their weight, another activation
        ("phi3", 5, 0, 2),
        ("gpt2", 0, 0, 0),
    ],
)
@torch.inference_mode()
def test_a_model_says_the_same_with_them(family: str, norms: int, gated: int, rotating: int) -> None:
    model = model_of(family)
    expected = logits(model)
    fusing, found = Fusing(model, lambda: logits(model)), pointwise.Pointwise(model)
    kinds = [type(each).__name__ for each in found.forwards]
    mine = (sum("Norm" in each for each in kinds), sum("MLP" in each for each in kinds))
    assert (*mine, sum("Attention" in each for each in kinds)) == (norms, gated, rotating)
    for changes in ((found,), (fusing, found)):
        for each in changes:
            each.on()
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        for each in reversed(changes):
            each.off()
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
        assert not any("forward" in vars(each) for each in model.modules())


def test_what_says_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaved rotations, a norm whose class was changed, an activation that is another one."""
    angles = torch.cat([random(torch.float32, 1, 5, 8)] * 2, -1)
    given = random(torch.float32, 1, 6, 5, 16), random(torch.float32, 1, 2, 5, 16), angles.cos(), angles.sin()
    assert not pointwise._agrees(lambda: (interleaved(*given), pointwise.rotate(*given)))
    model = model_of("llama")
    norm = type(model.get_decoder().norm)
    theirs = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, hidden: theirs(self, hidden) * 1.01)
    activation = type(model.get_decoder().layers[0].mlp.act_fn)
    monkeypatch.setattr(activation, "forward", lambda _, hidden: nn.functional.gelu(hidden))
    kinds = {type(each).__name__ for each in pointwise.Pointwise(model).forwards}
    assert kinds == {"LlamaAttention"}


def test_a_kernel_that_does_not_compile_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getitem__(self, grid: object) -> Any:
            raise RuntimeError("no such architecture")

    for name in kernels.__all__:
        monkeypatch.setattr(kernels, name, Broken())
    assert not pointwise.Pointwise(model_of("llama")).forwards


@pytest.mark.timeout(300)
def test_they_compile_without_spills(tmp_path: Path) -> None:
    """For a GPU that need not be there, with the shapes of Qwen2.5-3B and 7B."""
    cases = [
        {"dtype": "bfloat16", "hidden": 2048, "inner": 11_008, "heads": 16, "kv_heads": 2, "size": 128},
        {"dtype": "bfloat16", "hidden": 3584, "inner": 18_944, "heads": 28, "kv_heads": 4, "size": 128},
    ]
    for case, said in compiled("pointwise", cases, tmp_path):
        assert set(said) == set(kernels.__all__)
        for name, kernel in said.items():
            assert not kernel["spills"], (case, name, kernel)
