"""Writers in processes of their own, for tests that end them: ``python -m tests.output.child MODE FOLDER ...``."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from asyncgen.errors import AsyncgenError, OutputFailed
from asyncgen.output import open_output, repair, verify
from asyncgen.output import writer as writing
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until

ROOT = Path(__file__).parents[2]


def child(mode: str, folder: Path, *numbers: int, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts one; ``before`` is what the command line begins with."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "tests.output.child", mode, str(folder), *map(str, numbers)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def write(folder: Path, end: int) -> None:
    """Writes in small groups, commits now and then, until killed or done."""
    say("begun")
    async with open_output(config_at(folder), INPUTS) as output:
        plan = records(output.start)
        while output.start < end:
            await output.write(take(plan, min(1 + output.start % 5, end - output.start)))
            if output.start % 7 == 0:
                await output.commit()


async def limited(folder: Path, *sizes: int) -> list[dict[str, object]]:
    """Runs into limits of the file size, one run for each, then goes on without."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said: list[dict[str, object]] = []
    for size in sizes:
        place = folder / str(size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        why = await until_it_fails(place)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        said.append({"why": why, "equal": await goes_on(place)})
    return said


async def full(folder: Path, size: int) -> dict[str, object]:
    """Fills a small file system of its own, then makes it larger and goes on."""
    mount = ["mount", "-t", "tmpfs", "-o"]
    await asyncio.to_thread(subprocess.run, [*mount, f"size={size}", "tmpfs", str(folder)], check=True)
    why = await until_it_fails(folder)
    await asyncio.to_thread(subprocess.run, [*mount, "remount,size=8m", "tmpfs", str(folder)], check=True)
    return {"why": why, "equal": await goes_on(folder)}


async def read_only(folder: Path) -> dict[str, object]:
    """Goes on writing while the folder becomes read-only, then begins where it is, then goes on where it is not."""
    mount = ["mount", "-o"]
    writing.MANIFEST_SECONDS = writing.GROUP_SECONDS = 0.0
    why = ""
    try:
        async with open_output(config_at(folder), INPUTS) as output:
            await output.write(take(records(), 20))
            # Files that are open stay so; whatever is opened from now on lies on a read-only file system.
            await asyncio.to_thread(subprocess.run, [*mount, "bind", str(folder), str(folder)], check=True)
            await asyncio.to_thread(subprocess.run, [*mount, "remount,bind,ro", str(folder)], check=True)
            await output.write(take(records(20), 20))
    except OutputFailed as error:
        why = str(error)
    again = await until_it_fails(folder)
    await asyncio.to_thread(subprocess.run, ["umount", str(folder)], check=True)
    return {"why": why, "again": again, "equal": await goes_on(folder)}


async def as_another(folder: Path, user: int) -> dict[str, object]:
    """What another user, who may read all of it and write nothing, is told of an output."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    report = verify(folder / "stories.jsonl")
    try:
        repair(folder / "stories.jsonl")
    except (AsyncgenError, OSError) as error:
        return {"in_use": report.in_use, "problems": report.problems, "repair": type(error).__name__}
    return {}


async def until_it_fails(folder: Path) -> str:
    try:
        await write_until(config_at(folder), 1000, group=7)
    except OutputFailed as error:
        stories, rejected = on_disk(config_at(folder))
        plan = lines_of(take(records(), 1000))
        assert plan[0].startswith(stories)
        assert plan[1].startswith(rejected)
        return str(error)
    return ""


async def goes_on(folder: Path) -> bool:
    config = config_at(folder)
    await write_until(config, 1000, group=50)
    assert verify(config).ok
    return on_disk(config) == lines_of(take(records(), 1000))


def main(mode: str, folder: str, *numbers: str) -> None:
    modes = {"write": write, "limited": limited, "full": full, "read_only": read_only, "as_another": as_another}
    said = asyncio.run(modes[mode](Path(folder), *map(int, numbers)))  # type: ignore[operator]
    if said is not None:
        say(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
