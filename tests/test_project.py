"""What holds for every file of the project: imports, sizes, nothing done at import, nothing of one machine."""

import ast
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from pydantic import BaseModel, ValidationError

import p2e
from p2e.cli import app
from p2e.config import Settings

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "p2e").rglob("*.py"))
MAX_LINES = 400
# Ray, and the folders that are built on p2e rather than the other way round.
FORBIDDEN = {"ray", "ray_jobs", "serve", "eval", "tests"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
INDEX_HOST = re.compile(r"pyp[i]\.org|python[h]osted\.org|download\.pytorch\.org|anaconda\.(?:org|com)|npm[j]s\.org")
# Where AWS's images put EFA and the local disks is no path of a developer's machine.
MACHINE_PATH = re.compile(r"(?<![\w.~$}*-])/(?:work|root|home|Users|opt)/(?!amazon/|dlami/)\w")


REGISTRATION = re.compile(r"app\.(?:add_typer|command\([^()]*\))$")  # of a command, at the top of a module


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked_files() -> list[Path]:
    """The files under version control; in an unpacked archive, those of the project's own folders."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listing.stdout.split("\0") if listing.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [*LIBRARY, *(ROOT / "tests").rglob("*.py"), *ROOT.glob("*.*")]
    return [path for path in paths if path.is_file()]


def tracked_texts() -> dict[str, str]:
    texts = {}
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            texts[name_of(path)] = data.decode("utf-8", errors="replace")
    return texts


def imported_roots(tree: ast.AST) -> set[str]:
    """Top-level names of every absolute import, wherever in the file it stands."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_file(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = imported_roots(tree)
    assert not roots & FORBIDDEN, "p2e is the bottom of the tree"
    assert not roots & PICKLES, "no pickle is read from a user's file"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: torch.load unpickles"
    assert not list(import_time_work(tree))


def import_time_work(tree: ast.Module) -> list[str]:
    """Statements at the top of a module that do more than define, import, or register a command."""
    work = []
    for node in tree.body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Expr(value=ast.Constant()):
                continue
            case ast.Expr(value=ast.Call(func=func)) if REGISTRATION.match(ast.unparse(func)):
                continue
            case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
                continue
        work.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return work


def test_import_time_work_is_seen() -> None:
    source = "import os\nX = 1\ndef f(): os.mkdir('a')\nos.mkdir('b')\nfor i in X: f()\n"
    assert [line.split(":")[0] for line in import_time_work(ast.parse(source))] == ["line 4", "line 5"]


def test_imports_leave_nothing_behind(tmp_path: Path) -> None:
    """Importing every module loads no ray, and of our own only p2e, writes no file and moves no random state."""
    script = """
import json, pkgutil, sys, importlib
import torch
before = torch.initial_seed(), torch.get_rng_state().sum().item(), torch.get_default_dtype(), torch.get_num_threads()
import p2e
for module in pkgutil.walk_packages(p2e.__path__, "p2e."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = torch.initial_seed(), torch.get_rng_state().sum().item(), torch.get_default_dtype(), torch.get_num_threads()
print(json.dumps({"roots": sorted({name.split(".")[0] for name in sys.modules}), "same": before == after}))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert "p2e" in seen["roots"] and not set(seen["roots"]) & FORBIDDEN
    assert seen["same"]
    assert not list(tmp_path.iterdir())


def test_files_are_short() -> None:
    lengths = {name: text.count("\n") for name, text in tracked_texts().items() if name.endswith(".py")}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_index_host_and_no_machine_path() -> None:
    found = {
        name: match.group()
        for name, text in tracked_texts().items()
        for match in [INDEX_HOST.search(text) or MACHINE_PATH.search(text)]
        if match
    }
    assert found == {}


INSTALLED = ("requirements.txt", "requirements-cluster.txt")


@pytest.mark.parametrize("name", [*INSTALLED, "requirements-all.txt"])
def test_requirements_are_pinned_and_hashed(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = [entry for entry in re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines() if entry.strip()]
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(?:\[[\w,-]+\])?==\S+ ", entry), entry[:100]
        assert "--hash=sha256:" in entry, entry[:100]


@pytest.mark.parametrize("name", INSTALLED)
def test_requirements_agree(name: str) -> None:
    """What is installed now is part of the one resolution that holds everything, on the platform that has it all."""

    def pins(name: str) -> set[str]:
        return set(re.findall(r"(?m)^[\w.-]+==[^ ]+", (ROOT / name).read_text()))

    small, whole = pins(name), pins("requirements-all.txt")
    packages = {pin.split("==")[0] for pin in whole}
    here_and_there = {pin.split("==")[0] for pin in small} & packages
    assert len(here_and_there) > 50
    assert {one for one in here_and_there if not {p for p in small & whole if p.startswith(f"{one}==")}} == set()


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == p2e.__version__


def cli_commands(group: Any = None, path: str = "p2e") -> dict[str, set[str]]:
    """Every command of the command line with its options, built-in ones only."""
    group = group or typer.main.get_command(app)
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= cli_commands(command, f"{path} {name}")
        else:
            found[f"{path} {name}"] = {"--help", *(o for param in command.params for o in param.opts)}
    return found


def plugin_commands() -> dict[str, set[str]]:
    """The same for those that the folders beside p2e register."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["p2e.commands"]
    found: dict[str, set[str]] = {}
    for name, place in points.items():
        module, _, attribute = place.partition(":")
        command: Any = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        if not hasattr(command, "commands"):  # an app of one command is that command
            command, name = SimpleNamespace(commands={name: command}), ""
        found |= cli_commands(command, f"p2e {name}".strip())
    return found


def documented_commands(text: str) -> list[list[str]]:
    """The words of every `p2e` and `make` line in a document's shell blocks and tables."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + re.findall(
        r"(?m)^\| `(p2e [^`]+)` \|", text
    )
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] in ("p2e", "make")]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(document: str) -> None:
    commands = cli_commands() | plugin_commands()
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    found = documented_commands((ROOT / document).read_text())
    assert found
    for program, *words in found:
        if program == "make":
            assert set(words) <= targets, words
            continue
        name = next((n for n in (f"p2e {' '.join(words[:count])}" for count in (2, 1)) if n in commands), None)
        assert name, f"{document}: p2e {' '.join(words)}"
        assert {word for word in words if re.match("-{1,2}[a-z]", word)} <= commands[name], words


def test_every_command_is_in_the_readme() -> None:
    table = set(re.findall(r"(?m)^\| `(p2e [^`]+)` \|", (ROOT / "README.md").read_text()))
    assert set(cli_commands()) <= table <= set(cli_commands() | plugin_commands())


def test_relative_links_lead_somewhere() -> None:
    for document in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (ROOT / link).exists(), f"{document.name}: {link}"


def settings_classes() -> list[type[BaseModel]]:
    for module in pkgutil.walk_packages(p2e.__path__, "p2e."):
        importlib.import_module(module.name)
    found: list[type[BaseModel]] = []
    queue: list[type[BaseModel]] = [BaseModel]
    while queue:
        for child in queue.pop().__subclasses__():
            queue.append(child)
            if child.__module__.split(".")[0] == "p2e" and child is not Settings:
                found.append(child)
    return found


def test_every_configuration_refuses_unknown_keys() -> None:
    classes = settings_classes()
    assert classes
    for cls in classes:
        assert issubclass(cls, Settings), f"{cls.__name__}: derive it from p2e.config.Settings"
        with pytest.raises(ValidationError) as caught:
            cls.model_validate({"no_such_key": 1})
        refused: list[Any] = [error["loc"] for error in caught.value.errors() if error["type"] == "extra_forbidden"]
        assert refused == [("no_such_key",)], cls.__name__
