"""English words in their simple forms, and finding them in a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from asyncgen.validators.text import fold, parts_of, words_of

__all__ = ["Forms", "forms_of", "inflections", "occurs"]

Forms = tuple[frozenset[str], ...]
"""For each part of a word or phrase, the forms that count as it."""

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


@lru_cache(maxsize=1 << 16)
def forms_of(entry: str) -> Forms:
    """The forms of each part of a word or phrase ("ice cream" has two parts, and so has "ice-cream")."""
    return tuple(inflections(part) for part in parts_of(" ".join(words_of(fold(entry)))))


def occurs(forms: Forms, words: Sequence[str]) -> bool:
    """Whether the parts stand in ``words``, one after another, each in one of its forms."""
    if len(forms) == 1:
        return not forms[0].isdisjoint(words)
    places = range(len(words) - len(forms) + 1)
    return any(all(words[at + k] in each for k, each in enumerate(forms)) for at in places)
