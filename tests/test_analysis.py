"""Tables, pictures and pages about runs, from run folders whose files are written here."""

import io
import itertools
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from pandas import Series, read_csv
from scipy.stats import ttest_ind

import compare as compare_script
import gpt.analysis
import report as report_script
from conftest import ARCHITECTURES
from gpt.analysis import report_line, table_of
from gpt.analysis.compare import compare_runs, read_runs
from gpt.analysis.plots import draw_pictures, draw_run, save
from gpt.analysis.report import compare, write_report
from gpt.errors import UserError

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
SIZES = dict(vocab_size=65, context_length=16, n_layer=1, n_head=1, n_embd=16, dropout=0.0)
RESULT = dict(step=20, best_step=20, vocab_size=65, parameters=2000, seconds=2.0, chars_per_second=640.0)


def make_run(folder, loss=2.0, seed=1, typed=None, settings=None, curve=None, **result):
    """A run folder as scripts/train.py leaves it. Without a loss, it is one that was interrupted."""
    folder.mkdir(parents=True)
    config = dict(model=ARCHITECTURES["modern"] | SIZES, data=dict(batch_size=4, tokenizer="char"), seed=seed)
    config |= dict(optimizer=dict(name="muon"), trainer=dict(accumulate_grad_batches=2))
    for key, value in (settings or {}).items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(json.dumps(dict(overrides=typed or {}, command=["train.py", "seed=1"])))
    rows = [f"{step},{y},\n{step},,{y}\n" for step, y in curve or [(9, (loss or 3) + 1), (19, loss or 3)]]
    (folder / "metrics.csv").write_text("step,val/loss,train/loss\n" + "".join(rows))
    if loss is not None:
        losses = dict(best_val_loss=loss, final_val_loss=loss, final_bits_per_char=loss / math.log(2))
        (folder / "result.json").write_text(json.dumps(RESULT | losses | result))
    return folder


def make_sweep(folder, losses=None, **values):
    """Two seeds of all combinations of values: with losses of 2.1 and 2.2, then 2.2 and 2.3, and so on."""
    for (number, options), seed in itertools.product(enumerate(itertools.product(*values.values())), (1, 2)):
        words = {f"model.{key}": value for key, value in zip(values, options, strict=True)}
        loss = (losses[number] if losses else 2 + number / 10) + seed / 10
        name = "".join(f"{key[6:]}={value}," for key, value in words.items())
        make_run(folder / f"{name}seed={seed}", loss, seed, words, words)
    return folder


def make_task(folder, accuracy, seed=1, task="mark", **settings):
    result = dict(test_accuracy=accuracy, test_examples=40, majority_accuracy=0.4, naive_bayes_accuracy=None)
    return make_run(folder, 1.0, seed, settings | {"task": task}, settings | {"task.name": task}, **result)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    folder = make_sweep(tmp_path / "sweep", losses=[2.5, 2.4, 2.2, 2.0], n_layer=[1, 2], n_head=[1, 2])
    make_run(folder / "n_layer=4", None, settings={"model.n_layer": 4})
    (folder / "n_head=3").mkdir()
    (folder / "n_head=3" / "error.txt").write_text("model.n_head = 3: no\n\nTraceback\n")
    return folder


def test_table_has_what_varies_best_first_with_numbers_computed_by_hand(sweep):
    shown = compare(sweep).splitlines()
    results = ["loss", "difference", "noise", "seeds", "seconds", "parameters", "chars_per_second"]
    assert shown[0].split() == ["n_layer", "n_head", *results]
    assert shown[1].split() == ["2", "2", "2.150", "±", "0.071", "2", "2", "2k", "640"]  # losses 2.1 and 2.2
    assert shown[2].split()[:9] == ["2", "1", "2.350", "±", "0.071", "+0.200", "±", "0.304", "within"]
    assert shown[4].split()[5:9] == ["+0.500", "±", "0.304", "exceeds"]
    table, start = read_csv(sweep / "compare.csv"), Series([2.0, 2.2, 2.4, 2.5])
    assert table[["n_layer", "n_head"]].to_numpy().tolist() == [[2, 2], [2, 1], [1, 2], [1, 1]]
    loss, sd = start + 0.15, math.sqrt(0.005)  # of two losses, 0.1 apart
    expected = dict(loss=loss, sd=sd, difference=start - 2, bits_per_char=loss / math.log(2), seconds=2)
    expected["interval"] = 4.302652729911275 * sd * (start / start).where(start > 2)  # Student's t
    for name, values in expected.items():
        assert table[name].to_numpy() == pytest.approx(values, abs=1e-9, nan_ok=True)
    assert (sweep / "compare.md").read_text().startswith("| n_layer | n_head |          loss |")
    assert {"n_layer=4: not finished", "n_head=3: model.n_head = 3: no"} < set(shown)
    assert shown[-1] == f"written into {sweep}: compare.md, compare.csv, curves.png, axes.png"


