"""Several models as one: what they expect is averaged, in evaluation and in sampling."""

import pytest
import torch

import evaluate
import sample
from conftest import TINY, make_model
from gpt.ensemble import Ensemble
from gpt.generate import generate
from gpt.settings import UserError


def test_probabilities_are_averaged():
    torch.manual_seed(0)
    members = [make_model("modern").eval(), make_model("gpt2").eval()]
    ids = torch.randint(11, (2, 5))
    expected = (members[0](ids).softmax(-1) + members[1](ids).softmax(-1)) / 2
    torch.testing.assert_close(Ensemble(members)(ids).softmax(-1), expected)


def test_ensemble_writes_what_it_expects_past_the_shortest_context():
    torch.manual_seed(0)
    members = [make_model("modern", context_length=16).eval(), make_model("gpt1", context_length=12).eval()]
    ensemble, ids = Ensemble(members), torch.tensor([[1, 2, 3]])
    window, expected = ids, []
    for _ in range(20):
        window = window[:, -6:] if window.size(1) > 12 else window
        expected.append(ensemble(window)[:, -1].argmax(-1))
        window = torch.cat((window, expected[-1][:, None]), dim=1)
    assert torch.equal(torch.stack(list(generate(ensemble, ids, 20, temperature=0))), torch.stack(expected))


def test_programs_average_several_runs(call, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=3", f"seed={seed}", f"hydra.run.dir=run{seed}")
        assert code == 0, err
    single = [evaluate.evaluate(f"run{seed}")["val"]["loss"] for seed in (1, 2)]
    together = evaluate.evaluate("run1", "run2")["val"]["loss"]
    assert together < sum(single) / 2  # the mean of logarithms is below the logarithm of the mean
    assert evaluate.evaluate("run1", "run2", context_length=4)["val"]["loss"] > together  # less to go by
    capsys.readouterr()
    sample.main(["run1", "run2", "--prompt", "a", "--tokens", "30", "--seed", "1", "--exact"])
    assert len(capsys.readouterr().out) == len("a" + 30 * "." + "\n")


def test_runs_on_other_texts_are_not_averaged(call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + "a")
    for name, path in (("one", text), ("two", other)):
        code, _, err = call(*TINY, f"data.path={path}", "trainer.max_steps=1", f"hydra.run.dir={name}")
        assert code == 0, err
    with pytest.raises(UserError, match=r"two.* has seen another text than one"):
        evaluate.evaluate("one", "two")


def test_windows_are_no_longer_than_the_context(call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    with pytest.raises(UserError, match="--context-length = 4000: the model sees at most"):
        evaluate.evaluate("run", context_length=4000)
