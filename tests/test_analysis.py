"""Tables, pictures and pages about runs, from run folders whose files are written here."""

import html
import io
import itertools
import json
import math
import re
import shutil
import sys

import pytest
import yaml
from pandas import Series, read_csv
from scipy.stats import ttest_ind

import compare as compare_script
import gpt.analysis
import report as report_script
from conftest import ARCHITECTURES
from gpt.analysis import report_line, table_of
from gpt.analysis.compare import compare_runs, read_run
from gpt.analysis.plots import draw_pictures, draw_run, save
from gpt.analysis.report import compare, write_report
from gpt.errors import UserError

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
SIZES = dict(vocab_size=65, context_length=16, n_layer=1, n_head=1, n_embd=16, dropout=0.0)
RESULT = dict(step=20, best_step=20, vocab_size=65, parameters=2000, seconds=2.0, chars_per_second=640.0)


def make_run(folder, loss=2.0, seed=1, typed=None, settings=None, curve=None, text="abcdef", **result):
    """A run folder as scripts/train.py leaves it. Without a loss, it is one that was interrupted."""
    folder.mkdir(parents=True)
    config = dict(model=ARCHITECTURES["modern"] | SIZES, data=dict(batch_size=4, tokenizer="char"), seed=seed)
    config |= dict(optimizer=dict(name="muon"), trainer=dict(accumulate_grad_batches=2), callbacks={})
    for key, value in (settings or {}).items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    origin = dict(overrides=typed or {}, command=["train.py", "seed=1"], text_sha256=text)
    (folder / "run.json").write_text(json.dumps(origin))
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
    typed, settings = settings | {"task": task}, settings | {"task.name": task, "finetune": {}}
    return make_run(folder, 1.0, seed, typed, settings, **result)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    folder = make_sweep(tmp_path / "sweep", losses=[2.5, 2.4, 2.2, 2.0], n_layer=[1, 2], n_head=[1, 2])
    make_run(folder / "n_layer=4", None, settings={"model.n_layer": 4})
    (folder / "n_head=3").mkdir()
    (folder / "n_head=3" / "error.txt").write_text("model.n_head = 3: no\n\nTraceback\n")
    return folder


def read_page(path):
    """The text of a page that loads nothing, its links, and how many pictures are in it."""
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|object|base)|<[^>]*(\son\w+=|https?:)", page)
    pictures = page.count('<img src="data:image/svg+xml;base64,')
    return html.unescape(re.sub(r"<[^>]*>", "", page)), re.findall('href="(.*?)"', page), pictures


def table_under(folder, baseline=""):
    """The only table of the runs under a folder."""
    ((found,), _) = compare_runs(folder, baseline)
    return found.table


def test_table_has_what_varies_best_first_with_numbers_computed_by_hand(sweep):
    shown = compare(sweep).splitlines()
    lines = [line.replace("|", "").split() for line in shown]
    results = ["loss", "difference", "noise", "seeds", "seconds", "parameters", "chars_per_second"]
    assert lines[0] == ["n_layer", "n_head", *results]
    assert lines[2] == ["2", "2", "2.150", "±", "0.071", "2", "2", "2k", "640"]  # losses 2.1 and 2.2
    assert lines[3][:9] == ["2", "1", "2.350", "±", "0.071", "+0.200", "±", "0.304", "within"]
    assert lines[5][5:9] == ["+0.500", "±", "0.304", "exceeds"]
    table, start = read_csv(sweep / "compare.csv"), Series([2.0, 2.2, 2.4, 2.5])
    assert table[["n_layer", "n_head"]].to_numpy().tolist() == [[2, 2], [2, 1], [1, 2], [1, 1]]
    loss, sd = start + 0.15, math.sqrt(0.005)  # of two losses, 0.1 apart
    expected = dict(loss=loss, sd=sd, difference=start - 2, bits_per_char=loss / math.log(2), seconds=2)
    expected["interval"] = 4.302652729911275 * sd * (start / start).where(start > 2)  # Student's t
    for name, values in expected.items():
        assert table[name].to_numpy() == pytest.approx(values, abs=1e-9, nan_ok=True)
    assert (sweep / "compare.md").read_text().startswith("| n_layer | n_head |          loss |")
    assert {"- n_layer=4: not finished", "- n_head=3: model.n_head = 3: no"} < set(shown)
    assert shown[-1] == f"written into {sweep}: compare.md, compare.csv, curves.png, axes.png"


