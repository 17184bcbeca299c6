import csv
import json
import math
import os
import re
import statistics

import pytest
import yaml

import compare as scripts_compare
from conftest import ARCHITECTURES
from gpt.cli.compare import compare
from gpt.cli.records import Group, RunRecord, group_runs, read_runs
from gpt.cli.table import student_t, welch_interval
from gpt.cli.task_table import task_lines
from gpt.runs.result import TaskResult
from gpt.settings import UserError


def make_run(folder, loss=2.0, seed=1, tokenizer="char", overrides=None, **model):
    """A run folder as scripts/train.py leaves it. Without a loss, it is one that was interrupted."""
    folder.mkdir(parents=True)
    sizes = dict(vocab_size=65, context_length=16, n_layer=1, n_head=1, n_embd=16, dropout=0.0)
    config = dict(
        model=ARCHITECTURES["modern"] | sizes | model,
        data=dict(batch_size=4, tokenizer=tokenizer),
        optimizer=dict(name="muon", betas=[0.9, 0.99]),
        trainer=dict(max_steps=20, accumulate_grad_batches=1),
        seed=seed,
        callbacks=dict(best={}),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if overrides is not None:
        (folder / "run.json").write_text(json.dumps(dict(overrides=overrides)))
    (folder / "metrics.csv").write_text(f"step,val/loss,lr\n9,{(loss or 3) + 1},\n12,,0.1\n19,{loss or 3},\n")
    if loss is not None:
        result = dict(best_val_loss=loss, best_step=20, final_val_loss=loss, final_bits_per_char=loss / math.log(2), step=20)
        result |= dict(vocab_size=65, parameters=1000 * config["model"]["n_layer"], seconds=2.0, chars_per_second=640.0)
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def sweep(tmp_path):
    for n_layer, n_head, loss in ((1, 1, 2.5), (1, 2, 2.4), (2, 1, 2.2), (2, 2, 2.0)):
        for seed in (1, 2):
            folder = tmp_path / f"n_layer={n_layer},n_head={n_head},seed={seed}"
            make_run(folder, loss + seed / 10, seed, n_layer=n_layer, n_head=n_head)
    make_run(tmp_path / "n_layer=4", None, n_layer=4)
    (tmp_path / "n_head=3").mkdir()
    (tmp_path / "n_head=3" / "error.txt").write_text("model.n_head = 3: no\n\nTraceback\n")
    return tmp_path


def read_table(folder):
    with open(folder / "compare.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_table_has_what_varies_best_first(sweep):
    shown = compare(sweep, width=120).splitlines()
    assert shown[0].split() == [
        "n_layer",
        "n_head",
        "loss",
        "difference",
        "noise",
        "seeds",
        "seconds",
        "parameters",
        "chars_per_second",
    ]
    assert shown[1].split() == ["2", "2", "2.150", "±", "0.071", "2", "2", "2k", "640"]  # losses 2.1 and 2.2
    assert shown[2].split() == ["2", "1", "2.350", "±", "0.071", "+0.200", "±", "0.304", "within", "2", "2", "2k", "640"]
    assert shown[4].split()[5:9] == ["+0.500", "±", "0.304", "exceeds"]
    lines = read_table(sweep)
    assert [(line["n_layer"], line["n_head"]) for line in lines] == [("2", "2"), ("2", "1"), ("1", "2"), ("1", "1")]
    assert float(lines[0]["sd"]) == pytest.approx(math.sqrt(0.005))
    assert float(lines[1]["interval"]) == pytest.approx(4.303 * math.sqrt(0.005))  # two degrees of freedom
    assert (sweep / "compare.md").read_text().startswith("| n_layer |")


def test_interval_is_welchs():
    """Against the two-sample t test of R and scipy for these values."""
    assert welch_interval([1.0], [1.0, 2.0]) is None
    assert welch_interval([1.0, 1.0], [2.0, 2.0]) == 0
    losses, others = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0]
    error = math.sqrt(statistics.variance(losses) / 6 + statistics.variance(others) / 8)
    assert welch_interval(losses, others) == pytest.approx(2.365 * error, rel=1e-3)  # 7.15 degrees of freedom, rounded down
    for freedom, quantile in ((11, 2.2010), (20, 2.0860), (120, 1.9799)):
        assert student_t(freedom) == pytest.approx(quantile, abs=1e-3)


def test_noise_of_single_seeds_is_not_claimed(tmp_path):
    for n_layer in (1, 2):
        make_run(tmp_path / f"n_layer={n_layer}", 3.0 - n_layer, n_layer=n_layer)
    shown = compare(tmp_path)
    assert "the noise is not known" in shown
    assert "noise" not in shown.splitlines()[0]
    make_run(tmp_path / "again", 1.1, seed=2, n_layer=2)  # one of the two still has a single seed
    assert "unknown" in compare(tmp_path).splitlines()[2]


@pytest.mark.parametrize("width", [40, 80, 140])
def test_table_fits_the_terminal_and_names_what_does_not(tmp_path, width):
    names = ("context_length", "n_layer", "n_head", "dropout", "norm", "activation", "positions", "conv_width")
    for number, name in enumerate(names):
        make_run(tmp_path / f"2026-11-24_21-39-16_tiny_{name}={number},seed=1", 2.0 + number, **{name: number + 50})
    shown = compare(tmp_path, width=width)
    header = shown.splitlines()[0]
    assert all(len(line) <= width for line in shown.splitlines()[: len(names) + 1])
    assert header.split()[0] == "run"
    assert "loss" in header.split()
    dropped = re.search("No room here for (.*): see compare.csv", " ".join(shown.split()))[1].split(", ")
    assert {"run", *dropped, *header.split()} == {
        "run",
        *names,
        "loss",
        "difference",
        "seconds",
        "parameters",
        "chars_per_second",
    }
    assert shown.splitlines()[1].startswith("2026-11-24"[: min(10, width // 3)][:6])


def test_columns_sort_and_baseline_are_chosen(sweep):
    shown = compare(sweep, columns=["n_head", "difference"], sort="n_head", baseline="n_layer=1,n_head=2").splitlines()
    assert shown[0].split() == ["n_head", "difference"]
    assert [line.split()[0] for line in shown[1:5]] == ["1", "1", "2", "2"]
    assert {line.split()[1] for line in shown[1:5] if len(line.split()) > 1} == {"-0.400", "-0.200", "+0.100"}
    for wrong in (dict(sort="n_heads"), dict(columns=["n_heads"])):
        with pytest.raises(UserError, match="did you mean n_head"):
            compare(sweep, **wrong)
    for text, reason in (("n_layer=2", "describes 2 lines"), ("n_layer=7", "describes no line")):
        with pytest.raises(UserError, match=reason):
            compare(sweep, baseline=text)


def test_csv_is_printed_and_nothing_is_written(sweep, capsys):
    before = sorted(sweep.rglob("*"))
    scripts_compare.main([str(sweep), "--csv", "--sort", "seconds"])
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert float(lines[0]["loss"]) == pytest.approx(2.15)
    assert sorted(sweep.rglob("*")) == before


def test_runs_without_a_result_are_named_below_the_table(sweep):
    shown = compare(sweep)
    assert "\nn_layer=4: not finished\n" in shown
    assert "\nn_head=3: model.n_head = 3: no\n" in shown
    assert shown.splitlines()[-1] == f"written into {sweep}: compare.md, compare.csv, curves.png, axes.png"


def test_pictures_are_drawn(sweep):
    compare(sweep)
    assert {path.name for path in sweep.glob("*.png")} == {"curves.png", "axes.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in sweep.glob("*.png"))


def test_single_run_has_nothing_to_compare(tmp_path):
    make_run(tmp_path / "one")
    assert "2.0000" in compare(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png"}


def test_no_finished_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no finished run in it"):
        compare(tmp_path / "nowhere")
    make_run(tmp_path / "one", None)
    with pytest.raises(UserError, match="no finished run in it"):
        compare(tmp_path)


def test_best_is_needed(tmp_path):
    run = make_run(tmp_path / "one")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"best_val_loss": None, "best_step": None}))
    with pytest.raises(UserError, match=r"keep callbacks\.best"):
        compare(tmp_path)


def test_other_tokenizers_are_compared_per_character(tmp_path):
    make_run(tmp_path / "char", 2.0)
    run = make_run(tmp_path / "bpe", 4.0, tokenizer="bpe", vocab_size=512)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(
        json.dumps(result | {"final_bits_per_char": 1.8 / math.log(2)})
    )  # 4 / 1.8 characters a token
    best, other = group_runs(read_runs(tmp_path))
    assert (best.runs[0].name, other.runs[0].name) == ("bpe", "char")
    assert best.loss == pytest.approx(1.8)
    assert [loss for _, loss in best.runs[0].curve] == pytest.approx([1.8 * 5 / 4, 1.8])
    assert other.loss == 2.0


def test_settings_of_the_same_name_keep_their_groups(tmp_path):
    for value in (1, 2):
        run = make_run(tmp_path / str(value), 2.0 + value)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"]["x"] = config["data"]["x"] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    compare(tmp_path)
    assert list(read_table(tmp_path)[0])[1:3] == ["model.x", "data.x"]


def settings_of(folder):
    return {tuple(run.name for run in group.runs): dict(group.settings) for group in group_runs(read_runs(folder))}


def test_choice_stands_for_all_that_it_sets(tmp_path):
    for arch in ("gpt1", "modern"):
        for n_layer in (1, 2):
            overrides = {"model": "tiny", "model/arch": arch, "model.n_layer": n_layer, "logger": "csv", "seed": 1}
            make_run(tmp_path / f"{arch}{n_layer}", 2.0, overrides=overrides, **ARCHITECTURES[arch] | {"n_layer": n_layer})
    assert settings_of(tmp_path) == {
        (f"{arch}{n_layer}",): {"arch": arch, "n_layer": n_layer} for arch in ("gpt1", "modern") for n_layer in (1, 2)
    }


def test_setting_that_a_choice_does_not_explain_is_shown(tmp_path):
    make_run(tmp_path / "a", overrides={"ablation": "gelu"}, activation="gelu", n_head=1)
    make_run(tmp_path / "b", overrides={"ablation": "gelu"}, activation="gelu", n_head=2)  # conf/ was edited in between
    make_run(tmp_path / "c", overrides={"optimizer": "muon"}, activation="relu2")  # which did not set the activation
    shown = {("a",): ("gelu", 1), ("b",): ("gelu", 2), ("c",): ("-", 1)}
    assert settings_of(tmp_path) == {run: {"ablation": ablation, "n_head": n_head} for run, (ablation, n_head) in shown.items()}


def test_runs_that_do_not_say_what_was_typed_are_told_apart_by_their_settings(tmp_path):
    make_run(tmp_path / "a", activation="gelu", n_head=1)
    make_run(tmp_path / "b", activation="relu2", n_head=2)
    make_run(tmp_path / "c", overrides={"model.n_head": 4}, n_head=4)
    shown = settings_of(tmp_path)
    assert all(settings.keys() == {"activation", "n_head"} for settings in shown.values())


def test_runs_with_equal_settings_are_one_group_whatever_was_typed(tmp_path):
    make_run(tmp_path / "a", overrides={"model.n_head": 1, "seed": 1})
    make_run(tmp_path / "b", overrides={"ablation": "none", "seed": 2}, seed=2)
    make_run(tmp_path / "c", overrides={"ablation": "gelu"}, activation="gelu")
    assert settings_of(tmp_path) == {("a", "b"): {"ablation": "none"}, ("c",): {"ablation": "gelu"}}


def test_run_of_an_earlier_version_is_compared(tmp_path):
    run = make_run(tmp_path / "one")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["callbacks"]["best"] = {"_target_": "os.system"}  # a name is only text here
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert "2.0000" in compare(tmp_path)


DAMAGES = {
    "run.json": ["", "[]", '{"overrides": []}'],
    "config.yaml": ["", "[1]", "a: [", "a: &x [*x]", "!!python/object/apply:os.getcwd []", "\x00", "[" * 5000, "1: 2"],
    "result.json": ["", "[]", "{", "{}", "[" * 100_000, '{"step": 1e999}'],
    "metrics.csv": ["step,val/loss\nx,1\n", "val/loss\n1\n", "step,val/loss\n1,nan\n", f"step,val/loss\n{'9' * 5000},1\n"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in DAMAGES.items() for content in contents])
def test_damaged_file_is_named_and_the_others_are_compared(tmp_path, name, content):
    make_run(tmp_path / "whole")
    run = make_run(tmp_path / "broken", 1.0)
    (run / name).write_text(content)
    shown = compare(tmp_path)
    (line,) = [line for line in shown.splitlines() if line.startswith("broken: ")]
    assert line.startswith(f"broken: damaged: file = {name}: ")
    assert len(read_table(tmp_path)) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("final_val_loss", 0), ("best_val_loss", math.nan), ("seconds", -1), ("step", 10**400)]
)
def test_impossible_number_is_damage(tmp_path, key, value):
    make_run(tmp_path / "whole")
    run = make_run(tmp_path / "broken", 1.0)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key: value}))
    assert f"broken: damaged: file = result.json: {key} = " in compare(tmp_path)


