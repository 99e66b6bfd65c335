"""ctranslate2, with and without its ``static_prompt``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.generation.engine import Cannot, Setting, best_of, fitting
from benchmarks.generation.workload import Request

__all__ = ["CTranslate2", "StaticPrompt"]

SIZES = (32, 64, 128)
_Choice = tuple[int, str]
"""Rows of a batch, and what requests are sorted by."""


class CTranslate2:
    """``Generator.generate_batch`` in float32, one generator with all threads.

    Requests are sorted by prompt length before they are cut into batches, as ``generate_batch`` itself does (rows of
    unequal prompts cost steps), or by the length that they will have if that was faster in a trial: knowledge that
    nobody has outside a benchmark. Rows end at their own length by the documented callback, and leave the batch.
    """

    static = False

    def __init__(self, setting: Setting) -> None:
        try:
            import ctranslate2
            from ctranslate2.converters import TransformersConverter
        except ImportError as error:
            raise Cannot(f"it is not installed: pip install -e '.[bench]' ({error})") from error
        if self.static and not setting.workload.prefix:
            raise Cannot("the workload has no shared prefix to be its static prompt")
        self._setting = setting
        self._folder = TemporaryDirectory()
        place = Path(self._folder.name) / "model"
        TransformersConverter(str(setting.model)).convert(str(place), quantization="float32")
        _give_end(place / "config.json")
        self._vocabulary: list[str] = json.loads((place / "vocabulary.json").read_text(encoding="utf-8"))
        self._generator = ctranslate2.Generator(
            str(place), device="cpu", compute_type="float32", inter_threads=1, intra_threads=setting.threads
        )
        self._choice, rates = self._choose()
        self.rows = self._choice[0]
        self.settings = {
            "batch": self.rows,
            "sorted by": self._choice[1],
            "compute_type": self._generator.compute_type,
            "static_prompt": self.static,
            "trials": rates,
        }

    def run(self, requests: Sequence[Request]) -> list[int]:
        """See ``Engine.run``."""
        return self._serve(self._choice, requests)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._generator.unload_model()
        self._folder.cleanup()

    def _choose(self) -> tuple[_Choice, dict[str, float]]:
        sample = self._setting.sample
        if self._setting.rows is not None:  # the order that nobody could have is in its favour
            return (self._setting.rows, "prompt" if self._setting.eos is not None else "output"), {}
        sizes = [(size, "prompt") for size in fitting(SIZES, sample)]
        best, rates = best_of(sizes, self._serve, sample)
        if self._setting.eos is not None:  # nobody knows the lengths
            return best, rates
        best, more = best_of([best, (best[0], "output")], self._serve, sample)
        return best, rates | more

    def _serve(self, choice: _Choice, requests: Sequence[Request]) -> list[int]:
        rows, by = choice
        order = sorted(
            range(len(requests)),
            key=lambda place: len(requests[place].ids) if by == "prompt" else requests[place].limit,
            reverse=True,
        )
        tokens = dict.fromkeys(order, 0)
        for first in range(0, len(order), rows):
            places = order[first : first + rows]
            tokens |= zip(places, self._batch([requests[place] for place in places]), strict=True)
        return [tokens[place] for place in range(len(requests))]

    def _batch(self, batch: Sequence[Request]) -> list[int]:
        setting = self._setting
        prefix = setting.workload.prefix if self.static else 0
        shortest = min(len(request.ids) for request in batch)
        limits = [request.limit for request in batch]
        # Prompt tokens beyond the shortest prompt of the batch are steps of the decoding loop, and count as such.
        last = [request.limit + len(request.ids) - shortest - 1 for request in batch]
        arguments: dict[str, Any] = {
            "max_length": max(limits),
            "include_prompt_in_result": False,
            "sampling_topk": setting.top_k,
            "sampling_topp": setting.top_p,
            "sampling_temperature": setting.temperature,
        }
        if setting.temperature == 0:
            arguments |= {"sampling_topk": 1, "sampling_temperature": 1.0}
        if setting.eos is None:
            arguments["min_length"] = max(limits)  # it knows no model without an end-of-text token
            arguments["callback"] = lambda step: step.step >= last[step.batch_id]
        if self.static:
            arguments["static_prompt"] = self._spelled(batch[0].ids[:prefix])
        found = self._generator.generate_batch([self._spelled(request.ids[prefix:]) for request in batch], **arguments)
        answers = [len(result.sequences_ids[0]) for result in found]
        return [min(answer, limit) for answer, limit in zip(answers, limits, strict=True)]

    def _spelled(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[token] for token in ids]


class StaticPrompt(CTranslate2):
    """The same with the shared prefix as its ``static_prompt``, cached."""

    static = True


def _give_end(file: Path) -> None:
    """Names the padding token as end of text where there is none: it must have one. ``min_length`` forbids it."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("eos_token") is None:
        settings["eos_token"] = "<|pad|>"
        file.write_text(json.dumps(settings), encoding="utf-8")
