import csv
import json

import pytest
from omegaconf import OmegaConf

import compare
from conftest import ARCHITECTURES
from gpt.settings import UserError


def make_run(folder, n_layer, n_head, seed, loss):
    """A run folder as scripts/train.py leaves it; without a loss, one that was cut off."""
    folder.mkdir(parents=True)
    sizes = dict(vocab_size=None, context_length=16, n_layer=n_layer, n_head=n_head, n_embd=16, dropout=0.0)
    config = dict(
        model=ARCHITECTURES["modern"] | sizes,
        data=dict(batch_size=4),
        optimizer=dict(name="muon", betas=[0.9, 0.99]),
        trainer=dict(max_steps=20, accumulate_grad_batches=1),
        seed=seed,
        run_dir=str(folder),
        callbacks=dict(best=dict(dirpath=str(folder))),
    )
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "metrics.csv").write_text(f"step,val/loss,lr\n9,{(loss or 3) + 1},\n12,,0.1\n19,{loss or 3},\n")
    if loss is not None:
        result = dict(best_val_loss=loss, step=20, vocab_size=65, parameters=1000 * n_layer, seconds=2.0, chars_per_second=640.0)
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def sweep(tmp_path):
    for n_layer, n_head, loss in ((1, 1, 2.5), (1, 2, 2.4), (2, 1, 2.2), (2, 2, 2.0)):
        for seed in (1, 2):
            make_run(tmp_path / f"n_layer={n_layer},n_head={n_head},seed={seed}", n_layer, n_head, seed, loss + seed / 10)
    make_run(tmp_path / "n_layer=4", 4, 1, 1, None)
    (tmp_path / "n_head=3").mkdir()
    (tmp_path / "n_head=3" / "error.txt").write_text("model.n_head = 3: no\n\nTraceback\n")
    return tmp_path


def test_the_table_has_what_varies_best_first_and_names_what_did_not_finish(sweep):
    shown = compare.compare(sweep)
    with open(sweep / "compare.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["n_layer", "n_head", "val loss", "sd", "seeds", "parameters", "characters/s", "seconds"]
    assert [(line["n_layer"], line["n_head"]) for line in lines] == [("2", "2"), ("2", "1"), ("1", "2"), ("1", "1")]
    assert lines[0] | {"sd": ""} == dict(
        zip(lines[0], ["2", "2", "2.1500", "", "2", "2000", "640", "2"], strict=True)
    )  # seeds 1 and 2: 2.1 and 2.2
    assert lines[0]["sd"] == "0.0707"
    assert "n_layer=4: not finished" in shown
    assert "n_head=3: model.n_head = 3: no" in shown
    table = (sweep / "compare.md").read_text()
    assert table.splitlines()[2].split("|")[1:4] == ["       2 ", "      2 ", "   2.1500 "]
    assert table.startswith("| n_layer |")


def test_pictures_are_drawn(sweep):
    compare.compare(sweep)
    assert {path.stem for path in sweep.glob("*.png")} == {"curves", "axes", "compute", "heat"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in sweep.glob("*.png"))


def test_numbers_are_in_their_order_and_lists_can_vary():
    groups = [compare.Group({"x": value}, [run]) for value, run in ((8, loss(2.0)), (16, loss(1.0)), (4, loss(3.0)))]
    assert compare.by_value(groups, "x") == {"4": [3.0], "8": [2.0], "16": [1.0]}
    groups = [compare.Group({"x": [0.9, beta]}, [loss(beta)]) for beta in (0.99, 0.95)]
    assert list(compare.by_value(groups, "x").values()) == [[0.95], [0.99]]


def loss(value):
    return compare.Run(folder=None, settings={}, result={"best_val_loss": value}, curve=[])


def test_compute_counts_every_step(sweep):
    by_folder = {run.folder.name: run for run in compare.read_runs(sweep) if run.result}
    one, two = by_folder["n_layer=1,n_head=1,seed=1"], by_folder["n_layer=2,n_head=1,seed=1"]
    weights = 12 * 16 * 16 + 65 * 16  # of the blocks, and of the head
    assert one.flops == 20 * 4 * 16 * (6 * weights + 12 * 16 * 16)
    assert two.flops > one.flops


def test_one_run_alone_has_nothing_to_compare_and_no_runs_are_an_error(tmp_path):
    make_run(tmp_path / "one", 1, 1, 1, 2.0)
    assert "2.0000" in compare.compare(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"curves", "compute"}
    with pytest.raises(UserError, match="no finished run in it"):
        compare.compare(tmp_path / "nowhere")
