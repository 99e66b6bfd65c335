"""The plan of a template run: everything about index i follows from the configuration, its files, the seed and i.

Reading the files is all the I/O there is; after that ``Plan.prompt`` is pure, so an index can be asked for in any
order, by any process, again after a resume.
"""

from __future__ import annotations

from pathlib import Path

from asyncgen import seeds
from asyncgen.config import Config
from asyncgen.prompts.files import read_conversation, read_features, read_vocabulary
from asyncgen.prompts.kshot import ShotPlan
from asyncgen.prompts.templates import load_template
from asyncgen.prompts.words import WordPlan
from asyncgen.records import Prompt
from asyncgen.resources import data_file
from asyncgen.text_files import check_text

__all__ = ["Plan", "conversation_path", "features_path", "vocabulary_path"]


class Plan:
    """The prompts of a template source.

    Only files that matter are read: no vocabulary for a template without words, no features without
    ``{additional_condition}``, no conversation without examples. Raises DataError for whatever is wrong with them.
    """

    def __init__(self, config: Config) -> None:
        self.template = load_template(config.template)
        names = self.template.words
        self.words = read_vocabulary(vocabulary_path(config)) if names else ()
        self.conditions = read_features(features_path(config)) if self.template.has_condition else ()
        self.shots = read_conversation(conversation_path(config)) if config.shots else ()
        self._seed = config.seed
        self._max_new_tokens = config.generation.max_new_tokens
        self._word_plan = WordPlan(
            self.words,
            len(names),
            seed=config.seed,
            diverse=config.ensure_diversity,
            where=f"the vocabulary {vocabulary_path(config)}",
        )
        if config.system_prompt is not None:
            check_text(config.system_prompt, "system_prompt")
        self._shot_plan = ShotPlan(
            self.shots,
            config.shots,
            seed=config.seed,
            rotate=config.k_shot_rotate,
            system_prompt=config.system_prompt,
            where=f"the conversation {conversation_path(config)}",
        )

    def prompt(self, index: int) -> Prompt:
        """The first attempt at ``index`` >= 0, not yet prepared for a backend."""
        words = dict(zip(self.template.words, self._word_plan.pick(index), strict=True))
        condition = self.condition(index)
        examples = self._shot_plan.pick(index)
        text = self.template.render(words, condition)
        return Prompt(
            index=index,
            messages=(*examples.messages, {"role": "user", "content": text}),
            seed=seeds.sampling_seed(self._seed, index, 1),
            max_new_tokens=self._max_new_tokens,
            selected_words=words,
            additional_condition=condition,
            shared=len(examples.messages),
            shots=examples.answers,
            source="template",
            position=index,
        )

    def condition(self, index: int) -> str:
        """The condition of ``index``: a group is drawn, then a text within it; empty if the template asks for none."""
        if not self.conditions:
            return ""
        rest, group = divmod(seeds.draw(self._seed, "condition", index), len(self.conditions))
        texts = self.conditions[group]
        return texts[rest % len(texts)]


def vocabulary_path(config: Config) -> Path:
    """The vocabulary of a run: the configured file or the packaged one."""
    return config.vocabulary_path or data_file("vocabulary.txt")


def features_path(config: Config) -> Path:
    """The story features of a run: the configured file or the packaged one."""
    return config.features_path or data_file("story_features.json")


def conversation_path(config: Config) -> Path:
    """The example conversation of a run: the configured file or the packaged one."""
    return config.conversation_path or data_file("example_conversation.txt")
