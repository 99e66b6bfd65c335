"""What the probe refuses, in which words, and that each of its checks is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from asyncgen.backends.loading import Loaded
from asyncgen.backends.loading import load as load_from
from asyncgen.backends.slots import observed, trial
from asyncgen.backends.slots import probe as probing
from asyncgen.backends.slots.passes import NAME
from asyncgen.backends.slots.probe import Unsupported, probe
from asyncgen.config import StaticBackend
from tests.backends.helpers import config_for
from tests.backends.slots.tiny import (
    EXPERTS,
    GPT2,
    LLAMA,
    ONE_GROUP,
    Job,
    drive,
    generate,
    load,
    make,
    random_ids,
)

REACH = 256
PROMPT = random_ids(40, 5)
LONG = random_ids(180, 6)

SLIDING = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 64}
HALF_SLIDING = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0} | options}


LONGROPE = rope("longrope", short_factor=[1.0] * 4, long_factor=[3.0] * 4) | {"original_max_position_embeddings": 128}
NO_INTERFACE = "its code does not let its attention be replaced"
STATE = "its layers keep a state that is no attention"

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2": ("Gemma2Config", LLAMA | {"head_dim": 8}, "its attention caps scores (softcap 50.0)"),
    "gpt_oss": (
        "GptOssConfig",
        LLAMA | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4096},
        "its attention has sinks (s_aux)",
    ),
    "mistral": (
        "MistralConfig",
        LLAMA | {"sliding_window": 64},
        "its attention is limited to a sliding window of 64 tokens",
    ),
    "mistral, one less": (
        "MistralConfig",
        LLAMA | {"sliding_window": REACH - 1},
        "its attention is limited to a sliding window of 255 tokens",
    ),
    "qwen2": ("Qwen2Config", LLAMA | SLIDING, "its attention is limited to a sliding window of 64 tokens"),
    "qwen2, by types": ("Qwen2Config", LLAMA | HALF_SLIDING | SLIDING, "limited to a sliding window of 64 tokens"),
    "cohere2": ("Cohere2Config", LLAMA | {"sliding_window": 64}, "limited to a sliding window of 64 tokens"),
    # These two do not tell their attention of the window.
    "qwen2_moe": (
        "Qwen2MoeConfig",
        LLAMA | EXPERTS | {"shared_expert_intermediate_size": 16} | HALF_SLIDING | SLIDING,
        "its attention is limited to a window: of 256 tokens the last sees only 64",
    ),
    "llama4": (
        "Llama4TextConfig",
        LLAMA | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 32, "attention_chunk_size": 96},
        "its attention is limited to a window: of 256 tokens the last sees only 64",
    ),
    "lfm2": ("Lfm2Config", LLAMA | {"layer_types": ["conv", "full_attention"]}, "layers of the type 'conv'"),
    "minimax": ("MiniMaxConfig", LLAMA | {"num_local_experts": 4, "head_dim": 8}, "layers of the type 'linear_attent"),
    "mamba": ("MambaConfig", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}, STATE),
    "falcon": ("FalconConfig", {k: v for k, v in ONE_GROUP.items() if k != "intermediate_size"}, NO_INTERFACE),
    "falcon, alibi": (
        "FalconConfig",
        {k: v for k, v in ONE_GROUP.items() if k != "intermediate_size"} | {"alibi": True},
        NO_INTERFACE,
    ),
    "bloom": ("BloomConfig", {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}, NO_INTERFACE),
    "mpt": ("MptConfig", {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4}, NO_INTERFACE),
    "gptj": ("GPTJConfig", GPT2 | {"rotary_dim": 4}, NO_INTERFACE),
    "stablelm": ("StableLmConfig", LLAMA, NO_INTERFACE),
    "nemotron": ("NemotronConfig", LLAMA, "does not hand on to its attention what a call is given"),
    "diffllama": ("DiffLlamaConfig", LLAMA, "it attends 4 times in 2 layers, not once in each"),
    "doge": ("DogeConfig", LLAMA, "a trial run failed: AttributeError"),
    "deepseek_v3": (
        "DeepseekV3Config",
        LLAMA
        | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
        | {"moe_intermediate_size": 16, "first_k_dense_replace": 1},
        "its keys and values differ in size (12 and 8)",
    ),
    "dynamic rope": (
        "LlamaConfig",
        LLAMA | {"max_position_embeddings": 255} | rope("dynamic"),
        "its positions are computed anew beyond 255 tokens (dynamic), and 256 may come",
    ),
    "longrope": (
        "Phi3Config",
        LLAMA | LONGROPE | {"pad_token_id": 0},
        "its positions are computed anew beyond 128 tokens (longrope), and 256 may come",
    ),
    "not causal": ("LlamaConfig", LLAMA | {"is_causal": False}, "its attention looks ahead"),
}


def refusal(loaded: Loaded, reach: int = REACH) -> str:
    with pytest.raises(Unsupported) as caught:
        probe(loaded, reach)
    assert caught.value.reason == str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_left_as_it_was(case: str) -> None:
    config, options, reason = REFUSED[case]
    loaded = make(config, **options)
    before = generate(loaded, PROMPT, 6)
    found = refusal(loaded)
    assert reason in found
    assert loaded.model.config._attn_implementation == "eager"
    after = generate(loaded, PROMPT, 6)
    assert torch.equal(before.logits, after.logits)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config: Any = T5Config
    model: Any = T5ForConditionalGeneration
    loaded = load(model(config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)))
    assert refusal(loaded) == "it is an encoder with a decoder"


def test_what_is_wide_enough_is_accepted() -> None:
    for config, options in (
        ("MistralConfig", {"sliding_window": REACH}),
        ("LlamaConfig", {"max_position_embeddings": REACH} | rope("dynamic")),
        ("LlamaConfig", rope("linear")),
        ("Llama4TextConfig", {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": REACH}),
    ):
        loaded = make(config, **LLAMA | options)
        assert same_at_length(loaded, probe(loaded, REACH), LONG, 30), config
    loaded = make("Phi3Config", **LLAMA | LONGROPE | {"pad_token_id": 0})
    assert same_at_length(loaded, probe(loaded, 128), LONG[:90], 30)


def same_at_length(loaded: Loaded, layers: Any, ids: tuple[int, ...], count: int) -> bool:
    """Whether a long prompt and its answer are those of ``generate``, by a model that has the engine's attention."""
    said = drive(loaded, layers, [[Job(0, ids[:50], ids[50:], count)]], 2)[0]
    loaded.model.set_attn_implementation("eager")
    return generate(loaded, ids, count).same(said)