def test_interval_is_welchs(tmp_path):
    values, others = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0]
    for n_layer, losses in {1: [3.0, 5.0], 2: values, 3: others, 4: [30.0] * 3, 5: [31.0] * 2}.items():
        for seed, loss in enumerate(losses):
            make_run(tmp_path / f"{n_layer}{seed}", loss, seed, settings={"model.n_layer": n_layer})
    low, high = ttest_ind(values, others, equal_var=False).confidence_interval()
    assert compare_runs(tmp_path, "n_layer=3").table["interval"][1] == pytest.approx((high - low) / 2)
    intervals = compare_runs(tmp_path, "n_layer=4").table["interval"]
    assert list(intervals[[0, 4]]) == pytest.approx([12.706204736, 0])  # Student's t, 1 degree of freedom


def test_copy_of_a_run_does_not_count_as_another_seed(tmp_path):
    for name, seed in {"a": 1, "b": 2, "c": 1}.items():
        make_run(tmp_path / name, 2.0 + seed / 10, seed)
    found = compare_runs(tmp_path)
    assert found.table[["seeds", "loss"]].to_numpy().tolist() == [[2, pytest.approx(2.15)]]
    for seed in (1, 2):
        make_run(tmp_path / "seeds" / f"seed-{seed}", 2.0, seed)
    assert compare_runs(tmp_path / "seeds").table["run"].tolist() == ["seeds"]
    assert found.left_out == ["c: has the settings and the seed of another run"]


def test_noise_of_single_seeds_is_not_claimed(tmp_path):
    for n_layer in (1, 2):
        make_run(tmp_path / str(n_layer), 3 - n_layer, settings={"model.n_layer": n_layer})
    shown = compare(tmp_path)
    assert "the noise is not known" in shown
    assert "noise" not in shown.splitlines()[0]
    make_run(tmp_path / "again", 2.2, 2)  # one of the two lines still has a single seed
    assert "unknown" in compare(tmp_path).splitlines()[2]


@pytest.mark.parametrize("width", [60, 140])
def test_table_fits_the_terminal_and_names_what_does_not(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ("context_length", "n_layer", "n_head", "dropout", "norm", "activation", "positions", "bias")
    for number, name in enumerate(names):
        folder = tmp_path / f"2026-11-24_21-39-16_tiny_{name}-{number}"
        make_run(folder, settings={f"model.{name}": number + 50})
    shown = compare(tmp_path)
    header, *lines = shown.splitlines()[: len(names) + 1]
    assert all(len(line) <= width for line in (header, *lines))
    dropped = re.search("No room here for (.*): see compare.csv", " ".join(shown.split()))[1].split(", ")
    results = {"loss", "difference", "seconds", "parameters", "chars_per_second"}
    assert {"run", *names, *results} == {*dropped, *header.split()}
    assert {"run", "loss"} <= set(header.split())
    assert lines[0].startswith("2026-11-24")


def test_columns_sort_baseline_and_csv(sweep, capsys):
    shown = compare(sweep, sort="n_head", columns=["n_head", "difference"], baseline="n_layer=1,n_head=2")
    cells = " ".join(shown.splitlines()[:5]).split()
    assert [cell for cell in cells if len(cell) == 1 and cell != "±"] == ["1", "1", "2", "2"]
    assert {"n_head", "difference", "+0.100", "-0.200", "-0.400"} < set(cells)
    before = sorted(sweep.rglob("*"))
    compare_script.main([str(sweep), "--csv", "--sort", "difference", "--baseline", "n_layer=1,n_head=1"])
    table = read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table["difference"]) == pytest.approx([-0.5, -0.3, -0.1, 0])
    assert sorted(sweep.rglob("*")) == before
    by_name = compare_runs(sweep, "layer=2,n_head=1,se")  # a part of a run's name
    assert list(by_name.table["difference"]) == pytest.approx([-0.2, 0, 0.2, 0.3])
    for wrong in (dict(sort="n_heads"), dict(columns=["n_heads"])):
        with pytest.raises(UserError, match="did you mean n_head"):
            compare(sweep, **wrong)
    for text, number in (("n_layer=2", 2), ("n_layer=7", 0)):
        with pytest.raises(UserError, match=f"describes {number} lines"):
            compare(sweep, baseline=text)