def test_interval_is_welchs(tmp_path):
    values, others = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0]
    for n_layer, losses in {1: [3.0, 5.0], 2: values, 3: others, 4: [30.0] * 3, 5: [31.0] * 2}.items():
        for seed, loss in enumerate(losses):
            make_run(tmp_path / f"{n_layer}{seed}", loss, seed, settings={"model.n_layer": n_layer})
    low, high = ttest_ind(values, others, equal_var=False).confidence_interval()
    assert table_under(tmp_path, "n_layer=3")["interval"][1] == pytest.approx((high - low) / 2)
    intervals = table_under(tmp_path, "n_layer=4")["interval"]
    assert list(intervals[[0, 4]]) == pytest.approx([12.706204736, 0])  # Student's t, 1 degree of freedom


def test_noise_is_not_claimed_of_single_seeds_nor_of_copies_of_a_run(tmp_path):
    for name, seed in {"a": 1, "b": 2, "copy": 1}.items():
        settings = {"data.path": f"{name}.txt", "trainer.log_every_n_steps": len(name)}
        make_run(tmp_path / name, 2.0 + seed / 10, seed, settings=settings)
    ((found,), left_out) = compare_runs(tmp_path)
    assert found.table[["seeds", "loss"]].to_numpy().tolist() == [[2, pytest.approx(2.15)]]
    assert left_out == ["copy: has the settings and the seed of a"]
    make_run(tmp_path / "other", 3.0, settings={"model.n_layer": 2})
    assert "unknown" in compare(tmp_path).splitlines()[3]
    shutil.rmtree(tmp_path / "b")
    shown = compare(tmp_path)
    assert "the noise is not known" in shown
    assert "noise" not in shown.splitlines()[0]
    assert " ± " not in shown


def test_mean_over_seeds_is_named_after_what_its_runs_have_in_common(tmp_path):
    for number, seed in itertools.product((1, 2), (1, 2)):
        names = (f"seeds{number}/seed-{seed}", f"date_seed-{seed}_max_steps-{number}")
        for name, n_layer in zip(names, (number, 9 + number), strict=True):
            make_run(tmp_path / name, seed=seed, settings={"model.n_layer": n_layer})
    names = {"seeds1", "seeds2", "date_max_steps-1", "date_max_steps-2"}
    assert set(table_under(tmp_path)["run"]) == names
    assert list(table_under(tmp_path / "seeds1")["run"]) == ["seeds1"]


