"""One session of a run: from a configuration to files on disk, the first time or going on after a stop.

Opens what a run needs in the order in which it is cheap to refuse (inputs, model name, output, model), lets the
``Flow`` go, and says how it ended. Nothing here knows about signals or terminals; torch is imported by the backend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import anyio
from pydantic import TypeAdapter

from asyncgen.backends import Generator, check_model
from asyncgen.backends.find import api_key, cautions, locate
from asyncgen.config import Config, LocalModel, check_config
from asyncgen.endings import too_few_prompts, used_up
from asyncgen.engine import Engine, engine_for
from asyncgen.errors import ResumeRefused, RunStopped, SourcesEnded, TooManyFailures, TooManyRejections
from asyncgen.metrics import Snapshot, View
from asyncgen.output import (
    MAY_BE_MENDED,
    Output,
    Places,
    Progress,
    Seen,
    holds_records,
    is_full,
    open_output,
    peek,
)
from asyncgen.pipeline import Flow, seen_before
from asyncgen.prompts import End, Sources, input_files, open_source
from asyncgen.report import Outcome, Report
from asyncgen.room import check_room
from asyncgen.tasks import in_thread, single_cause, tell_nobody
from asyncgen.validators import open_validators, validator_files

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

__all__ = ["Notice", "Resume", "check_resume", "finished_on_disk", "progress_on_disk", "run"]

_ENDED = "sources ended"
_BROKEN = "ended by errors"
_OUTCOMES: dict[type[RunStopped], Outcome] = {
    SourcesEnded: "sources ended",
    TooManyFailures: "too many failures",
    TooManyRejections: "too many rejections",
}
_Ends = TypeAdapter(list[End])

Resume = Literal["auto", "never", "require"]
"""Whether a run goes on with records that are there: if there are any; not at all; or in any case."""

Notice = Callable[[str], object]
"""Told, one at a time, sentences that a user should read once: that a model is being loaded and was, that it has no
chat template, that a setting is another than before. ``print`` will do; it is called on the event loop.
"""


async def run(
    config: Config,
    *,
    engine: Engine | None = None,
    resume: Resume = "auto",
    stop: anyio.Event | None = None,
    watch: View | None = None,
    notice: Notice | None = None,
    begin: Callable[[int], object] | None = None,
    cut_short: Callable[[Report], object] | None = None,
    phase: Callable[[str], object] | None = None,
) -> Report:
    """Makes the stories that ``config`` asks for, or those that an earlier session left to be made.

    ``engine``: one that is open and has the model of ``config``, to be shared with others, whose requests go first;
    None opens one for this run.
    ``resume``: ``never`` refuses an output that holds records already, ``require`` one that holds none.
    ``stop``, once set, ends the run gracefully: what was begun is finished and committed, for ``drain_timeout``
    seconds at most. Cancellation ends it within one decode step of the model; what was decided before is on disk
    either way. ``watch`` is shown the run while it generates. ``notice`` is called, on the event loop, with each
    sentence that a person should read once (a model is being loaded, it has no chat template, a setting is another than
    before); ``print`` will do, and all but the loading is in the report's ``notices`` too. ``begin`` is called with
    the number of stories on disk when inputs and output are sound and the model is about to be loaded. ``cut_short`` is
    given the report of a run that was cancelled or failed while it generated, which then has nobody to return it to.
    ``phase`` is told what is done next ("loading the model"), but for what ``watch`` sees.

    Raises InputError, OutputError, BackendFailed (of a server: ServerFailed), TooManyRejections, TooManyFailures or
    SourcesEnded; the last three carry the ``report``.
    """
    check_config(config)
    with single_cause():
        async with AsyncExitStack() as stack:
            session = _Session(config, engine, stack, notice or tell_nobody, phase or tell_nobody)
            flow, output = await session.open(resume, begin)
            if flow is None:
                return await _nothing_to_come(config, output, session.told)
            try:
                return await session.generate(flow, output, stop, watch)
            except RunStopped:
                raise
            except BaseException as error:
                if cut_short is not None:
                    cut_short(_left(flow, output, session.told, failed=isinstance(error, Exception)))
                raise


class _Session:
    """Opens what a run needs, in the order in which it is cheap to refuse; ``stack`` closes it."""

    def __init__(
        self,
        config: Config,
        engine: Engine | None,
        stack: AsyncExitStack,
        notice: Notice,
        phase: Callable[[str], object],
    ) -> None:
        self._config, self._engine, self._stack, self._notice, self._phase = config, engine, stack, notice, phase
        self.told: list[str] = []
        """What a person should read once, but for what is over when the run is."""

    async def open(self, resume: Resume, begin: Callable[[int], object] | None) -> tuple[Flow | None, Output]:
        """The stages, ready to go, and what they will write into; no stages if nothing is left for them to do."""
        config = self._config
        await in_thread(check_resume, config, resume)
        source = await self._opened("the sources", "opening", open_source(config, self._tell))
        self._phase("opening the checks")
        validators = await in_thread(open_validators, config)
        inputs = await in_thread(_checked_inputs, config)
        seen: list[Seen] = []
        opening = open_output(config, inputs, read=partial(_remember, config, seen), must_resume=resume == "require")
        output = await self._opened("the output", "opening", opening)
        if output.resumed and resume == "never":  # somebody else's, since we looked
            check_resume(config, resume)
        if begin is not None:
            begin(output.accepted)
        _tell_how_it_goes_on(config, output, self._tell)
        _resume(source, output)
        if output.complete or (source.count is not None and output.start >= source.count):
            return None, output
        engine = await self._opened("the model", "loading", engine_for(config, self._engine, self._notice))
        backend = engine.as_backend()
        if self._engine is None:  # whoever opened it was told, of other prompts than ours
            for text in backend.notices:
                self._tell(text)
        _check_revision(backend.revision, output)
        _note_engine(backend, config, output, self._tell)
        counts = {"start": output.start, "accepted": output.accepted, "rejected": output.rejected}
        return Flow(config, source, backend, validators, **counts, seen=seen[0], tell=self._tell), output

    async def generate(self, flow: Flow, output: Output, stop: anyio.Event | None, watch: View | None) -> Report:
        """Runs the stages into the output, beside their watchers."""
        with single_cause():
            return await self._generate(flow, output, stop, watch)

    async def _generate(self, flow: Flow, output: Output, stop: anyio.Event | None, watch: View | None) -> Report:
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(output.keep_committed)
            if watch is not None:
                watchers.start_soon(watch, flow)
            try:
                with anyio.CancelScope() as draining:
                    if stop is not None:
                        watchers.start_soon(_stop_when_asked, flow, stop, draining)
                    await _run_and_describe(flow, output)
            except RunStopped as stopped:
                stopped.report = _report(_OUTCOMES[type(stopped)], flow.snapshot(), output, self.told)
                raise
            watchers.cancel_scope.cancel()
        self._phase("closing the output")
        if not flow.complete:
            return _report("stopped", flow.snapshot(), output, self.told)
        return await _complete(output, flow.snapshot(), self.told)

    async def _opened(self, what: str, opening: str, opened: AbstractAsyncContextManager[_T]) -> _T:
        self._phase(f"{opening} {what}")
        entered = await self._stack.enter_async_context(opened)
        self._stack.callback(self._phase, f"closing {what}")  # called before what is above is closed
        return entered

    def _tell(self, text: str) -> None:
        self.told.append(text)
        self._notice(text)


def check_resume(config: Config, resume: Resume) -> None:
    """Raises ResumeRefused if the output is not as ``resume`` wants it. Reads nothing."""
    if resume == "auto":
        return
    places = Places.of(config.output_path)
    there = holds_records(places)
    if there and resume == "never":
        raise ResumeRefused(
            f"{places.stories} or {places.rejected.name} holds records already, and resume never forbids to go on",
            hint="give another output_path, or resume auto",
        )
    if not there and resume == "require":
        raise ResumeRefused(
            f"{places.stories} holds no records, and resume require wants some to go on with",
            hint="look whether output_path is the one you mean; resume auto begins where there are none",
        )


def progress_on_disk(config: Config) -> Progress | None:
    """How far the output of ``config`` is, None if nothing is there. Changes nothing and imports no torch.

    Raises what looking at the output raises: DataError, ModelError, ResumeRefused, OutputDamaged, OutputFailed.
    """
    return peek(config, _inputs(config))


def finished_on_disk(config: Config) -> Progress | None:
    """The same if all stories that ``config`` asks for are there, else None: then the inputs are not read for it."""
    return progress_on_disk(config) if is_full(config) else None


def _tell_how_it_goes_on(config: Config, output: Output, tell: Notice) -> None:
    _log.info(
        "%s %s at index %d, after %d stories and %d rejected prompts",
        output.places.stories,
        "goes on" if output.resumed else "begins",
        output.start,
        output.accepted,
        output.rejected,
    )
    if output.made_folder is not None:
        tell(f"made the folder {output.made_folder}")
    for caution in cautions(config):
        tell(caution)
    for text in output.cuts:
        tell(text)
    for note in output.notes:
        tell(f"resumed with another setting: {note}" if output.resumed else note)


async def _run_and_describe(flow: Flow, output: Output) -> None:
    """Runs the flow; however it ends, the manifest tells what this session measured."""
    before, broken = output.start, None
    try:
        await flow.run(output.write)
    except TooManyFailures as error:
        broken = error.message
        raise
    finally:
        s = flow.snapshot()
        output.describe(
            {
                MAY_BE_MENDED: flow.to_mend or None,
                _BROKEN: broken or (output.facts.get(_BROKEN) if output.start == before else None),
                "last session": {
                    "stories": s.new,
                    "attempts": s.attempts,
                    "tokens": s.tokens,
                    "seconds": round(s.seconds, 3),
                    "busy seconds": round(s.busy_seconds, 3),
                    "refused attempts": dict(s.reasons),
                    **_about_slots(s),
                    **_about_server(s),
                },
            }
        )


def _about_slots(snapshot: Snapshot) -> dict[str, object]:
    if not snapshot.slots:
        return {}
    hits = {"prefix hits": snapshot.prefix_hits, "prefix misses": snapshot.prefix_misses}
    return {"slots": snapshot.slots, "mean share of slots in use": round(snapshot.fill, 3), **hits}


def _about_server(snapshot: Snapshot) -> dict[str, object]:
    if not snapshot.tries:
        return {}
    return {
        "requests": snapshot.tries,
        "requests tried again": snapshot.tried_again,
        "prompt tokens": snapshot.prompt_tokens,
        "requests at once": snapshot.in_flight_limit,
    }


async def _stop_when_asked(flow: Flow, stop: anyio.Event, draining: anyio.CancelScope) -> None:
    await stop.wait()
    flow.stop()
    await anyio.sleep(flow.config.drain_timeout)
    draining.cancel()


def _resume(source: Sources, output: Output) -> None:
    """Goes on after the ends that earlier sessions recorded, of sources whose places others took."""
    try:
        source.resume(_Ends.validate_python(output.facts.get(_ENDED, [])), partial(_record_ends, output))
    except ValueError as error:  # pydantic's are some too
        raise ResumeRefused(
            f"{output.places.manifest}: {_ENDED!r} under `facts` is not what a run wrote there",
            hint="put it back, or give another output_path",
        ) from error


async def _record_ends(output: Output, ends: Sequence[End]) -> None:
    await output.settle({_ENDED: [asdict(end) for end in ends]})


def _check_revision(revision: str | None, output: Output) -> None:
    """A hub model may have moved under the same name since the output was begun; its records must not be mixed."""
    begun = output.facts.get("model revision")
    if output.resumed and begun is not None and revision is not None and begun != revision:
        raise ResumeRefused(
            f"{output.places.stories} was begun with another revision of the model: was {begun}, now {revision}",
            hint=f"set backend.revision to {begun} to go on with it, or give another output_path",
        )
    output.describe({"model revision": revision})


def _note_engine(backend: Generator, config: Config, output: Output, tell: Notice) -> None:
    """``auto`` may have become another engine than before; another ``backend.kind`` is told of by the fingerprint."""
    engine, before = backend.engine, output.facts.get("engine")
    if output.resumed and before not in (None, engine) and config.backend.kind == "auto":
        change = f"backend.kind: auto was {before}, is now {engine}"
        tell(f"resumed with another setting: {change}")
        output.note(f"index {output.start}: {change}")
    output.describe({"engine": engine, "why not slots": backend.fallback or None})


def _remember(config: Config, seen: list[Seen], texts: Iterable[str]) -> None:
    """Adds what repeats of earlier sessions' stories are known by; runs in a thread, while the output is opened."""
    seen.append(seen_before(config, texts))


