"""What an output holds before a run goes on with it, and whether this run may. Nothing here is asynchronous."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from asyncgen.config import Config
from asyncgen.errors import ConfigError, OutputFailed, ResumeRefused
from asyncgen.output import manifest as manifests
from asyncgen.output.fingerprint import Difference, Fingerprint, compare, fingerprint
from asyncgen.output.manifest import Manifest, State, Timings
from asyncgen.output.places import Places, size_of, sync_folder
from asyncgen.output.points import points
from asyncgen.output.recovery import Kept, Mark, cut, examine
from asyncgen.output.remains import set_aside

__all__ = [
    "MAY_BE_MENDED",
    "Look",
    "Opened",
    "Progress",
    "entering",
    "failing",
    "holds_records",
    "is_full",
    "look",
    "now",
    "peek",
    "prepare",
]

MAY_BE_MENDED = "may be mended"
"""Fact of the manifest: the names of inputs in which the last session found something to mend, or null."""

Versions = Mapping[str, str]

_NO_PLACE = frozenset(
    {errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS}
)
"""What says that a path is wrong, and not that a disk has failed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an output is."""

    accepted: int
    rejected: int
    complete: bool
    """Whether ``num_stories`` are there; without a goal only the run itself can tell, see ``state``."""
    state: State
    """What the last run left in the manifest."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An output that may be gone on with: both files end at ``mark``, and ``manifest`` is what is to be said now."""

    mark: Mark
    manifest: Manifest
    news: tuple[str, ...]
    """The notes of this opening."""
    cuts: tuple[str, ...] = ()
    """What was cut off the files, a sentence each."""


@dataclass(frozen=True, slots=True)
class Look:
    """What an output holds."""

    manifest: Manifest | None = None
    kept: Kept = field(default_factory=partial(Kept, Mark()))
    fingerprint: Fingerprint | None = None
    """What it goes on as being made from; None if it begins anew."""
    differences: tuple[Difference, ...] = ()

    @property
    def anew(self) -> bool:
        """Whether nothing was decided, or all of it is another run's, which accepted no story: then it makes way."""
        return self.fingerprint is None


def peek(config: Config, inputs: Mapping[str, Path | str]) -> Progress | None:
    """How far the output of ``config`` is, None if nothing has been decided, or nothing that would be gone on with.
    Changes nothing and takes no lock.

    Raises what opening the output would: ResumeRefused, OutputDamaged, OutputFailed, DataError, ConfigError.
    """
    places = Places.of(config.output_path)
    with entering(places):
        found = look(places, config, inputs)
    if found.anew or found.manifest is None:
        return None
    mark = found.kept.mark
    complete = config.num_stories is not None and mark.accepted >= config.num_stories
    return Progress(mark.accepted, mark.rejections, complete, found.manifest.state)


def is_full(config: Config) -> bool:
    """Whether ``num_stories`` are on disk, whatever they were made from; reads the manifest and some lines. Raises
    what ``peek`` does for what it reads.
    """
    places = Places.of(config.output_path)
    with entering(places):
        manifest = manifests.read(places.manifest)
        if manifest is None or config.num_stories is None:
            return False
        return examine(places, manifest.mark, manifest.seed).mark.accepted >= config.num_stories


def look(places: Places, config: Config, inputs: Mapping[str, Path | str]) -> Look:
    """What is there and how it differs. Changes nothing. Raises what ``peek`` does, and OSError."""
    manifest = manifests.read(places.manifest)
    if manifest is None:
        _check_unclaimed(places)
        return Look()
    kept = examine(places, manifest.mark, manifest.seed)
    if kept.mark.index == 0:
        return Look(manifest, kept)
    new = fingerprint(config, inputs, begun=manifest.fingerprint)
    differences = compare(manifest.fingerprint, new)
    refused = [each for each in differences if each.refused and each.name not in _may_be_mended(manifest)]
    if refused and kept.mark.accepted:
        raise ResumeRefused(
            f"{places.stories} was begun with another configuration",
            hint="put these back to go on with it, or give another output_path",
            changes={each.key: each.change for each in refused},
        )
    if refused:
        return Look(manifest, kept, None, tuple(refused))
    grown = any(_has_grown(new.get(f"inputs.{name}"), inputs[name]) for name in inputs if name.startswith("sources"))
    # From now on all of a source that has grown is what the run is made from.
    return Look(manifest, kept, fingerprint(config, inputs) if grown else new, tuple(differences))


