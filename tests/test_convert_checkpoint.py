"""What version 0.2 left of a run (format 4, pickled) becomes what this version would have written."""

import shutil
from pathlib import Path

import convert_checkpoint
import pytest
import torch
import yaml

from conftest import assert_same_run, read_checkpoint, same
from gpt.checkpoint import find
from gpt.errors import UserError

# whose loss gets worse
SETTINGS = "callbacks=early_stopping callbacks.early_stopping.patience=4 optimizer.lr=10 trainer.max_steps=4"


def make_former(path: Path) -> None:
    """Put what version 0.2 would have written in place of a checkpoint."""
    content = read_checkpoint(path)
    content["state_dict"] = {f"model.{name}": weight for name, weight in content["state_dict"].items()}
    config = content["gpt"]["config"]
    for node in [*config["callbacks"].values(), *config["logger"].values()]:  # they were chosen by name
        node.pop("_target_")
        node.pop("save_dir", None)
    step = content["gpt"].pop("step")
    content |= {"global_step": step, "epoch": 0, "loops": {}, "lr_schedulers": [{"last_epoch": step}]}
    if state := content.get("callbacks", {}).get("early_stopping"):
        former = {"lowest": state["best_score"].item(), "validations": state["wait_count"]}
        content["callbacks"]["early_stopping"] = former
    torch.save(content | {"gpt": content["gpt"] | {"format": 4}}, path.with_suffix(".ckpt"))
    path.unlink()
    (path.parents[1] / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_converted_run_continues_as_if_it_had_always_been_one_of_this_version(succeed, call):
    succeed(*SETTINGS.split(), "trainer.val_check_interval=1", "hydra.run.dir=kept")
    shutil.copytree("kept", "run")
    names = ["checkpoints/best.safetensors", "checkpoints/last.safetensors"]
    for name in names:
        make_former(Path("run", name))
    with pytest.raises(UserError, match=r"convert_checkpoint\.py RUN converts it"):
        find("run")
    code, out, _ = call("run", main=convert_checkpoint.main, name="convert_checkpoint.py")
    assert (code, out.split()) == (0, [f"run/{name}" for name in [*names, "config.yaml"]])
    for name in names:
        kept, converted = (read_checkpoint(Path(run, name))["state_dict"] for run in ("kept", "run"))
        assert same(converted, kept)
    for run in ("kept", "run"):
        code, _, err = call(f"resume={run}", "trainer.max_steps=8")
        assert code == 0, err
    assert_same_run("run", "kept")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\3\4")
    torch.save({"gpt": {"format": 3}}, tmp_path / "older.ckpt")
    torch.save({"gpt": pytest.approx}, tmp_path / "code.ckpt")
    for name, reason in {"damaged": "not one of", "older": "is 3, not 4", "code": "not one of"}.items():
        with pytest.raises(UserError, match=reason):
            convert_checkpoint.convert(tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match="no run of the former format"):
        convert_checkpoint.convert_run(tmp_path)
