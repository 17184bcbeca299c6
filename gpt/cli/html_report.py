"""A page about a run or a sweep that any browser opens: one file, which loads nothing from anywhere."""

import os
import shlex
from collections.abc import Callable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gpt.cli.layout import Point, find_axes, locate, show
from gpt.cli.pictures import draw_axes, draw_curves, draw_run, our_style
from gpt.cli.records import Group, RunRecord, group_runs, read_about, read_run, read_runs, typed_command
from gpt.cli.svg import inline_svg
from gpt.cli.table import choose_columns, make_lines, render
from gpt.cli.task_table import are_tasks, draw_tasks, sort_tasks, task_cells, task_lines
from gpt.errors import UserError, printable, shorten
from gpt.files import read_text, write_text
from gpt.runs.result import Result, TaskResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt.tokenizer import Tokenizer

TEMPLATE = Path(__file__).with_name("report_template.html")
TEXT = "ROMEO:\nO, speak again, bright angel"  # what attention is shown on, if the tokenizer knows it
MOST_TOKENS, MOST_LAYERS, MOST_HEADS = 24, 12, 16  # of attention
MOST_SAMPLES, LONGEST_SAMPLE, MOST_UNFINISHED = 12, 2_000, 50  # texts, characters of each, and runs
BEST = '<tr class="best">'
CURVES = "Training and validation loss"
ATTENTION = (
    "How much each token (row) takes from itself and from those before it (columns), in each head. "
    "The more a cell stands out from the background, the larger the weight."
)


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html about the run that it is, or else about the runs in it, and return its path.

    Raises UserError if no run has finished, and ImportError without matplotlib.
    """
    name = folder.resolve().name
    with our_style():
        if (folder / "config.yaml").is_file():
            run = read_run(folder, name)
            if run.result is None:
                raise UserError(f"folder = {folder}: {run.problem}; give a run that has finished")
            body = describe_run(folder, run, run.result)
        else:
            body = describe_sweep(folder, read_runs(folder))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=cell(name), body=body)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def report_line(folder: Path) -> str:
    """Write the page, and say where it is, or why there is none: the runs that it is about have ended well all the same."""
    try:
        return f"report: {shlex.quote(printable(os.path.relpath(write_report(folder))))}"
    except ImportError:
        return "report: (none), because it needs matplotlib: pip install matplotlib"
    except UserError as error:
        return f"report: (none), because of {error}"


def describe_run(folder: Path, run: RunRecord, result: Result) -> str:
    """The parts of a run's page. A part for which the folder has nothing says so."""
    about = read_about(folder)
    finished = datetime.fromtimestamp((folder / "result.json").stat().st_mtime)
    facts = {"finished": f"{finished:%Y-%m-%d %H:%M}"} | machine_facts(about)
    is_task = isinstance(result, TaskResult)
    unit = (
        "example"
        if is_task
        else "character"
        if run.settings.get("data.tokenizer", "char") == "char"
        else "token"
    )
    curves = attempt(lambda: picture(draw_run(folder / "metrics.csv", unit), "curves", CURVES))
    return "\n".join(
        [
            heading("run", run.name),
            numbers(result),
            section("Command", command(about)),
            section("Curves", curves),
            "" if is_task else section("Samples", attempt(lambda: show_samples(folder, dict(run.curve)))),
            "" if is_task else section("Attention", attempt(lambda: show_attention(folder))),
            section("Machine and versions", fact_table(facts)),
            section("Configuration", attempt(lambda: show_configuration(folder))),
        ]
    )


def describe_sweep(folder: Path, runs: list[RunRecord]) -> str:
    """The parts of a sweep's page. Raises UserError if no run has a best loss."""
    groups = group_runs(runs)
    if not groups:
        raise UserError(f"folder = {folder}: no run in it has a best val/loss; keep callbacks.best")
    points = locate(groups)
    first = folder / groups[0].runs[0].name
    about = read_about(first)
    pictures = (
        ("curves", "Validation loss during training", draw_curves),
        ("axes", "The best loss by setting", draw_axes),
    )
    if are_tasks(groups):
        drawn = [picture(draw_tasks(task_lines(groups)), "tasks", "Accuracy on the test part")]
    else:
        drawn = [picture(draw(points, "steps"), name, text) for name, text, draw in pictures]
    parts = [
        heading("sweep", folder.resolve().name),
        section("What varied", what_varied(points, runs)),
        section("Results", result_table(folder, groups)),
        section("Pictures", *drawn),
        section("Command", command(about)),
        section("Machine and versions", fact_table(machine_facts(about))),
    ]
    if unfinished := [run for run in runs if not run.result]:
        lines = [f"<li>{cell(run.name)}: {cell(run.problem)}</li>" for run in unfinished[:MOST_UNFINISHED]]
        parts.append(section(f"Not finished: {len(unfinished):,}", f"<ul>{''.join(lines)}</ul>"))
    return "\n".join(parts)