def settings_of(folder):
    """The names of the runs of each line, and what tells the line apart."""
    found = compare_runs(folder)
    names = found.runs.groupby("line")["name"].agg(",".join)
    return {names[line]: dict(found.table.loc[line, found.settings]) for line in found.table.index}


def test_choice_stands_for_all_that_it_sets(tmp_path):
    words = list(itertools.product(("gpt1", "modern"), (1, 2)))
    for arch, n_layer in words:
        typed = {"model": "tiny", "model/arch": arch, "model.n_layer": n_layer, "logger": arch, "seed": 1}
        settings = {f"model.{key}": value for key, value in ARCHITECTURES[arch].items()}
        make_run(tmp_path / f"{arch}{n_layer}", 2.0, 1, typed, settings | {"model.n_layer": n_layer})
    assert settings_of(tmp_path) == {f"{arch}{n}": {"arch": arch, "n_layer": n} for arch, n in words}


def test_setting_that_no_choice_explains_is_shown(tmp_path):
    gelu = {"model.activation": "gelu"}
    make_run(tmp_path / "a", typed={"ablation": "gelu"}, settings=gelu)
    edited = gelu | {"model.n_head": 2}  # in conf/ablation/gelu.yaml, between the two
    make_run(tmp_path / "b", typed={"ablation": "gelu"}, settings=edited)
    make_run(tmp_path / "c", typed={"ablation": "none"})
    shown = {"a": ("gelu", 1), "b": ("gelu", 2), "c": ("none", 1)}
    assert settings_of(tmp_path) == {run: {"ablation": gelu, "n_head": n} for run, (gelu, n) in shown.items()}
    make_run(tmp_path / "d", settings={"model.x": True, "data.x": 1})  # from Python: nothing was typed
    make_run(tmp_path / "e", settings={"model.x": 1, "data.x": [1, 2]})  # 1 is not true
    assert {"model.x", "data.x", "activation"} <= settings_of(tmp_path)["d"].keys()
    assert len(settings_of(tmp_path)) == 5


def test_runs_with_equal_settings_are_one_line_whatever_was_typed(tmp_path):
    make_run(tmp_path / "a_seed-1", typed={"model.n_head": 1, "seed": 1})
    other = {"callbacks.samples": {"x": 1}}
    make_run(tmp_path / "a_seed-2", seed=2, typed={"callbacks": "many"}, settings=other)
    make_run(tmp_path / "c", settings={"callbacks.ema": {"_target_": "x", "decay": 0.9}})  # decides a result
    assert list(settings_of(tmp_path)) == ["a_seed-1,a_seed-2", "c"]
    assert list(compare_runs(tmp_path).table["run"]) == ["a", "c"]


def test_other_tokenizers_are_compared_per_character(tmp_path):
    make_run(tmp_path / "char", 2.0)
    bits = 1.8 / math.log(2)  # 4 / 1.8 characters a token
    make_run(tmp_path / "bpe", 4.0, settings={"data.tokenizer": "bpe"}, final_bits_per_char=bits)
    found = compare_runs(tmp_path)
    assert list(found.table["tokenizer"]) == ["bpe", "char"]
    assert list(found.table["loss"]) == pytest.approx([1.8, 2])
    assert list(found.runs["curve"].iloc[0]) == pytest.approx([1.8 * 5 / 4, 1.8])  # of bpe, which comes first
    assert "converted, for runs that read bytes or byte pairs" in " ".join(compare(tmp_path).split())


