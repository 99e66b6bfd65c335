"""The program as a person meets it: commands, flags, messages and exit codes, each in a real process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.programs import ECHO, ROOT, asyncgen, records, without_torch

CONVERSATION = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'


def stories(path: Path) -> list[int]:
    return [record["metadata"]["index"] for record in records(path)]


def test_run_makes_stories_then_says_that_it_is_complete(tmp_path: Path) -> None:
    env = without_torch(tmp_path)
    flags = ("--num-stories", "50", "--output-path", "s.jsonl")
    first = asyncgen("run", *ECHO, *flags, cwd=tmp_path, env=env)
    assert first.returncode == 0, first.stderr
    assert "complete: 50 of 50 stories" in first.stderr
    assert first.stdout == ""
    assert stories(tmp_path / "s.jsonl") == list(range(50))
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("s.*")}
    again = asyncgen("run", *ECHO, *flags, cwd=tmp_path, env=env)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("s.*")}
    more = asyncgen("run", *ECHO, "--num-stories", "60", "--output-path", "s.jsonl", cwd=tmp_path, env=env)
    assert "10 of them made now" in more.stderr
    assert stories(tmp_path / "s.jsonl") == list(range(60))


def test_the_brief_usage_section(tmp_path: Path) -> None:
    """`--create-config`, `--config`, and the flags, without a subcommand, as the seed document writes them."""
    made = asyncgen("--create-config", "my_config.yaml", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "my_config.yaml").exists()
    assert (tmp_path / "my_config.schema.json").exists()
    ran = asyncgen("--config", "my_config.yaml", *ECHO, "--num-stories", "5", cwd=tmp_path, env=without_torch(tmp_path))
    assert ran.returncode != 99
    # The file names backend settings of local models, which echo does not have: say so instead of ignoring them.
    assert ran.returncode == 2
    assert "backend.device: unknown key" in ran.stderr
    text = (tmp_path / "my_config.yaml").read_text()
    head, _, rest = text.partition("backend:\n")
    kept = rest[rest.index("# Sampling") :]
    (tmp_path / "my_config.yaml").write_text(f"{head}backend: {{kind: echo}}\n{kept}")
    ran = asyncgen("--config", "my_config.yaml", "--num-stories", "5", cwd=tmp_path, env=without_torch(tmp_path))
    assert ran.returncode == 0, ran.stderr
    flags = ("--num-stories", "7", "--batch-size", "16", "--output-path", "bedtime_stories.jsonl")
    ran = asyncgen("--model-name", "Qwen/Qwen2.5-7B-Instruct", *flags, *ECHO, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(records(tmp_path / "bedtime_stories.jsonl")) == 7
    ran = asyncgen(
        "--no-k-shot", "--no-diversity", *ECHO, "--num-stories", "3", "--output-path", "n.jsonl", cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert {record["metadata"]["k_shot_count"] for record in records(tmp_path / "n.jsonl")} == {0}


def test_init_refuses_to_overwrite(tmp_path: Path) -> None:
    assert asyncgen("init", "a.yaml", cwd=tmp_path).returncode == 0
    again = asyncgen("init", "a.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert asyncgen("init", "a.yaml", "--force", cwd=tmp_path).returncode == 0


def test_check_tells_what_a_run_would_do(tmp_path: Path) -> None:
    done = asyncgen("check", ROOT / "configs" / "quickstart.yaml", cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout
    assert "2 of 10 examples in front" in done.stdout
    assert "caution" not in done.stdout
    done = asyncgen("check", "--set", "template='about {word1}'", cwd=tmp_path, env=without_torch(tmp_path))
    assert "is a toy: expect nonsense" in done.stdout


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, "num_storys: 3", "did you mean 'num_stories'"),
        ({"v.txt": b"moon\nsun\n"}, "vocabulary_path: v.txt", "3"),
        ({"c.txt": CONVERSATION.encode()}, "conversation_path: c.txt", "2"),
        ({}, "template: missing.txt", "missing.txt"),
        ({}, "vocabulary_path: missing.txt", "missing.txt"),
        ({}, "sources: [{kind: jsonl, path: missing.jsonl}]", "missing.jsonl"),
        ({"p.jsonl": b'{"prompt": "a"}\n{"prompt": 3}\n'}, "sources: [{kind: jsonl, path: p.jsonl}]", "p.jsonl:2"),
        ({}, "model_name: ./no-such-model", "no-such-model"),
        ({}, "model_name: bedtime-tinny", "did you mean 'bedtime-tiny'"),
        ({"m/config.json": b"{}"}, "model_name: m", "safetensors"),
        ({}, "output_path: .", "output_path"),
    ],
)
def test_bad_input_is_exit_2_one_message_no_traceback_no_torch(
    tmp_path: Path, files: dict[str, bytes], config: str, expected: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.yaml").write_text(config + "\n")
    done = asyncgen("run", "config.yaml", cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "asyncgen: error: " in done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("stories*"))


def test_a_missing_config_file(tmp_path: Path) -> None:
    done = asyncgen("run", "none.yaml", cwd=tmp_path)
    assert (done.returncode, "no such file" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_too_many_rejections_is_exit_4_and_resumable(tmp_path: Path) -> None:
    flags = ("--num-stories", "300", "--output-path", "s.jsonl")
    done = asyncgen("run", *ECHO, "--set", "backend.bad_share=1", *flags, cwd=tmp_path)
    assert done.returncode == 4
    assert "200 of the last 200 prompts were rejected" in done.stderr
    assert "too short" in done.stderr
    rejected = records(tmp_path / "s.rejected.jsonl")
    assert len(rejected) == 200
    assert all(len(record["reasons"]) == 3 for record in rejected)


def test_sources_that_end_are_exit_5_and_go_on_when_they_grow(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(f'{{"prompt": "tell {n}"}}\n' for n in range(10)))
    (tmp_path / "c.yaml").write_text(
        "backend: {kind: echo}\nsources: [{kind: jsonl, path: p.jsonl}]\nnum_stories: 12\n"
    )
    for _ in range(2):
        done = asyncgen("run", "c.yaml", cwd=tmp_path)
        assert done.returncode == 5, done.stderr
        assert "10 of 12 stories accepted" in done.stderr
    with prompts.open("a") as file:
        file.writelines(f'{{"prompt": "tell {n}"}}\n' for n in range(10, 20))
    done = asyncgen("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert stories(tmp_path / "stories.jsonl") == list(range(12))
    done = asyncgen("run", "c.yaml", "--set", "num_stories=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert stories(tmp_path / "stories.jsonl") == list(range(20))


def test_where_rejects_would_go_is_no_output(tmp_path: Path) -> None:
    done = asyncgen("run", *ECHO, "--output-path", "b.rejected.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "rejects of another output" in done.stderr


def test_a_source_that_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    done = asyncgen("run", *ECHO, "--set", "sources=[{kind: jsonl, path: /dev/stdin}]", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a regular file" in done.stderr
    os.mkfifo(tmp_path / "v.txt")
    done = asyncgen("run", *ECHO, "--set", "vocabulary_path=v.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a regular file" in done.stderr


def test_check_finds_a_model_that_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    done = asyncgen("check", "--set", "model_name=m", cwd=tmp_path, env=without_torch(tmp_path))
    assert done.returncode == 2
    assert "safetensors" in done.stderr


def test_a_finished_source_stays_complete(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' * 3)
    flags = (*ECHO, "--set", "sources=[{kind: jsonl, path: p.jsonl}]", "--set", "num_stories=null")
    for _ in range(2):
        assert asyncgen("run", *flags, cwd=tmp_path).returncode == 0
        assert '"state": "complete"' in (tmp_path / "stories.run.json").read_text()


def test_version_and_help(tmp_path: Path) -> None:
    assert asyncgen("--version", cwd=tmp_path, env=without_torch(tmp_path)).stdout.startswith("asyncgen 0.")
    for arguments in (["--help"], ["run", "--help"], ["init", "-h"], ["check", "--help"]):
        done = asyncgen(*arguments, cwd=tmp_path, env=without_torch(tmp_path))
        assert done.returncode == 0
        assert "Usage: asyncgen" in done.stdout
    assert asyncgen("rnu", cwd=tmp_path).returncode == 2
    nothing = asyncgen(cwd=tmp_path)
    assert "Usage: asyncgen" in nothing.stdout + nothing.stderr


def _wait_for_lines(path: Path, count: int) -> None:
    _wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)


def _wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.02)
