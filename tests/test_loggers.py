"""Where the numbers of a run go: metrics.csv, TensorBoard, MLflow, Weights & Biases, one's own logger."""

import itertools
import math
import re
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from test_callbacks import fit

from conftest import ROOT, read_events, train_in
from gpt.callbacks import HParams, LastCheckpoint, MetricsFile, TensorBoard
from gpt.callbacks.loggers import writers
from gpt.drawing import draw_attention
from gpt.errors import UserError


def test_a_row_is_written_for_each_call_and_a_resumed_run_drops_later_ones(tmp_path):
    path, first, second = tmp_path / "metrics.csv", MetricsFile(str(tmp_path)), MetricsFile(str(tmp_path))
    first.log_metrics({"train/loss": 4.25, "epoch": 0}, step=9)  # the epoch is always 0
    first.log_metrics({"val/loss": 1e-05, "epoch": 0}, step=9)
    first.log_metrics({"train/loss": -3.0, "epoch": 0}, step=19)
    first.write()
    lines = path.read_text().splitlines()
    assert lines == ["step,train/loss,val/loss", "9,4.25,", "9,,1e-05", "19,-3.0,"]
    second.resume(10)
    second.write()
    assert path.read_text().splitlines() == lines[:3]
    second.resume(0)
    assert second.rows == []
    path.unlink()
    second.resume(10)
    assert second.rows == []


SETTINGS = ["callbacks.samples.temperatures=[0.8,0]", "callbacks.attention.text=ROMEO", "model.n_layer=2"]
SETTINGS += ["callbacks.attention.every=1", "trainer.log_every_n_steps=1", "seed=5"]
SETTINGS += ["trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with two validations."""
    return train_in(tmp_path_factory.mktemp("events") / "work", *SETTINGS)


def values(events, tag: str) -> list[float]:
    return [event.value for event in events.Scalars(tag)]


def test_run_shows_attention_maps_and_samples(run):
    events = read_events(run)
    pictures = sorted(events.Tags()["images"])
    assert pictures == ["weights/attention_layer_1", "weights/attention_layer_2"]
    assert [image.step for image in events.Images(pictures[0])] == [1, 3]
    assert events.Images(pictures[0])[0].width > 200
    samples = {f"sample/temperature {temperature}/text_summary" for temperature in ("0.8", "0")}
    assert samples <= set(events.Tags()["tensors"])


def test_losses_are_one_chart_and_nothing_sorts_before_it(run):
    """TensorBoard draws a chart for each name, in the order of first words, with a line for each run."""
    events, train = read_events(run), read_events(run / "train")
    tags = sorted({tag for kind in ("scalars", "images") for tag in events.Tags()[kind]})
    assert tags[0] == "loss"
    assert not [tag for tag in tags if "epoch" in tag]
    assert values(events, "loss") == values(events, "val/loss")
    perplexities = [math.exp(loss) for loss in values(events, "val/loss")]
    assert values(events, "val/perplexity") == pytest.approx(perplexities)
    assert train.Tags()["scalars"] == ["loss"]
    assert values(train, "loss") == values(events, "train/loss")
    assert "epoch" not in (run / "metrics.csv").read_text()


def test_hparams_are_all_settings_and_choices_with_the_best_bits_per_character(run):
    best = read_events(run / "best")
    (tag,) = [tag for tag in best.summary_metadata if tag.startswith("_hparams_")]
    assert tag == "_hparams_/session_start_info"
    plugin = plugin_data_pb2.HParamsPluginData.FromString(best.summary_metadata[tag].plugin_data.content)
    hparams = plugin.session_start_info.hparams
    assert [hparams[name].number_value for name in ("seed", "model.n_layer")] == [5, 2]
    assert hparams["model.norm"].string_value == "layernorm"  # which nobody typed
    assert hparams["model"].string_value == "tiny"
    assert hparams["arch"].string_value == "-"  # left to the default
    assert best.Tags()["scalars"] == ["val/best_bits_per_char"]
    bits = values(read_events(run), "val/bits_per_char")  # which fell both times
    assert values(best, "val/best_bits_per_char") == pytest.approx(bits)


def test_every_chart_is_listed_in_the_docs(run):
    listed, tags = (ROOT / "docs/usage.md").read_text(), read_events(run).Tags()
    columns = (run / "metrics.csv").read_text().partition("\n")[0].split(",")[1:]
    for name in [*columns, *tags["scalars"], *tags["images"]]:
        assert f"`{re.sub(r'_[0-9]+$', '_N', name)}`" in listed


@pytest.mark.parametrize("heads", [1, 6])
def test_each_character_of_an_attention_map_can_be_read(heads):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra analysis)")
    tokens = list("ROMEO:\nO, speak again, b")
    figure = draw_attention(torch.ones(heads, 24, 24).tril() / 24, tokens, "layer 1")
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.images]
    assert [axes.get_title() for axes in panels] == [f"head {head + 1}" for head in range(heads)]
    left, below = panels[0].get_yticklabels(), panels[-1].get_xticklabels()
    shown = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    assert [label.get_text() for label in left] == shown
    assert all(label.get_size() >= 8 for label in left)
    assert all(label.get_visible() for label in below)
    for label, other in itertools.pairwise([label.get_window_extent() for label in left]):
        assert abs(other.y0 - label.y0) >= 8 * figure.dpi / 72  # a line for each
    for label, other in itertools.pairwise([label.get_window_extent() for label in below]):
        assert label.x1 <= other.x0 + 0.5


