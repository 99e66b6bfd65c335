"""What makes a model's own code faster on a GPU, tried on a CPU: it computes the same, and can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncgen.backends.slots.compiling import Compiling, layers_of
from asyncgen.backends.slots.fusing import Fusing
from asyncgen.backends.slots.passes import NAME, Prefill, forward
from tests.backends.slots.tiny import FAMILIES, LLAMA, make, random_ids

IDS = torch.tensor(random_ids(20, 1))


def model_of(family: str, **options: Any) -> Any:
    config, common = FAMILIES[family]
    model = make(config, **(common | options)).model
    model.set_attn_implementation(NAME)
    return model


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return forward(model, IDS, torch.arange(len(IDS)), Prefill([len(IDS)], None, model.device))


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", [[32, 16, 16], [64, 64]]),
        ("qwen2", [[32, 16, 16], [64, 64]]),
        ("olmo2", [[32, 16, 16], [64, 64]]),
        ("gemma", [[64, 32, 32], [64, 64]]),
        ("phi", [[32, 16, 16]]),
        ("phi3", []),  # fused by whoever made it
        ("gpt2", []),
        ("opt", [[32, 32, 32]]),
        ("mixtral", [[32, 16, 16]]),
    ],
)
def test_layers_that_get_the_same_tensor_are_one_product(family: str, sizes: list[list[int]]) -> None:
    model = model_of(family)
    expected = logits(model)
    fusing = Fusing(model, lambda: logits(model))
    assert [group.sizes for group in fusing.groups] == 2 * sizes
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)  # weights have moved, and are the same
    fusing.on()
    products = [0]

    def count(*_: Any) -> None:
        products[0] += 1

    hooks = [each.register_forward_hook(count) for each in model.modules() if type(each) is nn.Linear]
    for _ in range(2):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-4)
    for hook in hooks:
        hook.remove()
    fusing.off()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
    assert not any("forward" in vars(each) for each in model.modules())


def test_nothing_is_there_twice() -> None:
    model = model_of("llama", tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight
    fusing = Fusing(model, lambda: logits(model))
    for group in fusing.groups:
        starts = [layer.weight.untyped_storage().data_ptr() for layer in group.layers]
        assert len(set(starts)) == 1
    assert model.get_output_embeddings().weight is embedding, "tied weights stay tied"


@pytest.fixture
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()  # torch loads it late
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("fused", [False, True])
def test_layers_are_compiled_once_for_all(fused: bool) -> None:
    """Else a model of forty layers would take as many times as long, and past a limit not be compiled at all."""
    graphs = []
    for count in (2, 12):
        torch._dynamo.reset()
        model = model_of("qwen2", num_hidden_layers=count)
        expected = logits(model)
        fusing = Fusing(model, lambda model=model: logits(model))  # type: ignore[misc]
        assert len(fusing.groups) == 2 * count
        if fused:
            fusing.on()
        compiling = Compiling(model, compiler="eager")
        assert len(compiling.layers) == count
        compiling.on()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.testing.assert_close(logits(model), expected)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
        torch.testing.assert_close(logits(model), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == graphs[-1], "nothing new"
        compiling.off()
        fusing.off()
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
    assert graphs[0] == graphs[1] > 0


def test_layers_are_found_by_their_number() -> None:
    assert len(layers_of(model_of("gpt2"))) == 2
    assert layers_of(model_of("llama", num_hidden_layers=1)) == []
    assert LLAMA["num_hidden_layers"] == 2
