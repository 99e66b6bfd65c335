"""The programs of examples/ do what they say: a service under a real server, a notebook, a training loop, a run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import httpx2 as httpx
import nbformat
import pytest
from nbclient import NotebookClient

from tests.programs import ROOT, asyncgen, environment, records

EXAMPLES = ROOT / "examples"
WISH = {"words": ["moon", "boat", "soup"], "seed": 7, "max_new_tokens": 40}


@contextmanager
def served(**settings: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """The service under uvicorn, and a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "examples.service:app", "--port", str(port), "--log-level", "warning"]
    program = subprocess.Popen(command, cwd=ROOT, env=environment(**settings), stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            for _ in range(600):
                try:
                    client.get("/state")
                    break
                except httpx.ConnectError:
                    assert program.poll() is None, program.communicate()[1]
                    time.sleep(0.1)
            yield client, program
    finally:
        if program.poll() is None:
            program.kill()
        program.communicate()


def idle(client: httpx.Client) -> dict[str, int]:
    """What the engine has done, as soon as it does nothing."""
    for _ in range(600):
        seen: dict[str, int] = client.get("/state").json()
        if not seen["requests"] and not seen["rows_running"]:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"it goes on: {seen}")


def test_the_service_on_the_bundled_model() -> None:
    with served(ROWS="4") as (client, program):
        whole = client.post("/story", json=WISH)
        assert whole.status_code == 200
        with client.stream("POST", "/story/stream", json=WISH) as answer:
            pieces = list(answer.iter_text())
        assert "".join(pieces) == whole.text
        assert len(pieces) > 5, "it came in parts"
        assert client.post("/story", json=WISH | {"words": []}).status_code == 422
        assert client.post("/story", content=b'{"words": ["\\ud800"]}').status_code == 422
        too_long = client.post("/story", json=WISH | {"words": ["word " * 3000]})
        assert (too_long.status_code, too_long.text[:15]) == (422, "prompt too long")

        long = WISH | {"max_new_tokens": 400, "seed": 1}
        with client.stream("POST", "/story/stream", json=long) as answer:
            next(answer.iter_text())
        with pytest.raises(httpx.ReadTimeout):
            client.post("/story", json=long, timeout=0.05)
        assert idle(client)["cancelled"] == 2

        with ThreadPoolExecutor(8) as pool:  # SIGTERM in the middle: what is begun is finished
            answers = [pool.submit(client.post, "/story", json=WISH) for _ in range(8)]
            while client.get("/state").json()["requests"] < 8:
                pass
            program.send_signal(signal.SIGTERM)
            assert {answer.result().text for answer in answers} == {whole.text}
        # uvicorn ends itself by the signal once more when it has shut down.
        assert program.wait(60) in (0, -signal.SIGTERM)


def test_the_service_says_when_it_is_full() -> None:
    with served(MODEL="echo", ROWS="1") as (client, _):
        assert client.post("/story", json=WISH).status_code == 200
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: client.post("/story", json=WISH), range(200)))
        assert {answer.status_code for answer in answers} == {200}


def test_training_while_stories_are_made() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "train.py"), "48"],
        env=environment(), capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^step \d+: ", done.stdout, re.MULTILINE)) == 6
    before, after = re.findall(r"from ([\d.]+) to ([\d.]+) bits/character on 48 stories", done.stdout)[0]
    assert float(after) < float(before)


def test_a_source_and_a_validator_of_ones_own(tmp_path: Path) -> None:
    for name in ("animals.yaml", "judge.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    done = asyncgen("run", "animals.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stories = records(tmp_path / "animals.jsonl")
    assert len(stories) == 24
    assert all(story["content"].count("!") <= 3 for story in stories)
    assert all(
        word in story["content"].casefold()
        for story in stories
        for word in [*story["metadata"]["selected_words"].values()][:1]
    )


def notebook() -> nbformat.NotebookNode:
    read: nbformat.NotebookNode = nbformat.read(EXAMPLES / "stories.ipynb", as_version=4)  # type: ignore[no-untyped-call]  # nbformat is typed in parts
    return read


def client_of(notebook: nbformat.NotebookNode, folder: Path) -> NotebookClient:
    return NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(folder)}})


def kernel_environment(folder: Path) -> dict[str, str]:
    return environment(IPYTHONDIR=str(folder / "ipython"), JUPYTER_RUNTIME_DIR=str(folder / "run"))


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    book = notebook()
    client_of(book, tmp_path).execute(env=kernel_environment(tmp_path))
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    kinds = [set(output.data) for cell in cells for output in cell.outputs if output.output_type == "display_data"]
    assert kinds == [{"text/plain", "application/vnd.jupyter.widget-view+json"}] * 2, "the bars"
    widgets = book.metadata.widgets["application/vnd.jupyter.widget-state+json"].state.values()
    assert any("24/24" in str(widget.state.get("value", "")) for widget in widgets)
    assert len(records(tmp_path / "notebook.jsonl")) == 24
    assert "complete: 24 of 24" in cells[-2].outputs[-1].text


ASKING = """\
messages = [{"role": "user", "content": "Tell me of the moon."}]
[await engine.generate(messages, max_new_tokens=400) for _ in range(1000)]
"""
MAPPING = "[answer async for answer in engine.map([messages] * 10000, max_new_tokens=50)]"
GOING_ON = """\
import anyio, gc
gc.collect()
with anyio.fail_after(20):
    while engine.snapshot().requests or engine.snapshot().rows_running:
        await anyio.sleep(0.01)
print((await engine.generate(messages, max_new_tokens=5)).tokens, engine.snapshot().cancelled > 0)
await engine.aclose()
"""


def test_interrupting_the_kernel_leaves_the_engine_usable(tmp_path: Path) -> None:
    book = notebook()
    start = next(cell for cell in book.cells if cell.cell_type == "code")
    sources = [start.source, ASKING, MAPPING, GOING_ON]
    book.cells = [
        nbformat.from_dict({"cell_type": "code", "source": each, "metadata": {}, "outputs": []})  # type: ignore[no-untyped-call]  # nbformat is typed in parts
        for each in sources
    ]
    client = client_of(book, tmp_path)
    client.allow_errors = True
    interrupted = 0

    def interrupt(cell: nbformat.NotebookNode, cell_index: int) -> None:
        del cell
        if cell_index in (1, 2):
            Timer(2.0, kernel_interrupt).start()

    def kernel_interrupt() -> None:
        nonlocal interrupted
        interrupted += 1
        kernel: Any = client.km
        os.kill(kernel.provisioner.pid, signal.SIGINT)

    client.on_cell_execute = interrupt
    client.execute(env=kernel_environment(tmp_path))
    assert interrupted == 2
    for cell in book.cells[1:3]:
        (error,) = [output for output in cell.outputs if output.output_type == "error"]
        assert error.ename in ("KeyboardInterrupt", "CancelledError")
    last = book.cells[3]
    assert not [output for output in last.outputs if output.output_type == "error"], last.outputs
    assert last.outputs[0].text == "5 True\n"
