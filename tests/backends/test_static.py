"""The static backend against plain ``model.generate``: the same tokens, whatever the batch."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from anyio import to_thread
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncgen.backends import open_backend
from asyncgen.backends.chat import render_plain
from asyncgen.backends.shortage import Aside
from asyncgen.backends.static import Static
from asyncgen.errors import ModelError
from asyncgen.records import Completion, Message, Prompt, Sampling
from tests.backends.exact import pick
from tests.backends.helpers import (
    collect,
    complete,
    config_for,
    make_messages,
    make_model,
    make_prompts,
    run,
)

MODELS = ("llama", "qwen2", "gpt2")


def generate_alone(directory: Path, messages: Sequence[Message], new_tokens: int, **options: Any) -> tuple[str, int]:
    """Text and token count that transformers alone makes of one conversation, unpadded and greedy."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template([dict(m) for m in messages], add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer(render_plain(messages))["input_ids"]
        if ids[-1] == tokenizer.eos_token_id:  # the text goes on
            ids.pop()
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    out = model.generate(
        prompt, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **options
    )
    new = out[0, len(ids) :].tolist()
    if tokenizer.eos_token_id in new:
        new = new[: new.index(tokenizer.eos_token_id)]
    text: str = tokenizer.decode(new, skip_special_tokens=True)
    return text.strip(), len(new)


def sample_alone(model: Any, prompt: Prompt, sampling: Sampling, count: int) -> tuple[list[int], list[float]]:
    """Tokens and their log-probabilities by whole forward passes without a cache, of one prompt without padding."""
    tokens, logprobs = list(prompt.prepared.token_ids), []
    for position in range(count):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[:, -1]
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        seen[:, tokens] = True
        token = int(pick(logits, [sampling], [prompt.seed], [position], seen=seen).tokens)
        logprobs.append(float(logits.double().log_softmax(-1)[0, token]))
        tokens.append(token)
    return tokens[len(prompt.prepared.token_ids) :], logprobs


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_each_token_is_sampled_by_its_own_seed_and_position(model: Path) -> None:
    options: dict[str, Any] = {
        "temperature": 0.9,
        "top_k": 100,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
    }
    config = config_for(model, **options)
    plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    async def main() -> None:
        async with open_backend(config) as backend:
            assert isinstance(backend, Static)
            for completion in await complete(backend, make_prompts(backend, make_messages(4), 12)):
                tokens, _ = sample_alone(plain, completion.prompt, config.generation.sampling, completion.tokens)
                assert completion.text == backend._chat.decode(tokens)
                assert completion.logprobs == ()

    anyio.run(main)


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_prompts_may_be_sampled_each_in_its_own_way(model: Path) -> None:
    own = [
        None,
        Sampling(0.0, logprobs=True),
        Sampling(1.5, top_k=20, repetition_penalty=1.4),
        Sampling(0.8, top_p=0.9, logprobs=True),
        Sampling(0.0, repetition_penalty=1.3, logprobs=True),
        Sampling(1.0, min_p=0.1),
    ]
    config = config_for(model, temperature=0.7, repetition_penalty=0.9)
    plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    async def main() -> None:
        async with open_backend(config) as backend:
            assert isinstance(backend, Static)
            prompts = make_prompts(backend, make_messages(len(own)), 12)
            prompts = [replace(prompt, sampling=sampling) for prompt, sampling in zip(prompts, own, strict=True)]
            for completion, sampling in zip(await complete(backend, prompts), own, strict=True):
                used = sampling or config.generation.sampling
                tokens, logprobs = sample_alone(plain, completion.prompt, used, completion.tokens)
                assert completion.text == backend._chat.decode(tokens)
                assert completion.logprobs == (pytest.approx(logprobs, abs=1e-4) if used.logprobs else ())

    anyio.run(main)


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_a_penalty_is_that_of_generate(model: Path) -> None:
    conversations = make_messages(6, first=2)
    found = run(config_for(model, max_new_tokens=20, repetition_penalty=1.5), conversations)
    expected = [generate_alone(model, messages, 20, repetition_penalty=1.5) for messages in conversations]
    assert [(c.text, c.tokens) for c in found] == expected
    assert [c.text for c in found] != [c.text for c in run(config_for(model, max_new_tokens=20), conversations)]


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_sampled_texts_are_the_same_in_any_order_and_composition(model: Path) -> None:
    config = config_for(model, temperature=1.3, top_p=0.98, max_new_tokens=20)

    async def main() -> None:
        async with open_backend(config) as backend:
            prompts = make_prompts(backend, make_messages(11), 20)
            expected = [c.text for c in await complete(backend, prompts)]
            assert len(set(expected)) == len(expected)
            for seed in range(4):
                order = random.Random(seed).sample(prompts, k=random.Random(seed).randint(1, 11))
                for completion in await complete(backend, order):
                    assert completion.text == expected[completion.prompt.index]

    anyio.run(main)


