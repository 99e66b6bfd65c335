"""Measures a model directory: `python -m tools.bedtime_tiny.evaluate --count 500`.

Fresh prompts in the brief's format, example turns from `data/example_conversation.txt` in front, plain `generate` at
temperature 0.8 over the whole vocabulary. Prints the share of stories accepted at the first attempt, the reasons of the
others, the share of distinct openings and the speed.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tools.bedtime_tiny import conversation
from tools.bedtime_tiny.export import MODEL_DIRECTORY

DATA = Path(__file__).parents[2] / "data"
MIN_WORDS, MAX_WORDS, OPENING = 30, 150, 5
ENDINGS = ("", "s", "es", "d", "ed", "ing")

Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """One prompt: the required words, the example answers it shows, and the whole chat."""

    words: tuple[str, ...]
    shown: tuple[str, ...]
    messages: list[Message]


@dataclass(frozen=True)
class Result:
    """One completion and why it is not accepted; no reasons means accepted."""

    task: Task
    story: str
    tokens: int
    reasons: tuple[str, ...]


def tasks(count: int, shots: int, seed: int, *, unknown: float = 0.0) -> list[Task]:
    """Prompts of random words and conditions, each after `shots` random examples."""
    rng = random.Random(seed)
    vocabulary = (DATA / "vocabulary.txt").read_text(encoding="utf-8").split()
    features: dict[str, list[str]] = json.loads((DATA / "story_features.json").read_text(encoding="utf-8"))
    examples: list[Message] = json.loads((DATA / "example_conversation.txt").read_text(encoding="utf-8"))
    pairs = list(zip(examples[::2], examples[1::2], strict=True))
    made: list[Task] = []
    for _ in range(count):
        words = tuple(rng.sample(vocabulary, 3))
        words = tuple(conversation.made_up_word(rng) if rng.random() < unknown else word for word in words)
        condition = rng.choice(features[rng.choice(sorted(features))])
        chosen = [message for pair in rng.sample(pairs, shots) for message in pair]
        last = {"role": "user", "content": conversation.question(words, condition)}
        made.append(Task(words, tuple(message["content"] for message in chosen[1::2]), [*chosen, last]))
    return made


def reasons(story: str, task: Task, *, ended: bool) -> Iterator[str]:
    """Why the story is not acceptable, by itself."""
    if not MIN_WORDS <= len(story.split()) <= MAX_WORDS:
        yield "length"
    present = set(re.findall(r"[a-z]+", story.lower()))
    missing = [word for word in task.words if not any(word + ending in present for ending in ENDINGS)]
    if missing:
        yield "missing word"
    if not ended:
        yield "no end token"
    if not re.search(r"[.!?][\"']?$", story):
        yield "not closed"
    runs = Counter(conversation.ngrams_of(story, 6))
    if runs and max(runs.values()) > 2:
        yield "repetition"
    if any(not conversation.ngrams(story).isdisjoint(conversation.ngrams(shown)) for shown in task.shown):
        yield "copied example"


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Task], temperature: float
) -> Iterator[Result]:
    """Complete a batch of prompts with the library's own generate."""
    texts = [tokenizer.apply_chat_template(task.messages, tokenize=False, add_generation_prompt=True) for task in batch]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            **inputs, do_sample=True, temperature=temperature, top_p=1.0, top_k=0, max_new_tokens=220
        )
    for task, row in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        ended = tokenizer.eos_token_id in row
        ids = row[: row.index(tokenizer.eos_token_id)] if ended else row
        story = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        yield Result(task, story, len(ids), tuple(reasons(story, task, ended=ended)))


def report(results: Sequence[Result], seconds: float) -> None:
    """Print the figures."""
    stories = Counter(result.story for result in results)
    repeats = sum(count - 1 for count in stories.values())
    accepted = sum(not result.reasons for result in results)
    openings = {" ".join(result.story.split()[:OPENING]) for result in results[:100]}
    tokens = sum(result.tokens for result in results)
    lengths = sorted(len(result.story.split()) for result in results)
    print(f"accepted {accepted} of {len(results)} ({accepted / len(results):.1%}), exact repeats {repeats}")
    print("reasons:", dict(Counter(reason for result in results for reason in result.reasons)))
    print(f"distinct openings among the first {min(100, len(results))}: {len(openings)}")
    print(f"words: {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}")
    print(f"{tokens / seconds:.0f} tokens/s, {tokens / len(results):.0f} tokens a story")


def main() -> None:
    """Evaluate a model directory on fresh prompts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default=str(MODEL_DIRECTORY))
    parser.add_argument("--tokenizer", default=None)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--unknown", type=float, default=0.0, help="share of required words that are made up")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--show", type=int, default=0, help="stories to print")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    model.train(mode=False)
    torch.manual_seed(arguments.seed)
    waiting = tasks(arguments.count, arguments.shots, arguments.seed, unknown=arguments.unknown)
    waiting.sort(key=lambda task: sum(len(message["content"]) for message in task.messages))
    results: list[Result] = []
    began = time.monotonic()
    for at in range(0, len(waiting), arguments.batch_size):
        results += generate(model, tokenizer, waiting[at : at + arguments.batch_size], arguments.temperature)
    report(results, time.monotonic() - began)
    for result in results[: arguments.show]:
        print(f"\n{', '.join(result.task.words)} | {'; '.join(result.reasons) or 'accepted'}\n{result.story}")


if __name__ == "__main__":
    main()
