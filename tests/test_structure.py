"""The house: arrows point one way, the core knows no extras, and files and functions stay short."""

import ast
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("gpt", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MAY_IMPORT = {  # a folder, and the folders that it may import from; the core is "gpt" itself
    "gpt": {"gpt"},
    "gpt.finetune": {"gpt", "gpt.finetune"},
    "gpt.extras": {"gpt", "gpt.extras"},
    "gpt.analysis": {"gpt", "gpt.runs", "gpt.analysis"},
    "gpt.callbacks": {"gpt", "gpt.analysis", "gpt.finetune", "gpt.callbacks"},
    "gpt.runs": {"gpt", "gpt.extras", "gpt.finetune", "gpt.callbacks", "gpt.runs"},
    "gpt.cli": {"gpt", "gpt.extras", "gpt.finetune", "gpt.callbacks", "gpt.runs", "gpt.analysis", "gpt.cli"},
    "scripts": {"gpt", "gpt.extras", "gpt.finetune", "gpt.callbacks", "gpt.runs", "gpt.analysis", "gpt.cli", "scripts"},
}
FOREIGN_TO_THE_CORE = {"hydra", "omegaconf", "tensorboard", "transformers", "tokenizers", "matplotlib", "optuna", "onnx"}
DOORS = {
    "gpt.convert": {"gpt.extras"},  # a short name for what users import from an extra
    "gpt.config": {"gpt.finetune"},  # the settings of a task are settings of a run
}


def folder_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "scripts":
        return "scripts"
    return ".".join(parts[:2]) if len(parts) > 1 and ".".join(parts[:2]) in MAY_IMPORT else "gpt"


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


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_one_way(module):
    allowed = MAY_IMPORT[folder_of(module)] | DOORS.get(module, set())
    assert {name for name in IMPORTS[module] if name in SOURCES and folder_of(name) not in allowed} == set()


def test_there_is_no_circle():
    inner = {module: {name for name in imports if name in SOURCES and name != module} for module, imports in IMPORTS.items()}
    assert list(TopologicalSorter(inner).static_order())  # raises CycleError


@pytest.mark.parametrize("module", [module for module in SOURCES if folder_of(module) == "gpt"])
def test_core_knows_no_extras(module):
    assert not {name.partition(".")[0] for name in IMPORTS[module]} & FOREIGN_TO_THE_CORE
    assert "fsdp" not in SOURCES[module].read_text(encoding="utf-8")


def test_model_needs_torch_and_attention_alone():
    own = {"gpt.attention"}
    assert {name for name in IMPORTS["gpt.model"] if name.startswith("gpt")} == own
    libraries = {name.partition(".")[0] for name in IMPORTS["gpt.model"] | IMPORTS["gpt.attention"]} - {"gpt"}
    assert libraries <= {"torch", "math", "contextlib", "dataclasses", "collections", "typing"}


@pytest.mark.parametrize("module", SOURCES)
def test_files_and_functions_are_short(module):
    text = SOURCES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 50, f"{node.name} is {node.end_lineno - node.lineno + 1} lines long"


def test_train_script_reads_aloud():
    assert len(SOURCES["scripts.train"].read_text(encoding="utf-8").splitlines()) <= 80


def test_every_source_is_tracked_by_git():
    """A file that git ignores, or that nobody has added, works on one machine alone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    folders = ("conf", "gpt", "scripts")
    tracked = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    on_disk = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")}
    assert {name for name in on_disk if name.endswith((".py", ".yaml"))} <= set(tracked)
