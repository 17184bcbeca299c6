import math
import sys
from dataclasses import asdict, replace

import pytest

import plot_run
from conftest import make_config
from gpt.cli.layout import Axis, arrange, find_axes, locate
from gpt.cli.pictures import draw_axes, draw_curves, draw_pictures, draw_run
from gpt.cli.records import Group, RunRecord
from gpt.model import flops_per_token
from gpt.runs.result import Result
from gpt.settings import UserError

matplotlib = pytest.importorskip("matplotlib", reason="extra plot is not installed")
RESULT = Result(
    best_val_loss=2.0,
    best_step=20,
    final_val_loss=2.0,
    final_bits_per_char=2.9,
    step=20,
    vocab_size=65,
    parameters=1,
    seconds=10.0,
    chars_per_second=None,
)
SIZES = {"data.batch_size": 4, "trainer.accumulate_grad_batches": 2}


def make_group(loss, name, curve=((10, 3.0), (20, 2.0)), **settings):
    """A group of one run for each loss, in folders called `name` (with the seed, if there are several)."""
    losses = loss if isinstance(loss, list) else [loss]
    all_settings = SIZES | {f"model.{key}": value for key, value in settings.items()}
    runs = [
        RunRecord(
            f"{name},seed={seed}" if len(losses) > 1 else name, all_settings, replace(RESULT, best_val_loss=found), list(curve)
        )
        for seed, found in enumerate(losses)
    ]
    return Group(settings, runs)


def make_grid(seeds=1, **values):
    """A group for each combination of the values, as a sweep leaves them, best first."""
    combinations = [{}]
    for key, options in values.items():
        combinations = [combination | {key: option} for combination in combinations for option in options]
    groups = []
    for number, settings in enumerate(combinations):
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        groups.append(make_group([2 + number / 10 + seed / 100 for seed in range(seeds)], name, **settings))
    return groups


GRIDS = {
    1: dict(n_head=[2, 4, 8]),
    2: dict(n_head=[2, 4, 8], n_layer=[2, 4]),
    3: dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128]),
    4: dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128], norm=["layernorm", "rmsnorm"]),
    5: dict(n_head=[2, 4, 8], n_layer=[2, 4], context_length=[64, 128], norm=["layernorm", "rmsnorm"], bias=["on", "off"]),
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("x", ["steps", "tokens", "seconds"])
@pytest.mark.parametrize("axes", GRIDS)
def test_grid_has_a_line_for_each_combination(axes, x, seeds):
    groups = make_grid(seeds, **GRIDS[axes])
    points = locate(groups)
    assert list(points[0].at) == list(GRIDS[axes])
    figure = draw_axes(points, x)
    drawn = [line for panel in figure.axes for line in panel.lines if line.get_label() != "best"]
    stars = [line for panel in figure.axes for line in panel.lines if line.get_label() == "best"]
    assert sum(len(line.get_xdata()) for line in drawn) == len(points) // (2 if axes == 5 else 1)
    assert len(figure.axes) == {1: 1, 2: 1, 3: 2, 4: 4, 5: 4}[axes]
    assert [star.get_ydata()[0] for star in stars] == [groups[0].loss]
    assert ("only bias on is shown" in figure.get_suptitle()) == (axes == 5)


def test_setting_with_most_values_is_the_horizontal_axis_and_by_cost_the_dearest():
    groups = make_grid(n_layer=[1, 2], context_length=[64, 128], n_head=[1, 2, 4])
    points = locate(groups)
    assert arrange(points).x.name == "n_head"
    assert arrange(points, lambda group: group.runs[0].tokens(10)).x.name == "context_length"


def test_tokens_and_seconds_of_a_run():
    (group,) = make_grid(context_length=[64])
    assert group.runs[0].tokens(10) == 10 * 64 * 4 * 2
    assert group.runs[0].seconds(10) == 5
    assert math.isnan(RunRecord("x", {}, RESULT, []).tokens(10))


def test_categories_and_searches_are_ranked():
    choices = locate(make_grid(3, arch=["gpt1", "gpt2", "modern"]))
    assert arrange(choices) is None
    axes = draw_axes(choices, "steps").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gpt1", "gpt2", "modern"]
    search = locate([make_group(2.0 + n, f"{n:04}", lr=0.1**n, n_head=n, decay=n / 7) for n in range(40)])
    assert arrange(search) is None
    assert len(draw_axes(search, "steps").axes[0].get_yticklabels()) == 30


