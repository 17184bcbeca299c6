"""Whatever is typed: a run that works, or one line with exit code 2, and nothing is left behind."""

import contextlib
import shutil
from pathlib import Path

import pytest

import sample
from conftest import ONE_LINE, ROOT, TINY
from gpt.cli.main import compose_config
from gpt.config import setting_names
from gpt.errors import UserError

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed (extra dev)")
pytestmark = pytest.mark.slow
st = hypothesis.strategies
CHECKS = dict(deadline=None, derandomize=True, database=None)
CHECKS |= {"suppress_health_check": list(hypothesis.HealthCheck)}

CALLBACKS = compose_config([]).callbacks
SETTINGS = [name for name in setting_names() if not name.startswith(("task", "finetune"))]
SETTINGS += ["resume", *(f"callbacks.{name}.{key}" for name, node in CALLBACKS.items() for key in node)]
GROUPS = {
    str(path.relative_to(ROOT / "conf")): [file.stem for file in path.glob("*.yaml")]
    for path in sorted((ROOT / "conf").rglob("*"))
    if path.is_dir() and "hydra" not in path.parts and list(path.glob("*.yaml"))
}
WORDS = """
    null true abc [0.5,0.9] [] [1] {} {a:1} 1e1 nan inf -inf a=b '' 1e18 1e30 -1e30 2147483648 4294967296
    1e-50 0x10 learned rmsnorm cosine bf16-mixed cpu gpu auto ddp bpe byte simple last /etc /dev/full
    /proc/nope/x ../../x a/b/c ~ . 日本 '\\x00' http://127.0.0.1:9/x ${seed} ${model.n_embd} ${nowhere}
    '${oc.env:HOME}' ${hydra:job.num} ??? os.system
"""
NUMBERS = st.integers(-2, 17).map(str) | st.floats(-2, 2).map(str) | st.just("9" * 400)
VALUES = NUMBERS | st.sampled_from(WORDS.split()) | st.text("a1.-_ /'{}[]$:,\"\\\n", max_size=4)
SET = st.builds("{}={}".format, st.sampled_from(SETTINGS), VALUES)
ADDED = st.sampled_from([*SETTINGS, "nonsense", "trainer.limit_val_batches"])
ADD = st.builds("+{}={}".format, ADDED, VALUES)
NODES = st.sampled_from([f"callbacks.{name}" for name in [*CALLBACKS, "x"]] + ["logger.csv", "logger.x"])
KEYS = st.sampled_from(["_target_", "_partial_", "x", "monitor", "dirpath", "path"])
INSIDE = st.builds("+{}.{}={}".format, NODES, KEYS, VALUES)
DELETE = st.builds("~{}".format, st.sampled_from([*SETTINGS, *GROUPS]))
CHOICES = [(group, choice) for group, names in GROUPS.items() for choice in [*names, "null", "no"]]
CHOOSE = st.builds("{0[0]}={0[1]}".format, st.sampled_from(CHOICES))
HYDRA = """
    hydra.run.dir=a/b/c hydra.run.dir='' hydra.run.dir=/proc/x hydra=x hydra.job.chdir=true
    hydra.mode=MULTIRUN hydra.mode=RUN hydra.nothing=1 hydra.sweep.dir=s
"""
ANY = st.one_of(SET, SET, ADD, INSIDE, DELETE, CHOOSE, st.sampled_from(HYDRA.split()))
PROMPTS = st.text(max_size=40)
OVERRIDES = st.lists(ANY, min_size=1, max_size=4)

HEAVY = ("experiment=gpt1", "experiment=baby_gpt", "experiment=sweep", "experiment=ensemble", "model=medium")
HEAVY += ("trainer.compile=true", "experiment=speedrun", "logger=mlflow", "logger=wandb", "logger=many")


@hypothesis.settings(max_examples=400, **CHECKS)
@hypothesis.given(OVERRIDES)
def test_any_configuration(call, text, overrides):
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    small = ["data.batch_size=2", "trainer.max_steps=1", "callbacks.samples.temperatures=[0.8]"]
    hypothesis.assume(not any(override.startswith(HEAVY) for override in overrides))
    code, out, err = call(*TINY, *small, f"data.path={text}", *overrides)
    hypothesis.note(f"{overrides}: {code}\n{out[-300:]}\n{err}")
    assert "Traceback" not in err
    if code == 0:
        assert " steps" in out or "val loss" in out
    else:
        assert code == 2
        assert ONE_LINE.fullmatch(err)
        assert len(err) < 1000
        assert not list(Path().iterdir())


@hypothesis.settings(max_examples=100, **CHECKS)
@hypothesis.given(PROMPTS, st.integers(-1, 3), st.floats(), st.integers(-1, 99), st.floats(-1, 2))
def test_any_prompt(trained, capsys, prompt, tokens, temperature, top_k, top_p):
    settings = [f"--tokens={tokens}", f"--temperature={temperature}", f"--top-k={top_k}", f"--top-p={top_p}"]
    capsys.readouterr()
    with contextlib.suppress(UserError):
        sample.main([str(trained), f"--prompt={prompt}", *settings])
        assert len(capsys.readouterr().out) >= tokens
