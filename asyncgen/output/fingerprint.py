"""What made an output, as plain values that a later run can be compared with, field by field.

What each field of the configuration does to the records (``RULES``):

    records   decides what the records are: a resume with another value is refused
    input     names something read from disk: its content counts (``inputs``), the path does not
    noted     may move the last bits of the logits, hence a text, but nothing else: allowed, and noted in the manifest
    free      speed, display, paths, and where to stop: never compared

    records   seed; system_prompt; sources: kind, name, weight, parameters; use_k_shot, k_shot_count, k_shot_rotate;
              ensure_diversity; max_attempts; record_messages; generation: temperature, top_p, top_k, min_p,
              repetition_penalty, max_new_tokens, stop; validation: all but what is named below; backend: dtype,
              revision, quantization, trust_remote_code; openai: seed_bits, max_tokens_field, extra_body; echo:
              bad_share, distinct, context_length
    input     vocabulary_path, features_path, conversation_path, template; sources: path, function; validation:
              banned_words_path, readability.known_words_path, functions.function; model_name, if ``inputs`` has
              a ``model`` (a directory); a hub id is compared as it stands
    noted     generation.batch_size (padding and kernels change with it); backend: device, device_map, cuda_graphs,
              compile, base_url (a server may move); validation.functions.timeout; and backend.kind among the engines
              for the same local model (auto, static, slots; another kind is refused)
    free      num_stories (it may grow; at or below what is on disk the run is complete); output_path; window;
              drain_timeout; watchdog; sources.timeout; max_rejection_rate; validation.functions.concurrency; openai:
              api_key_env, timeout, patience, max_retries; echo: seconds_per_batch; server

Secrets among parameters (``config_section.without_secrets``) are neither kept nor compared.

Compared is what they mean: a source named as its kind is not named; ``k_shot_count`` 0 and ``use_k_shot`` false are one
thing, and then nothing rotates; of validation that is switched off, only that counts.

``inputs`` holds, by name, every file, text or model directory that records depend on, as given by those who read
them. One whose name begins with ``sources`` may have grown at its end since: lines consumed stay what they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from asyncgen.config import Config, TemplateSource, Validation, without_secrets
from asyncgen.output.hashes import content_of

__all__ = ["RULES", "Difference", "Fingerprint", "Rule", "compare", "fingerprint"]

Rule = Literal["records", "input", "noted", "free"]
Fingerprint = dict[str, object]
"""Dotted name -> JSON value."""

RULES: dict[str, Rule] = {
    "model_name": "records",
    "num_stories": "free",
    "seed": "records",
    "output_path": "free",
    "backend.kind": "records",
    "backend.device": "noted",
    "backend.dtype": "records",
    "backend.device_map": "noted",
    "backend.revision": "records",
    "backend.quantization": "records",
    "backend.trust_remote_code": "records",
    "backend.cuda_graphs": "noted",
    "backend.compile": "noted",
    "backend.base_url": "noted",
    "backend.api_key_env": "free",
    "backend.timeout": "free",
    "backend.patience": "free",
    "backend.max_retries": "free",
    "backend.seed_bits": "records",
    "backend.max_tokens_field": "records",
    "backend.extra_body": "records",
    "backend.seconds_per_batch": "free",
    "backend.bad_share": "records",
    "backend.distinct": "records",
    "backend.context_length": "records",
    "generation.batch_size": "noted",
    "generation.temperature": "records",
    "generation.top_p": "records",
    "generation.top_k": "records",
    "generation.min_p": "records",
    "generation.repetition_penalty": "records",
    "generation.max_new_tokens": "records",
    "generation.stop": "records",
    "system_prompt": "records",
    "template": "input",
    "vocabulary_path": "input",
    "features_path": "input",
    "conversation_path": "input",
    "sources.kind": "records",
    "sources.name": "records",
    "sources.weight": "records",
    "sources.path": "input",
    "sources.function": "input",
    "sources.parameters": "records",
    "sources.timeout": "free",
    "use_k_shot": "records",
    "k_shot_count": "records",
    "k_shot_rotate": "records",
    "ensure_diversity": "records",
    "max_attempts": "records",
    "record_messages": "records",
    "max_rejection_rate": "free",
    "window": "free",
    "drain_timeout": "free",
    "watchdog": "free",
    "server.host": "free",
    "server.port": "free",
    "server.api_key_env": "free",
    "server.model_id": "free",
    "server.max_stories": "free",
    "server.max_choices": "free",
    "server.max_tokens": "free",
    "server.max_body_bytes": "free",
    "server.timeout": "free",
    "validation.enabled": "records",
    "validation.min_words": "records",
    "validation.max_words": "records",
    "validation.require_words": "records",
    "validation.require_ending": "records",
    "validation.max_repetition": "records",
    "validation.copy_words": "records",
    "validation.banned_words": "records",
    "validation.banned_words_path": "input",
    "validation.forbid_patterns": "records",
    "validation.require_patterns": "records",
    "validation.readability.max_sentence_words": "records",
    "validation.readability.max_mean_sentence_words": "records",
    "validation.readability.max_mean_syllables": "records",
    "validation.readability.max_grade": "records",
    "validation.readability.min_known_words": "records",
    "validation.readability.known_words_path": "input",
    "validation.readability.language": "records",
    "validation.functions.function": "input",
    "validation.functions.parameters": "records",
    "validation.functions.name": "records",
    "validation.functions.concurrency": "free",
    "validation.functions.timeout": "noted",
    "validation.functions.weight": "records",
    "validation.reject_repeats": "records",
    "validation.min_quality": "records",
    "validation.weights.length": "records",
    "validation.weights.words": "records",
    "validation.weights.ending": "records",
    "validation.weights.variety": "records",
    "validation.weights.originality": "records",
    "validation.weights.readability": "records",
}

_SAME_MODEL = ("auto", "static", "slots")
_ABSENT = object()
_LEADS_TO = {
    "vocabulary": "vocabulary_path",
    "features": "features_path",
    "conversation": "conversation_path",
    "model": "model_name",
    "validation.banned_words": "validation.banned_words_path",
    "validation.known_words": "validation.readability.known_words_path",
}
"""Inputs that are called otherwise than the key that names their file."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not what it was; ``str()`` is ``generation.temperature: was 0.8, now 0.7``."""

    name: str
    change: str
    refused: bool
    """Whether the records would change; else it is only worth a note."""

    @property
    def key(self) -> str:
        """The key of the configuration that leads there: ``vocabulary_path`` for ``inputs.vocabulary``."""
        name = self.name.removeprefix("inputs.")
        if name == self.name:
            return name
        if name.startswith("validation.functions["):
            return f"{name.removesuffix('.name')}.function"
        if "sources[" in name:
            _, code_of, source = name.rpartition(" of ")
            return f"{source}.{'function' if code_of else 'path'}"
        return _LEADS_TO.get(name, name)

    def __str__(self) -> str:
        return f"{self.key}: {self.change}"


