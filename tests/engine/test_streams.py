"""``Engine.stream``: joined, its pieces are the completion's text, and none says too much."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from asyncgen.backends.chat import Chat
from asyncgen.backends.stops import Stops
from asyncgen.backends.streaming import TextReader
from asyncgen.engine import Asking, TextStream
from asyncgen.errors import CompletionFailed
from asyncgen.records import Prompt
from tests.backends.helpers import SPECIALS, make_model
from tests.engine.opened import HELLO, LONG, engine_for, is_idle, nothing_left, question

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")

CORPUS = [
    "the moon and a boat sail over quiet water",
    "größe, naïve, 東京 and 🚀🦊 fly  far\n\naway",
    "User: no\nUser: yes",
] * 9


def trained(model: Any, trainer: Any, pre: Any, decoder: Any) -> PreTrainedTokenizerFast:
    rust = Tokenizer(model)
    rust.pre_tokenizer, rust.decoder = pre, decoder
    rust.train_from_iterator(CORPUS, trainer)
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=rust)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen: tokens are pieces of UTF-8, a space belongs to the word behind it."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet)
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral and Gemma: a space is a token's first character, and odd characters are tokens of bytes."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abdehimnotuvwy", "▁m", "oo", "▁the", "n", "▁a"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    rust = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=rust, unk_token="<unk>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def metaspace() -> PreTrainedTokenizerFast:
    """As T5 and XLNet."""
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>")
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT: spaces are between words that do not begin with ##."""
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"])
    return trained(
        models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    )


TOKENIZERS = {make.__name__: make() for make in (byte_level, byte_fallback, metaspace, word_pieces)}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_pieces_of_any_tokens_are_the_text(name: str, data: st.DataObject) -> None:
    """Tokens in any order, byte by byte or many at once, with stop strings cut from the text itself, and others."""
    chat = Chat(TOKENIZERS[name])
    size = len(TOKENIZERS[name])
    tokens = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    whole = chat.decode(tokens)
    start = data.draw(st.integers(0, len(whole)))
    stops = data.draw(st.sampled_from([(), ("\n\n",), (" a", "oo"), tuple(filter(None, [whole[start : start + 3]]))]))
    rows = Stops(stops, chat.decode)
    end = next((n for n in range(1, len(tokens) + 1) if rows.reached(tokens[:n])), len(tokens))
    text = chat.decode(tokens[:end])
    cut = rows.cut(text)
    final = (text if cut is None else cut).strip()

    reader = chat.reader(Prompt(0, (), given="x", stop=stops))
    given_out, at = "", 0
    while at < end:
        step = data.draw(st.integers(1, 4))
        given_out += reader.add(tokens[at : min(end, at + step)])
        at += step
        assert final.startswith(given_out), "what was said stays said"
        assert not given_out.endswith(" ")
    assert final.startswith(given_out)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_each_token_has_its_share_of_the_text(name: str, data: st.DataObject) -> None:
    chat = Chat(TOKENIZERS[name])
    tokens = data.draw(st.lists(st.integers(0, len(TOKENIZERS[name]) - 1), max_size=40))
    texts = chat.texts_of(tokens)
    assert len(texts) == len(tokens)
    assert "".join(texts) == chat.decode(tokens)


@given(st.text("ab \n", max_size=40), st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3), st.data())
def test_pieces_of_any_text_stop_before_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    rules = Stops(stops, str)
    cut = rules.cut(text)
    final = (text if cut is None else cut).strip()
    reader, said, at = TextReader(rules), "", 0
    while at < len(text):
        step = data.draw(st.integers(1, 5))
        said += reader.add(text[at : at + step])
        at += step
        assert final.startswith(said)
    assert said == final or cut is None
    held = text[len(text.rstrip()[: len(text) - rules.undecided(text)].rstrip()) :]
    assert len(final) - len(said) <= len(held), "no more is held back than may be a stop string, or the end"