@pytest.mark.parametrize(("kind", "threads"), [("llama", 1), ("llama", 2), ("gpt2", 2)])
def test_logits_are_the_same_to_the_bit_in_any_slot_beside_any_neighbours(
    kind: str, threads: int, tmp_path: Path
) -> None:
    steps = 6
    wide: dict[str, Any] = (
        {"n_embd": 128, "n_head": 4} if kind == "gpt2" else {"hidden_size": 128, "intermediate_size": 352}
    )
    config = config_for(make_model(tmp_path, kind, **wide), batch_size=8, temperature=1.0, max_new_tokens=steps)

    def record(backend: Static, part: Sequence[Prompt]) -> dict[int, list[bytes]]:
        """For each index the bytes of its logits at each step, while its row was going on."""
        seen: list[torch.Tensor] = []
        hook = backend._loaded.model.register_forward_hook(lambda _m, _a, out: seen.append(out.logits[:, -1].clone()))
        tokens: dict[int, int] = {}

        def keep(group: Sequence[Completion]) -> None:
            tokens.update((c.prompt.index, c.tokens) for c in group)
            backend._held -= {id(c.prompt) for c in group}

        backend._held, backend._hand_over = set(map(id, part)), keep  # type: ignore[method-assign]  # not to a pipeline
        backend._complete(tuple(part), Aside())
        hook.remove()
        return {
            p.index: [step[slot].numpy().tobytes() for step in seen[: tokens[p.index]]] for slot, p in enumerate(part)
        }

    async def main() -> None:
        async with open_backend(config) as backend:
            assert isinstance(backend, Static)
            prompts = make_prompts(backend, make_messages(60, first=10), steps)
            length = sorted(p.prepared.length for p in prompts)[30]
            alike = [p for p in prompts if p.prepared.length == length]
            assert len(alike) >= 4
            alone: dict[int, list[bytes]] = {}
            for prompt in alike:
                alone |= await to_thread.run_sync(record, backend, [prompt])
            for seed in range(8):
                shuffle = random.Random(seed)
                part = shuffle.sample(alike, k=shuffle.randint(2, min(8, len(alike))))
                for index, logits in (await to_thread.run_sync(record, backend, part)).items():
                    assert logits == alone[index]

    torch.set_num_threads(threads)  # sdpa fails this with two, which divide the rows between them
    try:
        anyio.run(main)
    finally:
        torch.set_num_threads(1)


def test_a_generation_config_beside_the_model_changes_nothing(llama: Path, tmp_path: Path) -> None:
    expected = run(config_for(llama), make_messages(3))
    copy = shutil.copytree(llama, tmp_path / "copy")
    settings = json.loads((copy / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 9.0, "min_new_tokens": 12}
    settings |= {"suppress_tokens": list(range(100, 200)), "max_length": 7, "no_repeat_ngram_size": 1}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    found = run(config_for(copy), make_messages(3))
    assert [c.text for c in found] == [c.text for c in expected]


def test_all_end_of_text_tokens_of_the_model_count(llama: Path, tmp_path: Path) -> None:
    [plain] = run(config_for(llama, max_new_tokens=20), make_messages(1))
    copy = shutil.copytree(llama, tmp_path / "copy")
    tokenizer: Any = AutoTokenizer.from_pretrained(copy)
    ends = tokenizer.convert_tokens_to_ids([plain.text[7]])
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, *ends]}))
    [ended] = run(config_for(copy, max_new_tokens=20), make_messages(1))
    assert ended.text == plain.text[: plain.text.index(plain.text[7])]
    assert ended.finish_reason == "stop"
    assert ended.tokens == len(ended.text)