def test_run_without_tensorboard_draws_nothing(succeed):
    succeed("logger=csv", "trainer.max_steps=1", "hydra.run.dir=run")
    files = {path.name for path in Path("run").iterdir() if not path.name.startswith(".lock")}
    names = {"checkpoints", "config.yaml", "metrics.csv", "result.json", "run.json", "sample.txt"}
    assert files == names


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
def test_killed_and_resumed_run_shows_each_point_once_also_if_its_clock_is_set_back(tmp_path, monkeypatch):
    for number, killed_at in enumerate((30, 40, None)):
        clock = SimpleNamespace(time=lambda now=2e9 - number * 1e8: now)  # which names the files
        monkeypatch.setattr("gpt.callbacks.loggers.time", clock)
        callbacks = [LastCheckpoint(), HParams({"seed": 1}, {}), Write(killed_at)]
        try:
            fit(tmp_path, 60, callbacks, loggers=[TensorBoard(str(tmp_path))])
        except SystemExit:
            assert killed_at
    tags = {"": ("loss", "val/loss", "sample/text_summary"), "best": ("val/best_bits_per_char",)}
    for folder, name in [(folder, name) for folder, names in tags.items() for name in names]:
        place = str(tmp_path / folder)  # read as TensorBoard does it
        shown = plugin_event_accumulator.EventAccumulator(place, size_guidance={"tensors": 0})
        shown.Reload()
        assert [event.step for event in shown.Tensors(name)] == [9, 19, 29, 39, 49, 59], name


def test_event_file_of_a_folder_that_was_removed_or_of_a_full_disk_raises_where_it_is_flushed(tmp_path):
    """TensorBoard's own writer has a thread, whose traceback would stand beside the line of the error."""
    logger, threads = TensorBoard(str(tmp_path / "run")), threading.active_count()
    logger.log_metrics({"val/loss": 1.0}, step=0)
    logger.save()
    assert threading.active_count() == threads
    assert len(list(tmp_path.glob("run/events.*"))) == 1
    for name, error in {"run": FileNotFoundError, "new": UserError}.items():
        logger = TensorBoard(str(tmp_path / name))
        logger.log_metrics({"val/loss": 1.0}, step=0)
        (path,) = (writer.file_writer.event_writer.path for writer in logger.writers.values())
        if error is FileNotFoundError:
            shutil.rmtree(path.parent)
        else:
            path.symlink_to("/dev/full")
        with pytest.raises(error, match=re.escape(str(path))):
            logger.save()
        logger.finalize("failed")  # which Lightning calls then, does not raise again


