"""The published OpenAPI document says what the server does: schemathesis looks for what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import environment
from tests.server.serving import ECHO_SERVER, serving

LIMITS = (
    *("--set", "generation.max_new_tokens=60", "--set", "server.max_tokens=200", "--set", "server.max_choices=8"),
    *("--set", "server.max_stories=64"),
)


@pytest.mark.parametrize("key", [None, "a-key-of-ours"])
def test_schemathesis_finds_nothing(tmp_path: Path, key: str | None) -> None:
    keyed = () if key is None else ("--set", "server.api_key_env=SERVER_KEY")
    env = environment(SERVER_KEY=key or "")
    with serving(tmp_path, *ECHO_SERVER, *LIMITS, *keyed, env=env) as served:
        program = Path(sys.executable).parent / "schemathesis"
        bearer = () if key is None else ("-H", f"Authorization: Bearer {key}")
        done = subprocess.run(
            [program, "run", f"{served.url}/openapi.json", "-n", "40", "--seed", "7", "--no-color", *bearer],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert "No issues found" in done.stdout
        assert served.program.poll() is None
        assert not [line for line in served.said if "Exception" in line]
