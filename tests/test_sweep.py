import csv
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TINY
from gpt.callbacks import StepSeed

SWEEP = ["-m", *TINY, "trainer.max_steps=2", "model.n_layer=1", "model.n_head=2,3,4"]


def lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if " of 3  " in line]


def test_a_sweep_says_one_line_a_job_goes_on_after_a_bad_one_and_ends_in_a_table(call, text):
    code, out, err = call(*SWEEP, f"data.path={text}")
    assert code == 2
    assert [line.split(": ")[0] for line in lines(out)] == ["1 of 3  n_head=2", "2 of 3  n_head=3", "3 of 3  n_head=4"]
    assert "failed: model.n_head = 3: n_embd = 16 is not divisible by it" in lines(out)[1]
    (folder,) = Path("outputs/sweeps").iterdir()
    assert folder.name.startswith("tiny_n_head_")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"n_head=2", "n_head=3", "n_head=4"}
    assert {"compare.md", "compare.csv", "curves.png", "axes.png", "compute.png"} <= {path.name for path in folder.iterdir()}
    table = (folder / "compare.md").read_text()
    assert table in out
    assert "n_head=3: model.n_head = 3: n_embd = 16 is not divisible by it" in table
    assert err.startswith("error: sweep = outputs/sweeps/tiny_n_head_")
    assert "1 of 3 jobs failed" in err
    assert err.count("\n") == 1
    assert len(out.splitlines()) == len(lines(out)) + 1 + len(table.splitlines()) + 2  # and no banners


def test_the_same_command_does_what_is_left_and_another_is_another_sweep(call, text):
    call(*SWEEP, f"data.path={text}")
    (folder,) = Path("outputs/sweeps").iterdir()
    (folder / "n_head=4" / "result.json").unlink()
    kept = (folder / "n_head=2" / "result.json").read_bytes()
    _, out, _ = call(*SWEEP, f"data.path={text}")
    assert ["done before" in line for line in lines(out)] == [True, False, False]
    assert (folder / "n_head=2" / "result.json").read_bytes() == kept
    assert (folder / "n_head=4" / "result.json").exists(), out
    code, _, _ = call(*SWEEP[:-1], "model.n_head=2,4", f"data.path={text}", "optimizer.lr=1e-4")
    assert code == 0
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_choices_of_groups_and_equal_names_make_folders_of_their_own(call, text):
    code, _, err = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=1", "model/arch=gpt1,gpt2", "seed=1,2")
    assert code == 0, err
    (folder,) = Path("outputs/sweeps").iterdir()
    runs = {path.name for path in folder.iterdir() if path.is_dir()}
    assert runs == {"arch=gpt1,seed=1", "arch=gpt1,seed=2", "arch=gpt2,seed=1", "arch=gpt2,seed=2"}
    assert "norm_position" in (folder / "compare.md").read_text()


def test_what_is_typed_replaces_what_an_experiment_sweeps_over(call, text):
    typed = ["experiment=sweep_arch", *TINY, f"data.path={text}", "trainer.max_steps=1", "model/arch=gpt2,modern", "seed=7"]
    code, out, err = call(*typed)
    assert code == 0, err
    assert [line.split(": ")[0] for line in out.splitlines()[:2]] == ["1 of 2  arch=gpt2", "2 of 2  arch=modern"]


def test_a_folder_that_holds_another_run_is_left_alone(call, text):
    run = [*TINY, f"data.path={text}", "trainer.max_steps=2", "hydra.run.dir=run"]
    assert call(*run)[0] == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*")}
    code, _, err = call(*run, "optimizer.lr=1e-4")
    assert code == 2
    assert err.startswith("error: optimizer.lr = 0.0001: the run in ")
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before
    assert call(*run)[0] == 0  # the same once more: nothing to do
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before


def history(folder: str) -> list[dict[str, str]]:
    """All that was logged but the speed."""
    with open(f"{folder}/metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if not key.startswith("perf")} for row in csv.DictReader(file)]


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder)
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer=adamw"],
        ["optimizer=muon", "model.dropout=0.2"],
        ["optimizer=muon", "model.dropout=0.2", "trainer.accumulate_grad_batches=2"],
        ["optimizer=adamw", "callbacks=ema", "callbacks.ema.decay=0.5", "trainer.val_check_interval=2"],
    ],
    ids=" ".join,
)
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_happened(call, text, monkeypatch, settings):
    run = [*TINY, f"data.path={text}", "trainer.max_steps=8", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
    assert call(*run, *settings, "hydra.run.dir=whole")[0] == 0
    seed_batch, cuts = StepSeed.on_train_batch_start, [-1, 7, 5]

    def cut(self, trainer, pl_module, batch, batch_idx):
        seed_batch(self, trainer, pl_module, batch, batch_idx)
        if trainer.global_step == cuts[-1]:
            raise RuntimeError("the plug was pulled")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", cut)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="plug"):
            call(*run, *settings, "hydra.run.dir=parts")
        cuts.pop()
        assert not Path("parts/result.json").exists()
    assert call(*run, *settings, "hydra.run.dir=parts")[0] == 0

    assert history("parts") == history("whole")
    parts, whole = scalars("parts"), scalars("whole")
    best = "hp/best_val_loss"  # also begins with nan, and begins anew with the best so far
    assert {event for event in whole.pop(best) if event[1] == event[1]} <= set(parts.pop(best))
    assert parts == whole
    for name in ("best", "last"):
        parts, whole = (torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True) for run in ("parts", "whole"))
        assert parts["global_step"] == whole["global_step"]
        assert all(torch.equal(parts["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
    parts, whole = (json.loads(Path(f"{run}/result.json").read_text()) for run in ("parts", "whole"))
    assert all(parts[key] == whole[key] for key in ("best_val_loss", "best_step", "final_val_loss", "step"))
