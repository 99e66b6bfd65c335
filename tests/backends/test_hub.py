"""Models of a hub: downloaded with a word about it, found again without a network, missed at once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from asyncgen.backends.hub import _missing
from asyncgen.resources import bundled_model
from tests.hub import COMMIT, NAME, Hub, hub
from tests.programs import asyncgen, environment

RUN = ("run", "--model-name", NAME, "--set", "output_path=stories.jsonl", "--num-stories")

TOLD = """
from huggingface_hub import constants
from asyncgen.backends import hub
from asyncgen.cli import main

hub.EVERY, hub.WORTH_TELLING = 0.2, 1_000_000
constants.DOWNLOAD_CHUNK_SIZE = 1 << 18  # what is written at a time: 10 MB, if nobody says otherwise
main()
"""
"""The command line, which tells of a small download too."""


@dataclass(frozen=True)
class First:
    """The run that found nothing in the cache."""

    done: subprocess.CompletedProcess[str]
    home: Path
    there: Hub
    folder: Path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("first")
    with hub(bundled_model()) as there:
        there.seconds_per_part = 0.05
        program = [sys.executable, "-c", TOLD, *RUN, "2"]
        env = environment(**there.environment(home))
        done = subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)
    return First(done, home, there, folder)


def run(cwd: Path, home: Path, hub: Hub, stories: int = 2) -> subprocess.CompletedProcess[str]:
    return asyncgen(*RUN, str(stories), cwd=cwd, env=environment(**hub.environment(home)))


def test_a_download_is_told_of_with_how_far_it_is(first: First) -> None:
    assert first.done.returncode == 0, first.done.stderr
    fetched = [each for each in first.there.asked if each.startswith(f"GET /{NAME}/resolve/")]
    assert sum(each.endswith("/model.safetensors") for each in fetched) == 1
    said = [line for line in first.done.stderr.splitlines() if line.startswith("downloading")]
    assert said[0] == f"downloading {NAME}: 8.1 MB, into {first.home / 'hub'}"
    progress = re.compile(rf"downloading {NAME}: [1-7]\.\d MB of 8\.1 MB, .+/s, about .+ left")
    assert sum(bool(progress.fullmatch(line)) for line in said) >= 2, first.done.stderr
    assert f'"{COMMIT}"' in (first.folder / "stories.run.json").read_text(encoding="utf-8")


def test_without_a_network_the_cache_does(first: First) -> None:
    done = run(first.folder, first.home, first.there, 3)
    assert done.returncode == 0, done.stderr
    assert f"): {NAME} is taken from the cache" in done.stderr
    assert "Retrying" not in done.stderr
    assert "downloading" not in done.stderr
    assert len((first.folder / "stories.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_a_hub_that_has_troubles_is_no_better_than_none(tmp_path: Path, first: First) -> None:
    with hub(bundled_model()) as there:
        there.status = 503
        done = run(tmp_path, first.home, there)
        assert done.returncode == 0, done.stderr
        assert f"the hub cannot be reached (it answers 503): {NAME} is taken from the cache" in done.stderr
        assert len([each for each in there.asked if NAME in each]) == 1


def test_a_model_that_is_nowhere_is_missed_at_once(tmp_path: Path) -> None:
    with hub(bundled_model()) as there:
        pass
    done = run(tmp_path, tmp_path / "home", there)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()[-2:]
    assert f"the hub model '{NAME}' is not in the cache '{tmp_path / 'home' / 'hub'}'" in error
    assert f"the hub ({there.address}) cannot be reached: " in error
    assert "troubleshooting" in hint
    assert "Retrying" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "stories.jsonl").exists()


def test_what_is_not_all_in_the_cache_says_so(tmp_path: Path, first: First) -> None:
    """As after `preview`, which needs no weights."""
    home = tmp_path / "home"
    shutil.copytree(first.home, home, symlinks=True)
    [weights] = home.rglob("model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    with hub(bundled_model()) as there:
        pass
    done = run(tmp_path, home, there)
    assert done.returncode == 2
    assert f"the model cannot be loaded from hub model '{NAME}'" in done.stderr
    assert "the hub could not be reached, and not all that is needed may be in the cache" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_the_hub_does_not_know_is_an_answer(tmp_path: Path) -> None:
    with hub(bundled_model()) as there:
        done = asyncgen(
            *("run", "--model-name", "owner/nobody"), cwd=tmp_path, env=environment(**there.environment(tmp_path))
        )
    assert done.returncode == 2
    assert "the model cannot be loaded from hub model 'owner/nobody'" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_and_preview_do_without_weights_and_without_waiting(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(f"model_name: {NAME}\noutput_path: stories.jsonl\n", encoding="utf-8")
    with hub(bundled_model()) as there:
        env = environment(**there.environment(tmp_path / "home"))
        done = asyncgen("preview", config, "-n", "1", cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert not [each for each in there.asked if each.endswith(".safetensors")]
    for command in ("preview", "check"):
        done = asyncgen(command, config, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert "Retrying" not in done.stderr


def test_the_weights_that_are_told_are_those_that_are_fetched() -> None:
    class Told:
        sha = COMMIT

        def __init__(self, **sizes: int) -> None:
            self.siblings = [type("File", (), {"rfilename": name, "size": size}) for name, size in sizes.items()]

    parts = {"model-00001-of-00002.safetensors": 5, "model-00002-of-00002.safetensors": 6, "model.fp16.safetensors": 9}
    assert _missing(NAME, Told(**parts)) == 11
    assert _missing(NAME, Told(**parts, **{"model.safetensors": 3})) == 3
    assert _missing(NAME, Told(**{"config.json": 4, "original/model.safetensors": 7})) == 0
