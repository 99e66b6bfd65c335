"""Row 21: YAML bombs, configurations of 10 MB, Python tags, duplicate keys, nesting without end, numbers without end,
binary: refused by name, within a second and 200 MB, before torch; in files as in ``--set``.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.config_file import load_config
from asyncgen.errors import ConfigError
from asyncgen.yaml_file import parse_value
from tests.faults.conftest import Trials
from tests.faults.measured import STATUS
from tests.programs import without_torch

MEGABYTES = 200
CEILING = 10.0
"""Ten times the second that is promised."""
LONG = 240_000
"""As much as a file may hold, or nearly."""

LAUGHS = "\n".join(["a: &a [ha]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghij"))])
NESTED = "nested more than 20 levels deep"
ALIASES = ":1: anchors and aliases (&, *) are not supported; write the value out"
MANY = "more than 5000 keys and values"

BOMBS: dict[str, tuple[str | bytes, str]] = {
    "a billion laughs": (LAUGHS, ALIASES),
    "10 MB": ("#" * 10_000_000, "10000000 bytes, a configuration has at most 250000"),
    "a list of a hundred thousand": (f"a: [{'1,' * (LONG // 2)}]", MANY),
    "keys without end": ("".join(f"k{k}: 1\n" for k in range(25_000)), MANY),
    "nesting without end": ("a: " + "[" * LONG, NESTED),
    "a number to the base of 60": ("seed: 1" + ":1" * (LONG // 2), 'should be a valid integer, found "1:1:1:'),
    "a float to the base of 60": (f"seed: !!float '1{':1' * 2000}'", ":1: a number of 4001 characters"),
    "five thousand mistakes": ("".join(f"mistake{k}: 1\n" for k in range(2_400)), "and 2350 more that are wrong"),
    "a Python call": ("seed: !!python/object/apply:os.system ['touch canary']", "apply:os.system' is not allowed"),
    "a key twice": ("seed: 1\nseed: 2", ":2: the key 'seed' stands there twice, first on line 1"),
    "a key without end": ("'" + "k" * 1000 + "': 1", ":1: a key of 1000 characters, it begins with 'kkk"),
    "not text": (bytes(range(256)) * 64, ":2: byte 128 is not UTF-8"),
    "merged into itself": ("a: &a {<<: *a, b: 1}", ALIASES),
    "a list with itself in it": ("a: &a [*a]", ALIASES),
    "one long text, many times": (f"a: &a {'x' * 1000}\nb: [{'*a,' * 1000}]", ALIASES),
    "an anchor that nobody uses": ("seed: &a 3", ALIASES),
    "merge keys": ("generation: {<<: {top_k: 3}}", "generation.<<: unknown key"),
    "mappings in each other": ("a: " + "{a: " * (LONG // 4), NESTED),
    "lists and mappings in each other": ("a: " + "[{" * (LONG // 2), NESTED),
    "lines in each other": ("".join(" " * k + "a:\n" for k in range(600)), ":21: " + NESTED),
    "questions in each other": ("? " * (LONG // 2), NESTED),
    "empty lists without end": (f"a: [{'[],' * (LONG // 3)}]", MANY),
    "pairs without end": (f"a: [{'b: c,' * (LONG // 5)}]", MANY),
    "lines without end": ("- 1\n" * (LONG // 4), ":5000: " + MANY),
    "wrong items without end": (f"validation: {{banned_words: [{'1,' * 4000}]}}", "and 3950 more that are wrong"),
    "documents without end": ("a: 1\n---\n" * (LONG // 9), "found another document"),
    "directives without end": ("%A b\n" * (LONG // 5), "not valid YAML"),
    "a number without end": ("seed: " + "9" * LONG, f"a number of {LONG} characters"),
    "a hexadecimal number without end": ("seed: 0x" + "f" * LONG, f"a number of {LONG + 2} characters"),
    "a number beyond 64 bits": ("seed: 18446744073709551616", ":1: a number beyond 64 bits"),
    "a float beyond all": ("generation: {temperature: 1.0e+999}", "temperature: input should be a finite number"),
    "no number": ("generation: {temperature: .nan}", "generation.temperature: "),
    "a number that is none": ("seed: !!int ''", ":1: not valid YAML"),
    "a truth that is none": ("use_k_shot: !!bool foo", ":1: not valid YAML"),
    "a Python name": ("seed: !!python/name:os.system x", "python/name:os.system' is not allowed"),
    "a Python module": ("seed: !!python/module:antigravity x", "python/module:antigravity' is not allowed"),
    "a tag of one's own": ("!<tag:x,2000:y> {seed: 1}", "the tag 'tag:x,2000:y' is not allowed"),
    "base64": ("seed: !!binary aGVsbG8=", "binary' is not allowed"),
    "a set": ("seed: !!set {a, b}", "set' is not allowed"),
    "quotes without end": (f"a: '{'x' * LONG}", "not valid YAML"),
    "escapes without end": ('a: "' + "\\x41" * (LONG // 4) + '"', ":1: a: unknown key"),
    "no character": ('a: "\\UFFFFFFFF"', "not valid YAML"),
    "no version": (f"%YAML 1.{'9' * 5000}\n---\na: 1", "not valid YAML"),
    "NUL": ("system_prompt: a\0b", ":1: the character U+0000 has no place in a configuration"),
    "NUL, escaped": ('output_path: "a\\0b"', ":1: the character U+0000 cannot stand in a text"),
    "an escape sequence": ("system_prompt: a\x1b[2Jb", "U+001B has no place"),
    "a control character of Latin-1": ("a: b\x9b2J", ":1: the character U+009B has no place"),
    "half a character": ('system_prompt: "\\ud800"', "U+D800 cannot stand in a text"),
    "half a character in a key": ('{"\\ud800": 1}', ":1: the character U+D800 cannot stand in a key"),
    "an escape sequence in a key": ('a: 1\n"\\e[2Jx": 1', ":2: the character U+001B cannot stand in a key"),
    "UTF-16": ("seed: 3".encode("utf-16"), ":1: byte 0 is not UTF-8"),
    "a list": ("- a", "found a list, expected a mapping"),
    "a key that is a list": ("? [a]\n: 1", "a key must be a plain text"),
}  # fmt: skip
"""Name -> what stands in the file, and what is said of it. The first of them are run by the command line each time."""

JSON_BOMBS = {
    "nesting without end": ("[" * LONG, NESTED),
    "nesting": ('{"validation": ' + "[" * 30 + "]" * 30 + "}", NESTED),
    "values without end": (f'{{"validation": {{"banned_words": [{"1," * (LONG // 2)}1]}}}}', "more than 5000 values"),
    "a number without end": ('{"seed": ' + "9" * LONG + "}", "a number beyond 64 bits"),
    "a key twice": ('{"seed": 1, "seed": 2}', "the key 'seed' stands there twice"),
    "a key without end": ('{"' + "k" * 1000 + '": 1}', "a key of 1000 characters"),
    "half a character in a key": ('{"\\ud800": 1}', ": the character U+D800 cannot stand in a key"),
    "an escape sequence in a key": ('{"\\u001b[2Jx": 1}', ": the character U+001B cannot stand in a key"),
    "half a character": ('{"system_prompt": "\\ud800"}', ": the character U+D800 cannot stand in a text"),
    "no number": ('{"generation": {"temperature": NaN}}', "found NaN"),
    "a float beyond all": ('{"generation": {"temperature": 1e999}}', "found Infinity"),
}

SETS = {
    "laughs": ("a=[&a [x, x], *a, *a]", ALIASES),
    "nesting": ("seed=" + "[" * 100_000, NESTED),
    "values": (f"validation.banned_words=[{'1,' * 50_000}]", MANY),
    "parts": ("validation" + ".a" * 50_000 + "=1", "a key of 50001 parts, there are at most 20"),
    "numbers": ("sources" + "[0]" * 30_000 + "=1", "a key of 30001 parts"),
    "a key without end": ("k" * 100_000 + "=1", "a key of 100000 characters"),
    "base of 60": ("seed=1" + ":1" * 50_000, "input should be a valid integer"),
    "a call": ("seed=!!python/object/apply:os.system [touch canary]", "os.system' is not allowed"),
    "twice": ("generation={top_k: 1, top_k: 2}", "the key 'top_k' stands there twice"),
    "NUL": ("seed=\0", "U+0000 has no place"),
    "an escape sequence in a key": ('generation={"\\e[2Jx": 1}', "U+001B cannot stand in a key"),
    "half a character in a key": ('generation={"\\ud800": 1}', "U+D800 cannot stand in a key"),
}


def encoded(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.timeout(CEILING)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, expected = BOMBS[name]
    path = tmp_path / "c.yaml"
    path.write_bytes(encoded(content))
    message = refusal(path)
    assert expected in message
    assert message.startswith(str(path))
    assert len(message) < 25_000, "whoever gets it can read it"


@pytest.mark.timeout(CEILING)
@pytest.mark.parametrize("name", JSON_BOMBS)
def test_so_is_one_in_json(tmp_path: Path, name: str) -> None:
    content, expected = JSON_BOMBS[name]
    path = tmp_path / "c.json"
    path.write_text(content)
    assert expected in refusal(path)


@pytest.mark.timeout(CEILING)
@pytest.mark.parametrize("name", SETS)
def test_so_is_one_on_the_command_line(name: str) -> None:
    override, expected = SETS[name]
    message = refusal(None, override)
    assert expected in message
    assert override[:20] in message
    assert len(message) < 1000


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("ab01:.-_ \n\t[]{},&*!?|>%@`'\"\\xuUFe#=~+<é\u2028")) | st.text(),
    st.sampled_from(["", "seed: ", "- "]),
)
def test_whatever_the_text_it_is_read_or_refused(text: str, before: str) -> None:
    try:
        parse_value(before + text, "WHERE")
    except ConfigError:
        return


def measured(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line with torch poisoned; ends after the ceiling, and must have stayed below that of memory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.measured", "peak", *arguments],
        cwd=folder,
        env=without_torch(folder),
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )
    assert int((folder / "peak").read_text()) < MEGABYTES * 1000
    return done


needs_status = pytest.mark.skipif(not STATUS.exists(), reason="what a process took at most is read from /proc")


@needs_status
def test_the_command_line_refuses_files_within_its_means(tmp_path: Path, trials: Trials) -> None:
    for name, (content, expected) in islice(BOMBS.items(), trials(4, 25)):
        (tmp_path / "c.yaml").write_bytes(encoded(content))
        check(measured(tmp_path, "run", "c.yaml"), name, expected, tmp_path)


@needs_status
def test_and_settings_of_its_own(tmp_path: Path, trials: Trials) -> None:
    for name, (override, expected) in islice(SETS.items(), trials(1, 6)):
        check(measured(tmp_path, "run", "--set", override), name, expected, tmp_path)


def check(done: subprocess.CompletedProcess[str], name: str, expected: str, folder: Path) -> None:
    assert done.returncode == 2, (name, done.returncode, done.stderr[-500:])
    assert done.stderr.startswith("asyncgen: error: "), name
    assert expected in done.stderr, name
    assert "Traceback" not in done.stderr, name
    assert not (folder / "canary").exists(), name
    assert not list(folder.glob("stories*")), name
