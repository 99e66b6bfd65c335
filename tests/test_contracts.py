"""Conventions that hold because a test holds them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncgen
from asyncgen import errors
from asyncgen.cli import EXIT_CODES
from tests.programs import ROOT, environment, without_torch

PACKAGE = ROOT / "asyncgen"

PLAIN = {"errors", "paths", "seeds", "records", "resources", "tasks", "functions", "text_files"}
STAGES = {"prompts", "backends", "validators", "output"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "paths": set(),
    "tasks": set(),
    "functions": {"errors", "paths"},
    "text_files": {"errors", "paths"},
    "seeds": set(),
    "resources": set(),
    "records": {"seeds"},
    "metrics": {"records", "errors"},
    "packing": {"records", "errors"},
    "config_section": set(),
    "config_backends": {"config_section"},
    "config_sources": {"config_section"},
    "config_server": {"config_section"},
    "config_validation": {"config_section"},
    "config": {
        "config_backends",
        "config_section",
        "config_server",
        "config_sources",
        "config_validation",
        "records",
        "resources",
    },
    "yaml_file": {"errors"},
    "config_tree": {"config"},
    "config_problems": {"config", "config_tree", "yaml_file"},
    "config_file": {"config", "config_problems", "config_tree", "errors", "paths", "resources", "yaml_file"},
    "init_file": {"config"},
    "prompts": PLAIN | {"config"},
    "backends": PLAIN | {"config", "metrics", "packing"},
    "validators": PLAIN | {"config"},
    "output": PLAIN | {"config"},
    "ordering": PLAIN | {"config"},
    "endings": {"config", "errors", "metrics", "ordering"},
    "differences": {"metrics"},
    "bottleneck": {"differences", "metrics"},
    "report": {"metrics", "bottleneck"},
    "dashboard": {"bottleneck", "differences", "metrics"},
    "logs": {"dashboard", "errors", "paths"},
    "engine": {
        "backends",
        "config",
        "config_file",
        "differences",
        "errors",
        "packing",
        "records",
        "resources",
        "seeds",
        "tasks",
    },
    "server": {"config", "engine", "errors", "records", "seeds", "tasks"},
    "pipeline": PLAIN | STAGES | {"config", "endings", "metrics", "packing", "ordering"},
    "room": {"backends", "config", "errors", "prompts", "records"},
    "session": PLAIN | STAGES | {"config", "endings", "engine", "metrics", "pipeline", "report", "room"},
    "stream": PLAIN | STAGES | {"config", "engine", "metrics", "pipeline"},
    "tryout": PLAIN | STAGES | {"config", "engine", "metrics", "pipeline"},
    "estimate": {"config"},
    "problems": PLAIN | STAGES | {"config", "room", "session"},
    "check": PLAIN | STAGES | {"config", "estimate", "preview", "problems", "room", "session"},
    "preview": {"backends", "config", "errors", "prompts", "records"},
}
"""What each part of the package may import of ours; ``__init__``, ``__main__`` and ``cli`` may import everything."""


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "asyncgen":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("asyncgen."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("asyncgen."))


def test_imports_point_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__", "cli"):
            continue
        allowed = ALLOWED[part] | {part}
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in _imports(path) if name not in allowed]
    assert not wrong


def test_public_names_are_complete_and_sorted() -> None:
    assert list(asyncgen.__all__) == sorted(asyncgen.__all__)
    typed = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncgen.")
        for alias in node.names
    }
    assert imported == set(asyncgen.__all__), "what type checkers see is what is public"
    for name in asyncgen.__all__:
        assert getattr(asyncgen, name).__name__ == name
        assert name in dir(asyncgen)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = asyncgen.nothing_like_this
    assert set(errors.__all__) <= set(asyncgen.__all__)
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                assert sorted(set(names)) == sorted(names), f"{path}: a name stands twice in __all__"


def test_the_exception_tree_is_drawn_and_exported_whole() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes == set(errors.__all__)
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in classes)
    assert len({code for _, code in EXIT_CODES}) == 6


def test_importing_asyncgen_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.glob("*.py")]
    program = "import " + ", ".join(name for name in modules if not name.endswith("__main__")).replace(".__init__", "")
    done = subprocess.run(
        [sys.executable, "-c", program], env=without_torch(tmp_path), cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_library_patches_and_prints_nothing(tmp_path: Path) -> None:
    """Importing leaves signals, logging and the event loop as they were, and no module prints but the views."""
    program = """
import asyncio, logging, signal, sys
before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.root.handlers[:], asyncio.run)
import asyncgen, asyncgen.cli
after = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.root.handlers[:], asyncio.run)
sys.exit(before != after)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for path in PACKAGE.rglob("*.py"):
        if path.name == "speak.py" or path.parent.name == "dashboard":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if ast.unparse(call.func) == "print"], path
        # Python itself prints warnings and errors that are logged where nobody has configured logging.
        loud = ("_log.warning", "_log.error", "_log.exception", "_log.critical")
        if path.parent.name not in ("cli", "server"):  # one configures it, the other has nobody to raise errors to
            assert not [call for call in calls if ast.unparse(call.func) in loud], path


def test_the_walk_through_the_architecture_names_what_there_is() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## Where a story goes")[2].partition("\n## ")[0]
    named = {match[1].split("(")[0] for match in re.finditer(r"`([\w.]+(?:\([\w, ]*\))?)`", section)}
    defined = {path.stem for path in PACKAGE.rglob("*.py")} | {path.parent.name for path in PACKAGE.rglob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                defined.add(node.name)
    assert len(named) > 30
    assert not [name for name in named if not defined.issuperset(name.split("."))]


def test_every_module_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or not path.read_text(), path