def prepare(
    places: Places,
    found: Look,
    config: Config,
    inputs: Mapping[str, Path | str],
    versions: Versions,
    hardware: Mapping[str, object],
) -> Opened:
    """Cuts, recovers and makes way, as what was ``found`` demands; the caller holds the lock. Raises DataError and
    OSError.
    """
    made_from = found.fingerprint or fingerprint(config, inputs)
    old, kept = found.manifest, found.kept
    cuts: tuple[str, ...] = ()
    news: tuple[str, ...] = ()
    if old is not None:
        cuts = set_aside(places, kept.mark, old.seed)
        cut(places, kept.mark, old.mark)
        if kept.mark.index:
            news = (_make_way(places, found, old),) if found.anew else _news(found, old, versions)
    if old is None or found.anew:
        old, kept = Manifest(timings=Timings(began=now())), Kept(Mark())
    manifest = old.model_copy(
        update={
            "state": "running",
            "synced": manifests.Synced(stories=kept.mark.stories, rejected=kept.mark.rejected),
            "totals": manifests.Totals(
                accepted=kept.mark.accepted,
                rejected=kept.mark.rejections,
                reasons=dict(kept.reasons + Counter(old.totals.reasons)),
            ),
            "timings": old.timings.model_copy(update={"updated": now(), "runs": old.timings.runs + 1}),
            "versions": manifests.versions() | dict(versions),
            "hardware": manifests.hardware() | dict(hardware),
            "notes": [*old.notes, *(f"{now()}, index {kept.mark.index}: {note}" for note in (*news, *cuts))],
            "fingerprint": made_from,
            "config": config.resolved(),
        }
    )
    return Opened(kept.mark, manifest, news, cuts)


@contextmanager
def failing(places: Places) -> Iterator[None]:
    """What fails inside with an OSError fails with OutputFailed, which says how to go on."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OutputFailed(
            f"{places.stories} cannot be written: {why}",
            hint="what was committed is safe; mend the cause and start the same run again to go on from there",
        ) from error


@contextmanager
def entering(places: Places) -> Iterator[None]:
    """The same while an output is opened, where the path itself may be what is wrong: if nothing was ever committed
    there, that is a ConfigError.
    """
    try:
        with failing(places):
            yield
    except OutputFailed as error:
        if holds_records(places):
            raise
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _NO_PLACE:
            raise ConfigError(f"output_path: {error.message}", hint="name a file in a folder of yours") from cause
        raise OutputFailed(
            error.message, hint="nothing was committed there yet; mend the cause and start the same run again"
        ) from cause


def holds_records(places: Places) -> bool:
    """Whether there is, or for all that can be seen may be, something that was committed."""
    try:
        return any(size_of(path) for path in (places.stories, places.rejected))
    except OSError as error:
        return error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def now() -> str:
    """The time, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _has_grown(content: object, source: Path | str) -> bool:
    """Whether a file has more bytes than those that were looked at."""
    return isinstance(content, dict) and isinstance(source, Path) and size_of(source) != content["bytes"]


def _may_be_mended(manifest: Manifest) -> frozenset[str]:
    """The inputs whose content failed in the last session: what they gave before is on disk, and nobody could go on if
    they had to stay as they are. One file may be several inputs.
    """
    fact = manifest.facts.get(MAY_BE_MENDED)
    names = fact if isinstance(fact, list) else [fact]
    inputs = {name: each for name, each in manifest.fingerprint.items() if name.startswith("inputs.")}
    contents = [inputs.get(f"inputs.{name}") for name in names]
    return frozenset(name for name, each in inputs.items() if each in contents)


def _make_way(places: Places, found: Look, old: Manifest) -> str:
    """Moves what another configuration left aside, rejections only, and returns what is to be said about it.

    Killed after any step, it leaves an output that opens: the old one; the old one whose manifest claims nothing, so
    that all of the file is read; the same without the file, where nothing was decided and anything may begin.
    """
    claims_nothing = {"synced": manifests.Synced(), "totals": manifests.Totals()}
    manifests.replace(places.manifest, old.model_copy(update=claims_nothing))
    points.at("manifest claims nothing")
    aside = places.free_aside()
    places.rejected.rename(aside)
    points.at("moved aside")
    sync_folder(aside.parent)
    changes = "; ".join(map(str, found.differences))
    return (
        f"no story had been accepted, so the output begins anew with the changed configuration ({changes}); "
        f"the {found.kept.mark.rejections} rejected prompts are kept in {aside}"
    )


def _check_unclaimed(places: Places) -> None:
    for path in (places.stories, places.rejected):
        if size_of(path):
            raise ResumeRefused(
                f"{path} is not empty, and {places.manifest.name}, which would say what made it, is not there",
                hint="put the manifest back beside it, or give another output_path; nothing has been changed",
            )


def _news(found: Look, manifest: Manifest, versions: Versions) -> tuple[str, ...]:
    old, new = manifest.versions, manifests.versions() | dict(versions)
    changed = [
        f"{name}: was {old[name]}, now {new[name]}"
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    ]
    return tuple(dict.fromkeys((*map(str, found.differences), *changed)))
