"""What README and docs show, works: commands and Python are run in a short form, and links lead somewhere."""

import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from test_structure import DOORS, MAY_IMPORT, SOURCES

from conftest import ROOT

NAMES = ["README.md", "CONTRIBUTING.md", "outputs/README.md"]
NAMES += [f"docs/{name}.md" for name in ("usage", "coming-from", "scaling", "finetuning", "design", "log")]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
SHORT = ["trainer.max_steps=2", "data.batch_size=1", "trainer.accelerator=cpu", "trainer.precision=32-true"]
SHORT += ["callbacks.samples.tokens=5", "callbacks.samples.temperatures=[0.8]", "callbacks.attention=null"]
SHORT += ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16"]
ELSEWHERE = {  # commands that other tests run, or that need what a machine for tests does not have
    "resume=last": "test_resume.py",
    "trainer=ddp": "test_distributed.py",
    "callbacks=zero_shot": "test_finetune_tasks.py",
    "hydra/launcher=joblib": "test_sweep.py",
    "hydra/launcher=submitit_slurm": "it needs Slurm",
    "hydra/launcher=ray": "test_sweep.py",
    "scripts/finetune.py": "test_finetune.py",
    "scripts/classify.py": "test_finetune.py",
    "scripts/convert_checkpoint.py": "test_checkpoint.py",
}
JOBS = {  # what two jobs of a sweep are, small ones too
    "sweep_shape": ["model.context_length=8,16"],
    "sweep_arch": ["model/arch=gpt1,modern"],
    "sweep_ablation": ["ablation=none,no_conv"],
    "ensemble": ["seed=1,2"],
}
NEEDS = {"data.tokenizer=bpe": "tokenizers", "logger=mlflow": "mlflow", "logger=wandb": "wandb"}
NEEDS |= {"logger=many": "mlflow", "scripts/export_hf.py": "transformers", "scripts/tune.py": "optuna"}
TOOLS = ("git", "make", "pip", "python3 -m venv", "source", "tensorboard", "torchrun", "until", "srun")
TOOLS += ("[", "#SBATCH", "#!/bin/bash")
EXAMPLES = ["conf/ablation/silu.yaml", "conf/data/my.yaml", "conf/experiment/wide.yaml"]  # of CONTRIBUTING.md
EXAMPLES += ["gpt/callbacks/loss_spread.py", "conf/callbacks/loss_spread.yaml"]
EXAMPLES += ["conf/group/choice.yaml", "conf/hparams_search/NAME.yaml"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


SHELL = "\n".join(code for page in PAGES for code in blocks(page, "bash")).replace("\\\n", " ")
SHELL += "\n".join(re.findall(r"`(python scripts/[^`]+)`", PAGES["docs/coming-from.md"]))
LINES = sorted({line.split("  #")[0].strip() for line in SHELL.splitlines() if line.strip()})
OURS = [re.sub(r'make train ARGS="(.*)"', r"python scripts/train.py \1", line) for line in LINES]
OURS = [line for line in OURS if line.startswith("python ") and not set(ELSEWHERE) & set(shlex.split(line))]
TRAINING = [line for line in OURS if "scripts/train.py" in line]
PYTHON = [(page, code) for page in PAGES if page != "CONTRIBUTING.md" for code in blocks(page, "python")]


@pytest.fixture
def place(call, text, monkeypatch) -> Path:
    """The folder in which a user stands, with the files of docs/usage.md."""
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setenv("WANDB_MODE", "offline")
    spread = next(code for code in blocks("docs/usage.md", "python") if "class Spread" in code)
    Path("my_callbacks.py").write_text(spread, encoding="utf-8")
    for folder in ("my_conf/experiment", "books"):
        Path(folder).mkdir(parents=True)
    for name in ("my.txt", "val.txt", "new.txt", "prompt.txt", "books/1.txt"):
        shutil.copy(text, name)
    Path("rows.jsonl").write_text('{"text": "ROMEO: But soft!"}\n' * 50)
    Path("my_conf/experiment/mine.yaml").write_text(blocks("docs/usage.md", "yaml")[0], encoding="utf-8")
    return Path.cwd()


def split(line: str) -> list[str]:
    """The words of a command after `python`. Skips the test if a library that it needs is not installed."""
    words = shlex.split(line)[1:]
    for library in [NEEDS[word] for word in words if word in NEEDS]:
        pytest.importorskip(library, reason=f"{library} is not installed")
    return words


def test_every_command_is_known():
    assert len(TRAINING) >= 15
    subprocess.run(["bash", "-n"], input=SHELL, text=True, check=True)  # no parentheses without quotes, say
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for line in LINES:
        words = shlex.split(line, comments=True) or ["#!/bin/bash"]
        known = words[0] in installed or line.startswith((*TOOLS, ".venv/bin/"))
        assert known or (words[0] == "python" and (ROOT / words[1]).is_file()), line


def shortened(given: list[str], text: Path) -> list[str]:
    """What was typed in a small form: of a sweep's first axis two values, of the others one."""
    given = [word for word in given if not word.startswith("trainer.max_steps")]
    sweep = next((name for name in JOBS if f"experiment={name}" in given), "")
    words, most = [], 2
    for word in [*JOBS.get(sweep, []), *given]:
        first, *others = word.split(",") if "(" not in word else [word]
        words.append(",".join([first, *others[: most - 1]]))
        most = 1 if others else most
    keys = [word.partition("=")[0] for word in words]
    kept = ("model.",) if "init" in keys else ()
    if "resume" in keys:
        kept = ("model.", "data.", "trainer.", "callbacks.")
    small = [word for word in (*SHORT, f"data.path={text}") if not word.startswith(kept)]
    small += ["trainer.max_steps=6"] if "resume" in keys else []
    return [*words, *(word for word in small if word.partition("=")[0] not in keys)]


@pytest.mark.parametrize("line", TRAINING)
def test_training_command(line, call, text, place, trained_once):
    given = split(line)[1:]
    if "outputs/RUN" in line:
        shutil.copytree(trained_once, "outputs/RUN", ignore=shutil.ignore_patterns("result.json"))
    code, out, err = call(*shortened(given, text))
    assert code == 0, err
    results = len(list(place.glob("outputs/**/result.json")))
    if "--cfg" in given:
        assert "n_layer:" in out
        assert results == 0
    elif "-m" in given or "experiment=sweep" in line:
        assert results == len(re.findall(r"^\d of 2  .*val loss", out, re.MULTILINE)) == 2
    else:
        assert results == 1
        assert f"after {6 if 'resume=' in line else 2} steps" in out


@pytest.mark.parametrize("line", [line for line in OURS if line not in TRAINING])
def test_other_command(line, call, text, trained, place, capsys):
    script, *given = split(line)
    run = place / ("outputs/sweeps/SWEEP/RUN" if "SWEEP" in line else "outputs/RUN")
    if "export_hf" in script:
        gpt2 = ["model=tiny", "model/arch=gpt2", *SHORT, f"data.path={text}", f"hydra.run.dir={run}"]
        assert call(*gpt2)[0] == 0
    else:
        shutil.copytree(trained, run)
    if "sample" in script:
        given += [] if "--tokens" in given else ["--tokens", "5"]
        given += [] if "--prompt" in line else ["--prompt", "O"]
    if "tune" in script:
        given = [*shortened([re.sub("^20$", "1", word) for word in given], text)]
        given += [] if "--trials" in given else ["--trials", "1"]
    importlib.import_module(Path(script).stem).main(given)
    assert capsys.readouterr().out or Path(given[given.index("--out") + 1]).stat().st_size


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_block(page, code, trained, place):
    for library in re.findall(r"^import (onnx\w+)", code, re.MULTILINE):
        pytest.importorskip(library, reason=f"{library} is not installed")
    shutil.copytree(trained, place / "outputs/RUN")
    short = re.sub(r"\b[123]00\b", "4", code)  # characters and steps
    exec(compile(short, page, "exec"), {})


def test_make_targets_exist():
    targets = set(re.findall(r"(?:`|\n)make ([\w-]+)", "\n".join(PAGES.values())))
    assert {"train", "test", "test-slow", "bench"} <= targets
    for target in targets:
        command = ["make", "--dry-run", "--always-make", target]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_narrow_and_their_links_lead_somewhere(page):
    lines, width = PAGES[page].splitlines(), 100 if page == "README.md" else 110
    assert len(lines) <= 120 or page != "README.md"
    assert not [line for line in lines if len(line) > width and "](" not in line and not line.startswith("|")]
    for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", PAGES[page]):
        path = (ROOT / page).parent / target
        assert target.startswith("https://") or path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]


