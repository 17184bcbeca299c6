import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from conftest import TINY, make_model
from gpt.tensorboard import attention_weights


def test_attention_weights_are_those_that_the_model_uses(arch):
    model = make_model(arch)
    ids = torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(ids)
    weights = attention_weights(model.train(), ids)
    assert weights.shape == (2, 2, 2, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 12))
    assert weights.triu(1).eq(0).all()  # nobody looks ahead
    assert model.training
    torch.testing.assert_close(model.eval()(ids), before)  # and the model is what it was


@pytest.fixture
def events(call, text) -> EventAccumulator:
    shown = [
        "callbacks.samples.temperatures=[0.8,0]",
        "callbacks.attention.text=ROMEO",
        "callbacks.attention.every=1",
        "model.n_layer=2",
        "seed=5",
    ]
    code, _, err = call(
        *TINY, *shown, f"data.path={text}", "trainer.max_steps=4", "trainer.val_check_interval=2", "hydra.run.dir=run"
    )
    assert code == 0, err
    accumulated = EventAccumulator("run", size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    accumulated.Reload()
    return accumulated


def test_what_a_run_shows(events):
    scalars = set(events.Tags()["scalars"])
    assert {f"weight_norm/{part}" for part in ("tokens", "block_1", "block_2", "head")} <= scalars
    (picture,) = {tag for tag in events.Tags()["images"] if tag.startswith("attention")}
    assert [image.step for image in events.Images(picture)] == [1, 3]
    assert events.Images(picture)[0].width > 200
    assert {"sample/temperature 0.8/text_summary", "sample/temperature 0/text_summary"} <= set(events.Tags()["tensors"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    names = next(Path("run").glob("*/tokens/metadata.tsv")).read_text().splitlines()
    assert names[0] == r"'\n'"
    assert len(next(Path("run").glob("*/tokens/tensors.tsv")).read_text().splitlines()) == len(names)


def test_hparams_have_what_was_typed_and_the_best_loss(events):
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert hparams["seed"].number_value == 5
    assert hparams["model.n_layer"].number_value == 2
    assert hparams["model"].string_value == "tiny"
    best = [event.value for event in events.Scalars("hp/best_val_loss") if not math.isnan(event.value)]
    assert best == pytest.approx([event.value for event in events.Scalars("val/loss")])  # which fell both times


def test_without_tensorboard_nothing_is_drawn(call, text):
    code, _, err = call(*TINY, f"data.path={text}", "logger=csv", "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    assert {path.name for path in Path("run").iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "result.json",
        "run.json",
        "sample.txt",
    }
