"""The wheel: built without a network, installed into an empty environment away from the checkout, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

import asyncgen
from tests.programs import ROOT, records
from tests.trials import is_full

SOURCES = ("asyncgen", "configs", "data", "docs", "tests", "tools", "benchmarks")
FILES = ("pyproject.toml", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt")
EDITABLE_SHARE = (
    "tests/test_check.py::test_the_shipped_configurations_are_well",
    "tests/test_dashboard.py::test_in_a_pipe_there_are_lines",
)
"""What an editable installation is tried with here: `make test` runs all tests with one."""
QUICK_SHARE = (
    *EDITABLE_SHARE,
    "tests/test_schema.py::test_it_accepts_every_shipped_configuration",
    "tests/test_schema.py::test_it_accepts_what_init_writes_which_points_editors_to_it",
    "tests/test_preview.py::test_prompts_are_shown_as_the_model_sees_them_without_torch",
    "tests/test_brief.py::test_three_random_words_from_the_vocabulary",
    "tests/test_brief.py::test_additional_conditions_from_the_story_features",
    "tests/test_brief.py::test_the_exact_requested_template",
    "tests/test_brief.py::test_k_shot_from_a_conversation_file",
    "tests/test_brief.py::test_chat_template_formatting",
    "tests/test_brief.py::test_create_config_then_config",
    "tests/test_brief.py::test_the_configuration_example_loads_as_it_stands",
    "tests/test_brief.py::test_embedding_in_another_async_app",
)
"""What the wheel is tried with in `make test`, besides importing every module. What it brought (words, features, a
template, examples, configurations, schema, model) and how that is found may be otherwise than in a checkout; what is
computed from it is the same.
"""
FULL_SHARE = (
    *EDITABLE_SHARE,
    "tests/test_schema.py",
    "tests/test_preview.py",
    "--deselect=tests/test_preview.py::test_generate_with_the_bundled_model",  # the program does that above
    "tests/test_brief.py",
)
"""And in `make faults`: with every row of the brief."""
WHERE = """
import asyncgen

def test_where():
    assert asyncgen.__file__.startswith({home!r})
"""
MODULES = """
import importlib, pkgutil
import asyncgen

def test_every_module_can_be_imported():
    names = [each.name for each in pkgutil.walk_packages(asyncgen.__path__, "asyncgen.")]
    assert len(names) > 100
    for name in names:
        if not name.endswith(".__main__"):
            assert importlib.import_module(name).__file__.startswith({home!r})
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as untidy as a checkout in use: outputs beside the configurations, compiled files."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "configs" / "an-output.jsonl").write_text("{}\n")
    (tree / "asyncgen" / "__pycache__").mkdir()
    (tree / "asyncgen" / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"")
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return build(tree, "wheel")


def build(tree: Path, target: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", "dist"]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (made,) = (tree / "dist").glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_what_the_package_needs_and_nothing_else(wheel: Path) -> None:
    ours = [path for path in (ROOT / "asyncgen").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in ours}
    expected |= {f"asyncgen/data/{path.name}" for path in (ROOT / "data").iterdir()}
    ignored = GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())
    kept = [path for path in (ROOT / "configs").iterdir() if not ignored.match_file(f"configs/{path.name}")]
    expected |= {f"asyncgen/configs/{path.name}" for path in kept if path.is_file()}
    assert {"asyncgen/py.typed", "asyncgen/models/bedtime_tiny/model.safetensors"} <= expected
    assert names_in(wheel) == expected


def test_the_source_distribution_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tree, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert (unpacked / "tests" / "test_wheel.py").exists()
    assert not (unpacked / "configs" / "an-output.jsonl").exists()
    assert names_in(build(unpacked, "wheel")) == names_in(wheel)


def environment_without_us(folder: Path) -> Path:
    """A fresh virtual environment that shares the installed packages, but not asyncgen; returns its Python.

    A path in a ``.pth`` file is searched, but the ``.pth`` files in it are not read: an editable asyncgen there is
    not found.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    shared = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "shared.pth").write_text("\n".join(shared) + "\n")
    return python


def install(python: Path, *what: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", *what], check=True, capture_output=True, env=plain_environment())


def plain_environment() -> dict[str, str]:
    """Nothing in it leads to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The Python of an environment with asyncgen, and the folder from which it must be imported."""
    folder = tmp_path_factory.mktemp("empty")
    python = environment_without_us(folder)
    tree, wheel = request.getfixturevalue("tree"), request.getfixturevalue("wheel")
    if request.param == "wheel":
        install(python, str(wheel))
        return python, folder
    install(python, "--editable", str(tree))
    return python, tree


def test_the_installed_program_makes_stories_from_what_it_brought(installed: tuple[Path, Path], tmp_path: Path) -> None:
    python, home = installed

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = call(str(python), "-c", "import asyncgen, sys; print(asyncgen.__file__, *sys.path, sep='\\n')")
    file, *path = shown.splitlines()
    assert Path(file).is_relative_to(home)
    assert str(ROOT) not in path

    configs = "import asyncgen, pathlib; from asyncgen import resources as r; print(r.data_file('').parent / 'configs')"
    folder = Path(call(str(python), "-c", configs).strip())
    shipped = [str(folder / config.name) for config in sorted((ROOT / "configs").glob("*.yaml"))]
    call(str(python), "-c", "import asyncgen, sys; [asyncgen.load_config(name) for name in sys.argv[1:]]", *shipped)

    program = str(python.parent / "asyncgen")
    call(program, "init", "demo.yaml")
    assert "all is well" in call(program, "check", "demo.yaml")
    call(program, "run", "demo.yaml", "--num-stories", "3")
    assert len(records(tmp_path / "demo.jsonl")) == 3
    assert call(str(python), "-m", "asyncgen", "--version") == f"asyncgen {asyncgen.__version__}\n"


@pytest.mark.timeout(600)
def test_a_share_of_the_tests_passes_on_the_installed_package(
    installed: tuple[Path, Path], tree: Path, tmp_path: Path
) -> None:
    """In a folder without ``asyncgen/``, so that tests and the programs they start find the installed one."""
    python, home = installed
    for name in ("tests", "configs", "docs", "tools"):
        shutil.copytree(tree / name, tmp_path / name)
    for name in FILES:
        shutil.copy(tree / name, tmp_path / name)
    (tmp_path / "tests" / "test_where.py").write_text(
        WHERE.format(home=str(home)) if home == tree else (WHERE + MODULES).format(home=str(home))
    )
    share = EDITABLE_SHARE if home == tree else FULL_SHARE if is_full() else QUICK_SHARE
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_where.py", *share],
        cwd=tmp_path,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
