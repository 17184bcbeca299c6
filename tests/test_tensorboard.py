"""What a run shows in TensorBoard, and what it never writes there."""

import itertools
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import ListHyperparametersResult
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.hparams.backend_context import Context
from test_callbacks import fit

from conftest import TINY
from gpt.callbacks.attention_maps import draw_attention
from gpt.callbacks.checkpoints import LastCheckpoint
from gpt.callbacks.metrics_file import MetricsFile
from gpt.callbacks.tensorboard import HParams, TensorBoard, writers


@pytest.fixture
def events(call, text) -> EventAccumulator:
    """Everything in the event files of a run with two validations."""
    settings = [
        "callbacks.samples.temperatures=[0.8,0]",
        "callbacks.attention.text=ROMEO",
        "callbacks.attention.every=1",
        "model.n_layer=2",
        "seed=5",
    ]
    code, _, err = call(
        *TINY, *settings, f"data.path={text}", "trainer.max_steps=4", "trainer.val_check_interval=2", "hydra.run.dir=run"
    )
    assert code == 0, err
    accumulated = EventAccumulator("run", size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    accumulated.Reload()
    return accumulated


def test_run_shows_attention_maps_and_samples(events):
    pictures = {tag for tag in events.Tags()["images"] if "attention" in tag}
    assert pictures == {"weights/attention in layer 1", "weights/attention in layer 2"}
    for picture in pictures:
        assert [image.step for image in events.Images(picture)] == [1, 3]
        assert events.Images(picture)[0].width > 200
    assert {"sample/temperature 0.8/text_summary", "sample/temperature 0/text_summary"} <= set(events.Tags()["tensors"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_every_token_of_an_attention_map_can_be_read():
    tokens = list("ROMEO:\nO, speak again,$\\")
    weights = torch.eye(24).expand(4, 24, 24)
    figure = draw_attention(weights, tokens, "Attention in layer 1")
    FigureCanvasAgg(figure).draw()
    heads = [axes for axes in figure.axes if axes.get_title()]
    assert len(heads) == 4
    for axes in heads:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [label.get_text() for label in labels[:8]] == [*"ROMEO:\u23ceO"]
            assert all(label.get_fontsize() >= 8 for label in labels)
            boxes = [label.get_window_extent() for label in labels]
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_hparams_are_the_settings_and_the_best_loss(events):
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert hparams["seed"].number_value == 5
    assert hparams["model.n_layer"].number_value == 2
    assert hparams["model"].string_value == "tiny"
    best = [event.value for event in events.Scalars("loss/val_best_bits_per_char")]
    assert best == pytest.approx([event.value for event in events.Scalars("val/bits_per_char")])  # which fell both times


def test_hparams_show_what_differs_between_runs_of_any_kinds(call, text):
    for name, given in {"a": [], "b": ["model/arch=gpt1"], "c": ["data.tokenizer=byte"]}.items():
        arguments = ["callbacks.attention=null", f"data.path={text}", "trainer.max_steps=1", f"hydra.run.dir=runs/{name}"]
        code, _, err = call(*TINY, *given, *arguments)
        assert code == 0, err
    multiplexer = EventMultiplexer().AddRunsFromDirectory("runs")
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, "runs")
    context = Context(TBContext(data_provider=provider))
    metadata = context.hparams_metadata(RequestContext(), "")
    none = ListHyperparametersResult(hyperparameters=[], session_groups=[])
    experiment = context.experiment_from_metadata(RequestContext(), "", True, metadata, none)
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert {"model.positions", "model.bias", "data.tokenizer"} <= differing
    assert not {"seed", "trainer.max_steps", "data.batch_size"} & differing
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert "loss/val_best_bits_per_char" in metrics
    assert "epoch" not in metrics
    assert min(metrics).startswith("loss/")  # the first cards


def test_run_without_tensorboard_draws_nothing(call, text):
    code, _, err = call(*TINY, f"data.path={text}", "logger=csv", "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    assert {path.name for path in Path("run").iterdir() if not path.name.startswith(".lock")} == {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "result.json",
        "run.json",
        "sample.txt",
    }


class Write(Callback):
    """Writes a text after each validation, and ends the process in the middle of one, as SIGKILL would."""

    def __init__(self, killed_at: int | None) -> None:
        self.killed_at = killed_at

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        for writer in writers(trainer):
            writer.add_text("sample", f"after step {trainer.global_step}", trainer.global_step - 1)
            writer.flush()
        if trainer.global_step == self.killed_at:
            raise SystemExit


@pytest.mark.filterwarnings("ignore")
def test_killed_and_resumed_run_shows_each_point_once(tmp_path):
    for killed_at in (30, 40, None):
        callbacks = [LastCheckpoint(), HParams({"seed": 1}), Write(killed_at)]
        try:
            fit(tmp_path, 60, callbacks, loggers=[TensorBoard(tmp_path), MetricsFile(tmp_path)])
        except SystemExit:
            assert killed_at
    shown = plugin_event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})  # TensorBoard's own
    shown.Reload()
    for tag in ("loss/val_best_bits_per_char", "loss/val", "sample/text_summary"):
        assert [event.step for event in shown.Tensors(tag)] == [9, 19, 29, 39, 49, 59], tag
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows if not row.endswith(",")] == ["9", "19", "29", "39", "49", "59"]  # val/loss is last


def test_nothing_is_written_through_a_link(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "hparams.yaml").symlink_to(tmp_path / "written")
    fit(run, 10, [HParams({"seed": 1})], loggers=[TensorBoard(run)])
    assert not (tmp_path / "written").exists()
    assert {path.name for path in run.iterdir() if "tfevents" not in path.name} == {"hparams.yaml"}


def test_name_of_an_event_file_cannot_be_foreseen(tmp_path):
    names = []
    for _ in range(2):
        logger = TensorBoard(tmp_path)
        logger.log_metrics({"val/loss": 1.0}, step=0)
        logger.finalize("success")
        (path,) = tmp_path.iterdir()
        names.append(path.suffix)
        path.unlink()
    assert len({*names}) == 2
    assert all(len(name) == 17 for name in names)


@pytest.mark.parametrize("name", ["$HOME", "~", "a b", "a::b", "日本"])
def test_folder_is_used_as_it_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    logger = TensorBoard(Path(name))
    logger.log_metrics({"val/loss": 1.0}, step=0)
    logger.finalize("success")
    assert [path.name for path in tmp_path.iterdir()] == [name]