def test_the_model_is_left_with_the_engines_attention() -> None:
    loaded = make("LlamaConfig", **LLAMA)
    probe(loaded, REACH)
    assert loaded.model.config._attn_implementation == NAME


@pytest.mark.parametrize("reach", [7, 16, 20, 40, 75, 128])
def test_a_short_reach_will_do(reach: int) -> None:
    """Positions are learnt, and there are no more of them."""
    assert len(probe(make("GPT2Config", **GPT2 | {"n_positions": reach}), reach)) == 2


def test_the_bundled_model_is_accepted_in_few_passes() -> None:
    loaded = load_from(config_for("bedtime-tiny"), StaticBackend(kind="static", device="cpu"))
    passes = []
    loaded.model.register_forward_hook(lambda *_: passes.append(1))
    assert probe(loaded, loaded.context_length)
    assert len(passes) <= 12


# Why each check is there: what comes of a model like this without it.


def test_a_window_beyond_the_trial_would_go_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "_check_options", lambda *_: None)
    monkeypatch.setattr(observed, "_check_mask", lambda *_: None)
    loaded = make("MistralConfig", **LLAMA | {"sliding_window": 150})
    assert not same_at_length(loaded, probe(loaded, REACH), LONG, 30)


@pytest.mark.parametrize(
    ("case", "narrow"),
    [
        ("gemma2", {"attn_logit_softcapping": 1.0}),
        ("gpt_oss", {}),
        ("mistral", {"sliding_window": 24}),
        ("llama4", {"attention_chunk_size": 24}),
        ("qwen2_moe", {"sliding_window": 24}),
        ("not causal", {}),
    ],
)
def test_a_fault_that_shows_at_once_is_met_by_the_trial_too(
    case: str, narrow: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observed, "_check_options", lambda *_: None)
    monkeypatch.setattr(observed, "_check_mask", lambda *_: None)
    config, options, _ = REFUSED[case]
    assert "logits differ" in refusal(make(config, **options | narrow))


