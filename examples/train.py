"""Augmentation: accepted stories feed a training step while the next ones are made.

    python examples/train.py [STORIES]

One process, two threads that compute: asyncgen's generates, the other trains a small language model of characters on
each batch as soon as it is there. A training step that is slow slows the generator down, and nothing piles up.
"""

from __future__ import annotations

import sys

import anyio
import torch
from anyio import to_thread
from torch import Tensor, nn
from torch.nn import functional

import asyncgen

BATCH = 8
LENGTH = 256


class Characters(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Logits [B, T, 256] for bytes [B, T]."""
        logits: Tensor = self.head(self.memory(self.embedding(text))[0])
        return logits


class Trainer:
    """One step for each batch of stories; its methods run in a worker thread."""

    def __init__(self) -> None:
        self.model = Characters()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)

    def step(self, stories: list[asyncgen.Story]) -> float:
        """Trains on ``stories``; the loss in bits per character."""
        texts = torch.zeros(len(stories), LENGTH, dtype=torch.int64)
        for row, story in enumerate(stories):
            encoded = story.content.encode()[:LENGTH]
            texts[row, : len(encoded)] = torch.tensor(list(encoded))
        loss = functional.cross_entropy(self.model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch is typed in parts
        self.optimizer.step()
        return loss.item() / 0.693


async def main(stories: int) -> None:
    """Trains on so many stories as they are made."""
    trainer, batch, losses = Trainer(), list[asyncgen.Story](), list[float]()
    config = asyncgen.load_config(None, [f"num_stories={stories}", "generation.batch_size=auto"])
    async with asyncgen.open_pipeline(config) as made:
        async for story in made:
            batch.append(story)
            if len(batch) == BATCH:
                losses.append(await to_thread.run_sync(trainer.step, batch))
                batch = []
                seen = made.snapshot()
                print(f"step {len(losses)}: {losses[-1]:.2f} bits/character, {seen.accepted} stories made")
    print(f"from {losses[0]:.2f} to {losses[-1]:.2f} bits/character on {len(losses) * BATCH} stories")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 160)
