"""Tables, pictures and pages about runs, from run folders whose files are written here."""

import csv
import io
import json
import math
import shutil
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import compare as compare_script
import gpt.analysis
import report as report_script
from conftest import ARCHITECTURES, TINY
from gpt.analysis import report_line, table_of
from gpt.settings import UserError

pytest.importorskip("pandas", reason="extra analysis is not installed")
matplotlib = pytest.importorskip("matplotlib", reason="extra analysis is not installed")

from gpt.analysis.compare import compare, compare_runs, welch_interval
from gpt.analysis.plots import draw_pictures, draw_run, save
from gpt.analysis.report import write_report
from gpt.analysis.runs import read_runs

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"


def make_run(folder, loss=2.0, seed=1, overrides=None, settings=None, curve=None, **result):
    """A run folder as scripts/train.py leaves it. Without a loss, it is one that was interrupted."""
    folder.mkdir(parents=True)
    model = ARCHITECTURES["modern"] | dict(
        vocab_size=65, context_length=16, n_layer=1, n_head=1, n_embd=16, dropout=0.0
    )
    config = dict(
        model=model, data=dict(batch_size=4, tokenizer="char"), optimizer=dict(name="muon", betas=[0.9, 0.99])
    )
    config |= dict(
        trainer=dict(max_steps=20, accumulate_grad_batches=2), seed=seed, callbacks=dict(best={}, ema=None)
    )
    for key, value in (settings or {}).items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(
        json.dumps(dict(overrides=overrides or {}, command=["scripts/train.py", "seed=1"]))
    )
    rows = curve or [(9, (loss or 3) + 1), (19, loss or 3)]
    (folder / "metrics.csv").write_text(
        "step,val/loss,train/loss\n" + "".join(f"{n},{y},\n{n},,{y}\n" for n, y in rows)
    )
    if loss is not None:
        numbers = dict(
            best_val_loss=loss,
            best_step=20,
            final_val_loss=loss,
            final_bits_per_char=loss / math.log(2),
            step=20,
        )
        numbers |= dict(
            vocab_size=65, parameters=1000 * model["n_layer"], seconds=2.0, chars_per_second=640.0
        )
        (folder / "result.json").write_text(json.dumps(numbers | result))
    return folder


def make_sweep(folder, seeds=(1, 2), losses=None, name="{}={}", **values):
    """A run for each combination of values and each seed: with seeds, losses of 2.1 and 2.2, 2.2 and 2.3, and so on."""
    combinations = [{}]
    for key, options in values.items():
        combinations = [combination | {key: option} for combination in combinations for option in options]
    for number, combination in enumerate(combinations):
        for seed in seeds:
            words = combination | ({"seed": seed} if len(seeds) > 1 else {})
            settings = {f"model.{key}": value for key, value in combination.items()}
            loss = losses[number] if losses else 2 + number / 10
            place = folder / ",".join(name.format(*word) for word in words.items())
            make_run(place, loss + seed / 10, seed, {**settings, "seed": seed}, settings)
    return folder


def make_task(folder, accuracy, seed=1, task="mark", **settings):
    result = dict(test_accuracy=accuracy, test_examples=40, majority_accuracy=0.4, naive_bayes_accuracy=None)
    return make_run(folder, 1.0, seed, {"task": task, **settings}, {"task.name": task, **settings}, **result)


@pytest.fixture
def sweep(tmp_path):
    folder = make_sweep(tmp_path / "sweep", losses=[2.5, 2.4, 2.2, 2.0], n_layer=[1, 2], n_head=[1, 2])
    make_run(folder / "n_layer=4", None, settings={"model.n_layer": 4})
    (folder / "n_head=3").mkdir()
    (folder / "n_head=3" / "error.txt").write_text("model.n_head = 3: no\n\nTraceback\n")
    return folder


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")


