"""The story grammar: a seeded random generator of short bedtime stories around required words and a condition.

A story is an opening, the four stages of a plot (setup, problem, turn, resolve) and an ending. The required words are
worked in from left to right: the first in the opening or the setup where its kind allows it, each other one as a beat
after the next stage. The condition decides the place, the hero, a line of talk, mood, moral or senses, or the ending.
Knows nothing about tokens or models; the same generator state gives the same story.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tools.bedtime_tiny import cast, lexicon
from tools.bedtime_tiny.conditions import effect_of

GRAMMAR_FILE = Path(__file__).with_name("grammar.txt")
MIN_WORDS, MAX_WORDS = 40, 150
STAGES = ("setup", "problem", "turn", "resolve")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
EARLY = "~ "  # marks a template that fits only before the friend is met
LINKS = ("Later, ", "Then ", "After that, ", "Soon ")
_INFLECTIONS = {"{ws}": lexicon.plural, "{wed}": lexicon.past, "{wing}": lexicon.progressive}


@cache
def templates() -> dict[str, tuple[str, ...]]:
    """The templates of every section; a plot's stages are sections of their own ("plot lost setup")."""
    sections: dict[str, list[str]] = {}
    section = ""
    for line in GRAMMAR_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            section = line.removeprefix("== ")
        elif section.startswith("plot ") and ": " in line:
            stage, _, template = line.partition(": ")
            sections.setdefault(f"{section} {stage}", []).append(template)
        elif section and line:
            sections.setdefault(section, []).append(line)
    return {name: tuple(lines) for name, lines in sections.items()}


@cache
def plots() -> tuple[str, ...]:
    """The names of all plots."""
    return tuple(name.split()[1] for name in templates() if name.endswith(" setup"))


def _pronouns(prefix: str, *, girl: bool) -> dict[str, str]:
    forms = ("she", "her", "her", "She", "Her") if girl else ("he", "him", "his", "He", "His")
    return {prefix + key: form for key, form in zip(("he", "him", "his", "He", "His"), forms, strict=True)}


def _hero_kind(rng: random.Random, hero: str, *, girl: bool) -> str:
    """What the hero is, where the condition ("animal", "child", "bear", "bird", "mouse" or none) leaves it open."""
    if hero in {"bear", "mouse"}:
        return hero
    if hero == "bird":
        return rng.choice(cast.BIRDS)
    if hero == "child" or (hero != "animal" and rng.random() < 0.3):
        return "girl" if girl else "boy"
    return rng.choice(cast.ANIMALS)