def test_only_runs_of_one_kind_are_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    make_sweep(tmp_path / "one", n_layer=[1, 2])
    make_run(tmp_path / "other", 1.0, text="123456", settings={"data.path": ["a.txt", "b.txt"]})
    make_run(tmp_path / "longer", 1.5, settings={"data.val_fraction": 0.2})
    make_run(tmp_path / "second", 1.5, text="fedcba", settings={"data.val_path": "end.txt"})
    for task, init, seed in itertools.product(("mark", "reply"), (None, "outputs/small"), (1, 2)):
        accuracy = 0.5 + seed / 100 + (0 if init is None else 0.1 if task == "mark" else 0.3)
        make_task(tmp_path / f"{task},{init and 1},seed={seed}", accuracy, seed, task, init=init)
    kinds, left_out = compare_runs(tmp_path)
    assert {found.kind: list(found.table["difference"]) for found in kinds} == {
        "language models on ['a.txt', 'b.txt'] (123456, 10% held out)": [0],
        "language models on Tiny Shakespeare (abcdef, 10% held out)": [0, pytest.approx(0.1)],
        "language models on Tiny Shakespeare (abcdef, 20% held out)": [0],
        "language models on Tiny Shakespeare, validated on end.txt (fedcba)": [0],
        "task mark on Tiny Shakespeare (abcdef, 10% held out)": [0, pytest.approx(-0.1)],
        "task reply on Tiny Shakespeare (abcdef, 10% held out)": [0, pytest.approx(-0.3)],
    }
    assert left_out == []
    shown = compare(tmp_path, baseline="init=null")
    assert all(f"## {found.kind}\n" in shown for found in kinds)
    assert re.search(r"small +\| 0.6150 ± 0.0071 \| \+0.1000 ± 0.0304 \| exceeds \| +2 \|", shown)
    pictures = "curves.png, curves-2.png, axes-2.png, curves-3.png, curves-4.png, tasks-5.png, tasks-6.png"
    assert shown.endswith(f"compare.md, compare.csv, {pictures}")
    table = read_csv(tmp_path / "compare.csv")
    assert list(table["kind"].unique()) == [found.kind for found in kinds]
    assert list(table["difference"])[-4:] == pytest.approx([0.1, 0, 0.3, 0])
    (axes,) = draw_pictures(kinds[4])["tasks"].axes
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["best", "majority"]
    text, _, count = read_page(write_report(tmp_path))
    assert all(found.kind in text for found in kinds)
    assert count == 7


@pytest.mark.parametrize("width", [60, 140])
def test_table_fits_the_terminal_and_names_what_does_not(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    values = dict(context_length=64, n_layer=2, n_head=2, dropout=0.5, norm="rmsnorm", activation="relu")
    values |= dict(positions="learned", bias=True)
    for name, value in values.items():
        make_run(tmp_path / f"2026-11-24_21-39-16_tiny_{name}-{value}", settings={f"model.{name}": value})
    shown = compare(tmp_path)
    header, _, *lines = shown.splitlines()[: len(values) + 2]
    assert all(len(line) <= width for line in (header, *lines))
    dropped = re.search("No room here for (.*): see compare.csv", " ".join(shown.split()))[1].split(", ")
    results = {"loss", "difference", "seconds", "parameters", "chars_per_second"}
    kept = header.replace("|", "").split()
    assert {"run", *values, *results} == {*dropped, *kept}
    assert {"run", "loss"} <= set(kept)
    assert lines[0].startswith("| 2026-11-24")


def test_columns_sort_baseline_and_csv(sweep, capsys):
    shown = compare(sweep, sort="n_head", columns=["n_head", "difference"], baseline="n_layer=1,n_head=2")
    cells = [("1", "-0.200"), ("1", "+0.100"), ("2", "-0.400"), ("2", "|")]
    assert re.findall(r"^\| +(\d) \| +(\S+)", shown, re.M) == cells
    before = sorted(sweep.rglob("*"))
    compare_script.main([str(sweep), "--csv", "--sort", "difference", "--baseline", "n_layer=1,n_head=1"])
    table = read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table["difference"]) == pytest.approx([-0.5, -0.3, -0.1, 0])
    assert sorted(sweep.rglob("*")) == before
    by_name = table_under(sweep, "layer=2,n_head=1,se")  # a part of a run's name
    assert list(by_name["difference"]) == pytest.approx([-0.2, 0, 0.2, 0.3])
    for wrong in (dict(sort="n_heads"), dict(columns=["n_heads"])):
        with pytest.raises(UserError, match="did you mean n_head"):
            compare(sweep, **wrong)
    for text, number in (("n_layer=2", 2), ("n_layer=7", 0)):
        with pytest.raises(UserError, match=f"describes {number} lines"):
            compare(sweep, baseline=text)


def settings_of(folder):
    """The names of the runs of each line, and what tells the line apart."""
    ((found,), _) = compare_runs(folder)
    names = found.runs.groupby("line")["name"].agg(",".join)
    return {names[line]: dict(found.table.loc[line, found.settings]) for line in found.table.index}


