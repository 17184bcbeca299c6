"""What README and docs show, works: every command is run in a short form, and every link leads somewhere."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from test_structure import DOORS, IMPORTS, SOURCES, folder_of

import compare
import evaluate
import export_hf
import export_html
import sample
from conftest import ROOT
from gpt.cli.overrides import CONF

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "outputs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
SHORT = ["trainer.max_steps=2", "data.batch_size=1", "callbacks.samples.tokens=5", "callbacks.samples.temperatures=[0.8]"]
SHORT += ["trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks.attention=null"]
# Commands that other tests run, or that need what a machine for tests does not have
ELSEWHERE = {
    "resume=last": "test_resume.py",
    "trainer=ddp": "test_distributed.py",
    "callbacks=zero_shot": "test_zero_shot.py, on a play",
    "hydra/launcher=joblib": "test_launchers.py",
    "hydra/launcher=submitit_slurm": "it needs Slurm",
    "hydra/launcher=ray": "test_launchers.py, where Ray is installed",
}
PROGRAMS = ("train", "sample", "evaluate", "compare", "report", "tune", "export_hf", "export_html", "finetune", "classify")
ON_A_PLAY = ("finetune.py", "classify.py")  # programs of which test_finetune.py runs such commands
OTHER_TOOLS = ("make", "pip", "source", "tensorboard", "torchrun", ".venv/bin/", "srun", "[", "#SBATCH", "#!/bin/bash")


def commands(text: str) -> list[str]:
    """The lines of all shell blocks of a page, without comments and with continued lines joined."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in blocks.splitlines() if line.strip()]


LINES = sorted({line for text in TEXTS.values() for line in commands(text)})
TRAINING = [line for line in LINES if line.startswith("python scripts/train.py")]
TRAINING += [
    f"python scripts/train.py {shlex.split(line)[2].removeprefix('ARGS=')}"
    for line in LINES
    if line.startswith("make train ARGS")
]
TRAINING = [line for line in TRAINING if not set(ELSEWHERE) & set(shlex.split(line))]
OTHERS = [line for line in LINES if line.startswith("python scripts/") and "train.py" not in line and "tune.py" not in line]
OTHERS = [line for line in OTHERS if not any(name in line for name in ON_A_PLAY)]


def test_every_command_is_known():
    assert len(TRAINING) >= 8
    for line in LINES:
        words = shlex.split(line, comments=True)
        known = not words or words[0] in OTHER_TOOLS or line.startswith(OTHER_TOOLS)
        assert known or (words[0] == "python" and words[1] in [f"scripts/{name}.py" for name in PROGRAMS]), line


@pytest.mark.parametrize("line", TRAINING)
def test_training_command(line, call, text):
    given = [word for word in shlex.split(line)[2:] if not word.startswith(("trainer.max_steps", "data.path", "hydra.run.dir"))]
    short = [*SHORT, f"data.path={text}"]
    if "data.tokenizer=bpe" in given:
        pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra hf)")
        short.append("model.context_length=16")  # few tokens make this text
    if "experiment=sweep_shape" in given or "experiment=sweep_ablation" in given or "experiment=sweep_arch" in given:
        short += ["model=tiny", "seed=1", "model.n_head=2"]
    if "~logger" in given:
        short = [setting for setting in short if not setting.startswith("logger")]
    options = [word for word in given if word.startswith("-") or word == "job"]
    code, out, err = call(*options, *[word for word in given if word not in options], *short)
    assert code == 0, err
    results = len(list(Path("outputs").glob("**/result.json")))
    if "--cfg" in options:
        assert "n_layer:" in out
        assert results == 0
    elif "-m" in options or "experiment=sweep" in line:
        jobs = math.prod(word.count(",") + 1 for word in given if not word.startswith("seed"))
        assert results >= jobs
        assert len(re.findall(r"^\d+ of \d+  .*val loss", out, re.MULTILINE)) == results
    else:
        assert results == 1
        assert "after 2 steps" in out


@pytest.mark.parametrize("line", OTHERS)
def test_other_command(line, call, text, monkeypatch, capsys):
    arch = ["model/arch=gpt2"] if "export_hf" in line else []
    code, _, err = call("model=tiny", *arch, *SHORT, f"data.path={text}", "hydra.run.dir=outputs/RUN")
    assert code == 0, err
    words = shlex.split(line.split("|")[-1])
    program, given = words[1], words[2:]
    if program == "scripts/sample.py":
        sample.main([*given, "--tokens", "5", *([] if "--prompt" in given else ["--prompt", "O"])])
    elif program == "scripts/evaluate.py":
        evaluate.main(given)
    elif program == "scripts/compare.py":
        Path("outputs/sweeps").mkdir()
        Path("outputs/RUN").rename("outputs/sweeps/SWEEP")
        compare.main(given)
    elif program == "scripts/export_html.py":
        export_html.main(given)
    else:
        pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
        export_hf.main(given)
    assert capsys.readouterr().out


def test_make_targets_exist():
    targets = {match for line in LINES for match in re.findall(r"^make ([\w-]+)", line)}
    targets |= set(re.findall(r"`make ([\w-]+)", "\n".join(TEXTS.values())))
    assert {"train", "test", "test-slow", "bench"} <= targets
    for target in targets:
        subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", TEXTS[page]):
        assert target.startswith("https://") or (folder / target.replace("\\", "")).exists(), target
    assert not re.search(r"@[A-Z]+@", TEXTS[page]), "a placeholder is left"


def test_readme_is_short():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 120
    assert max(map(len, (line for line in lines if "](" not in line and not line.startswith("|")))) <= 100


def test_names_of_the_code_exist():
    """A page that names a function or a class of gpt/ names one that is there."""
    sources = {module: path.read_text(encoding="utf-8") for module, path in SOURCES.items()}
    for page, text in TEXTS.items():
        for module, name in re.findall(r"\b(gpt(?:\.[a-z_]+)+)\.([A-Za-z_]\w*)\b", text):
            whole = f"{module}.{name}"
            assert whole in sources or re.search(rf"\b{name}\b", sources.get(module, "")), f"{page}: {whole}"
        for path in re.findall(r"`((?:gpt|conf|scripts|tests|docs|dev)/[\w/.]*\w)`", text):
            examples = (
                "conf/ablation/silu.yaml",
                "conf/data/my.yaml",
                "conf/experiment/wide.yaml",
                "gpt/callbacks/loss_spread.py",
            )
            assert (ROOT / path).exists() or path in (*examples, "conf/group/choice.yaml"), f"{page}: {path}"


def test_arrows_of_the_architecture_page_are_true():
    """Each arrow between folders is an import, and each import between folders is an arrow."""
    drawing = re.search(r"```mermaid\nflowchart LR\n(.*?)```", TEXTS["docs/architecture.md"], re.DOTALL)[1]
    names = {"scripts": "scripts", "cli": "gpt.cli", "runs": "gpt.runs", "callbacks": "gpt.callbacks", "extras": "gpt.extras"}
    names |= {"core": "gpt", "finetune": "gpt.finetune"}
    drawn = {(names[a], names[b]) for a, b in re.findall(r"(\w+)(?:\[.*?\])? --> (\w+)", drawing)}
    real = {
        (folder_of(module), folder_of(name))
        for module, imports in IMPORTS.items()
        for name in imports
        if name in SOURCES and folder_of(name) != folder_of(module) and module not in DOORS
    }
    assert drawn == real


def test_groups_of_the_configuration_page_are_all_there():
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"}
    assert groups <= set(re.findall(r"`(\w+)`", TEXTS["docs/configuration.md"]))
