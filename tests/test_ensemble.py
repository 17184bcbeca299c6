"""Several models as one: what they expect is averaged, in evaluation and in sampling."""

import json

import pytest
import torch

import evaluate
import sample
from conftest import make_model
from gpt.ensemble import Ensemble
from gpt.errors import UserError
from gpt.generate import generate


def test_probabilities_are_averaged():
    members = [make_model("modern").eval(), make_model("gpt2").eval()]
    ids = torch.randint(11, (2, 5))
    expected = (members[0](ids).softmax(-1) + members[1](ids).softmax(-1)) / 2
    torch.testing.assert_close(Ensemble(members)(ids).softmax(-1), expected)


def test_ensemble_writes_what_it_expects_past_the_shortest_context():
    members = [make_model("modern", context_length=16).eval(), make_model("gpt1", context_length=12).eval()]
    ensemble, ids = Ensemble(members), torch.tensor([[1, 2, 3]])
    window, expected = ids, []
    for _ in range(20):
        window = window[:, -6:] if window.size(1) > 12 else window
        expected.append(ensemble(window)[:, -1].argmax(-1))
        window = torch.cat((window, expected[-1][:, None]), dim=1)
    drawn = list(generate(ensemble, ids, 20, temperature=0))
    assert torch.equal(torch.stack(drawn), torch.stack(expected))


def test_programs_average_several_runs(succeed, capsys):
    for seed in (1, 2):
        succeed("trainer.max_steps=3", f"seed={seed}", f"hydra.run.dir=run{seed}")

    def loss(*arguments: str) -> float:
        capsys.readouterr()
        evaluate.main([*arguments, "--json"])
        return json.loads(capsys.readouterr().out)["val"]["loss"]

    single, together = [loss("run1"), loss("run2")], loss("run1", "run2")
    assert together < sum(single) / 2  # the mean of logarithms is below the logarithm of the mean
    assert loss("run1", "run2", "--context-length", "4") > together  # less to go by
    sample.main(["run1", "run2", "--prompt", "O", "--tokens", "30", "--seed", "1", "--exact"])
    assert len(capsys.readouterr().out) == len("O" + 30 * "." + "\n")


def test_runs_on_other_texts_are_not_averaged(succeed, text):
    succeed("trainer.max_steps=1", "hydra.run.dir=one")
    text.write_text(text.read_text() + "O")
    succeed("trainer.max_steps=1", "hydra.run.dir=two")
    with pytest.raises(UserError, match=r"two.* has seen another text than one"):
        evaluate.main(["one", "two"])
