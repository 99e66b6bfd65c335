"""``asyncgen serve`` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2 as httpx
from openai import OpenAI

from tests.programs import ECHO, environment

HELLO = [{"role": "user", "content": "Write a short bedtime story with the words moon, boat and soup."}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SMALL_BUFFERS = """
import socket
from contextlib import contextmanager
from asyncgen.server import program
listening = program._listening
@contextmanager
def small(server):
    with listening(server) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield listener
program._listening = small
"""
"""What the kernel takes of an answer that nobody reads is a few thousand bytes, and not millions."""
ECHO_SERVER = ("--port", "0", *ECHO)
MODEL_SERVER = ("--port", "0", "--batch-size", "8")


@dataclass
class Served:
    """A server that answers."""

    url: str
    """``http://127.0.0.1:NNNN``."""
    program: subprocess.Popen[str]
    said: list[str]
    """Lines of its standard error, so far."""

    def client(self, **settings: Any) -> OpenAI:
        """The official client, which does not try again by itself."""
        asked: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60.0, **settings}
        return OpenAI(base_url=f"{self.url}/v1", **asked)

    def http(self, **settings: Any) -> httpx.Client:
        """A client for what the official one would not send."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **settings)

    def metrics(self) -> dict[str, float]:
        """All samples, by name and labels as they stand there."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def idle(self) -> dict[str, float]:
        """The same, as soon as nothing is generated."""
        return self.wait(lambda seen: not seen["asyncgen_stories_open"] and not seen["asyncgen_slots_used"])

    def wait(self, until: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """The same, as soon as it is so."""
        for _ in range(1200):
            if until(seen := self.metrics()):
                return seen
            time.sleep(0.05)
        raise AssertionError(f"never: {seen}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tells it to stop, and waits for its exit code."""
        self.program.send_signal(number)
        return self.program.wait(60)


@contextmanager
def serving(
    folder: Path, *arguments: str | Path, env: dict[str, str] | None = None, before: str = ""
) -> Iterator[Served]:
    """A server with these arguments, from the moment when it answers; killed at the end if it still runs. ``before`` is
    done in its process first.
    """
    begin = f"import sys; sys.argv[0] = 'asyncgen'; {before}\nfrom asyncgen.__main__ import main; main()"
    command = [sys.executable, "-c", begin] if before else [sys.executable, "-m", "asyncgen"]
    program = subprocess.Popen(
        [*command, "serve", *map(str, arguments)],
        cwd=folder,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    address, listener = None, None
    try:
        assert program.stderr is not None
        for line in program.stderr:
            said.append(line.rstrip("\n"))
            if found := re.search(r"at (http://\S+)/v1$", line.strip()):
                address = found[1]
                break
        assert address is not None, "\n".join(said)
        listener = Thread(target=lambda: said.extend(line.rstrip("\n") for line in program.stderr or ()), daemon=True)
        listener.start()
        yield Served(address, program, said)
    finally:
        if program.poll() is None:
            program.kill()
        program.wait()
        if listener is not None:
            listener.join(60)
        for stream in (program.stdout, program.stderr):
            assert stream is not None
            stream.close()


def events(lines: Iterator[str]) -> list[Any]:
    """The values of server-sent events; ``[DONE]`` as it stands."""
    data = [line.removeprefix("data: ") for line in lines if line]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def memory(program: subprocess.Popen[str]) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{program.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