def test_device_file_in_a_run_folder_is_not_read(tmp_path):
    make_run(tmp_path / "whole")
    run = make_run(tmp_path / "broken")
    (run / "metrics.csv").unlink()
    os.mkfifo(run / "metrics.csv")
    assert "broken: damaged: " in compare(tmp_path)


def test_names_and_values_of_a_stranger_stay_in_their_cells(tmp_path):
    make_run(tmp_path / "a\n| b |\x1b[31m $x^", 2.0, norm="a|b\nc")
    make_run(tmp_path / "plain", 2.1)
    make_run(tmp_path / "stopped\x1b[31m", None)
    shown = compare(tmp_path)
    assert "\x1b" not in shown
    assert "a|b c" in shown
    assert " a\\|b c |" in (tmp_path / "compare.md").read_text()
    assert "\nstopped\\x1b[31m: not finished\n" in shown


def test_link_is_not_written_through(sweep, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "precious"
    target.write_text("mine")
    (sweep / "compare.md").symlink_to(target)
    with pytest.raises(UserError, match="a link, which is not overwritten"):
        compare(sweep)
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("places", "shown"),
    [
        (["outputs/RUN", "b/OTHER", None], ["RUN", "OTHER", "null"]),
        (["a/best.ckpt", "b/best.ckpt", None], ["a/best.ckpt", "b/best.ckpt", "null"]),
    ],
)
def test_table_of_tasks_tells_initial_weights_apart(places, shown):
    result = TaskResult(1.0, 1, 1.0, 1.0, 1, 65, 1, 1.0, None, 0.5, 10, 0.5, None)
    groups = [
        Group({"init": place}, [RunRecord(f"job={n}", {"task.name": "mark"}, result, [])]) for n, place in enumerate(places)
    ]
    assert [line["init"] for line in task_lines(groups)] == shown