def test_line_is_told_by_what_was_typed_and_by_what_no_choice_explains(tmp_path):
    words = list(itertools.product(("gpt1", "modern"), (1, 2)))
    for arch, n_layer in words:
        typed = {"model": "tiny", "model/arch": arch, "model.n_layer": n_layer, "logger": arch, "seed": 1}
        settings = {f"model.{key}": value for key, value in ARCHITECTURES[arch].items()}
        make_run(tmp_path / "1" / f"{arch}{n_layer}", 2.0, 1, typed, settings | {"model.n_layer": n_layer})
    assert settings_of(tmp_path / "1") == {f"{arch}{n}": {"arch": arch, "n_layer": n} for arch, n in words}
    folder, gelu = tmp_path / "2", {"model.activation": "gelu"}
    make_run(folder / "a", typed={"ablation": "gelu"}, settings=gelu)
    make_run(folder / "c", typed={"ablation": "none"})
    assert settings_of(folder) == {"a": {"ablation": "gelu"}, "c": {"ablation": "none"}}
    edited = gelu | {"model.n_head": 2}  # in conf/ablation/gelu.yaml, between the two
    make_run(folder / "b", typed={"ablation": "gelu"}, settings=edited)
    assert settings_of(folder)["b"] == {"ablation": "gelu", "activation": "gelu", "n_head": 2}
    make_run(folder / "d", settings={"trainer.x": True})  # from Python: nothing was typed
    make_run(folder / "e", settings={"trainer.x": 1})  # 1 is not true
    assert settings_of(folder)["d"]["x"] is True
    assert len(settings_of(folder)) == 5


def test_runs_with_equal_settings_are_one_line_whatever_was_typed(tmp_path):
    make_run(tmp_path / "a_seed-1", typed={"model.n_head": 1, "seed": 1})
    other = {"callbacks.samples": {"_target_": "x"}, "model.bias": False}  # its default
    make_run(tmp_path / "a_seed-2", seed=2, typed={"callbacks": "many"}, settings=other)
    make_run(tmp_path / "c", settings={"callbacks.ema": {"_target_": "x", "decay": 0.9}})  # decides a result
    assert list(settings_of(tmp_path)) == ["a_seed-1,a_seed-2", "c"]


def test_other_tokenizers_are_compared_per_character(tmp_path):
    make_run(tmp_path / "char", 2.0)
    bits = 1.8 / math.log(2)  # 4 / 1.8 characters a token
    make_run(tmp_path / "bpe", 4.0, settings={"data.tokenizer": "bpe"}, final_bits_per_char=bits)
    table = table_under(tmp_path)
    assert list(table["tokenizer"]) == ["bpe", "char"]
    assert list(table["loss"]) == pytest.approx([1.8, 2])
    assert list(read_run(tmp_path / "bpe")["curve"]) == pytest.approx([1.8 * 5 / 4, 1.8])
    assert "converted, for runs that read bytes or byte pairs" in " ".join(compare(tmp_path).split())


@pytest.mark.parametrize("content", ["", "[1]", "a: [", "!!python/object/apply:os.getcwd []"])
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "result.json", "metrics.csv"])
def test_damaged_file_is_named_and_the_others_are_compared(tmp_path, name, content):
    make_run(tmp_path / "whole")
    (make_run(tmp_path / "broken", 1.0) / name).write_text(content)
    ((found,), left_out) = compare_runs(tmp_path)
    assert len(found.table) == 1
    assert re.match(f"broken: file = {name}: .*damaged", *left_out)


def test_runs_that_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match="no finished run in it"):
        compare(tmp_path / "nowhere")
    make_run(tmp_path / "one", best_val_loss=None, best_step=None)
    with pytest.raises(UserError, match=r"keep callbacks\.best"):
        compare(tmp_path)
    bare = make_run(tmp_path / "bare")
    for name in ("run.json", "metrics.csv"):
        (bare / name).unlink()
    assert "- one: no best val/loss; keep callbacks.best" in compare(tmp_path)
    assert not list(tmp_path.glob("*.png"))  # nothing varies, and there are no curves