@pytest.mark.parametrize("case", ["dynamic rope", "longrope", "lfm2", "falcon", "mamba", "minimax"])
def test_what_is_not_declared_is_met_all_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "check_declared", lambda *_: None)
    config, options, _ = REFUSED[case]
    loaded = make(config, **options)
    expected = "logits differ" if "rope" in case else "not once in each"
    assert expected in refusal(loaded)


def with_forward(change: Callable[..., Any]) -> Loaded:
    """A Llama whose forward pass is ``change(forward, **arguments)``."""
    loaded = make("LlamaConfig", **LLAMA)
    loaded.model.forward = partial(change, loaded.model.forward)
    return loaded


def test_a_mask_of_its_own_is_refused() -> None:
    def biased(forward: Any, **arguments: Any) -> Any:
        return forward(**arguments, attention_mask=torch.zeros(1, 1, 1, 1))

    assert "adds a mask or a bias of its own" in refusal(with_forward(biased))


def test_attention_that_is_given_no_mask_is_refused() -> None:
    def unmask(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, options | {"attention_mask": None}

    loaded = make("LlamaConfig", **LLAMA)
    loaded.model.model.layers[1].self_attn.register_forward_pre_hook(unmask, with_kwargs=True)
    assert refusal(loaded) == "its attention does not say which tokens see which"


def test_an_unknown_keyword_is_named() -> None:
    def tempered(forward: Any, **arguments: Any) -> Any:
        return forward(**arguments, tempering=0.5, nothing=None)

    found = refusal(with_forward(tempered))
    assert found == "its attention asks for 'tempering', of which the engine knows nothing"


def test_positions_must_be_those_of_the_call() -> None:
    def deaf(forward: Any, *, position_ids: Tensor | None = None, **arguments: Any) -> Any:  # noqa: ARG001
        return forward(**arguments)

    assert "logits differ" in refusal(with_forward(deaf))


def test_logits_must_be_those_asked_for() -> None:
    def generous(forward: Any, *, logits_to_keep: Tensor | int = 0, **arguments: Any) -> Any:  # noqa: ARG001
        return forward(**arguments)

    assert "only some are asked for" in refusal(with_forward(generous))


def test_code_that_cannot_be_called_so_is_refused() -> None:
    def strict(forward: Any, input_ids: Tensor) -> Any:
        return forward(input_ids)

    assert "a trial run failed: TypeError" in refusal(with_forward(strict))


def with_hook(hook: Callable[..., Any], **options: Any) -> Loaded:
    """A Llama in which ``hook`` runs behind the first layer's MLP."""
    loaded = make("LlamaConfig", **LLAMA | options)
    loaded.model.model.layers[0].mlp.register_forward_hook(hook)
    return loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_may_pass_from_token_to_token_but_by_attention(dtype: torch.dtype) -> None:
    def mix(_: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (hidden,) = inputs
        return output + torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)

    loaded = with_hook(mix)
    loaded.model.to(dtype)
    assert "logits differ" in refusal(loaded)


def test_logits_must_be_finite() -> None:
    assert refusal(with_hook(lambda _, __, output: output * torch.nan)) == "its logits are not finite"


def test_a_tie_that_falls_otherwise_does_not_refuse_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sets of tokens one may be unlucky."""
    unlucky = iter([True, False])
    check_same = trial.check_same

    def check(model: Any, told: Any) -> None:
        if next(unlucky):
            raise Unsupported("a tie")
        check_same(model, told)

    monkeypatch.setattr(probing, "check_same", check)
    assert probe(make("LlamaConfig", **LLAMA), REACH)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_other_errors_leave_the_model_as_it_was(error: type[BaseException]) -> None:
    def fail(*_: Any) -> None:
        raise error

    loaded = with_hook(fail)
    with pytest.raises(error):
        probe(loaded, REACH)
    assert loaded.model.config._attn_implementation == "eager"


def test_weights_must_lie_on_one_device_in_a_known_format() -> None:
    loaded = make("LlamaConfig", **LLAMA)
    loaded.model.lm_head.to("meta")
    assert refusal(loaded) == "its weights are spread over several devices (cpu, meta)"
    loaded = make("LlamaConfig", **LLAMA)
    loaded.model.double()
    assert refusal(loaded) == "its number format is float64"


def test_other_devices_than_cpus_and_cuda_are_refused() -> None:
    loaded = make("LlamaConfig", **LLAMA)
    loaded.model.to("meta")
    assert refusal(loaded) == "it is on the device meta, and the engine computes on a CPU or a CUDA GPU"
