"""An engine as the backend of a run: its prompts are taken behind all requests."""

from __future__ import annotations

from asyncgen.backends import BackendSnapshot, Completions, Limits, Pool, Progress, Reader, nobody
from asyncgen.engine.core import Core
from asyncgen.packing import PromptPool
from asyncgen.records import Given, Prepared, Prompt

__all__ = ["Shared"]


class Shared:
    """See ``Backend``; any number of runs may go on at once."""

    def __init__(self, core: Core) -> None:
        self._core, self._backend = core, core.backend
        self.notices = self._backend.notices
        self.engine = self._backend.engine
        self.fallback = self._backend.fallback
        self.revision = self._backend.revision

    @property
    def limits(self) -> Limits:
        """See ``Backend.limits``."""
        return self._backend.limits

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:
        """See ``Backend.prepare``. Raises BackendFailed or EngineClosed when the engine has ended."""
        self._core.check()
        try:
            return self._backend.prepare(given, max_new_tokens, shared)
        except Exception:
            self._core.check()  # then the model was freed meanwhile
            raise

    async def run(self, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:  # noqa: ARG002  # nothing of a run is streamed
        """See ``Backend.run``. Raises BackendFailed if the model fails, EngineClosed if the engine is closed."""
        assert isinstance(pool, PromptPool)
        await self._core.desk.serve(pool, completions)

    def cancel(self, prompt: Prompt) -> None:
        """See ``Backend.cancel``."""
        self._backend.cancel(prompt)

    def reader(self, prompt: Prompt) -> Reader:
        """See ``Backend.reader``."""
        return self._backend.reader(prompt)

    def snapshot(self) -> BackendSnapshot:
        """See ``Backend.snapshot``: what all who share it had made."""
        return self._backend.snapshot()
