"""Judges a completion: reasons against it and a quality score. Pure functions over one text; the only state is caches.

A *word* is what spaces and punctuation leave of a text, upper and lower case aside; ``ice-cream`` and ``don't`` are
one each. The kinds of reason, which statistics count, are ``empty``, ``too short``, ``too long``, ``missing words``,
``unfinished``, ``repetition``, ``copied`` and ``low quality``; a completion without usable text has its own error.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from asyncgen.config import Validation
from asyncgen.records import Completion, Verdict

__all__ = ["fingerprint64", "inflections", "judge", "normalise", "quality"]

MAX_SENTENCE_REPEATS = 4
"""How often a sentence of four words or more may stand in a text: a refrain is fine, a loop is not."""
_NGRAM = 4
_SENTENCE_ENDS = ".!?…。！？"  # noqa: RUF001  (the full-width ones are meant)
_CLOSERS = " \t\r\n\"'*_)]}»”’」』）"  # noqa: RUF001
_TYPOGRAPHY = tuple(zip("‘’“”–—…", "''\"\"  .", strict=True))  # noqa: RUF001
_SENTENCE_BREAK = re.compile(rf"[{_SENTENCE_ENDS}\n]+")
_ONE_SYLLABLE = re.compile(r"(?:[^aeiou]*|[^aeiou]*qu)[aeiou][^aeiouwxy]")
_DOUBLES = re.compile(r".*(?:[^aeiou]|qu)[aeiou][^aeiouwxy]|[aeiou][^aeiouwxy]")

_IRREGULAR_FORMS = """
become became|begin began begun|bend bent|bite bit bitten|blow blew blown|break broke broken|bring brought
build built|burn burnt|buy bought|catch caught|choose chose chosen|come came|creep crept|do did done
draw drew drawn|dream dreamt|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed
feel felt|fight fought|find found|fly flew flown|forget forgot forgotten|forgive forgave forgiven
freeze froze frozen|get got|give gave given|go went gone|grow grew grown|hang hung|have had has|hear heard
hide hid hidden|hold held|keep kept|kneel knelt|know knew known|lead led|leap leapt|learn learnt|leave left
lend lent|lie lay|light lit|lose lost|make made|mean meant|meet met|pay paid|ride rode ridden|ring rang rung
rise rose risen|run ran|say said|see saw seen|sell sold|send sent|shake shook shaken|shine shone
sing sang sung|sink sank sunk|sit sat|sleep slept|slide slid|smell smelt|speak spoke spoken|spin spun
spring sprang sprung|stand stood|steal stole stolen|stick stuck|sweep swept|swim swam swum|swing swung
take took taken|teach taught|tear tore torn|tell told|think thought|throw threw thrown
understand understood|wake woke woken|wear wore worn|weep wept|win won|write wrote written
child children|foot feet|goose geese|mouse mice|person people|tooth teeth|bad worse worst|good better best
"""
_IRREGULAR = {base: tuple(forms) for base, *forms in map(str.split, re.split(r"[|\n]", _IRREGULAR_FORMS.strip()))}
_LOOK_ALIKES = frozenset(
    re.findall(
        r"\w+",
        "badger batter bed best bitter butter copper corner counter cover dinner drawer dresser evening feed flower "
        "folder forest hammer jumper ladder letter litter matter mother need nest news number paper pepper poster "
        "potter power river rubber seed shorts shower slipper summer temper tower trailer wander whisker",
    )
)
"""Words that only look like a form of a shorter one: mother is no moth, and a corner no more corn."""


class _Spaces(dict[int, str]):
    """Table for ``str.translate``: punctuation, symbols, separators and controls become spaces; a hyphen and an
    apostrophe stay, in their plain form.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = " " if unicodedata.category(char)[0] in "PSZC" else char
        return self[code]


_SPACES = _Spaces({ord("-"): "-", 0x2010: "-", 0x2011: "-", ord("'"): "'", 0x2019: "'"})


@dataclass(slots=True)
class _Facts:
    """What the checks and the score look at."""

    words: list[str]
    missing: list[str]
    wanted: int
    unfinished: str
    repeated: float
    most_repeats: int
    shared: float
    copied: tuple[str, ...]


