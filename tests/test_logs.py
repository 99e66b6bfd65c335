"""Log records: on the screen and in a file, and everything as it was afterwards."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path

import pytest

from asyncgen import logs
from asyncgen.errors import ConfigError


def _handlers() -> list[object]:
    return [
        (name, logging.getLogger(name).handlers[:], logging.getLogger(name).level)
        for name in ("asyncgen", *logs.OTHERS)
    ]


def test_records_are_shown_and_kept_with_their_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.log"
    library = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [library])  # as after its import
    before = _handlers()
    with logs.configure("info", file):
        logging.getLogger("asyncgen.session").info("begun with %d", 3)
        logging.getLogger("asyncgen.session").debug("too much")
        logging.getLogger("transformers.models").info("nobody asked")
        logging.getLogger("huggingface_hub").warning("slow hub")
    assert _handlers() == before
    logging.getLogger("asyncgen.session").error("after the end")
    assert capsys.readouterr().err == "INFO asyncgen.session: begun with 3\nWARNING huggingface_hub: slow hub\n"
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO asyncgen.session: begun with 3",
        "WARNING huggingface_hub: slow hub",
    ]


def test_handlers_that_a_library_gives_itself_later_do_not_write_beside_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = logging.getLogger("transformers")
    own = logging.StreamHandler(sys.stderr)
    with logs.configure("warning", None):
        library.addHandler(own)  # as importing it does
        try:
            logging.getLogger("transformers.generation").warning("once")
            logging.getLogger("transformers.generation").warning("twice")
        finally:
            library.removeHandler(own)
    assert capsys.readouterr().err.splitlines() == [
        "WARNING transformers.generation: once",
        "WARNING transformers.generation: twice",
    ]


def test_warnings_of_python_are_records(capsys: pytest.CaptureFixture[str]) -> None:
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        with logs.configure("warning", None):
            warnings.warn("old ways", UserWarning, stacklevel=1)
        assert warnings.showwarning is shown
    assert "WARNING py.warnings" in capsys.readouterr().err


def test_a_level_or_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="debug, info, warning, error"), logs.configure("loud", None):
        pass
    with pytest.raises(ConfigError, match="cannot be written"), logs.configure("info", tmp_path / "no" / "log"):
        pass


def test_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with logs.configure("info", full):
        logging.getLogger("asyncgen").info("lost on the disk")
    assert "lost on the disk" in out.getvalue()