@pytest.mark.parametrize("content", ["", "[1]", "a: [", "!!python/object/apply:os.getcwd []"])
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "result.json", "metrics.csv"])
def test_damaged_file_is_named_and_the_others_are_compared(tmp_path, name, content):
    make_run(tmp_path / "whole")
    (make_run(tmp_path / "broken", 1.0) / name).write_text(content)
    assert f"\nbroken: damaged: {name}: " in compare(tmp_path)
    assert len(read_csv(tmp_path / "compare.csv")) == 1


def test_runs_that_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match="no finished run in it"):
        compare(tmp_path / "nowhere")
    make_run(tmp_path / "one", best_val_loss=None, best_step=None)
    with pytest.raises(UserError, match=r"keep callbacks\.best"):
        compare(tmp_path)
    bare = make_run(tmp_path / "bare")
    for name in ("run.json", "metrics.csv"):
        (bare / name).unlink()
    make_task(tmp_path / "tuned", 0.5)
    reasons = {"one: no best val/loss; keep callbacks.best", "tuned: fine-tuned, not a language model"}
    assert reasons < set(compare(tmp_path).splitlines())
    assert not list(tmp_path.glob("*.png"))  # nothing varies, and there are no curves


def test_tasks_are_compared_within_a_task(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    places = (None, "outputs/2026-11-28_12-00-00_small")
    for task, init, seed in itertools.product(("mark", "follows"), places, (1, 2)):
        accuracy = 0.5 + seed / 100 + (0 if init is None else 0.1 if task == "mark" else 0.3)
        make_task(tmp_path / f"task={task},init={init and 1},seed={seed}", accuracy, seed, task, init=init)
    shown = compare(tmp_path, baseline="init=null").splitlines()
    found = ["accuracy", "difference", "noise", "seeds", "majority", "naive_bayes", "seconds"]
    assert shown[0].split() == ["task", "init", *found]
    assert shown[1].split()[:6] == ["mark", "...-11-28_12-00-00_small", "0.6150", "±", "0.0071", "+0.1000"]
    assert shown[4].split()[:5] == ["follows", "null", "0.5150", "±", "0.0071"]
    assert list(read_csv(tmp_path / "compare.csv")["difference"]) == pytest.approx([0.1, 0, 0.3, 0])
    assert {path.name for path in tmp_path.glob("*.png")} == {"tasks.png"}
    assert list(compare_runs(tmp_path).table["difference"]) == pytest.approx([0, -0.1, 0, -0.3])


AXES = dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128], norm=["layernorm", "rmsnorm"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("axes", "x"), [(1, "steps"), (2, "steps"), (4, "steps"), (3, "flops")])
def test_grid_has_a_line_for_each_combination_and_marks_the_best(tmp_path, axes, x):
    found = compare_runs(make_sweep(tmp_path, **dict(list(AXES.items())[:axes])))
    figures = draw_pictures(found, x)
    assert list(figures) == ["curves", "axes"]
    figure = figures["axes"]
    assert save(figure, "png").startswith(b"\x89PNG")
    assert len(figure.axes) == {1: 1, 2: 1, 3: 2, 4: 4}[axes]
    lines = [line for panel in figure.axes for line in panel.lines]
    points = [point for line in lines if line.get_marker() in "os^" for point in line.get_xydata()]
    assert sorted(loss for _, loss in points) == pytest.approx(sorted(found.table["loss"]))
    assert {place for place, _ in points} == ({2, 4, 8} if x == "steps" else set(found.runs[x]))
    marked = [loss for line in lines if line.get_marker() == "*" for loss in line.get_ydata() if loss == loss]
    assert marked == [found.table["loss"].min()]