@pytest.mark.parametrize("page", [page for page in PAGES if "log" not in page])  # which names what there was
def test_names_of_the_code_exist(page):
    """A page that names a function, a class or a file names one that is there."""
    for module, name in re.findall(r"\b(gpt(?:\.[a-z_]+)+)\.([A-Za-z_]\w*)\b", PAGES[page]):
        source = SOURCES[module].read_text(encoding="utf-8") if module in SOURCES else ""
        is_example = f"{module.replace('.', '/')}.py" in EXAMPLES
        assert is_example or f"{module}.{name}" in SOURCES or re.search(rf"\b{name}\b", source), name
    for path in re.findall(r"`((?:gpt|conf|scripts|tests|docs)/[\w/.]*\w)`", PAGES[page]):
        assert (ROOT / path).exists() or path in EXAMPLES, path


def test_the_drawing_of_the_design_has_the_arrows_that_imports_follow():
    drawing = re.search(r"```mermaid\nflowchart LR\n(.*?)```", PAGES["docs/design.md"], re.DOTALL)[1]
    arrows = re.findall(r"(\w+)(?:\[.*?\])? (-->|-\.->) (\w+)", drawing)
    drawn = {(a, b) for a, kind, b in arrows if kind == "-->"}
    reached = drawn
    for _ in drawn:
        reached = reached | {(a, d) for a, b in reached for c, d in drawn if b == c}

    def pairs(rooms: dict[str, set[str]]) -> set[tuple[str, str]]:
        return {(a.removeprefix("gpt."), b.removeprefix("gpt.")) for a, found in rooms.items() for b in found}

    allowed = pairs(MAY_IMPORT | {"gpt.train": DOORS["gpt.train"]})
    assert {(a, b) for a, b in drawn if b not in ("core", "train")} <= allowed <= reached
    dotted = {("core", room) for module, room in pairs(DOORS) if module != "train"}
    assert {(a, b) for a, kind, b in arrows if kind == "-.->"} == dotted


def test_groups_of_settings_are_all_there():
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"}
    assert groups <= set(re.findall(r"`(\w+)`", PAGES["docs/usage.md"]))
