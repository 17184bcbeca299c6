"""The model that comes with the project: it is what it says, writes a play, and any run can be packed so."""

import json
import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch

import evaluate
import export_hf
import pack
import sample
from conftest import ROOT, TINY
from gpt.checkpoint import load, read
from gpt.errors import UserError
from gpt.files import PRETRAINED
from gpt.text import SHA256, tiny_shakespeare


@pytest.fixture(scope="module")
def pretrained():
    return load(PRETRAINED)


def test_it_is_small_and_git_knows_it():
    assert PRETRAINED.stat().st_size <= pack.LARGEST
    name = str(PRETRAINED.relative_to(ROOT))
    listed = subprocess.run(["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.strip() == name


def test_it_holds_float16_weights_and_says_nothing_about_where_it_was_made():
    content = read(PRETRAINED)
    assert {weight.dtype for weight in content["state_dict"].values()} == {torch.float16}
    texts = re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(content["gpt"]))
    assert not [text for text in texts if text.startswith(("/", "~")) or platform.node() in text.split()]


def test_its_losses_are_those_that_it_says(pretrained):
    """Of the first 32 windows, that is. The loss of all of them is within 0.001 of the run's own."""
    model, tokenizer, metadata = pretrained
    assert next(model.parameters()).dtype == torch.float32
    assert metadata["text_sha256"] == SHA256
    text = tiny_shakespeare(Path("data"))
    ids = tokenizer.ids(text[int(len(text) * 0.9) :])
    stored, trained = metadata["pretrained"]["losses_as_stored"], metadata["pretrained"]["losses_as_trained"]
    context = model.config.context_length
    first = pack.mean_loss(model, ids, context, batches=1)
    assert first == pytest.approx(stored["val_loss_first_batch"], abs=1e-4)
    assert stored["val_loss"] == pytest.approx(trained["val_loss"], abs=1e-3)
    assert trained["val_loss"] < 1.41


def test_it_writes_a_play(capsys):
    options = ["--seed", "1", "--temperature", "0.6", "--tokens", "600"]
    sample.main(["--pretrained", "--prompt", "ROMEO:\n", *options])
    names = re.findall(r"^([A-Z][A-Z ]+):$", capsys.readouterr().out, re.MULTILINE)[1:]
    assert names
    assert set(names) <= set(re.findall(r"^([A-Z][A-Z ]+):$", tiny_shakespeare(Path("data")), re.MULTILINE))


def test_programs_take_it(text, capsys, monkeypatch):
    assert evaluate.parse(["--pretrained"]).checkpoint == ["pretrained"]
    with pytest.raises(UserError, match="argument --pretrained: not allowed with argument RUN"):
        evaluate.parse(["outputs/RUN", "--pretrained"])
    evaluate.main(["--pretrained", "--data", str(text)])
    assert "\nval  " in capsys.readouterr().out
    monkeypatch.chdir(text.parent)
    with pytest.raises(UserError, match=r"modern|rotary|transformers"):  # which transformers lacks
        export_hf.main(["--pretrained", "--out", "exported"])


@pytest.mark.parametrize("arch", ["modern", "gpt2"])  # gpt2 has a tied head
def test_a_run_is_packed_without_the_names_of_its_folders(arch, call, tmp_path):
    folder = tmp_path / "somewhere"
    settings = [*TINY, f"model/arch={arch}", "callbacks.samples=null", "trainer.max_steps=1"]
    code, _, err = call(*settings, f"data.folder={folder}", "hydra.run.dir=run", "model.n_layer=1")
    assert code == 0, err
    about = pack.pack(Path("run"), tmp_path / "packed.safetensors")
    model, _, metadata = load(tmp_path / "packed.safetensors")
    assert metadata["pretrained"] == about
    assert about["command"].endswith("model.n_layer=1")
    exact, rounded = about["losses_as_trained"], about["losses_as_stored"]
    assert rounded["val_loss"] == pytest.approx(exact["val_loss"], abs=1e-3)
    trained = load("run")[0].parameters()
    for weight, stored in zip(trained, model.parameters(), strict=True):
        assert torch.equal(weight.half().float(), stored)
    assert str(tmp_path).encode() not in (tmp_path / "packed.safetensors").read_bytes()


def test_a_run_on_another_text_is_not_packed(trained, tmp_path):
    with pytest.raises(UserError, match="not trained on Tiny Shakespeare"):
        pack.pack(trained, tmp_path / "packed.safetensors")
    assert not (tmp_path / "packed.safetensors").exists()
