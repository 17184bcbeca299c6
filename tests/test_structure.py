"""The house: arrows point one way, the core is small and knows no extras, and functions are short."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("gpt", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ROOMS = {"gpt.callbacks", "gpt.finetune", "gpt.interop", "gpt.analysis"}
MAY_IMPORT = {  # a room, and the rooms that it may import from, besides itself and the core, which is "gpt"
    "gpt": set(),
    "gpt.callbacks": {"gpt.finetune"},
    "gpt.finetune": set(),
    "gpt.interop": set(),
    "gpt.analysis": set(),
    "gpt.cli": ROOMS,
    "scripts": ROOMS | {"gpt.cli"},
}
DOORS = {
    "gpt.train": {"gpt.callbacks", "gpt.finetune", "gpt.interop"},  # which tells the whole story of a run
    "gpt.checkpoint": {"gpt.finetune"},  # a checkpoint may hold a fine-tuned model
    "gpt.tokenizer": {"gpt.interop"},  # byte pairs need a library, and are imported when they are asked for
}
LIBRARIES_OF_THE_CORE = {"pydantic", "safetensors", "filelock", "yaml", "numpy", "torch", "lightning", "tqdm"}
PICKLE = re.compile(r"\bimport pickle\b|\btorch\.load\(|\bjoblib\.load\(|allow_pickle=True")


def room_of(module: str) -> str:
    return next((room for room in MAY_IMPORT if room != "gpt" and f"{module}.".startswith(f"{room}.")), "gpt")


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in the file, but not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in inner}
    return found


IMPORTS = {module: imports_of(path) for module, path in SOURCES.items()}
OWN = {
    module: {name for name in names if name in SOURCES and name != module}
    for module, names in IMPORTS.items()
}
CORE = [module for module in SOURCES if room_of(module) == "gpt"]


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_one_way(module):
    allowed = {"gpt", room_of(module)} | MAY_IMPORT[room_of(module)] | DOORS.get(module, set())
    assert {name for name in OWN[module] if room_of(name) not in allowed} == set()


def test_there_is_no_circle():
    assert list(TopologicalSorter(OWN).static_order())  # raises CycleError


def test_core_knows_few_libraries():
    core = [module for module in CORE if module != "gpt.drawing"]  # which needs matplotlib where it draws
    foreign = {name.partition(".")[0] for module in core for name in IMPORTS[module]}
    standard = {*sys.stdlib_module_names, "gpt"}
    assert foreign - standard <= LIBRARIES_OF_THE_CORE


def test_model_needs_torch_and_its_configuration_alone():
    assert {name for name in IMPORTS["gpt.model"] if name.startswith("gpt")} == {
        "gpt.config",
        "gpt.attention",
    }
    libraries = {name.partition(".")[0] for name in IMPORTS["gpt.model"] | IMPORTS["gpt.attention"]} - {"gpt"}
    assert libraries <= {"torch", "math", "contextlib", "collections", "typing"}


@pytest.mark.parametrize("module", SOURCES)
def test_functions_are_short(module):
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 50, (
                f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
            )


def test_nothing_is_unpickled():
    """What is read cannot run code. One program converts checkpoints of a former version."""
    found = {module for module, path in SOURCES.items() if PICKLE.search(path.read_text(encoding="utf-8"))}
    assert found - {"scripts.convert_checkpoint"} == set()


def test_size_of_the_package_stays_within_its_budget():
    """THE SIZE BUDGET: what gpt/ may have in all. To add something large, find what it makes superfluous."""
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "gpt").rglob("*.py")]
    assert sum(lines) <= 5_900


def test_train_script_reads_aloud():
    assert len(SOURCES["scripts.train"].read_text(encoding="utf-8").splitlines()) <= 20


def test_every_source_is_tracked_by_git():
    """A file that git ignores, or that nobody has added, works on one machine alone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    folders = ("conf", "gpt", "scripts")
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    on_disk = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")}
    assert {name for name in on_disk if name.endswith((".py", ".yaml"))} <= set(listed.stdout.split())
