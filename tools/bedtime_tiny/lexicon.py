"""The vocabulary with what a sentence must know of each word: its kind, its article and its plain inflections.

Kinds say how a word is used, so one word has exactly one kind, the one a three-year-old meets first: `thing`, `food`,
`animal`, `person`, `family`, `wear` and most other nouns are counted, `snack`, `stuff`, `weather` and `idea` are mass
nouns, `pair` is always plural; `feel`, `trait`, `quality`, `colour`, `taste` and `forecast` are adjectives; `act` is a
verb without an object, `handle` takes a thing and `greet` a person; `manner` and `where` are adverbs.
"""

from functools import cache

from tools.bedtime_tiny.wordlists import sections, words

LEXICON = "lexicon.txt"
UNKNOWN = "unknown"  # the kind of a word that is not in the lexicon: used only where any word fits

_IRREGULAR_PLURALS = frozenset(words("irregular plurals"))
_IRREGULAR_PASTS = frozenset(words("irregular pasts"))
_SHORT_A = ("uni", "use", "one", "eu", "ukulele")  # spelt with a vowel, said with a consonant
_SILENT_H = ("hour", "honest")


@cache
def kinds() -> dict[str, str]:
    """Every word of the vocabulary and its kind."""
    return {word: kind for kind, listed in sections(LEXICON).items() for word in listed}


def kind_of(word: str) -> str:
    """The kind of a word, `unknown` for a word that is not in the lexicon."""
    return kinds().get(word, UNKNOWN)


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" in front, by the sound it begins with."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(_SHORT_A)
    return f"{'an' if vowel or phrase.startswith(_SILENT_H) else 'a'} {phrase}"


def plural(word: str) -> str | None:
    """The plural, if it is the word with s or es behind it; else None."""
    if word in _IRREGULAR_PLURALS or (word.endswith("y") and word[-2] not in "aeiou"):
        return None
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word if word.endswith("ss") else word + "s"


def _doubles(verb: str) -> bool:
    """Whether the last letter is doubled before an ending (hop, hopped): one short vowel, then one consonant."""
    vowels = "aeiou"
    short = len(verb) > 2 and verb[-1] not in vowels + "wxyh" and verb[-2] in vowels and verb[-3] not in vowels
    return short and sum(letter in vowels for letter in verb) == 1


def past(verb: str) -> str | None:
    """The past tense, if it is the verb with d or ed behind it; else None."""
    if verb in _IRREGULAR_PASTS or _doubles(verb) or (verb.endswith("y") and verb[-2] not in "aeiou"):
        return None
    return verb + ("d" if verb.endswith("e") else "ed")


def progressive(verb: str) -> str | None:
    """The ing-form, if it is the verb with ing behind it; else None."""
    return None if verb.endswith("e") or _doubles(verb) else verb + "ing"