def read_table(folder):
    with open(folder / "compare.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_table_has_what_varies_best_first_with_numbers_computed_by_hand(sweep):
    shown = compare(sweep).splitlines()
    assert shown[0].split()[:6] == ["n_layer", "n_head", "loss", "difference", "noise", "seeds"]
    assert shown[0].split()[6:] == ["seconds", "parameters", "chars_per_second"]
    assert shown[1].split() == ["2", "2", "2.150", "±", "0.071", "2", "2", "2k", "640"]  # losses 2.1 and 2.2
    assert shown[2].split() == [
        "2",
        "1",
        "2.350",
        "±",
        "0.071",
        "+0.200",
        "±",
        "0.304",
        "within",
        "2",
        "2",
        "2k",
        "640",
    ]
    assert shown[4].split()[5:9] == ["+0.500", "±", "0.304", "exceeds"]
    lines = read_table(sweep)
    assert [(line["n_layer"], line["n_head"]) for line in lines] == [
        ("2", "2"),
        ("2", "1"),
        ("1", "2"),
        ("1", "1"),
    ]
    for line, start in zip(lines, (2.0, 2.2, 2.4, 2.5), strict=True):
        losses = [start + 0.1, start + 0.2]
        assert float(line["loss"]) == pytest.approx(statistics.mean(losses), abs=1e-12)
        assert float(line["sd"]) == pytest.approx(statistics.stdev(losses), abs=1e-12)
        assert float(line["difference"]) == pytest.approx(start - 2.0, abs=1e-12)
        assert float(line["bits_per_char"]) == pytest.approx(statistics.mean(losses) / math.log(2), abs=1e-12)
        if start != 2.0:
            width = 4.302652729911275 * math.sqrt(0.005)  # of two degrees of freedom
            assert float(line["interval"]) == pytest.approx(width, abs=1e-9)
    assert (sweep / "compare.md").read_text().startswith("| n_layer | n_head |          loss |")
    assert "\nn_layer=4: not finished\n" in "\n".join(shown)
    assert "\nn_head=3: model.n_head = 3: no\n" in "\n".join(shown)
    assert shown[-1] == f"written into {sweep}: compare.md, compare.csv, curves.png, axes.png"


def test_interval_is_welchs():
    assert math.isnan(welch_interval([1.0], [1.0, 2.0]))
    assert welch_interval([1.0, 1.0], [2.0, 2.0]) == 0
    values, others = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0]
    errors = [statistics.variance(found) / len(found) for found in (values, others)]
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 5 + errors[1] ** 2 / 7)
    assert 7 < freedom < 8
    quantile = welch_interval(values, others) / math.sqrt(sum(errors))
    assert (
        2.3060 < quantile < 2.3646
    )  # Student's t for 8 and for 7 degrees of freedom, of which tables have whole numbers