def attempt(make: Callable[[], str]) -> str:
    """A part of the page, or a note that says why it is missing."""
    try:
        return make()
    except UserError as error:
        return f'<p class="note">{cell(error)}</p>'


def cell(value: Any) -> str:
    """Any value as HTML on one line."""
    return escape(shorten(value, 300))


def heading(kind: str, name: str) -> str:
    return f'<p class="kind">{kind}</p>\n<h1>{cell(name)}</h1>'


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{''.join(parts)}\n</section>"


def picture(figure: "Figure | None", name: str, caption: str, kind: str = "plot") -> str:
    """A figure as HTML, or nothing for None."""
    if figure is None:
        return ""
    return f'<figure class="{kind}">{inline_svg(figure, name, caption)}<figcaption>{escape(caption)}</figcaption></figure>'


def fact_table(facts: Mapping[str, str]) -> str:
    rows = [
        f'<tr><th scope="row">{cell(key)}</th><td>{cell(value)}</td></tr>' for key, value in facts.items()
    ]
    return f'<table class="facts">{"".join(rows)}</table>'


def numbers(result: Result) -> str:
    """The most important results of a run, in large print."""
    best, unit = result.best_val_loss, "example" if isinstance(result, TaskResult) else "character"
    tiles = [("final val loss", f"{result.final_val_loss:.4f}", f"nats per {unit}")]
    if isinstance(result, TaskResult):
        tiles.insert(
            0, ("accuracy", f"{result.test_accuracy:.4f}", f"of {result.test_examples:,} test examples")
        )
    if best is not None:
        tiles.append(("best val loss", f"{best:.4f}", f"at step {result.best_step:,}"))
    tiles += [
        ("parameters", f"{result.parameters:,}", f"vocabulary of {result.vocab_size:,}"),
        ("steps", f"{result.step:,}", ""),
        ("time", duration(result.seconds), ""),
    ]
    if (speed := result.chars_per_second) is not None:
        tiles.append(("speed", f"{speed:,.0f}", "characters per second"))
    shown = [
        f"<div><dt>{name}</dt><dd>{value}<small>{unit}</small></dd></div>" for name, value, unit in tiles
    ]
    return f'<dl class="numbers">{"".join(shown)}</dl>'


