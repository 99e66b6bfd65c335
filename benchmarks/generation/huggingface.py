"""transformers' ``generate`` one by one and in batches, and its ``pipeline``."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria, pipeline

from benchmarks.generation.engine import Setting, best_of, fitting
from benchmarks.generation.workload import Request

__all__ = ["Brief", "OneByOne", "Pipeline", "RowLimits", "generation_config", "load"]

BATCHES = (8, 16, 32, 64)
TRIED = 16
"""Requests of a trial at the least; as many as a batch has, if that is more."""
PAD = 0


def load(setting: Setting, attention: str) -> Any:
    """The model in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32, attn_implementation=attention)
    return model.eval()


def generation_config(setting: Setting, **changes: Any) -> GenerationConfig:
    """The sampling that all engines share."""
    settings = {
        "do_sample": setting.temperature > 0,
        "temperature": setting.temperature or 1.0,
        "top_k": setting.top_k,
        "top_p": setting.top_p,
        "pad_token_id": PAD,
        "eos_token_id": setting.eos,
    }
    return GenerationConfig(**settings | changes)  # type: ignore[no-untyped-call]  # transformers is typed in parts


class RowLimits(StoppingCriteria):
    """Ends each row at its own length, batch after batch of ``rows`` in the order of ``limits``.

    ``generate`` ends a batch when its longest row has ended.
    """

    def __init__(self, limits: Sequence[int], rows: int) -> None:
        self._batches = iter([list(limits[first : first + rows]) for first in range(0, len(limits), rows)])
        self._limits: list[int] = []
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002  # generate's signature
        """Which rows have ended: bool [B]."""
        if self._step >= max(self._limits, default=0):
            self._limits, self._step = next(self._batches), 0
        self._step += 1
        return torch.tensor([self._step >= limit for limit in self._limits])


class Brief:
    """FIFO batches through ``generate``: sdpa, or eager if that was faster in a trial at the best batch size."""

    sizes: tuple[int, ...] = BATCHES
    attentions: tuple[str, ...] = ("sdpa", "eager")

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._model = load(setting, self.attentions[0])
        sizes = self.sizes if setting.rows is None else (setting.rows,)
        sample = setting.sample
        self.rows, by_rows = best_of(fitting(sizes, sample), self._tried, sample)
        attention, by_attention = best_of(self.attentions, self._with_attention, sample[: self.rows])
        self._model.set_attn_implementation(attention)
        self.settings = {"batch": self.rows, "attention": attention, "trials": by_rows | by_attention}

    def run(self, requests: Sequence[Request]) -> list[int]:
        """See ``Engine.run``."""
        return self._batches(self.rows, requests)

    def close(self) -> None:
        """See ``Engine.close``."""
        del self._model
        gc.collect()

    def _with_attention(self, attention: str, requests: Sequence[Request]) -> list[int]:
        self._model.set_attn_implementation(attention)
        return self._batches(self.rows, requests)

    def _tried(self, rows: int, sample: Sequence[Request]) -> list[int]:
        return self._batches(rows, sample[: max(rows, TRIED)])

    def _batches(self, rows: int, requests: Sequence[Request]) -> list[int]:
        batches = (requests[first : first + rows] for first in range(0, len(requests), rows))
        return [tokens for batch in batches for tokens in self._generate(batch)]

    def _generate(self, batch: Sequence[Request]) -> list[int]:
        longest = max(len(request.ids) for request in batch)
        limits = [request.limit for request in batch]
        ids = torch.full((len(batch), longest), PAD)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, longest - len(request.ids) :] = torch.tensor(request.ids)
            mask[row, longest - len(request.ids) :] = 1
        # Where texts end by themselves all limits are the same, and max_new_tokens is enough.
        stopping = None if self._setting.eos is not None else [RowLimits(limits, len(limits))]
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=generation_config(self._setting, max_new_tokens=max(limits)),
                stopping_criteria=stopping,
            )
        return list(_delivered(found[:, longest:].tolist(), limits, self._setting.eos))


class OneByOne(Brief):
    """``generate`` for one prompt after the other."""

    sizes = (1,)
    attentions = ("sdpa",)


class Pipeline:
    """``pipeline("text-generation")`` with a batch size; it tokenises by itself."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        tokenizer: Any = AutoTokenizer.from_pretrained(setting.model, padding_side="left")
        self._pipeline: Any = pipeline("text-generation", model=load(setting, "sdpa"), tokenizer=tokenizer)
        request = setting.workload.requests[0]
        seen = tokenizer(request.text)["input_ids"]
        assert tuple(seen) == request.ids, "the pipeline would see other tokens than the rest"
        sizes = BATCHES[1:] if setting.rows is None else (setting.rows,)
        sample = setting.sample
        self.rows, rates = best_of(fitting(sizes, sample), self._call, sample)
        self.settings = {"batch": self.rows, "attention": "sdpa", "trials": rates}

    def run(self, requests: Sequence[Request]) -> list[int]:
        """See ``Engine.run``."""
        return self._call(self.rows, requests)

    def close(self) -> None:
        """See ``Engine.close``."""
        del self._pipeline
        gc.collect()

    def _call(self, rows: int, requests: Sequence[Request]) -> list[int]:
        limits = [request.limit for request in requests]
        config = generation_config(self._setting, max_new_tokens=max(limits))
        natural = self._setting.eos is not None
        found = self._pipeline(
            [request.text for request in requests],
            batch_size=rows,
            return_tensors=True,
            generation_config=config,
            **({} if natural else {"stopping_criteria": [RowLimits(limits, rows)]}),
        )
        texts = [each[0]["generated_token_ids"] for each in found]
        delivered: list[int] = []
        for first in range(0, len(requests), rows):
            batch = requests[first : first + rows]
            longest = max(len(request.ids) for request in batch)  # the others are padded to it
            answers = [list(text)[longest:] for text in texts[first : first + rows]]
            delivered += _delivered(answers, [request.limit for request in batch], self._setting.eos)
        return delivered


def _delivered(answers: Sequence[Sequence[int]], limits: Sequence[int], eos: int | None) -> Iterator[int]:
    """Tokens that each row was asked for and got; what came after its end does not count."""
    for answer, limit in zip(answers, limits, strict=True):
        kept = answer[: answer.index(eos)] if eos is not None and eos in answer else answer
        yield min(len(kept), limit)