def test_noise_of_single_seeds_is_not_claimed(tmp_path):
    make_sweep(tmp_path, seeds=[1], n_layer=[1, 2])
    shown = compare(tmp_path)
    assert "the noise is not known" in shown
    assert "noise" not in shown.splitlines()[0]
    make_run(
        tmp_path / "again", 2.2, seed=2, settings={"model.n_layer": 1}
    )  # one of the two still has a single seed
    assert "unknown" in compare(tmp_path).splitlines()[2]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_table_fits_the_terminal_and_names_what_does_not(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    names = (
        "context_length",
        "n_layer",
        "n_head",
        "dropout",
        "norm",
        "activation",
        "positions",
        "conv_width",
    )
    for number, name in enumerate(names):
        place = tmp_path / f"2026-11-24_21-39-16_tiny_{name}-{number}_seed-1"
        make_run(place, 2.0 + number, settings={f"model.{name}": number + 50})
    shown = compare(tmp_path)
    header, *lines = shown.splitlines()[: len(names) + 1]
    assert all(len(line) <= width for line in (header, *lines))
    dropped = (
        " ".join(shown.split())
        .partition("No room here for ")[2]
        .partition(": see compare.csv")[0]
        .split(", ")
    )
    assert {"run", *names, "loss", "difference", "seconds", "parameters", "chars_per_second"} == {
        *dropped,
        *header.split(),
    }
    assert {"run", "loss"} <= set(header.split())
    assert lines[0].startswith("2026-11-24...")


def test_columns_sort_baseline_and_csv(sweep, capsys):
    shown = compare(
        sweep, columns=["n_head", "difference"], sort="n_head", baseline="n_layer=1,n_head=2"
    ).splitlines()
    assert shown[0].split() == ["n_head", "difference"]
    assert [line.split()[0] for line in shown[1:5]] == ["1", "1", "2", "2"]
    assert {line.split()[1] for line in shown[1:5] if len(line.split()) > 1} == {"-0.400", "-0.200", "+0.100"}
    for wrong in (dict(sort="n_heads"), dict(columns=["n_heads"])):
        with pytest.raises(UserError, match="did you mean n_head"):
            compare(sweep, **wrong)
    for text, reason in (("n_layer=2", "describes 2 lines"), ("n_layer=7", "describes no line")):
        with pytest.raises(UserError, match=reason):
            compare(sweep, baseline=text)
    assert list(compare_runs(sweep, "layer=2,n_head=1,se").table["difference"]) == pytest.approx(
        [-0.2, 0, 0.2, 0.3]
    )  # a name
    before = sorted(sweep.rglob("*"))
    compare_script.main([str(sweep), "--csv", "--sort", "difference", "--baseline", "n_layer=1,n_head=1"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(line["difference"]) for line in lines] == pytest.approx([-0.5, -0.3, -0.1, 0])
    assert sorted(sweep.rglob("*")) == before


def settings_of(folder):
    """The names of the runs of each line, and what tells the line apart."""
    found = compare_runs(folder)
    names = found.runs.groupby("line")["name"].agg(tuple)
    return {names[line]: dict(found.table.loc[line, found.settings]) for line in found.table.index}


def test_choice_stands_for_all_that_it_sets(tmp_path):
    for arch in ("gpt1", "modern"):
        for n_layer in (1, 2):
            overrides = {
                "model": "tiny",
                "model/arch": arch,
                "model.n_layer": n_layer,
                "logger": arch,
                "seed": 1,
            }
            settings = {f"model.{key}": value for key, value in ARCHITECTURES[arch].items()} | {
                "model.n_layer": n_layer
            }
            make_run(tmp_path / f"{arch}{n_layer}", 2.0, 1, overrides, settings)
    assert settings_of(tmp_path) == {
        (f"{arch}{n_layer}",): {"arch": arch, "n_layer": n_layer}
        for arch in ("gpt1", "modern")
        for n_layer in (1, 2)
    }


def test_setting_that_a_choice_does_not_explain_is_shown(tmp_path):
    gelu = {"model.activation": "gelu"}
    make_run(tmp_path / "a", overrides={"ablation": "gelu"}, settings=gelu)
    make_run(
        tmp_path / "b", overrides={"ablation": "gelu"}, settings=gelu | {"model.n_head": 2}
    )  # conf/ was edited
    make_run(tmp_path / "c", overrides={"ablation": "none"})
    shown = {("a",): ("gelu", 1), ("b",): ("gelu", 2), ("c",): ("none", 1)}
    assert settings_of(tmp_path) == {
        run: {"ablation": name, "n_head": heads} for run, (name, heads) in shown.items()
    }


def test_runs_that_do_not_say_what_was_typed_are_told_apart_by_their_settings(tmp_path):
    make_run(tmp_path / "a", settings={"model.activation": "gelu", "model.bias": 1})
    make_run(tmp_path / "b", settings={"model.n_head": 2, "model.bias": True})  # 1 and true are two values
    make_run(tmp_path / "c", settings={"model.n_head": 4, "model.bias": None}, overrides={"model.n_head": 4})
    assert all(
        settings.keys() == {"activation", "n_head", "bias"} for settings in settings_of(tmp_path).values()
    )


def test_runs_with_equal_settings_are_one_line_whatever_was_typed(tmp_path):
    make_run(tmp_path / "a_seed-1", overrides={"model.n_head": 1, "seed": 1})
    make_run(tmp_path / "a_seed-2", seed=2, overrides={"trainer.accelerator": "cpu", "seed": 2})
    make_run(
        tmp_path / "c",
        overrides={"ablation": "gelu"},
        settings={"optimizer.betas": [0.9, 0.95], "callbacks": {"x": {}}},
    )
    assert [set(runs) for runs in settings_of(tmp_path)] == [{"a_seed-1", "a_seed-2"}, {"c"}]
    assert list(compare_runs(tmp_path).table["run"]) == ["a", "c"]
    for number in (1, 2):  # an average of the weights decides a result, though it is a callback
        make_run(
            tmp_path / f"ema{number}",
            settings={"callbacks": {"ema": {"_target_": "x", "decay": number}, "x": {}}},
        )
    assert len(compare_runs(tmp_path).table) == 4


def test_settings_of_the_same_name_keep_their_groups(tmp_path):
    for value in (1, 2):
        make_run(tmp_path / str(value), 2.0 + value, settings={"model.x": value, "data.x": value})
    compare(tmp_path)
    assert list(read_table(tmp_path)[0])[1:3] == ["model.x", "data.x"]


def test_other_tokenizers_are_compared_per_character(tmp_path):
    make_run(tmp_path / "char", 2.0)
    bits = 1.8 / math.log(2)  # 4 / 1.8 characters a token
    make_run(tmp_path / "bpe", 4.0, settings={"data.tokenizer": "bpe"}, final_bits_per_char=bits)
    found = compare_runs(tmp_path)
    assert list(found.table["tokenizer"]) == ["bpe", "char"]
    assert list(found.table["loss"]) == pytest.approx([1.8, 2.0])
    assert list(found.runs["curve"].iloc[0]) == pytest.approx([1.8 * 5 / 4, 1.8])  # of bpe, which comes first
    assert "converted, for runs that read bytes or byte pairs" in " ".join(compare(tmp_path).split())


DAMAGES = {
    "config.yaml": ["", "[1]", "a: [", "!!python/object/apply:os.getcwd []"],
    "result.json": ["", "[]", "{", '{"step": 1e999}', "{}"],
    "metrics.csv": ["step,val/loss\nx,1\n", "val/loss\n1\n", ""],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in DAMAGES.items() for content in contents]
)
def test_damaged_file_is_named_and_the_others_are_compared(tmp_path, name, content):
    make_run(tmp_path / "whole")
    (make_run(tmp_path / "broken", 1.0) / name).write_text(content)
    shown = compare(tmp_path)
    assert f"\nbroken: damaged: {name}: " in shown
    assert len(read_table(tmp_path)) == 1


def test_runs_that_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match="no finished run in it"):
        compare(tmp_path / "nowhere")
    make_run(tmp_path / "one", None)
    with pytest.raises(UserError, match="no finished run in it"):
        compare(tmp_path)
    make_run(tmp_path / "two", best_val_loss=None, best_step=None)
    with pytest.raises(UserError, match=r"keep callbacks\.best"):
        compare(tmp_path)
    make_run(tmp_path / "three")
    (tmp_path / "three" / "run.json").unlink()
    (tmp_path / "three" / "metrics.csv").unlink()
    assert "\ntwo: no best val/loss; keep callbacks.best\n" in compare(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == set()  # nothing varies, and there are no curves
    make_task(tmp_path / "four", 0.5)
    assert "\nfour: fine-tuned, not a language model\n" in compare(tmp_path)


def test_tasks_are_compared_within_a_task(tmp_path):
    for task, gain in (("mark", 0.0), ("reply", 0.2)):
        for seed in (1, 2):
            make_task(
                tmp_path / f"task={task},init=null,seed={seed}", 0.5 + seed / 100, seed, task, init=None
            )
            place = "outputs/2026-11-28_12-00-00_small"
            make_task(
                tmp_path / f"task={task},init=small,seed={seed}",
                0.6 + gain + seed / 100,
                seed,
                task,
                init=place,
            )
    shown = compare(tmp_path, baseline="init=null").splitlines()
    assert shown[0].split() == [
        "task",
        "init",
        "accuracy",
        "difference",
        "noise",
        "seeds",
        "majority",
        "naive_bayes",
        "seconds",
    ]
    assert shown[1].split()[:6] == ["mark", "...-11-28_12-00-00_small", "0.6150", "±", "0.0071", "+0.1000"]
    assert shown[4].split()[:5] == ["reply", "null", "0.5150", "±", "0.0071"]
    lines = read_table(tmp_path)
    assert [float(line["accuracy"]) for line in lines] == pytest.approx([0.615, 0.515, 0.815, 0.515])
    assert [float(line["difference"]) for line in lines] == pytest.approx([0.1, 0, 0.3, 0])
    assert {path.name for path in tmp_path.glob("*.png")} == {"tasks.png"}
    assert [
        float(line["difference"]) for line in compare_runs(tmp_path).table.to_dict("records")
    ] == pytest.approx([0, -0.1, 0, -0.3])


def drawn(figure):
    """The points of all lines but the marked best."""
    lines = [line for axes in figure.axes for line in axes.lines if line.get_marker() in "os^DvPX"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


GRIDS = {
    1: dict(n_head=[2, 4, 8]),
    2: dict(n_head=[2, 4, 8], n_layer=[2, 4]),
    3: dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128]),
    4: dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128], norm=["layernorm", "rmsnorm"]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("axes", "x"), [(1, "steps"), (2, "steps"), (3, "steps"), (4, "steps"), (3, "tokens"), (2, "flops")]
)
def test_grid_has_a_line_for_each_combination_and_marks_the_best(tmp_path, axes, x):
    found = compare_runs(make_sweep(tmp_path, seeds=(1, 2) if axes < 3 else (1,), **GRIDS[axes]))
    figures = draw_pictures(found, x)
    assert list(figures) == ["curves", "axes"]
    figure = figures["axes"]
    assert len(figure.axes) == {1: 1, 2: 1, 3: 2, 4: 4}[axes]
    points = [point for xs, ys in drawn(figure) for point in zip(xs, ys, strict=True)]
    assert len(points) == len(found.table)
    assert sorted(y for _, y in points) == pytest.approx(sorted(found.table["loss"]))
    stars = [
        y
        for panel in figure.axes
        for line in panel.lines
        if line.get_marker() == "*"
        for y in line.get_ydata()
    ]
    assert stars == [found.table["loss"].min()]
    if x == "steps":
        assert {place for place, _ in points} == {2, 4, 8}
    else:
        assert {place for place, _ in points} == set(found.runs[x])
    assert save(figure, "png").startswith(b"\x89PNG")
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1