AXES = dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128], norm=["layernorm", "rmsnorm"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("axes", "x"), [(1, "steps"), (2, "steps"), (4, "steps"), (3, "flops")])
def test_picture_has_a_panel_for_each_setting_and_marks_the_best(tmp_path, axes, x):
    ((found,), _) = compare_runs(make_sweep(tmp_path, **dict(list(AXES.items())[:axes])))
    figures = draw_pictures(found, x)
    assert list(figures) == ["curves", "axes"]
    assert save(figures["axes"], "png").startswith(b"\x89PNG")
    panels = dict(zip(found.settings if x == "steps" else ["flops"], figures["axes"].axes, strict=True))
    for name, panel in panels.items():
        dots = [line for line in panel.lines if line.get_marker() == "o"]
        points = [point for line in dots for point in line.get_xydata()]
        assert sorted(loss for _, loss in points) == pytest.approx(sorted(found.table["loss"]))
        places = {"norm": [0, 1], "flops": found.runs["flops"]} | AXES
        assert {place for place, _ in points} == set([0, 1] if name == "norm" else places[name])
        marked = [line.get_ydata().tolist() for line in panel.lines if line.get_marker() == "*"]
        assert marked == [[found.table["loss"].min()]]


def test_costs_and_picture_of_a_run(tmp_path):
    folder = make_run(tmp_path / "one", settings={"data.tokenizer": "byte"}, curve=[(0, 4.0), (1, 3.0)])
    run = read_run(folder)
    assert run["tokens"] == 20 * 4 * 16 * 2
    assert run["flops"] == run["tokens"] * (6 * (12 * 16 * 16 + 65 * 16) + 12 * 16 * 16)
    (axes,) = draw_run(folder / "metrics.csv", "token").axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["train/loss"] == points["val/loss"] == [[1, 4], [2, 3]]


def test_of_many_curves_the_best_have_colours_and_what_diverged_is_out_of_the_picture(tmp_path):
    for number in range(40):
        settings = {"data.batch_size": number + 1, "optimizer.lr": 0.1**number}
        loss = 99 if number == 39 else 2 + number / 100  # which has diverged
        make_run(tmp_path / f"{number:04}", loss, settings=settings, curve=[(19, loss)])
    figures = draw_pictures(*compare_runs(tmp_path)[0])
    (axes,) = figures["curves"].axes
    assert [line.get_color() for line in axes.lines].count("0.75") == 33
    assert axes.get_ylim()[1] < 3
    assert figures["curves"].legends[0].get_title().get_text() == "the best 7 of 40"
    assert [panel.get_ylim()[1] < 3 for panel in figures["axes"].axes] == [True, True]


def test_page_of_a_run(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    report_script.main([str(trained)])
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"
    text, _, pictures = read_page(trained / "report.html")
    sample = f"step 4, val loss {result['final_val_loss']:.4f}"
    for said in (f"{result['parameters']:,}", "max_steps: 4", "trainer.max_steps=4", sample):
        assert said in text
    assert pictures == 1 + 2  # the curves, and the attention of two layers
    (trained / "sample.txt").write_text(HOSTILE)
    shutil.rmtree(trained / "checkpoints")
    text, _, pictures = read_page(write_report(trained))
    assert HOSTILE in text
    assert "no such file" in text  # instead of attention
    assert pictures == 1
    (trained / "result.json").unlink()
    assert report_line(trained).startswith("report: (none), because of folder = ")


def test_page_of_a_sweep(tmp_path):
    folder = make_sweep(tmp_path / "<b>&sweep", n_head=[1, 2, 4], n_layer=[1, 2])
    make_run(folder / HOSTILE.replace("/", " "), 1.0, typed={"init": HOSTILE}, settings={"init": HOSTILE})
    (folder / "broken").mkdir()
    (folder / "broken" / "error.txt").write_text(HOSTILE)
    (folder / ".report.html.tmp-1").touch()  # a process that was killed has left it
    text, links, pictures = read_page(write_report(folder))
    assert (pictures, len(links)) == (2, 13)
    assert f"broken: {HOSTILE}" in text
    assert "./n_head%3D1%2Cn_layer%3D1%2Cseed%3D1/" in links
    assert not list(folder.glob(".*"))


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