def test_costs_and_picture_of_a_run(tmp_path):
    folder = make_run(tmp_path / "one", settings={"data.tokenizer": "byte"}, curve=[(0, 4.0), (1, 3.0)])
    run = read_runs(tmp_path).iloc[0]
    assert run["tokens"] == 20 * 4 * 16 * 2
    assert run["flops"] == run["tokens"] * (6 * (12 * 16 * 16 + 65 * 16) + 12 * 16 * 16)
    (axes,) = draw_run(folder / "metrics.csv", "token").axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["train/loss"] == points["val/loss"] == [[1, 4], [2, 3]]
    assert axes.get_ylabel() == "loss (nats per token)"


def test_choices_and_searches_are_ranked_and_of_many_curves_the_best_have_colours(tmp_path):
    (axes,) = draw_pictures(compare_runs(make_sweep(tmp_path / "a", norm=["x", "y"])))["axes"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["norm x", "norm y"]
    for number in range(40):
        settings = {"model.n_head": number, "optimizer.lr": 0.1**number, "data.x": number / 7}
        loss = 99 if number == 39 else 2 + number / 100  # which has diverged
        make_run(tmp_path / "b" / f"{number:04}", loss, settings=settings, curve=[(19, loss)])
    figures = draw_pictures(compare_runs(tmp_path / "b"))
    assert len(figures["axes"].axes[0].get_yticklabels()) == 30
    (axes,) = figures["curves"].axes
    assert [line.get_color() for line in axes.lines].count("0.75") == 33
    assert {line.get_marker() for line in axes.lines} == {"o"}  # one validation is no line
    assert axes.get_ylim()[1] < 3
    assert figures["curves"].legends[0].get_title().get_text() == "the best 7 of 40"


class Page(HTMLParser):
    """A page that closes each tag and loads nothing, with its pictures, links and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.pictures, self.links, self.text = [], 0, [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(key.startswith("on") or "http:" in value or "https:" in value for key, value in attrs)
        self.open += [tag] if tag not in ("meta", "img") else []
        self.pictures += tag == "img" and dict(attrs)["src"].startswith("data:image/svg+xml;base64,")
        self.links += [value for key, value in attrs if key == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_of_a_run(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    report_script.main([str(trained)])
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"
    page = Page(trained / "report.html")
    sample = f"step 4, val loss {result['final_val_loss']:.4f}"
    for said in (f"{result['parameters']:,}", "max_steps: 4", "trainer.max_steps=4", sample):
        assert said in page.text
    assert page.pictures == 1 + 2  # the curves, and the attention of two layers
    (trained / "sample.txt").write_text(HOSTILE)
    shutil.rmtree(trained / "checkpoints")
    page = Page(write_report(trained))
    assert HOSTILE in page.text
    assert "no such file" in page.text  # instead of attention
    assert page.pictures == 1
    (trained / "result.json").unlink()
    assert report_line(trained).startswith("report: (none), because of folder = ")


def test_page_of_a_sweep(tmp_path):
    folder = make_sweep(tmp_path / "<b>&sweep", n_head=[1, 2, 4], n_layer=[1, 2])
    make_run(folder / HOSTILE.replace("/", " "), 1.0, settings={"model.n_head": HOSTILE})
    (folder / "broken").mkdir()
    (folder / "broken" / "error.txt").write_text(HOSTILE)
    page = Page(write_report(folder))
    assert (page.pictures, len(page.links)) == (2, 13)
    assert f"broken: {HOSTILE}" in page.text
    assert "./n_head%3D1%2Cn_layer%3D1%2Cseed%3D1/" in page.links
    assert Page(write_report(make_task(tmp_path / "tasks" / "one", 0.5).parent)).pictures == 1


def test_without_the_extra_there_is_one_line(sweep, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gpt.analysis.")]:
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.delattr(gpt.analysis, module.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, "pandas", None)
    missing = '(none), it needs the extra analysis: pip install -e ".[analysis]"'
    assert report_line(sweep) == f"report: {missing}"
    assert table_of(sweep) == f"table: {missing}"
    for script in (compare_script, report_script):
        with pytest.raises(UserError, match=r'pandas is not installed; pip install -e "\.\[analysis\]"'):
            script.main([str(sweep)])
