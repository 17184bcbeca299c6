"""Whatever is typed: a working run, or a refusal in one line with exit code 2."""

import contextlib
import re
import shutil
from pathlib import Path

import pytest

import sample
from conftest import TINY
from gpt.settings import UserError

hypothesis = pytest.importorskip("hypothesis", reason="extra dev is not installed")
pytestmark = pytest.mark.slow
st = hypothesis.strategies

KEYS = [
    *("model.n_layer", "model.n_head", "model.n_embd", "model.context_length", "model.dropout", "model.bias", "model.norm"),
    *("model.positions", "model.conv_width", "model.vocab_size", "data.batch_size", "data.val_fraction", "data.path", "seed"),
    *("optimizer.lr", "optimizer.betas", "optimizer.muon_lr", "scheduler.shape", "scheduler.warmup_ratio", "trainer.precision"),
    *("trainer.val_check_interval", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches", "trainer.devices", "name"),
    *("callbacks.samples.prompt", "callbacks.samples.temperatures", "callbacks.attention.text", "resume", "model", "nonsense"),
]
NUMBERS = st.integers(-2, 17).map(str) | st.floats(-2, 2).map(str)
WORDS = st.sampled_from(
    ["null", "true", "abc", "[0.5,0.9]", "[]", "1e1", "nan", "inf", "learned", "rmsnorm", "cosine", "a=b", "''", "{}"]
)
OVERRIDES = st.lists(
    st.tuples(st.sampled_from(KEYS), NUMBERS | WORDS | st.text("a1.-_ /'{}[]$:", max_size=4)), min_size=1, max_size=3
)
ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+\n\Z")


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(OVERRIDES)
def test_any_configuration(call, text, overrides):
    shutil.rmtree("outputs", ignore_errors=True)
    given = [f"{key}={value}" for key, value in overrides]
    code, out, err = call(*TINY, "data.batch_size=2", "trainer.max_steps=1", f"data.path={text}", *given)
    hypothesis.note(f"{given}: {code}\n{err}")
    assert "Traceback" not in err
    if code == 0:
        assert "after 1 steps" in out
    else:
        assert code == 2
        assert ONE_LINE.match(err)
        assert not list(Path().glob("outputs/*"))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.text(max_size=40), st.integers(-1, 3), st.floats(), st.integers(-1, 99), st.floats(-1, 2))
def test_any_prompt(trained, capsys, prompt, tokens, temperature, top_k, top_p):
    settings = [f"--tokens={tokens}", f"--temperature={temperature}", f"--top-k={top_k}", f"--top-p={top_p}"]
    capsys.readouterr()
    with contextlib.suppress(UserError):
        sample.main([str(trained), f"--prompt={prompt}", *settings])
        assert len(capsys.readouterr().out) >= tokens