def judge(completion: Completion, settings: Validation) -> Verdict:
    """Accepts ``completion``, or gives every reason against it.

    Pure. About 0.1 ms for a story of 100 words. A completion with an error, or without a word in it, has that one
    reason and quality 0, also when validation is switched off.
    """
    folded = _fold(completion.text)
    words = _words(folded)
    if completion.finish_reason == "error":
        return Verdict(completion, (completion.error or "error: the backend gave no reason",), 0.0, len(words))
    if not words:
        return Verdict(completion, ("empty: there is no word in the text",), 0.0, 0)
    if not settings.enabled:
        return Verdict(completion, (), 1.0, len(words))
    facts = _look(completion, folded, words, settings.copy_words)
    score = quality(
        _length_fit(len(words), settings),
        1 - len(facts.missing) / max(1, facts.wanted),
        0.0 if facts.unfinished else 1.0,
        1 - facts.repeated,
        1 - facts.shared,
    )
    reasons = _reasons(facts, settings)
    if score < settings.min_quality:
        reasons.append(f"low quality: {score:g}, at least {settings.min_quality:g}")
    return Verdict(completion, tuple(reasons), score, len(words))


def quality(length: float, words: float, ending: float, variety: float, originality: float) -> float:
    """The quality score in [0, 1], to four places: the weighted mean of five scores in [0, 1].

    - ``length`` (weight 0.25): 1 within the bounds, else the share of the nearer bound that is reached or kept;
    - ``words`` (0.30): share of the selected words that occur;
    - ``ending`` (0.15): 1 if the text reached its end with a closed sentence, else 0;
    - ``variety`` (0.15): share of the word 4-grams that do not repeat an earlier one;
    - ``originality`` (0.15): share of the different word 4-grams that occur in no k-shot answer.

    A text that passes the default checks has 1, 1, 1, at least 0.7 and whatever originality: 0.80 or more.
    """
    return round(0.25 * length + 0.30 * words + 0.15 * ending + 0.15 * variety + 0.15 * originality, 4)


def normalise(text: str) -> str:
    """``text`` with case, punctuation and spacing aside: equal for two texts that a reader would call the same."""
    return " ".join(_parts(_fold(text).translate(_SPACES)))


def fingerprint64(text: str) -> int:
    """Eight bytes of BLAKE2b of the normalised text: equal texts have equal ones, others practically never."""
    data = normalise(text).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 16)
def inflections(word: str) -> frozenset[str]:
    """The simple English forms of a lower-case word, itself included.

    Plural and third person (-s, -es, -ies, -ves), past (-ed, -d, -ied), -ing, -er and -est, with the final e dropped
    or the final consonant doubled where English does so; -men for -man; and the irregular forms of some hundred words
    that small children know. Not what only looks like a form, as mother does of moth; and no possessive 's, which is
    a part of its own where words are looked for.
    """
    forms = {word + "s"}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    for end, plural in (("f", "ves"), ("fe", "ves"), ("man", "men")):
        if word.endswith(end):
            forms.add(word.removesuffix(end) + plural)
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        stem = word[:-1] + "i"
        forms |= {stem + "es", stem + "ed", stem + "er", stem + "est", word + "ing"}
    elif word.endswith("e"):
        forms |= {word + "d", word + "r", word + "st"}
        ing = word[:-2] + "y" if word.endswith("ie") else word if word.endswith(("ee", "oe", "ye")) else word[:-1]
        forms.add(ing + "ing")
    else:
        stems = [word + word[-1:]] if _DOUBLES.fullmatch(word) else [word]
        if not _ONE_SYLLABLE.fullmatch(word):
            stems.append(word)
        forms |= {stem + end for stem in stems for end in ("ed", "ing", "er", "est")}
    return frozenset({word, *_IRREGULAR.get(word, ()), *(forms - _LOOK_ALIKES)})


def _fold(text: str) -> str:
    """``text`` in lower case and composed letters, its usual typography in ASCII (where all that follows is faster)."""
    if not text.isascii():
        for char, plain in _TYPOGRAPHY:
            text = text.replace(char, plain)
        text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return text.casefold()


def _words(folded: str) -> list[str]:
    clean = folded.translate(_SPACES)
    if "-" not in clean and "'" not in clean:
        return clean.split()
    return [word for raw in clean.split() if (word := raw.strip("-'"))]


def _parts(clean: str) -> list[str]:
    """Words with their hyphens and apostrophes taken apart."""
    return clean.replace("-", " ").replace("'", " ").split()