def test_costs_of_a_run(tmp_path):
    make_run(tmp_path / "one")
    run = read_runs(tmp_path).iloc[0]
    assert run["tokens"] == 20 * 4 * 16 * 2
    weights, attention = 12 * 16 * 16 + 65 * 16, 12 * 16 * 16
    assert run["flops"] == run["tokens"] * (6 * weights + attention)


def test_choices_and_searches_are_ranked_and_of_many_curves_the_best_have_colours(tmp_path):
    found = compare_runs(make_sweep(tmp_path / "a", norm=["layernorm", "rmsnorm"]))
    labels = [label.get_text() for label in draw_pictures(found)["axes"].axes[0].get_yticklabels()]
    assert labels == ["norm layernorm", "norm rmsnorm"]
    for number in range(40):
        settings = {"model.n_head": number, "optimizer.lr": 0.1**number, "optimizer.weight_decay": number / 7}
        make_run(tmp_path / "b" / f"{number:04}", 2 + number / 10, settings=settings, curve=[(19, 2.0)])
    figures = draw_pictures(compare_runs(tmp_path / "b"))
    assert len(figures["axes"].axes[0].get_yticklabels()) == 30
    lines = figures["curves"].axes[0].lines
    assert [line.get_color() for line in lines].count("0.75") == 33
    assert {line.get_marker() for line in lines} == {"o"}  # one validation is no line
    assert figures["curves"].legends[0].get_title().get_text() == "the best 7 of 40"


