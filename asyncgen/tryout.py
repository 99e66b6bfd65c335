"""A few prompts through the real backend and validators, every attempt shown to the caller. Writes no file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from anyio.lowlevel import checkpoint

from asyncgen.config import Config
from asyncgen.engine import Engine
from asyncgen.errors import AsyncgenError
from asyncgen.metrics import Metrics
from asyncgen.pipeline import Flow
from asyncgen.records import Prompt, Rejection, Story, Verdict
from asyncgen.tasks import in_thread, single_cause, tell_nobody
from asyncgen.validators import open_validators

__all__ = ["Tried", "try_prompts"]


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a few prompts."""

    attempts: dict[int, list[Verdict]]
    """The verdicts on each attempt, by index."""
    stopped: AsyncgenError | None
    """What ended it before all was decided: a check that fails too often, a generation that failed."""


async def try_prompts(
    config: Config, prompts: Sequence[Prompt], notice: Callable[[str], object] = tell_nobody
) -> Tried:
    """The verdicts on each attempt at ``prompts``, which follow each other: rejected ones, their retries, and what
    repeats another of them included. What a run makes of these indices, this makes of them too.

    Raises InputError for what is found before anything is made; ``notice`` is told what a user should read once.
    """
    found: dict[int, list[Verdict]] = {prompt.index: [] for prompt in prompts}
    first = prompts[0].index
    unbound = config.model_copy(update={"num_stories": None, "max_rejection_rate": 1.0})  # these prompts and no other
    validators = await in_thread(open_validators, config)
    async with Engine(config, notice=notice) as engine:
        for text in engine.notices:
            notice(text)
        flow = Flow(unbound, _Given(prompts), engine.as_backend(), validators, start=first, rejected=first)
        flow.metrics = _Listening(found)
        try:
            with single_cause():
                await flow.run(_nowhere)
        except AsyncgenError as error:
            return Tried(found, error)
    return Tried(found, None)


class _Given:
    """Prompts that are there already, as a source."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = tuple(prompts)
        self.count: int | None = prompts[-1].index + 1
        self.waited: Mapping[str, float] = {}
        self.let_go = 0
        self.to_mend: str | None = None

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        """See ``PromptSource.take``."""
        await checkpoint()
        at = start - self._prompts[0].index
        return self._prompts[at : at + count]


class _Listening(Metrics):
    """Counts verdicts, and keeps them."""

    def __init__(self, found: dict[int, list[Verdict]]) -> None:
        super().__init__()
        self._found = found

    def judged(self, verdicts: Iterable[Verdict]) -> None:
        """See ``Metrics.judged``."""
        self._keep(verdicts := tuple(verdicts))
        super().judged(verdicts)

    def repeated(self, verdicts: Iterable[Verdict]) -> None:
        """See ``Metrics.repeated``."""
        self._keep(verdicts := tuple(verdicts))
        super().repeated(verdicts)

    def _keep(self, verdicts: Iterable[Verdict]) -> None:
        """A repeat is judged twice: what is found out later is what counts."""
        for verdict in verdicts:
            prompt = verdict.completion.prompt
            self._found[prompt.index][prompt.attempt - 1 :] = [verdict]


async def _nowhere(_: Sequence[Story | Rejection]) -> None:
    await checkpoint()