def test_a_stop_string_ends_its_row_only_and_is_cut_off(llama: Path) -> None:
    conversations = make_messages(4)
    plain = run(config_for(llama, max_new_tokens=20), conversations)
    stop = plain[2].text[5:8]
    found = run(config_for(llama, max_new_tokens=20, stop=[stop, "never seen"]), conversations)
    assert found[2].text == plain[2].text[: plain[2].text.index(stop)]
    assert found[2].finish_reason == "stop"
    assert found[2].tokens < plain[2].tokens
    for before, after in zip(plain, found, strict=True):
        if stop not in before.text:
            assert (before.text, before.finish_reason) == (after.text, after.finish_reason)


def test_each_prompt_has_its_own_limit_of_new_tokens(llama: Path) -> None:
    async def main() -> None:
        async with open_backend(config_for(llama, temperature=1.0)) as backend:
            prompts = [make_prompts(backend, make_messages(4), 3 + 4 * i)[i] for i in range(4)]
            found = await complete(backend, prompts)
            long = await complete(backend, make_prompts(backend, make_messages(4), 15))
            for i, completion in enumerate(found):
                assert completion.tokens <= 3 + 4 * i
                assert long[i].text.startswith(completion.text)

    anyio.run(main)


def test_padding_is_decided_by_the_prompt_alone_and_never_absent(llama: Path) -> None:
    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            for messages in make_messages(40):
                prepared = backend.prepare(messages, 12)
                assert prepared.length % 32 == 0
                assert 0 < prepared.length - len(prepared.token_ids) <= 32

    anyio.run(main)


def test_a_notice_tells_of_the_loading(llama: Path) -> None:
    told: list[str] = []

    async def main() -> None:
        async with open_backend(config_for(llama), told.append):
            pass

    anyio.run(main)
    before, after = told
    assert before == f"loading {llama} ..."
    assert re.fullmatch(r"loaded in .* s: on cpu, float32, batches of 4 \(static\)", after)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    directory = make_model(tmp_path, vocab_size=100)

    async def main() -> None:
        async with open_backend(config_for(directory)) as backend:
            with pytest.raises(ModelError, match="knows only 100 tokens"):
                backend.prepare(make_messages(1)[0], 5)

    anyio.run(main)


def test_snapshot_counts_what_was_done(llama: Path) -> None:
    async def main() -> None:
        async with open_backend(config_for(llama)) as backend:
            assert backend.snapshot().batches == 0
            prompts = make_prompts(backend, make_messages(6), 12)
            found = await complete(backend, prompts)
            after = backend.snapshot()
            assert after.generated == sum(c.tokens for c in found)
            assert after.rows_filled == 6
            assert after.rows_offered == 4 * after.batches
            assert after.cells - after.padded_cells == sum(len(p.prepared.token_ids) for p in prompts)
            assert after.rows_running == 0
            assert 0 < max(c.seconds for c in found) <= after.busy_seconds + 0.01
            assert (after + after).generated == 2 * after.generated

    anyio.run(main)


def test_auto_takes_16_rows_on_a_cpu(llama: Path) -> None:
    async def main() -> None:
        async with open_backend(config_for(llama, batch_size="auto")) as backend:
            assert backend.limits.rows == 16

    anyio.run(main)


def test_auto_backend_works(llama: Path) -> None:
    config = config_for(llama, backend={"kind": "auto"})
    assert [c.text for c in anyio.run(collect, config, make_messages(2))] == [
        c.text for c in run(config_for(llama), make_messages(2))
    ]