def duration(seconds: float) -> str:
    """A time such as 23 min 16 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def machine_facts(about: Mapping[str, Any]) -> dict[str, str]:
    """Where, with what and from which commit a run was made, as far as its run.json tells."""
    machine, versions = (
        part if isinstance(part := about.get(key), dict) else {} for key in ("machine", "versions")
    )
    facts = {key: machine[key] for key in ("device", "cpu", "threads", "processes") if key in machine}
    facts |= {key: about[key] for key in ("platform", "python") if key in about}
    facts |= {str(key): value for key, value in list(versions.items())[:20]}
    if about.get("git_commit"):
        facts["commit"] = shorten(about["git_commit"]) + (
            ", and changes to it" if about.get("git_changes") else ""
        )
    if about.get("text_sha256"):
        facts["SHA-256 of the text"] = about["text_sha256"]
    return facts


def command(about: Mapping[str, Any]) -> str:
    """What was typed to train, as HTML."""
    typed = typed_command(about)
    return (
        f'<pre class="command">{escape(typed)}</pre>'
        if typed
        else '<p class="note">The command was not recorded.</p>'
    )


def show_configuration(folder: Path) -> str:
    text = escape(printable(read_text(folder / "config.yaml")))
    return f"<details><summary>config.yaml, with every setting</summary><pre>\n{text}</pre></details>"


def show_samples(folder: Path, losses: Mapping[int, float]) -> str:
    """What the model wrote after each validation, side by side. Of many texts, some are shown, the first and last included."""
    history: list[tuple[int | None, str]] = [*read_history(folder)] or [
        (None, read_text(folder / "sample.txt"))
    ]
    last = len(history) - 1
    shown = sorted({round(number * last / (MOST_SAMPLES - 1)) for number in range(MOST_SAMPLES)})
    articles = []
    for step, text in (history[number] for number in shown):
        title = "the last sample" if step is None else f"step {step:,}"
        if step is not None and step in losses:
            title += f", val loss {losses[step]:.4f}"
        cut = text[:LONGEST_SAMPLE] + (" ..." if len(text) > LONGEST_SAMPLE else "")
        articles.append(
            f'<article><h3>{title}</h3><pre tabindex="0">\n{escape(printable(cut))}</pre></article>'
        )
    return f'<div class="samples">{"".join(articles)}</div>'


def read_history(folder: Path) -> list[tuple[int, str]]:
    """The steps and texts that the last checkpoint keeps, of which an older run has none. Raises UserError if it is damaged."""
    from gpt.callbacks import Samples
    from gpt.checkpoint import read

    if not (path := folder / "checkpoints" / "last.ckpt").is_file():
        return []
    states = read(path).get("callbacks")
    if not isinstance(states, dict) or "samples" not in states:
        return []
    samples = Samples("", 0, [1.0])
    samples.load_state_dict(states["samples"])
    return samples.history


def show_attention(folder: Path) -> str:
    """The attention of each layer of the best model, on a short text that its tokenizer knows."""
    import torch

    from gpt.drawing import draw_attention
    from gpt.checkpoint import find, load
    from gpt.model import attention_weights

    model, tokenizer, _ = load(find(str(folder)))
    ids = tokenizer.encode(known_text(tokenizer))[None, : min(MOST_TOKENS, model.config.context_length)]
    tokens = [printable(tokenizer.decode(ids[:, n])) for n in range(ids.size(1))]
    with torch.no_grad():
        weights = attention_weights(model, ids)[:MOST_LAYERS, 0, :MOST_HEADS].float()
    pictures = []
    for number, layer in enumerate(weights, start=1):
        pictures.append(
            picture(draw_attention(layer, tokens, ""), f"layer{number}", f"Layer {number}", "attention")
        )
    return f"<p>{escape(ATTENTION)}</p>{''.join(pictures)}"


def known_text(tokenizer: "Tokenizer") -> str:
    """A text for a tokenizer, which may know another alphabet."""
    known = tokenizer.drop_unknown(TEXT)
    return (
        known
        if len(known) > len(TEXT) // 2
        else tokenizer.drop_unknown("abcdefghijklmnop") or tokenizer.default_prompt
    )


def what_varied(points: list[Point], runs: list[RunRecord]) -> str:
    """The settings that vary, with their values, and how many runs there are."""
    facts = {axis.name: list_values(axis.values) for axis in find_axes(points)}
    seeds = sorted({seed for run in runs if isinstance(seed := run.settings.get("seed"), int)})
    return fact_table(facts | {"seed": list_values(seeds), "runs": f"{len(runs):,}"})


def list_values(values: list[Any]) -> str:
    return ", ".join(map(show, values)) if len(values) <= 16 else f"{len(values):,} values"


def result_table(folder: Path, groups: list[Group]) -> str:
    """The table of `compare.py`, best first, with links to the runs' folders."""
    if are_tasks(groups):
        texts_of = task_cells(task_lines(groups := sort_tasks(groups)))
    else:
        lines = make_lines(groups, groups[0])
        texts_of = render(lines, [name for name in choose_columns(lines) if name != "run"])
    header = "".join(f'<th scope="col">{cell(name)}</th>' for name in [*texts_of[0], "folders"])
    rows: list[str] = []
    for group, texts in zip(groups, texts_of, strict=True):
        cells = [f'<td class="number">{cell(text)}</td>' for text in texts.values()]
        cells.append(f"<td>{', '.join(link(folder, run) for run in group.runs)}</td>")
        rows.append(f"{'<tr>' if rows else BEST}{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def link(folder: Path, run: RunRecord) -> str:
    """A link to a run's own page if it has one, or else to its folder."""
    page = "report.html" if (folder / run.name / "report.html").is_file() else ""
    text = run.name if len(run.name) <= 40 else f"...{run.name[-37:]}"
    return f'<a href="{escape(quote(f"./{run.name}/{page}"))}">{cell(text)}</a>'
