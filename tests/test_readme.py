"""What the README shows, works: its commands run in a short form, its tree is the disk's."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import evaluate
import sample
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.split("  #")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
]
SHORT = ["trainer.max_steps=2", "data.batch_size=1", "callbacks.samples.tokens=5", "trainer.accelerator=cpu"]


def arguments(line: str) -> list[str]:
    return [word for word in shlex.split(line)[2:] if not word.startswith(("trainer.max_steps", "data.path"))]


TRAINING = [arguments(line) for line in LINES if line.startswith("python scripts/train.py")]
# Those that need a run, or a process of their own, are in test_resume.py and test_distributed.py
TRAINING = [given for given in TRAINING if not {"resume=last", "trainer=ddp"} & set(given)]
TRAINING += [
    arguments("make train " + shlex.split(line)[2].removeprefix("ARGS=")) for line in LINES if line.startswith("make train ARGS")
]
OTHERS = [line for line in LINES if line.startswith(("python scripts/sample.py", "python scripts/evaluate.py"))]
# python scripts/export_hf.py is in test_convert.py


def test_commands_are_found():
    assert len(TRAINING) >= 5
    assert len(OTHERS) >= 3


@pytest.mark.parametrize("given", TRAINING, ids=" ".join)
def test_training_commands(given, call, text):
    short = [*SHORT, f"data.path={text}"]
    if "data.tokenizer=bpe" in given:
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
        short.append("model.context_length=16")  # few tokens make this text
    if "experiment=sweep_shape" in given:
        given, short = (
            [word for word in given if not word.startswith("hydra")],
            [*short, "model=tiny", "seed=1", "model.n_head=2"],
        )
    code, out, err = call(*given, *short)
    assert code == 0, err
    jobs = math.prod(word.count(",") + 1 for word in given) if "-m" in given else 1
    if "experiment=sweep_shape" in given:
        jobs = 6
    assert out.count("after 2 steps") + len(re.findall(r"^\d+ of \d+  .*val loss", out, re.MULTILINE)) == (
        0 if "--cfg" in given else jobs
    )
    assert len(list(Path("outputs").glob("**/result.json"))) == (0 if "--cfg" in given else jobs)


@pytest.mark.parametrize("line", OTHERS)
def test_other_commands(line, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    words = shlex.split(line.split("|")[-1])
    given = [str(trained) if word == "outputs/RUN" else word for word in words[2:]]
    if words[1] == "scripts/sample.py":
        trained.parent.joinpath("outputs").mkdir(exist_ok=True)
        (trained / "checkpoints").rename(trained.parent / "outputs" / "checkpoints")  # the newest run
        given = [str(trained.parent / "outputs") if word == str(trained) else word for word in given]
        sample.main([*given, "--tokens", "5", *([] if "--prompt" in given else ["--prompt", "O"])])
    else:
        evaluate.main(given)
    assert capsys.readouterr().out


def test_make_targets_exist():
    targets = {match for line in LINES for match in re.findall(r"^make (\w+)", line)}
    assert {"train", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, check=True, capture_output=True)


def test_tree_is_the_disks():
    conf, tree = re.search(r"```\n(conf/.*?)\n(gpt/.*?)```", README, re.DOTALL).groups()
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert folders | {"conf", "arch"} == set(re.findall(r"(\w+)/", conf))
    top, shown = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        shown.add(top + name if line.startswith(" ") else name)
        top = top if line.startswith(" ") else name
    assert all((ROOT / name).exists() for name in shown), shown
    python = {str(path.relative_to(ROOT)) for part in ("gpt", "scripts") for path in (ROOT / part).glob("*.py")}
    assert python - {"gpt/__init__.py"} <= shown


def test_length_and_links():
    assert not re.search(r"^@\w+@$", README, re.MULTILINE), "a placeholder is left"
    assert len(README.splitlines()) <= 200
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
