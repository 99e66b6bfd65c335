"""Flags, help, completion and slips of the keyboard, each in a real process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from asyncgen.cli.options import Level
from asyncgen.logs import LEVELS
from tests.programs import ECHO, asyncgen, records, without_torch
from tools.write_docs import command_line, help_of

COMMANDS = ("run", "check", "preview", "serve", "init", "schema", "verify", "repair")
page = cache(command_line)
"""Calls each command once, and not for each test."""
CONSOLE = """
import sys
sys.path[:] = [place for place in sys.path if place]  # a script has its own folder there, not the current one
sys.argv[0] = "asyncgen"
from asyncgen.__main__ import main
main()
"""


def complete(folder: Path, words: str) -> list[str]:
    """What bash is offered for the last of ``words``."""
    env = without_torch(folder) | {
        "_ASYNCGEN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    return asyncgen(cwd=folder, env=env).stdout.split()


def test_completion_knows_commands_options_and_values(tmp_path: Path) -> None:
    assert sorted(complete(tmp_path, "asyncgen ")) == sorted(COMMANDS)
    assert complete(tmp_path, "asyncgen run --num") == ["--num-stories"]
    assert set(complete(tmp_path, "asyncgen preview --no")) == {"--no-k-shot", "--no-diversity", "--no-tokens"}
    assert complete(tmp_path, "asyncgen run --log-level ") == list(LEVELS) == [level.value for level in Level]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "--seed", "3"), "--set seed=3"),
        (("--seed=3",), "--set seed=3"),
        (("check", "--max-new-tokens", "9", "--no-k-shot"), "--set generation.max_new_tokens=9"),
        (("preview", "--system-prompt", "Be kind."), "--set 'system_prompt=Be kind.'"),
        (("run", "--use-k-shot", "--plain"), "--set use_k_shot=VALUE"),
    ],
)
def test_a_key_in_the_place_of_an_option_is_answered_with_set(
    tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    done = asyncgen(*arguments, cwd=tmp_path, env=without_torch(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no option of" in done.stderr
    assert done.stderr.endswith(f"hint: did you mean: {hint}\n")
    unknown = asyncgen("run", "--nothing", cwd=tmp_path, env=without_torch(tmp_path))
    assert (unknown.returncode, "No such option" in unknown.stderr) == (2, True)


def test_completion_installs_into_the_shell_that_asks(tmp_path: Path) -> None:
    program = f"{sys.executable} -m asyncgen"
    command = f"{program} --install-completion && {program} --show-completion && true"  # a last one would replace bash
    done = subprocess.run(
        ["bash", "-c", command],
        env=without_torch(tmp_path) | {"HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "-F _asyncgen_completion asyncgen" in done.stdout
    assert "asyncgen.sh" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes_and_fits_80_columns(command: str) -> None:
    text = help_of(command)
    assert text.count(f"  asyncgen {command}") >= 2
    assert "Exit codes: 0 " in text
    assert max(map(len, text.splitlines())) <= 80
    assert text in page()


def test_slips_are_answered_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("num_stories: 3\n")
    for arguments, expected in (
        (["rnu"], "Did you mean 'run'"),
        (["run", "--num-storys", "3"], "--num-stories"),
        (["config.yaml", "--num-stories", "5"], "did you mean: asyncgen run config.yaml --num-stories 5"),
        (["run", "config.yaml", "--config", "config.yaml"], "given twice"),
    ):
        done = asyncgen(*arguments, cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    nothing = asyncgen(cwd=tmp_path, env=without_torch(tmp_path))
    assert "Commands:" in nothing.stdout + nothing.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--batch-size", "many"], "--batch-size many: generation.batch_size: "),
        (["--batch-size", "0"], "--batch-size 0: generation.batch_size: "),
        (["--num-stories", "0"], "--num-stories 0: num_stories: "),
        (["--num-stories", "x"], "'--num-stories'"),
        (["--model-name", ""], "--model-name : model_name: "),
        (["--model-name", "./none"], "--model-name ./none: model_name: "),
        (["--output-path", "."], "--output-path .: output_path: "),
        (["--set", "seed=-1"], "--set seed=-1: seed: "),
        (["--log-level", "loud"], "'--log-level'"),
        (["--log-file", "none/log"], "none/log"),
    ],
)
def test_errors_name_the_flag_that_was_typed(tmp_path: Path, flags: list[str], expected: str) -> None:
    done = asyncgen("run", *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["poison"]


def test_a_flag_outweighs_set_and_set_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("backend: {kind: echo}\nnum_stories: 1\n")
    flags = ("--num-stories", "3", "--set", "num_stories=2")
    assert asyncgen("run", "c.yaml", *flags, cwd=tmp_path, env=without_torch(tmp_path)).returncode == 0
    assert len(records(tmp_path / "stories.jsonl")) == 3


def test_a_reader_who_has_seen_enough_ends_it_in_silence(tmp_path: Path) -> None:
    program = shlex.join([sys.executable, "-m", "asyncgen", "preview", *ECHO, "-n", "1000"])
    done = subprocess.run(
        ["bash", "-c", f"{program} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=without_torch(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.stdout.splitlines()[1:]) == ("", ["141"])


def test_two_configurations_in_one_folder_have_an_output_each(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert asyncgen("init", f"{name}.yaml", cwd=tmp_path, env=without_torch(tmp_path)).returncode == 0
        flags = ("--set", "backend={kind: echo}", "--num-stories", "2", "--set", f"seed={name == 'two':d}")
        done = asyncgen("run", f"{name}.yaml", *flags, cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 0, done.stderr
        assert len(records(tmp_path / f"{name}.jsonl")) == 2


def test_quiet_shows_errors_and_the_final_summary_only(tmp_path: Path) -> None:
    env = without_torch(tmp_path)
    lines = []
    for _ in range(2):
        done = asyncgen("run", *ECHO, "--num-stories", "5", "--quiet", cwd=tmp_path, env=env)
        assert (done.returncode, done.stdout) == (0, "")
        lines.append([line[:11] for line in done.stderr.splitlines()])
    assert lines == [["complete: 5", "  speed    ", "  accepted ", "  stories  "], ["complete: 5"]]
    done = asyncgen("run", *ECHO, "--num-stories", "9", "--quiet", "--set", "seed=4", cwd=tmp_path, env=env)
    assert (done.returncode, "seed: was 0, now 4" in done.stderr) == (2, True)


def test_the_log_goes_to_the_screen_and_to_a_file(tmp_path: Path) -> None:
    flags = ("--num-stories", "5", "--log-level", "debug", "--log-file", "run.log")
    done = asyncgen("run", *ECHO, *flags, cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert lines
    assert all(line.split(": ", 1)[1] in done.stderr for line in lines)


def test_modules_of_the_current_folder_are_found_by_the_console_script_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("async def prompts(start):\n    yield 'tell me a story'\n")
    flags = ("--set", "sources=[{kind: python, function: 'mine:prompts'}]", "--set", "num_stories=null")
    for safe, code in (("", 0), ("1", 2)):
        done = subprocess.run(
            [sys.executable, "-c", CONSOLE, "run", *ECHO, *flags],
            cwd=tmp_path,
            env=without_torch(tmp_path) | ({"PYTHONSAFEPATH": safe} if safe else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr


def test_the_schema_is_printed_and_written(tmp_path: Path) -> None:
    shown = asyncgen("schema", cwd=tmp_path, env=without_torch(tmp_path))
    assert json.loads(shown.stdout)["properties"]["num_stories"]
    assert asyncgen("schema", "--output", "s/s.json", cwd=tmp_path, env=without_torch(tmp_path)).returncode == 0
    assert (tmp_path / "s" / "s.json").read_text() == shown.stdout
    (tmp_path / "s" / "s.json").write_text("mine")
    again = asyncgen("schema", "--output", "s/s.json", cwd=tmp_path)
    assert (again.returncode, "s/s.json: exists already" in again.stderr) == (2, True)
    assert (tmp_path / "s" / "s.json").read_text() == "mine"
    assert asyncgen("schema", "--output", "s/s.json", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "s" / "s.json").read_text() == shown.stdout
    assert asyncgen("init", "a.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.schema.json").read_text() == shown.stdout
    (tmp_path / "file").touch()
    done = asyncgen("schema", "--output", "file/s.json", cwd=tmp_path)
    assert (done.returncode, "cannot be written" in done.stderr) == (2, True)
