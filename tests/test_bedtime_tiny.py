"""The bundled toy model: its words and features, the grammar it was taught with, and the directory that ships."""

import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.bedtime_tiny import conditions, conversation, grammar, lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "asyncgen" / "models" / "bedtime_tiny"
VOCABULARY = (ROOT / "data" / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
FEATURES: dict[str, list[str]] = json.loads((ROOT / "data" / "story_features.json").read_text(encoding="utf-8"))
CONDITIONS = [text for texts in FEATURES.values() for text in texts]

three_words = st.lists(st.sampled_from(VOCABULARY), min_size=3, max_size=3, unique=True)
conditions_or_none = st.sampled_from(["", "a wish nobody foresaw", *CONDITIONS])
seeds = st.integers(0, 2**32)


def has(story: str, word: str) -> bool:
    found = re.search(rf"(?<![a-z]){word}(?:e?s|e?d|ing)?(?![a-z])", story.lower())
    return found is not None


def test_vocabulary_is_large_plain_and_sorted() -> None:
    assert len(VOCABULARY) >= 1500
    assert sorted(set(VOCABULARY)) == VOCABULARY
    assert all(re.fullmatch(r"[a-z]+", word) for word in VOCABULARY)


def test_lexicon_holds_exactly_the_vocabulary() -> None:
    assert sorted(lexicon.kinds()) == VOCABULARY


def test_every_kind_has_beats_for_any_place_in_a_story() -> None:
    for kind in {*lexicon.kinds().values(), lexicon.UNKNOWN}:
        beats = grammar.templates()[f"beat {kind}"]
        assert sum("{F}" not in beat for beat in beats) >= 2, kind
        assert len(beats) >= 5, kind


def test_features_are_the_conditions_the_grammar_knows() -> None:
    assert len(FEATURES) >= 6
    assert len(set(CONDITIONS)) == len(CONDITIONS) >= 40
    assert "make sure story has sad elements but ends well" in FEATURES["mood"]
    assert {group: list(texts) for group, texts in conditions.FEATURES.items()} == FEATURES


@settings(deadline=None, max_examples=300)
@given(seeds, three_words, conditions_or_none)
def test_a_story_is_whole_and_holds_its_words(seed: int, words: list[str], condition: str) -> None:
    story = grammar.tell(random.Random(seed), words, condition)
    assert 40 <= len(story.split()) <= 150
    assert all(has(story, word) for word in words), story
    assert re.search(r'[.!?]"?$', story)
    assert not re.search(r"[{}|\[\]~]|  ", story)
    assert story.count('"') % 2 == 0
    assert not re.search(r"\ba [aeio]\w+|\ban [^aeiouh]", story), story


@given(seeds, three_words, conditions_or_none)
@settings(deadline=None, max_examples=30)
def test_the_same_seed_tells_the_same_story(seed: int, words: list[str], condition: str) -> None:
    first = grammar.tell(random.Random(seed), words, condition)
    assert grammar.tell(random.Random(seed), words, condition) == first


def test_openings_seldom_repeat() -> None:
    rng = random.Random(1)
    openings = {" ".join(grammar.tell(rng, rng.sample(VOCABULARY, 3)).split()[:5]) for _ in range(100)}
    assert len(openings) >= 75


@pytest.mark.parametrize(
    ("condition", "clue"),
    [
        ("end the story with a big hug", "hug"),
        ("let the hero be a bear", "bear"),
        ("teach that sharing is good", "sharing"),
        ("let a grandmother be in the story", "grandma"),
    ],
)
def test_conditions_are_heard(condition: str, clue: str) -> None:
    stories = [grammar.tell(random.Random(seed), ["lamp", "soft", "jump"], condition) for seed in range(20)]
    assert all(clue in story.lower() for story in stories)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(0, 3))
def test_answers_of_a_conversation_share_no_eight_words(seed: int, shots: int) -> None:
    turns = conversation.draw(random.Random(seed), shots, unknown=0.1, foreign=0.0).turns
    runs = [conversation.ngrams(turn.answer) for turn in turns]
    assert len(runs) == shots + 1
    assert all(runs[a].isdisjoint(runs[b]) for a in range(len(runs)) for b in range(a))


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("apple", "an apple"), ("unicorn", "a unicorn"), ("honest fox", "an honest fox"), ("star", "a star")],
)
def test_articles_follow_the_sound(phrase: str, expected: str) -> None:
    assert lexicon.with_article(phrase) == expected


def test_inflections_are_only_those_that_keep_the_word_whole() -> None:
    assert [lexicon.plural(word) for word in ("cat", "fox", "mouse", "puppy")] == ["cats", "foxes", None, None]
    assert [lexicon.past(word) for word in ("jump", "bake", "hop", "run")] == ["jumped", "baked", None, None]
    assert [lexicon.progressive(word) for word in ("jump", "bake", "hop")] == ["jumping", None, None]


@pytest.fixture(scope="module")
def tokenizer() -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MODEL)
    return loaded


def test_the_model_directory_is_small_and_complete() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 12_000_000
    names = {path.name for path in MODEL.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"}


def test_tokenizer_round_trips_any_text(tokenizer: "PreTrainedTokenizerBase") -> None:
    for text in ('"Hop," said Zoë.\n\nThe naïve 狐 slept 😀', "Once upon a time", "  two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pad_token_id not in {None, tokenizer.eos_token_id, tokenizer.bos_token_id}
    whole = sum(len(tokenizer.encode(f" {word}")) == 1 for word in VOCABULARY)
    assert whole >= 0.9 * len(VOCABULARY)


def test_chat_template_renders_roles(tokenizer: "PreTrainedTokenizerBase") -> None:
    messages = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\nUSER<|im_end|>\n"
        "<|im_start|>assistant\nASSISTANT<|im_end|>\n<|im_start|>user\nUSER<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_shipped_model_tells_a_story(tokenizer: "PreTrainedTokenizerBase") -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    chat = [{"role": "user", "content": conversation.question(("lamp", "duck", "jump"), CONDITIONS[0])}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    output = model.generate(  # type: ignore[misc]  # the library types its own self too narrowly
        **inputs, do_sample=False, max_new_tokens=220
    )
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer[-1] == tokenizer.eos_token_id
    assert 30 <= len(str(tokenizer.decode(answer[:-1])).split()) <= 150
