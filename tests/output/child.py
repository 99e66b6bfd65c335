"""Writers in processes of their own, for tests that end them: ``python -m tests.output.child MODE FOLDER ...``."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from pathlib import Path

from asyncgen.errors import OutputFailed, OutputInUse
from asyncgen.output import open_output, verify
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until


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


async def race(folder: Path) -> None:
    """Says whether it got the output; holds it until its input ends."""
    sys.stdin.readline()
    try:
        async with open_output(config_at(folder), INPUTS):
            say("won")
            await asyncio.to_thread(sys.stdin.read)
    except OutputInUse:
        say("in use")


async def limited(folder: Path, size: int) -> dict[str, object]:
    """Runs into a limit of the file size, then goes on without."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    why = await until_it_fails(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return {"why": why, "equal": await goes_on(folder)}


async def full(folder: Path, size: int) -> dict[str, object]:
    """Fills a small file system of its own, then makes it larger and goes on."""
    mount = ["mount", "-t", "tmpfs", "-o"]
    await asyncio.to_thread(subprocess.run, [*mount, f"size={size}", "tmpfs", str(folder)], check=True)
    why = await until_it_fails(folder)
    await asyncio.to_thread(subprocess.run, [*mount, "remount,size=8m", "tmpfs", str(folder)], check=True)
    return {"why": why, "equal": await goes_on(folder)}


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
    modes = {"write": write, "race": race, "limited": limited, "full": full}
    said = asyncio.run(modes[mode](Path(folder), *map(int, numbers)))  # type: ignore[operator]
    if said is not None:
        say(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
