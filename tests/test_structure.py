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
LIBRARIES_OF_THE_CORE |= {"charset_normalizer", "pyarrow"}  # imported when a text needs them


def room_of(module: str) -> str:
    return next((room for room in MAY_IMPORT if room != "gpt" and f"{module}.".startswith(f"{room}.")), "gpt")


def imports_of(path: Path, in_functions: bool = True) -> set[str]:
    """The modules that a file imports, but not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if is_for_types or (isinstance(node, ast.FunctionDef) and not in_functions):
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
CORE = [module for module in SOURCES if room_of(module) == "gpt"]


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_one_way(module):
    allowed = {"gpt", room_of(module)} | MAY_IMPORT[room_of(module)] | DOORS.get(module, set())
    own = IMPORTS[module] & SOURCES.keys()
    assert {name for name in own if room_of(name) not in allowed} == set()


def test_there_is_no_circle():
    """At module level. What a function imports through a door is there by then."""
    graph = {module: imports_of(path, in_functions=False) - {module} for module, path in SOURCES.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_core_knows_few_libraries_and_the_model_its_configuration_alone():
    modules = [module for module in CORE if module != "gpt.drawing"]
    foreign = {name.partition(".")[0] for module in modules for name in IMPORTS[module]}
    assert foreign - {*sys.stdlib_module_names, "gpt"} <= LIBRARIES_OF_THE_CORE
    assert IMPORTS["gpt.model"] & SOURCES.keys() == {"gpt.config", "gpt.attention"}
    libraries = {name.partition(".")[0] for name in IMPORTS["gpt.model"] | IMPORTS["gpt.attention"]}
    assert libraries <= {"gpt", "torch", "math", "contextlib", "collections", "typing"}


@pytest.mark.parametrize("module", SOURCES)
def test_functions_are_short(module):
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name


def test_size_of_the_package_stays_within_its_budget():
    """THE SIZE BUDGET: what gpt/ may have in all. To add something large, find what it makes superfluous.

    The aim is 5,900 lines, which have not been reached yet. Lower the number as the package shrinks.
    """
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "gpt").rglob("*.py")]
    assert sum(lines) <= 7_001
    assert len(SOURCES["scripts.train"].read_text(encoding="utf-8").splitlines()) <= 20


def test_what_one_reads_first_can_be_read_in_an_afternoon():
    """The files that README lists, in its order: an explanation of the model and of how it is trained."""
    names = re.findall(r"\(gpt/(\w+)\.py\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(names) == 13
    files = [SOURCES[f"gpt.{name}"].read_text(encoding="utf-8") for name in names]
    assert sum(len(source.splitlines()) for source in files) <= 2_200


def test_every_source_is_tracked_by_git():
    """A file that git ignores, or that nobody has added, works on one machine alone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    folders = ("conf", "gpt", "scripts")
    listed = subprocess.check_output(["git", "ls-files", *folders], cwd=ROOT, text=True).split()
    on_disk = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")}
    assert {name for name in on_disk if name.endswith((".py", ".yaml"))} <= set(listed)