@dataclass
class Teller:
    """One story in the making: who and where, which templates are used, the sentences so far."""

    rng: random.Random
    words: Sequence[str]
    what: str
    value: str
    fields: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    sentences: list[str] = field(default_factory=list)
    done: int = 0  # required words already worked in
    needs: str = ""  # the field by which the plot's setup takes the first word in

    def cast(self) -> None:
        """Choose hero, friend, grown-up, place and day."""
        rng, pick = self.rng, self.rng.choice
        girl, friend_girl = rng.random() < 0.5, rng.random() < 0.5
        hero = pick(cast.GIRLS if girl else cast.BOYS)
        friend = pick([name for name in (cast.GIRLS if friend_girl else cast.BOYS) if name != hero])
        kind = _hero_kind(rng, self.value if self.what == "hero" else "", girl=girl)
        adjective, friend_kind = pick(cast.HERO_ADJECTIVES), pick(cast.ANIMALS)
        setting = self.value if self.what == "place" else pick(self._settings())
        call = pick(("named", "called"))
        new_friends = (f"{'her' if girl else 'his'} friend {friend}", f"{friend} the {friend_kind}",
                       f"a {pick(('little', 'kind', 'friendly', 'small'))} {friend_kind} {call} {friend}")  # fmt: skip
        self.fields = {
            **_pronouns("", girl=girl),
            **_pronouns("f", girl=friend_girl),
            "H": hero,
            "F": friend,
            "G": "Grandma" if self.value == "grandma" else pick(cast.GROWN_UPS),
            "HeS": "She is" if girl else "He is",
            "kind": kind,
            "akind": lexicon.with_article(f"{adjective} {kind}"),
            "ahadj": lexicon.with_article(adjective),
            "hadj2": pick(cast.HERO_ADJECTIVES),
            "Anew": f"{lexicon.with_article(f'{adjective} {kind}')} {pick(('named', 'called'))} {hero}",
            "newF": pick(new_friends),
            "in": pick(cast.PLACES[setting]),
            "season": pick(cast.SEASONS),
            **self._day(setting),
        }
        self.fields |= {"inC": self.fields["in"], "NewF": self.fields["newF"], "FHis": self.fields["fHis"]}

    def _settings(self) -> list[str]:
        """The places that go with the first word: no night and no snow where it names a time of day or weather."""
        dated = bool(self.words) and lexicon.kind_of(self.words[0]) in {"forecast", "time", "season"}
        return [place for place in sorted(cast.PLACES) if not (dated and place in {"night", "snow"})]

    def _day(self, setting: str) -> dict[str, str]:
        time = self.rng.choice(("evening", "night") if setting == "night" else sorted(cast.TIMES))
        weather = self.rng.choice(cast.TIMES[time]) if setting != "snow" else "snowy"
        return {
            "time": time,
            "dayadj": weather,
            "dayadjC": weather,
            "adayadj": lexicon.with_article(weather),
            "skything": "sun" if cast.TIMES[time] is cast.DAY else "moon",
        }

    def render(self, template: str, word: str = "") -> str:
        """The template as a sentence: choices made, fields filled, first letter capital."""
        text = _CHOICE.sub(lambda match: self.rng.choice(match[1].split("|")), template)
        here = {"over": self.rng.choice(cast.NEARBY), "overp": self.rng.choice(cast.FAR)}
        if word:
            here |= {"w": word, "aw": lexicon.with_article(word)}
            here |= {"Aw": here["aw"], "ws": lexicon.plural(word) or "", "wed": lexicon.past(word) or ""}
            here["wing"] = lexicon.progressive(word) or ""
        text = text.format_map(self.fields | here)
        first = 1 if text.startswith('"') else 0
        return text[:first] + text[first].upper() + text[first + 1 :]

    def say(self, section: str, word: str = "", *, friend: bool = True, needs: str = "") -> bool:
        """Add a fresh template of the section; False, and nothing added, if none fits.

        `friend` says whether the friend has been met; `needs` is a field the template must hold.
        """
        fitting = [
            template
            for template in templates().get(section, ())
            if template not in self.used
            and (not template.startswith(EARLY) if friend else "{F}" not in template)
            and needs in template
            and all(mark not in template or (word and form(word)) for mark, form in _INFLECTIONS.items())
        ]
        if not fitting:
            return False
        template = self.rng.choice(fitting)
        self.used.add(template)
        if section.startswith("beat "):
            template = self._linked(template.removeprefix(EARLY), friend=friend)
        self.sentences.append(self.render(template, word))
        return True

    def _linked(self, template: str, *, friend: bool) -> str:
        """Now and then a pronoun for the hero's name while nobody else is there, and later a word that links."""
        if template.startswith("{H} ") and self.rng.random() < 0.5:
            return self.rng.choice(LINKS) + template if friend else template.replace("{H}", "{He}", 1)
        return template

    def next_word(self, *, friend: bool = True) -> None:
        """Work the next required word in as a beat of its own."""
        if self.done < len(self.words):
            word = self.words[self.done]
            self.say(f"beat {lexicon.kind_of(word)}", word, friend=friend)
            self.done += 1

    def opening(self) -> None:
        """The first sentence, in half of the stories with the first word in it."""
        word = self.words[0] if self.words else ""
        section = f"openword {lexicon.kind_of(word)}"
        free_hero = self.what != "hero" or self.value in {"shy", "curious", "grandma"}
        names_hero = section.endswith((" animal", " person", " someone"))
        if word and section in templates() and (free_hero or not names_hero) and self.rng.random() < 0.5:
            self.say(section, word)
            self.done = 1
        else:
            self.say("open")

    def plot(self) -> str:
        """Choose a plot, and its toy or food: the first word, if it is one and the plot's setup speaks of one."""
        plot = self.rng.choice(plots())
        setups = templates()[f"plot {plot} setup"]
        first = self.words[0] if self.words and self.done == 0 else ""
        for name, kind, things in (("toy", "thing", cast.TOYS), ("food", "food", cast.FOODS)):
            thing = self.rng.choice(things)
            marks = [mark for mark in (f"{{{name}}}", f"{{a{name}}}") if any(mark in setup for setup in setups)]
            if marks and lexicon.kind_of(first) == kind:
                thing, self.needs, self.done = first, self.rng.choice(marks), 1
            self.fields |= {name: thing, f"a{name}": lexicon.with_article(thing)}
        return plot

    def when(self, what: str, otherwise: float = 0.0) -> None:
        """Add the line the condition asks for, if it is of this sort; else a free one with the chance given."""
        if self.what == what:
            self.say(f"{what} {self.value}")
        elif otherwise and self.rng.random() < otherwise:
            self.say(f"{what} free")

    def tell(self) -> str:
        """The whole story."""
        self.cast()
        self.opening()
        if self.what == "hero" and self.value in {"shy", "curious"}:
            self.say(self.value)
        self.when("mood")
        plot = self.plot()
        if self.done == 0:
            self.next_word(friend=False)
        self.say(f"plot {plot} setup", needs=self.needs)
        if self.rng.random() < 0.6:
            self.next_word(friend=False)
        self.say(f"plot {plot} problem")
        self.when("talk", otherwise=0.0 if self.value == "grandma" else 0.3)
        self.say(f"plot {plot} turn")
        self.say(f"plot {plot} resolve")
        while self.done < len(self.words):
            self.next_word()
        self.when("sense")
        if self.value == "grandma":
            self.say("talk grownup")
        self.when("moral")
        self.say(f"end {self.value}" if self.what == "end" else "end free")
        return " ".join(self.sentences)


def tell(rng: random.Random, words: Sequence[str], condition: str = "") -> str:
    """A story of 40 to 150 words that holds every word, itself or with a plain ending."""
    what, value = effect_of(condition)
    while True:
        story = Teller(rng, words, what, value).tell()
        if MIN_WORDS <= len(story.split()) <= MAX_WORDS:
            return story