@pytest.mark.parametrize("name", ["$HOME", "~", "日本"])
def test_folder_is_used_as_it_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    logger = TensorBoard(name)
    assert logger.experiment is logger.writer("")
    assert not list(tmp_path.iterdir())  # nothing was logged
    logger.log_metrics({"val/loss": 1.0}, step=0)
    logger.finalize("success")
    assert [path.name for path in tmp_path.iterdir()] == [name]


OWN = """
from lightning.pytorch.loggers.logger import DummyLogger


class Mine(DummyLogger):
    def __init__(self, run_id, save_dir):
        super().__init__()
        self.run_id = run_id or "made up"
        print("run", run_id, "in", save_dir)

    @property
    def version(self):
        return self.run_id

    def log_hyperparams(self, params):
        print("parameters", params["seed"], params["model.n_embd"])
"""


def test_logger_of_ones_own_is_told_the_settings_once_and_its_run_continues(succeed, refuse):
    Path("own_logger.py").write_text(OWN)
    own = ["+logger.mine._target_=own_logger.Mine", "+logger.mine.run_id=null", "+logger.mine.save_dir=null"]
    out = succeed(*own, "trainer.max_steps=2", "hydra.run.dir=run")
    assert f"run None in {Path('run').absolute()}\n" in out
    assert out.count("parameters 1337 16\n") == 1
    assert yaml.safe_load(Path("run/config.yaml").read_text())["logger"]["mine"]["run_id"] == "made up"
    err = refuse("resume=run", "trainer.max_steps=4")  # a class that might be anybody's, by now
    assert err.startswith("error: logger.mine = own_logger.Mine: ")
    assert err.endswith("if you trust it, add ++logger.mine._target_=own_logger.Mine\n")
    out = succeed("resume=run", "trainer.max_steps=4", "++logger.mine._target_=own_logger.Mine")
    assert "run made up in" in out
    assert "parameters 1337" not in out


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_logger_whose_library_is_missing_names_the_command_that_installs_it(name, refuse, monkeypatch):
    monkeypatch.setattr(f"lightning.pytorch.loggers.{name}._{name.upper()}_AVAILABLE", False)
    err = refuse(f"logger={name}", "trainer.max_steps=1")
    assert err.startswith(f"error: logger.{name} = lightning.pytorch.loggers.")
    assert f'its library is not installed; pip install -e ".[{name}]"' in err


@pytest.mark.skipif(not find_spec("mlflow"), reason="mlflow is not installed (extra mlflow)")
@pytest.mark.filterwarnings("ignore")  # of libraries that it imports
def test_mlflow_keeps_one_run_in_its_database(succeed):
    succeed("logger=mlflow", "trainer.max_steps=2")
    (run,) = Path("outputs").glob("*/config.yaml")
    identity = yaml.safe_load(run.read_text())["logger"]["mlflow"]["run_id"]
    succeed(f"resume={run.parent}", "trainer.max_steps=4")
    from mlflow.tracking import MlflowClient

    client = MlflowClient("sqlite:///outputs/mlflow.db")
    experiment = client.get_experiment_by_name("gpt")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == identity
    assert found.data.params["model.n_embd"] == "16"
    assert [metric.step for metric in client.get_metric_history(identity, "val/loss")] == [1, 3]


@pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed (extra wandb)")
@pytest.mark.filterwarnings("ignore")
def test_wandb_works_offline_and_keeps_its_run(succeed):
    succeed("logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=2", "hydra.run.dir=run")
    identity = yaml.safe_load(Path("run/config.yaml").read_text())["logger"]["wandb"]["id"]
    assert identity
    succeed("resume=run", "trainer.max_steps=4")
    assert len(list(Path("run/wandb").glob(f"offline-run-*-{identity}"))) in (1, 2)  # one for each process