def test_diverged_run_does_not_squeeze_the_others(tmp_path):
    found = compare_runs(make_sweep(tmp_path, losses=[2.0, 2.1, 90.0], n_head=[1, 2, 4]))
    assert all(figure.axes[0].get_ylim()[1] < 9 for figure in draw_pictures(found).values())


def test_picture_of_a_run(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n0,4.0,\n1,3.0,\n1,,2.5\n")
    axes = draw_run(path, "token").axes[0]
    validation = next(line for line in axes.lines if line.get_label() == "val/loss")
    assert (list(validation.get_xdata()), list(validation.get_ydata()), validation.get_marker()) == (
        [2],
        [2.5],
        "o",
    )
    assert axes.get_ylabel() == "loss (nats per token)"


class Page(HTMLParser):
    """A page that loads nothing and closes each tag, with its tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        source = path.read_text(encoding="utf-8")
        self.feed(source)
        self.close()
        assert self.open == []
        assert not {"script", "link", "iframe", "object", "base"} & set(self.tags)
        assert "http" not in source.replace("http-equiv", "")
        assert "url(" not in source
        assert all(
            value.startswith("data:image/svg+xml;base64,") for key, value in self.attributes if key == "src"
        )
        assert not [key for key, _ in self.attributes if key.startswith("on")]
        self.links = [value for key, value in self.attributes if key == "href"]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_of_a_run(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    report_script.main([str(trained)])
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"
    page = Page(trained / "report.html")
    for said in (
        f"{result['final_val_loss']:.4f}",
        f"{result['parameters']:,}",
        "max_steps: 4",
        "trainer.max_steps=4",
    ):
        assert said in page.text
    assert f"step 4, val loss {result['final_val_loss']:.4f}" in page.text  # of a sample
    assert page.tags.count("img") == 1 + 2  # the curves, and the attention of two layers
    about = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(
        json.dumps(about | {"command": ["train.py", HOSTILE], "versions": {HOSTILE: HOSTILE}})
    )
    (trained / "sample.txt").write_text(HOSTILE)
    shutil.rmtree(trained / "checkpoints")
    page = Page(write_report(trained))
    assert page.text.count(HOSTILE) == 1 + 2 + 1
    assert "no such file" in page.text  # instead of attention
    assert page.tags.count("img") == 1
    (trained / "result.json").unlink()
    assert (
        report_line(trained)
        == f"report: (none), because of folder = {trained}: not finished; give a run that has finished"
    )


def test_page_of_a_sweep(tmp_path):
    folder = make_sweep(tmp_path / "<b>&sweep", n_head=[1, 2, 4], n_layer=[1, 2])
    make_run(folder / HOSTILE.replace("/", " "), 1.0, settings={"model.n_head": HOSTILE})
    (folder / "broken").mkdir()
    (folder / "broken" / "error.txt").write_text(HOSTILE)
    page = Page(write_report(folder))
    assert page.tags.count("img") == 2
    assert f"broken: {HOSTILE}" in page.text
    assert len(page.links) == 13
    assert "./n_head%3D1%2Cn_layer%3D1%2Cseed%3D1/" in page.links
    make_task(tmp_path / "tasks" / "one", 0.5)
    assert Page(write_report(tmp_path / "tasks")).tags.count("img") == 1


def test_without_the_extra_there_is_one_line(sweep, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gpt.analysis.")]:
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.delattr(gpt.analysis, module.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, "pandas", None)
    advice = 'needs the extra analysis: pip install -e ".[analysis]"'
    assert (report_line(sweep), table_of(sweep)) == (
        f"report: (none), it {advice}",
        f"table: (none), it {advice}",
    )
    for script in (compare_script, report_script):
        with pytest.raises(UserError, match=r'pandas is not installed; pip install -e "\.\[analysis\]"'):
            script.main([str(sweep)])


def test_sweep_ends_with_a_table_and_a_page(call, text):
    code, out, err = call(
        "-m", *TINY, f"data.path={text}", "trainer.max_steps=2", "model.n_head=1,2", "hydra.sweep.dir=sweep"
    )
    assert code == 0, err
    assert "written into sweep: compare.md, compare.csv, curves.png, axes.png" in out.replace(
        str(Path.cwd()) + "/", ""
    )
    assert "\nreport: sweep/report.html\n" in out
    assert len(Page(Path("sweep/report.html")).links) == 2
