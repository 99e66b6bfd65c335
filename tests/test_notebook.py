"""A notebook, executed headless: bars in the output of its cell."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.programs import environment

CELLS = (
    "import asyncgen\nconfig = asyncgen.load_config(None, ['backend={kind: echo}', 'num_stories=60'])",
    "report = await asyncgen.run(config, watch=asyncgen.progress())",
    "print(report.summary())",
)


def test_a_notebook_shows_bars(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": cell, "metadata": {}, "outputs": []} for cell in CELLS]
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    notebook = nbformat.from_dict(content)  # type: ignore[no-untyped-call]  # nbformat is typed in parts
    client = NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment(IPYTHONDIR=str(tmp_path / "ipython"), JUPYTER_RUNTIME_DIR=str(tmp_path / "run")))
    _, run, summary = notebook.cells
    assert not [output for output in run.outputs if output.output_type in ("stream", "error")]
    kinds = [set(output.data) for output in run.outputs if output.output_type == "display_data"]
    assert kinds == [{"text/plain", "application/vnd.jupyter.widget-view+json"}] * 2
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state.values()
    values = [str(widget.state.get("value", "")) for widget in widgets]
    assert "60.0" in values, "the bar is full"
    assert any("60/60" in value for value in values)
    assert any("<td>generator</td><td>busy " in value for value in values)
    assert "complete: 60 of 60 stories" in summary.outputs[0].text
    assert (tmp_path / "stories.jsonl").exists()
