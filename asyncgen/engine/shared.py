"""An engine as the backend of a run: its prompts are taken behind all requests."""

from __future__ import annotations

from asyncgen.backends import BackendSnapshot, Completions, Limits
from asyncgen.differences import since
from asyncgen.engine.core import Core
from asyncgen.packing import PromptPool
from asyncgen.records import Given, Prepared

__all__ = ["Shared"]


class Shared:
    """See ``Generator``; any number of runs may go on at once."""

    def __init__(self, core: Core) -> None:
        self._core, self._backend = core, core.backend
        self._before = self._backend.snapshot()
        self.notices = self._backend.notices
        self.engine = self._backend.engine
        self.fallback = self._backend.fallback
        self.revision = self._backend.revision

    @property
    def limits(self) -> Limits:
        """See ``Generator.limits``."""
        return self._backend.limits

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:
        """See ``Generator.prepare``. Raises BackendFailed or EngineClosed when the engine has ended."""
        self._core.check()
        try:
            return self._backend.prepare(given, max_new_tokens, shared)
        except Exception:
            self._core.check()  # then the model was freed meanwhile
            raise

    async def run(self, pool: PromptPool, completions: Completions) -> None:
        """See ``Generator.run``. Raises BackendFailed if the model fails, EngineClosed if the engine is closed."""
        await self._core.desk.serve(pool, completions)

    def snapshot(self) -> BackendSnapshot:
        """See ``Generator.snapshot``: what all who share it had made since the run came."""
        return since(self._backend.snapshot(), self._before)
