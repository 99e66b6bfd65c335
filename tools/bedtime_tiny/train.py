"""Makes the bundled model: `python -m tools.bedtime_tiny.train` builds the tokenizer, trains and exports.

Training on two CPU cores goes from short to long: single turns in which the required words weigh six-fold, so that the
model learns to copy them at all; then conversations with example turns; then long ones with plain loss and a falling
learning rate. Every phase leaves a checkpoint, and a later call goes on behind the last one.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.bedtime_tiny import tokenizer as tokenizers
from tools.bedtime_tiny.export import export
from tools.bedtime_tiny.samples import Batch, Encoder, Mix, batches

CHECKPOINTS = Path(__file__).with_name("checkpoints")
SEED = 0
TOKENS_PER_BATCH = 6144
WARMUP_STEPS = 40
CHECKPOINT_TOKENS = 1_000_000
LATEST, PROGRESS = "latest", "progress.json"


@dataclass(frozen=True)
class Phase:
    """A stretch of training: what is read, how many tokens of it, and the learning rate at its start and end."""

    name: str
    mix: Mix
    tokens: int
    rate: tuple[float, float]


LONG = Mix((0, 1, 2, 3), (4.0, 1.0, 1.0, 1.5), 0.04, 0.6, 8.0, 1024)
PHASES = (
    Phase("short", Mix((0,), (1.0,), 0.15, 0.0, 6.0, 256), 5_000_000, (2e-3, 2e-3)),
    Phase("turns", Mix((0, 1, 2), (2.0, 1.0, 2.0), 0.12, 0.4, 4.0, 960), 3_000_000, (2e-3, 2e-3)),
    Phase("long", LONG, 6_300_000, (2e-3, 5e-5)),
    Phase("polish", replace(LONG, word_weight=5.0), 2_500_000, (1e-3, 2e-5)),
)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with fresh weights."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, float]:
    """Weighted mean cross entropy, and the plain mean over the required words alone.

    Logits are computed only where a weight stands.
    """
    ids, weights = batch
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        learnt = weights[:, 1:] > 0
        logits = model.lm_head(hidden[learnt]).float()
    each = functional.cross_entropy(logits, ids[:, 1:][learnt], reduction="none")
    heavy = weights[:, 1:][learnt]
    words = each.detach()[heavy > 1]
    return (each * heavy).sum() / heavy.sum(), float(words.mean()) if len(words) else 0.0


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if "_proj" in name]
    rest = [weight for name, weight in named if "_proj" not in name]
    return [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def save(model: LlamaForCausalLM, directory: Path, phase: str, seen: int) -> None:
    """Leave a checkpoint that says how far it is."""
    model.save_pretrained(directory)
    (directory / PROGRESS).write_text(json.dumps({"phase": phase, "seen": seen}), encoding="utf-8")


def resume(model: LlamaForCausalLM) -> tuple[LlamaForCausalLM, int, int]:
    """The model to go on with, the number of the phase and the tokens of it already seen."""
    if not (CHECKPOINTS / LATEST / PROGRESS).is_file():
        return model, 0, 0
    progress = json.loads((CHECKPOINTS / LATEST / PROGRESS).read_text(encoding="utf-8"))
    number = [phase.name for phase in PHASES].index(progress["phase"])
    return LlamaForCausalLM.from_pretrained(CHECKPOINTS / LATEST, dtype=torch.float32), number, int(progress["seen"])


def set_rate(steppers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of every optimizer."""
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = rate


def train_phase(model: LlamaForCausalLM, phase: Phase, source: Iterator[Batch], seen: int) -> None:
    """Train for the rest of the phase's tokens, with a checkpoint about every million."""
    steppers = optimizers(model)
    model.train()
    step, began, first, saved = 0, time.monotonic(), seen, seen
    mean, words = 0.0, 0.0
    while seen < phase.tokens:
        batch = next(source)
        start, end = phase.rate
        set_rate(steppers, (start + (end - start) * seen / phase.tokens) * min(1.0, (step + 1) / WARMUP_STEPS))
        loss, word_loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        seen, step = seen + batch[0].numel(), step + 1
        keep = 0.95 if step > 1 else 0.0
        mean, words = keep * mean + (1 - keep) * loss.item(), keep * words + (1 - keep) * word_loss
        if step % 20 == 0:
            speed = (seen - first) / (time.monotonic() - began)
            done = f"{phase.name}: {seen / 1e6:.2f}M tokens ({speed:.0f}/s)"
            print(f"{done}, loss {mean:.3f}, words {words:.3f}", flush=True)
        if seen - saved >= CHECKPOINT_TOKENS:
            saved = seen
            save(model, CHECKPOINTS / LATEST, phase.name, seen)
    save(model, CHECKPOINTS / LATEST, phase.name, seen)
    save(model, CHECKPOINTS / phase.name, phase.name, seen)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, built once and then kept beside the checkpoints."""
    kept = CHECKPOINTS / "tokenizer"
    if not kept.is_dir():
        tokenizers.build(SEED).save_pretrained(kept)
    return tokenizers.load(kept)


def main() -> None:
    """Build the tokenizer, train from the last checkpoint on (or from the beginning), and export."""
    tokenizer = make_tokenizer()
    encoder = Encoder(tokenizer)
    model, current, seen = resume(new_model(tokenizer))
    for number, phase in enumerate(PHASES[current:], start=current):
        seed = SEED + 1000 * number + seen // CHECKPOINT_TOKENS  # a resumed phase reads fresh stories
        train_phase(model, phase, batches(encoder, phase.mix, seed, TOKENS_PER_BATCH), seen)
        seen = 0
    export(model, tokenizer)


if __name__ == "__main__":
    main()