@pytest.mark.parametrize("kind", ["slots", "static", "echo"])
@pytest.mark.parametrize("stop", [(), ("e", "ab")])
def test_a_stream_says_what_generate_says(llama: Path, kind: str, stop: Sequence[str]) -> None:
    async def main() -> None:
        async with nothing_left(
            engine_for(llama, kind=kind, backend={"seconds_per_batch": 0.02} if kind == "echo" else {})
        ) as engine:
            texts: dict[int, list[str]] = {}

            async def read(number: int) -> None:
                async with engine.stream(question(number), seed=number, stop=stop, max_new_tokens=40) as pieces:
                    texts[number] = [piece async for piece in pieces]
                    assert "".join(texts[number]) == pieces.completion.text

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(read, number)
            for number, pieces in texts.items():
                whole = await engine.generate(question(number), seed=number, stop=stop, max_new_tokens=40)
                assert "".join(pieces) == whole.text
                assert all(pieces)
            assert stop or max(len(pieces) for pieces in texts.values()) > 5, "it came in parts"

    anyio.run(main)


def test_the_first_piece_is_there_long_before_the_last(llama: Path) -> None:
    async def main() -> None:
        async with engine_for(llama, rows=1) as engine, engine.stream(HELLO, max_new_tokens=200, seed=1) as pieces:
            assert await anext(pieces)
            assert engine.snapshot().rows_running == 1
            with pytest.raises(RuntimeError, match="not read to its end"):
                _ = pieces.completion

    anyio.run(main)


@pytest.mark.parametrize("how", ["block", "close", "forget", "cancel", "timeout"])
def test_a_stream_that_is_left_frees_its_row(llama: Path, how: str) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, rows=1)) as engine:
            asking: Asking = {"seed": LONG, "max_new_tokens": 450}
            stream = engine.stream(HELLO, **(asking | {"timeout": 0.05} if how == "timeout" else asking))
            if how == "block":
                async with stream:
                    await anext(stream)
            elif how == "close":
                await anext(stream)
                await stream.aclose()
            elif how == "forget":
                await anext(stream)
            elif how == "cancel":
                with anyio.move_on_after(0.05) as scope:
                    async for _ in stream:
                        pass
                assert scope.cancelled_caught
            else:
                with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
                    async for _ in stream:
                        pass
            if how != "forget":
                assert [piece async for piece in stream] == []
            del stream
            gc.collect()
            await is_idle(engine)
            assert engine.snapshot().cancelled == 1

    anyio.run(main)


def test_a_reader_that_is_slow_costs_others_nothing_and_gets_all(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, rows=2)) as engine:
            stream = engine.stream(HELLO, seed=1)
            first = await anext(stream)
            others = [await engine.generate(question(n), seed=n) for n in range(4)]
            assert len(others) == 4
            rest = [piece async for piece in stream]
            assert first + "".join(rest) == (await engine.generate(HELLO, seed=1)).text
            assert len(rest) <= 1, "what has come meanwhile comes at once"
            del stream

    anyio.run(main)


def test_a_stream_has_one_reader_and_may_be_closed_beside_it(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, rows=1)) as engine:
            stream = engine.stream(HELLO, seed=LONG, max_new_tokens=450)
            found: list[str] = []

            async def read(stream: TextStream) -> None:
                async for piece in stream:
                    found.append(piece)  # noqa: PERF401  # looked at meanwhile

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, stream)
                while not found:  # noqa: ASYNC110  # made in another thread
                    await anyio.sleep(0.001)
                with pytest.raises(RuntimeError, match="a stream has one reader"):
                    await anext(stream)
                await stream.aclose()
            assert engine.snapshot().finished == 0
            del stream

    anyio.run(main)


def test_an_answer_that_breaks_off_is_an_error_after_its_pieces(tmp_path: Path) -> None:
    model = make_model(tmp_path, "llama", nan_token=len(SPECIALS))

    async def main() -> None:
        async with engine_for(model) as engine:
            with pytest.raises(CompletionFailed, match="logits not finite"):
                async for _ in engine.stream([len(SPECIALS)]):
                    pass

    anyio.run(main)
