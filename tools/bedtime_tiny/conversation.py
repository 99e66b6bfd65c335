"""Training conversations: prompts in the brief's format, k-shot turns before them, stories as answers.

A conversation has 0 to 3 example turns and one last turn, sometimes a system message in front. Words are drawn from the
vocabulary and, now and then, made up, so that the model must learn to copy what it has never seen. No answer shares
eight words in a row with an earlier one. Some example answers are noise in another style, which carries no loss: users
bring examples of their own.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.bedtime_tiny import conditions, grammar, lexicon
from tools.bedtime_tiny.wordlists import words as listed

TEMPLATE = (
    "Generate simple, short (up to 150 words) bed time story easy to understand and follow by 3 years old\n"
    "containing words {words}\n\n{condition}\n\nkeep story coherent and gramatically correct"
)
NGRAM = 8  # words in a row that no two answers of one conversation share
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You tell short bedtime stories to small children.",
    "You are a kind storyteller. Use simple words.",
    "You write gentle stories for three year olds.",
    "Tell a calm and friendly story.",
    "Answer with a story only.",
)
OTHER_CONDITIONS = (
    "write it in a lively way",
    "make it about {word}",
    "the story should be gentle",
    "use very short sentences",
    "add some {word} and a bit of fun",
    "let there be a {word} in it",
    "make the reader smile",
)
_SYLLABLES = listed("syllables")
_ENDINGS = ("n", "r", "l", "t", "p", "x", "sh", "nd", "ck", "m", "", "", "y", "ing", "le", "er", "um")


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `learn` is False for an answer that carries no loss."""

    words: tuple[str, ...]
    question: str
    answer: str
    learn: bool


@dataclass(frozen=True)
class Conversation:
    """What the model sees in one sample: an optional system message and the turns, the last one always learnt."""

    system: str
    turns: tuple[Turn, ...]


def question(words: Sequence[str], condition: str) -> str:
    """The user's message, in the brief's format."""
    return TEMPLATE.format(words=" ".join(words), condition=condition)


def made_up_word(rng: random.Random) -> str:
    """A word that sounds English and is not."""
    return "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))) + rng.choice(_ENDINGS)


def draw_words(rng: random.Random, vocabulary: Sequence[str], unknown: float) -> tuple[str, ...]:
    """Three different words (rarely two or four), each made up with the chance given."""
    count = rng.choices((2, 3, 4), weights=(2, 96, 2))[0]
    words = [made_up_word(rng) if rng.random() < unknown else word for word in rng.sample(vocabulary, count)]
    return tuple(dict.fromkeys(words))


def draw_condition(rng: random.Random, vocabulary: Sequence[str]) -> str:
    """A feature (group first, then text), sometimes none, sometimes one the grammar has no answer to."""
    luck = rng.random()
    if luck < 0.12:
        return ""
    if luck < 0.18:
        return rng.choice(OTHER_CONDITIONS).format(word=rng.choice(vocabulary))
    return rng.choice(tuple(rng.choice(tuple(conditions.FEATURES.values()))))


def ngrams_of(text: str, length: int) -> list[tuple[str, ...]]:
    """All runs of so many words, in order, in lower case, punctuation aside."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return [tuple(words[at : at + length]) for at in range(len(words) - length + 1)]


def ngrams(text: str) -> set[tuple[str, ...]]:
    """The runs of NGRAM words."""
    return set(ngrams_of(text, NGRAM))


def foreign_answer(rng: random.Random, words: Sequence[str], vocabulary: Sequence[str]) -> str:
    """Up to 150 words in no style of ours: sentences of several stories in disorder, many of their words exchanged."""
    pieces: list[str] = []
    for _ in range(rng.choice((1, 1, 2))):
        story = grammar.tell(rng, rng.sample(vocabulary, 3))
        pieces += re.split(r"(?<=[.!?]) ", story)
    rng.shuffle(pieces)
    text = " ".join(pieces).split()[: rng.randint(50, 145)]
    share = rng.choice((0.05, 0.2, 0.4))
    text = [rng.choice(vocabulary) if token.isalpha() and rng.random() < share else token for token in text]
    for word in words:
        text.insert(rng.randrange(len(text)), word)
    if rng.random() < 0.7:
        text = [token + "\n\n" if token.endswith((".", '"')) and rng.random() < 0.5 else token + " " for token in text]
        return "".join(text).strip().rstrip(",;.") + "."
    return " ".join(text).rstrip(",;.") + "."


def draw(rng: random.Random, shots: int, *, unknown: float, foreign: float) -> Conversation:
    """A conversation with so many example turns; `foreign` is the share that begins with one or two of noise."""
    vocabulary = sorted(lexicon.kinds())
    noise = rng.randint(1, 2) if rng.random() < foreign else 0
    seen: set[tuple[str, ...]] = set()
    turns: list[Turn] = []
    for number in range(shots + 1):
        words, condition = draw_words(rng, vocabulary, unknown), draw_condition(rng, vocabulary)
        if number < min(noise, shots):
            answer, learn = foreign_answer(rng, words, vocabulary), False
        else:
            answer, learn = grammar.tell(rng, words, condition), True
            for _ in range(20):
                if seen.isdisjoint(ngrams(answer)):
                    break
                answer = grammar.tell(rng, words, condition)
        seen |= ngrams(answer)
        asked = question(words, condition)
        if not condition and rng.random() < 0.5:
            asked = asked.replace("\n\n\n\n", "\n\n")
        turns.append(Turn(words, asked, answer, learn))
    system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.1 else ""
    return Conversation(system, tuple(turns))