def fingerprint(
    config: Config, inputs: Mapping[str, Path | str], begun: Mapping[str, object] | None = None
) -> Fingerprint:
    """What makes the records under ``config``: fields by dotted name, inputs as ``inputs.NAME`` with their SHA-256.

    ``begun`` is the fingerprint to be compared with: of a source that has grown since, only its old part counts.
    Raises DataError if an input cannot be read.
    """
    found: Fingerprint = {}
    for name, value in _fields(_meant(config)):
        rule = RULES[_rule_name(name)]
        if rule in ("records", "noted") and not (name == "model_name" and "model" in inputs):
            found[name] = value
    for name, source in sorted(inputs.items()):
        old = (begun or {}).get(f"inputs.{name}")
        size = old.get("bytes") if name.startswith("sources") and isinstance(old, dict) else None
        first = size if type(size) is int else None
        found[f"inputs.{name}"] = dict(content_of(source, first))
    return found


def compare(old: Mapping[str, object], new: Mapping[str, object]) -> list[Difference]:
    """The fields in which two fingerprints differ, by name; empty if there are none."""
    differences = [
        Difference(name, _change(old.get(name, _ABSENT), new.get(name, _ABSENT)), _refused(name, old, new))
        for name in sorted(old.keys() | new.keys())
        if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]
    for switch in ("backend.kind", "validation.enabled"):
        if any(each.name == switch and each.refused for each in differences):
            # Another kind has other settings, and what is off has none: they say nothing more.
            section = switch.partition(".")[0] + "."
            differences = [each for each in differences if not each.name.startswith(section) or each.name == switch]
    return differences


def _meant(config: Config) -> Config:
    """The one configuration that stands for all that mean the same as ``config``."""
    sources = config.sources or (TemplateSource(kind="template"),)
    return config.model_copy(
        update={
            "sources": tuple(
                each.model_copy(update={"name": None}) if each.name == each.kind else each for each in sources
            ),
            "use_k_shot": config.shots > 0,
            "k_shot_count": config.shots,
            "k_shot_rotate": config.k_shot_rotate if config.shots else 0,
            "validation": config.validation if config.validation.enabled else Validation(enabled=False),
        }
    )


def _fields(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted name and JSON value of every field, sections and lists of sections opened (``sources[0].weight``)."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _fields(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for place, each in enumerate(value):
                yield from _fields(each, f"{prefix}{name}[{place}].")
        elif prefix + name != "validation.functions":
            yield prefix + name, without_secrets(section.model_dump(mode="json", include={name})[name])


def _rule_name(name: str) -> str:
    return re.sub(r"\[\d+\]", "", name)


def _refused(name: str, old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    if name == "backend.kind":
        return any(fields.get(name) not in _SAME_MODEL for fields in (old, new))
    return RULES.get(_rule_name(name)) != "noted"


def _change(was: object, now: object) -> str:
    if all(isinstance(value, dict) and "sha256" in value for value in (was, now)):
        return "content changed"
    return f"was {_show(was)}, now {_show(now)}"


def _show(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, dict) and "sha256" in value:
        return "present"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