def _look(completion: Completion, folded: str, words: list[str], copy_words: int) -> _Facts:
    prompt = completion.prompt
    grams = _ngrams(words, _NGRAM)
    different = set(grams)
    repeats = len(grams) - len(different)
    shared = different & _shot_ngrams(prompt.shots, _NGRAM)
    can_be_copied = copy_words and (shared or copy_words < _NGRAM)
    return _Facts(
        words=words,
        missing=_missing(prompt.selected_words.values(), words),
        wanted=len(prompt.selected_words),
        unfinished=_unfinished(completion),
        repeated=repeats / len(grams) if grams else 0.0,
        most_repeats=_most_repeats(folded) if repeats >= MAX_SENTENCE_REPEATS else 0,
        shared=len(shared) / len(different) if different else 0.0,
        copied=_copied(words, prompt.shots, copy_words) if can_be_copied else (),
    )


def _reasons(facts: _Facts, settings: Validation) -> list[str]:
    count = len(facts.words)
    reasons = []
    if count < settings.min_words:
        reasons.append(f"too short: {count} words, at least {settings.min_words}")
    if count > settings.max_words:
        reasons.append(f"too long: {count} words, at most {settings.max_words}")
    if settings.require_words and facts.missing:
        reasons.append(f"missing words: {', '.join(facts.missing)}")
    if settings.require_ending and facts.unfinished:
        reasons.append(f"unfinished: {facts.unfinished}")
    if facts.repeated > settings.max_repetition:
        limit = settings.max_repetition
        reasons.append(f"repetition: {facts.repeated:.0%} of the word {_NGRAM}-grams repeat, at most {limit:.0%}")
    elif settings.max_repetition < 1 and facts.most_repeats > MAX_SENTENCE_REPEATS:
        reasons.append(f"repetition: a sentence stands {facts.most_repeats} times, at most {MAX_SENTENCE_REPEATS}")
    if facts.copied:
        reasons.append(f"copied: {len(facts.copied)} words in a row from an example ({' '.join(facts.copied)})")
    return reasons


def _length_fit(count: int, settings: Validation) -> float:
    if count < settings.min_words:
        return count / settings.min_words
    return min(1.0, settings.max_words / count)


@lru_cache(maxsize=1 << 16)
def _wanted(word: str) -> tuple[frozenset[str], ...]:
    """Of each part of a vocabulary entry ("ice cream" has two), the forms that count as it."""
    return tuple(inflections(part) for part in _parts(_fold(word).translate(_SPACES)))


def _missing(selected: Iterable[str], words: list[str]) -> list[str]:
    """Those of ``selected`` that do not occur, not even as a part of a word with a hyphen or an apostrophe."""
    missing = [word for word in selected if not _occurs(_wanted(word), words)]
    if missing:
        parts = _parts(" ".join(words))
        missing = [word for word in missing if not _occurs(_wanted(word), parts)]
    return missing


def _occurs(wanted: tuple[frozenset[str], ...], words: list[str]) -> bool:
    if len(wanted) == 1:
        return not wanted[0].isdisjoint(words)
    places = range(len(words) - len(wanted) + 1)
    return any(all(words[at + k] in forms for k, forms in enumerate(wanted)) for at in places)


def _unfinished(completion: Completion) -> str:
    """Why the text is not at its end; empty if it is."""
    if completion.finish_reason == "length":
        return f"the token limit was reached ({completion.tokens} tokens)"
    text = completion.text.rstrip(_CLOSERS)
    if text.endswith(tuple(_SENTENCE_ENDS)):
        return ""
    return f"the last sentence is not closed, the text ends with {' '.join(text[-60:].split()[-3:])!r}"


def _most_repeats(folded: str) -> int:
    """How often the most repeated sentence or line of four words or more stands there."""
    sentences = Counter([" ".join(_words(part)) for part in _SENTENCE_BREAK.split(folded)])
    return max((count for sentence, count in sentences.items() if sentence.count(" ") >= _NGRAM - 1), default=0)


def _ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*[words[at:] for at in range(size)], strict=False))


@lru_cache(maxsize=256)
def _shot_ngrams(shots: tuple[str, ...], size: int) -> frozenset[tuple[str, ...]]:
    """The n-grams of all ``shots``, made once for all prompts that share them."""
    return frozenset(gram for shot in shots for gram in _ngrams(_words(_fold(shot)), size))


def _copied(words: list[str], shots: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The first ``size`` words in a row that stand in one of ``shots`` too."""
    theirs = _shot_ngrams(shots, size)
    return _first(gram for gram in _ngrams(words, size) if gram in theirs)


def _first(grams: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return next(iter(grams), ())