def _checked_inputs(config: Config) -> dict[str, Path | str]:
    check_model(config)
    api_key(config)
    check_room(config)
    return _inputs(config)


def _inputs(config: Config) -> dict[str, Path | str]:
    """Everything on disk that records depend on: what prompts are made from, what judges, a local model's files."""
    inputs = {**input_files(config), **validator_files(config)}
    if isinstance(config.backend, LocalModel) and isinstance(place := locate(config.model_name), Path):
        inputs["model"] = place
    return inputs


async def _nothing_to_come(config: Config, output: Output, told: Sequence[str]) -> Report:
    """The end of a run that has its stories already, or whose sources have no prompt after those on disk."""
    if output.complete:
        return _report("complete", _at_rest(config, output), output, told)
    if config.num_stories is None or output.facts.get(_BROKEN):
        return await _complete(output, _at_rest(config, output), told)
    error = too_few_prompts(output.start, output.accepted, config)
    error.report = _report("sources ended", _at_rest(config, output), output, told)
    raise error


async def _complete(output: Output, snapshot: Snapshot, told: Sequence[str]) -> Report:
    """The end of a run that has all there is, unless most of that were errors, in an earlier session too."""
    if broken := output.facts.get(_BROKEN):
        error = used_up(str(broken))
        error.report = _report("too many failures", snapshot, output, told)
        raise error
    await output.close("complete")
    return _report("complete", snapshot, output, told)


def _at_rest(config: Config, output: Output) -> Snapshot:
    return Snapshot(
        goal=config.num_stories,
        accepted=output.accepted,
        rejected=output.rejected,
        accepted_before=output.accepted,
        rejected_before=output.rejected,
    )


def _left(flow: Flow, output: Output, told: Sequence[str], *, failed: bool) -> Report:
    """What a run that was torn away left on disk, which may be less than it had decided."""
    on_disk = replace(flow.snapshot(), accepted=output.accepted, rejected=output.rejected)
    return _report("failed" if failed else "stopped", on_disk, output, told)


def _report(outcome: Outcome, snapshot: Snapshot, output: Output, told: Sequence[str]) -> Report:
    places: Places = output.places
    return Report(outcome, snapshot, places.stories, places.rejected, tuple(told))
