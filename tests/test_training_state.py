"""The training state of edited checkpoints: each edit is one line, before Lightning sees it."""

import copy
import math
from dataclasses import asdict

import lightning as L
import numpy as np
import pytest
import torch

from conftest import make_model
from gpt.callbacks.averaging import EMA
from gpt.checkpoint import FORMAT, read
from gpt.checkpoint_io import AtomicCheckpointIO
from gpt.data import ShuffledWindows
from gpt.module import GPTModule
from gpt.optim import AdamWConfig, MuonConfig, SchedulerConfig
from gpt.settings import UserError
from gpt.tokenizer import CharTokenizer
from gpt.training_state import check_training_state

ADAMW = AdamWConfig(name="adamw", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
MUON = MuonConfig(name="muon", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, muon_lr=0.02, muon_momentum=0.95)
CONSTANT = SchedulerConfig(shape="linear", warmup_ratio=0.0, decay_ratio=0.0, min_lr_ratio=1.0)
STEPS = 3


class Metadata(L.Callback):
    def __init__(self, module: GPTModule) -> None:
        self.module = module

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        checkpoint["gpt"] = {
            "format": FORMAT,
            "model": asdict(self.module.model.config),
            "tokenizer": CharTokenizer("abcdefghijk").state,
            "text_sha256": "",
            "config": {"optimizer": asdict(self.module.optimizer_config)},
        }


def train(path, optimizer: AdamWConfig, *callbacks: L.Callback) -> dict:
    """Train for three steps, and return the content of the checkpoint that Lightning writes."""
    module = GPTModule(make_model(), optimizer, CONSTANT)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        callbacks=[Metadata(module), *callbacks],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    ids = np.random.default_rng(0).integers(11, size=200, dtype=np.uint8)
    trainer.fit(module, ShuffledWindows(ids, 16, 4, seed=1, length=STEPS), ShuffledWindows(ids, 16, 4, seed=1, length=1))
    trainer.save_checkpoint(path)
    return read(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("runs")
    return {config.name: train(folder / f"{config.name}.ckpt", config) for config in (ADAMW, MUON)}


@pytest.fixture(params=["adamw", "muon"])
def content(request, saved) -> dict:
    return copy.deepcopy(saved[request.param])


def test_state_that_training_wrote_is_accepted(content):
    check_training_state(content)


def test_averaged_weights_are_accepted(tmp_path):
    content = train(tmp_path / "ema.ckpt", ADAMW, EMA(decay=0.9))
    assert {"current_model_state", "averaging_state"} <= content.keys()
    check_training_state(content)


def test_lightning_reads_checkpoints_through_the_checks(tmp_path, saved):
    broken = copy.deepcopy(saved["adamw"])
    broken["epoch"] = "many"
    broken["pytorch-lightning_version"] = "1.4.0"  # Lightning would rewrite the rest
    broken["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["reset"] = 1  # this is one of its methods
    broken["lr_schedulers"] = ["linear"]
    torch.save(broken, tmp_path / "a.ckpt")
    read_back = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert read_back["pytorch-lightning_version"] == L.__version__
    assert not read_back["loops"]
    assert not read_back["lr_schedulers"]
    broken["global_step"] = "many"
    torch.save(broken, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="global_step = many: not a count"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def optimizer(content: dict) -> dict:
    return content["optimizer_states"][0]


def first_state(content: dict) -> dict:
    return optimizer(content)["state"][0]


EDITS = {
    "no global_step": lambda c: c.pop("global_step"),
    "no optimizer": lambda c: c.pop("optimizer_states"),
    "unknown part": lambda c: c.update(CharData={"path": "x"}),
    "unknown part with escapes": lambda c: c.update({"a\n\x1b[2J" + "x" * 10_000: {}}),
    "step is text": lambda c: c.update(global_step="3"),
    "step is true": lambda c: c.update(global_step=True),
    "step is huge": lambda c: c.update(global_step=10**300),
    "step is negative": lambda c: c.update(global_step=-3),
    "step of another run": lambda c: c.update(global_step=4),
    "weight is missing": lambda c: c["state_dict"].popitem(),
    "weight has a new name": lambda c: c["state_dict"].update(x=torch.zeros(1)),
    "weight has another shape": lambda c: c["state_dict"].update({"model.head.weight": torch.zeros(3)}),
    "weight is text": lambda c: c["state_dict"].update({"model.head.weight": "x"}),
    "weight is nan": lambda c: c["state_dict"]["model.head.weight"].fill_(math.nan),
    "no states": lambda c: c.update(optimizer_states=[]),
    "two states": lambda c: c.update(optimizer_states=c["optimizer_states"] * 2),
    "state is a list": lambda c: c.update(optimizer_states=[[]]),
    "groups are text": lambda c: optimizer(c).update(param_groups="groups"),
    "no groups": lambda c: optimizer(c).update(param_groups=[]),
    "group has more": lambda c: optimizer(c)["param_groups"][0].update(_target_="os.system"),
    "parameter twice": lambda c: optimizer(c)["param_groups"][0]["params"].append(0),
    "parameter is text": lambda c: optimizer(c)["param_groups"][0].update(params="all"),
    "parameter is a tensor": lambda c: optimizer(c)["param_groups"][0]["params"].__setitem__(0, torch.zeros(2)),
    "moments of nothing": lambda c: optimizer(c)["state"].update({999: {}}),
    "moments are missing": lambda c: optimizer(c)["state"].pop(0),
    "moment is missing": lambda c: first_state(c).popitem(),
    "moment has another shape": lambda c: first_state(c).update({key: torch.zeros(2, 3) for key in first_state(c)}),
    "moment is a number": lambda c: first_state(c).update({key: 1.0 for key in first_state(c)}),
    "moment is inf": lambda c: [tensor.fill_(math.inf) for tensor in first_state(c).values()],
    "callbacks is a list": lambda c: c.update(callbacks=[]),
    "callback is a number": lambda c: c["callbacks"].update(best=3),
    "no configuration": lambda c: c["gpt"].pop("config"),
    "configuration is text": lambda c: c["gpt"].update(config="all"),
    "optimizer is unknown": lambda c: c["gpt"]["config"]["optimizer"].update(name="sgd"),
    "optimizer of another kind": lambda c: c["gpt"]["config"].update(
        optimizer=asdict(OTHER[c["gpt"]["config"]["optimizer"]["name"]])
    ),
    "model is a list": lambda c: c["gpt"].update(model=[]),
    "model has other sizes": lambda c: c["gpt"]["model"].update(n_layer=1),
}
OTHER = {"adamw": MUON, "muon": ADAMW}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_state_is_one_line(content, edit):
    EDITS[edit](content)
    with pytest.raises(UserError) as error:
        check_training_state(content)
    message = str(error.value)
    assert message.startswith("checkpoint = (training state): cannot be resumed (")
    assert message.endswith("; use a checkpoint that this project wrote")
    assert message.isprintable()
    assert len(message) < 400