def test_a_group_lies_where_its_settings_say_and_by_its_name_if_they_are_many():
    few = [make_group(2.0, "a", arch="gpt1", n_layer=2), make_group(2.1, "b", arch="modern", n_layer=4)]
    assert [point.at for point in locate(few)] == [{"arch": "gpt1", "n_layer": 2}, {"arch": "modern", "n_layer": 4}]
    many = [make_group(2.0 + number, name, **dict.fromkeys("cdefghi", number)) for number, name in enumerate("ab")]
    assert [point.at for point in locate(many)] == [{"run": "a"}, {"run": "b"}]


def test_flops_are_an_axis():
    config = make_config("gpt2", vocab_size=65)
    model = {f"model.{key}": value for key, value in asdict(config).items()}
    runs = {n: RunRecord(f"{n}", SIZES | model | {"model.n_layer": n}, RESULT, [(10, 3.0), (20, 2.0)]) for n in (1, 2)}
    groups = [Group({"n_layer": n}, [run]) for n, run in runs.items()]
    flops = [runs[n].tokens(20) * flops_per_token(replace(config, n_layer=n)) for n in (1, 2)]
    assert list(draw_axes(locate(groups), "flops").axes[0].lines[0].get_xdata()) == flops
    assert [line.get_xdata()[-1] for line in draw_curves(locate(groups), "flops").axes[0].lines] == flops


def test_run_with_one_validation_and_a_baseline_that_is_near(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n0,4.0,\n1,3.0,\n1,,2.5\n")
    axes = draw_run(path, "token", {"near": 2.45, "far": 0.5}).axes[0]
    validation = next(line for line in axes.lines if line.get_label() == "val/loss")
    assert (list(validation.get_xdata()), validation.get_marker()) == ([2], "o")
    low, high = axes.get_ylim()
    assert low < 2.45 < 2.5 < high
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train/loss", "val/loss", "near 2.4500"]
    assert axes.get_ylabel() == "loss (nats per token)"
    path.write_text("step,lr\n0,1\n")
    assert draw_run(path, "token") is None


def test_numbers_are_ordered_and_mixed_values_are_texts():
    groups = [make_group(2.0, str(number), x=value) for number, value in enumerate((8, 16, 4))]
    (axis,) = find_axes(locate(groups))
    assert axis.values == [4, 8, 16]
    groups = [make_group(2.0, str(number), x=value) for number, value in enumerate((8, None, [1, 2], True))]
    (axis,) = find_axes(locate(groups))
    assert axis.values == ["8", "None", "[1, 2]", "True"]
    assert axis.position("None") == 1


@pytest.mark.parametrize(
    ("values", "geometric"),
    [([2, 4, 8], True), ([2, 4, 6], False), ([0, 1, 10], False), ([1e-4, 3e-4, 1e-3], True), ([1, 9], False)],
)
def test_rates_and_sizes_get_a_logarithmic_axis(values, geometric):
    assert Axis("x", values).is_geometric == geometric


def test_single_validation_is_visible_as_a_marker():
    figure = draw_curves(
        locate([make_group(2.0, "n=1", curve=[(20, 2.0)], n=1), make_group(2.5, "n=2", curve=[(20, 2.5)], n=2)]), "steps"
    )
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "o"]
    assert draw_curves(locate([make_group(2.0, "n=1", curve=[], n=1)]), "steps") is None


def test_curves_name_the_best_and_leave_the_others_grey():
    figure = draw_curves(locate(make_grid(n=list(range(1, 11)))), "steps")
    assert [line.get_color() for line in figure.axes[0].lines].count("0.75") == 3
    assert figure.legends[0].get_title().get_text() == "the best 7 of 10"


@pytest.mark.filterwarnings("error")
def test_labels_are_large_enough_and_inside_the_picture(tmp_path):
    for axes, values in GRIDS.items():
        for x in ("steps", "seconds"):
            with matplotlib.rc_context({"text.parse_math": False}):
                figure = draw_axes(locate(make_grid(3, **values)), x)
                figure.canvas.draw()
            for text in figure.findobj(matplotlib.text.Text):
                if text.get_text() and text.get_visible():
                    assert text.get_fontsize() >= 8
                    box = text.get_window_extent()
                    if box.width:
                        assert figure.bbox.x0 <= box.x0, (axes, x, text)
                        assert box.x1 <= figure.bbox.x1 + 1, (axes, x, text)


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn(tmp_path):
    names = ["$x^", "日本", "\\alpha", "a" * 300]
    groups = [make_group(2.0 + number, name, n_layer=name) for number, name in enumerate(names)]
    assert draw_pictures(groups, tmp_path, "steps") == ["curves.png", "axes.png"]


def test_plot_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n0,2.0,\n1,nan,1.9\n")
    monkeypatch.setattr(sys, "argv", ["plot_run.py", str(tmp_path), str(tmp_path / "curve.png")])
    plot_run.main()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,x\n")
    with pytest.raises(UserError, match=r"metrics\.csv"):
        plot_run.main()
