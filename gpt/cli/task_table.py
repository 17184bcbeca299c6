"""The table and the picture of runs that were fine-tuned, as [G] has them in table 5 and figure 2 (left).

Accuracies are compared within a task only: those of different tasks have nothing to do with one another.
"""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from gpt.cli.pictures import our_style
from gpt.cli.records import Group, RunRecord
from gpt.cli.table import Line, aligned, comma_separated, markdown, name_of, show
from gpt.errors import UserError
from gpt.files import atomic, write_text
from gpt.runs.result import TaskResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTES = [
    "accuracy: on the test part, of the checkpoint with the lowest loss on held-out training examples; mean ± standard deviation "
    "over seeds. Compare it within a task.",
    "naive_bayes: of character n-grams. It is empty where scikit-learn is not installed, and where it has no answer.",
]
RESULTS = ("run", "accuracy", "sd", "seeds", "majority", "naive_bayes", "seconds")


def compare_tasks(folder: Path, runs: Sequence[RunRecord], groups: Sequence[Group]) -> str:
    """Write compare.md, compare.csv and tasks.png into `folder`, and return what a terminal should show."""
    lines = task_lines(groups)
    cells, unfinished = task_cells(lines), [f"{run.name}: {run.problem}" for run in runs if not run.result]
    written = ["compare.md", "compare.csv", "tasks.png"]
    try:
        write_text(folder / "compare.md", "\n\n".join([markdown(cells), *NOTES, *unfinished]) + "\n")
        write_text(folder / "compare.csv", comma_separated(lines))
        with our_style(), atomic(folder / "tasks.png") as file:
            draw_tasks(lines).savefig(file, format="png")
    except ImportError:
        written = [*written[:2], "but no picture, which needs matplotlib"]
    except OSError as error:
        raise UserError(f"folder = {folder}: {error.strerror}; make room, or compare a copy of it") from None
    width = shutil.get_terminal_size((140, 24)).columns
    shown = [line.rstrip() for line in aligned(cells)]
    notes = [textwrap.fill(note, width) for note in NOTES]
    return "\n".join(
        [
            *shown,
            "",
            *notes,
            *(["", *unfinished] if unfinished else []),
            "",
            f"written into {folder}: {', '.join(written)}",
        ]
    )


def are_tasks(groups: Sequence[Group]) -> bool:
    """Whether these are runs that were fine-tuned. Of a folder that holds both kinds, the table is that of language models."""
    return bool(groups) and all(isinstance(run.result, TaskResult) for group in groups for run in group.runs)


def task_lines(groups: Sequence[Group]) -> list[Line]:
    """A line for each group, in the order of `sort_tasks`, with every column."""
    lines: list[Line] = []
    places = {place for group in groups if isinstance(place := group.settings.get("init"), str)}
    are_told_apart = len({Path(place).name for place in places}) == len(places)
    for group in sort_tasks(groups):
        accuracies = group.values("test_accuracy")
        settings = {
            name: "null" if value in (None, "None") else value for name, value in group.settings.items()
        }
        if are_told_apart and isinstance(place := settings.get("init"), str):
            settings["init"] = Path(place).name
        results = {
            "accuracy": mean(accuracies),
            "sd": stdev(accuracies) if len(accuracies) > 1 else None,
            "seeds": len(accuracies),
            "majority": group.average("majority_accuracy"),
            "naive_bayes": group.average("naive_bayes_accuracy"),
            "seconds": group.average("seconds"),
        }
        lines.append({"run": name_of(group), "task": task_of(group)} | settings | results)
    return lines


def sort_tasks(groups: Sequence[Group]) -> list[Group]:
    """The groups by task, and those of a task by accuracy, best first."""
    return sorted(groups, key=lambda group: (task_of(group), -group.average("test_accuracy")))


def task_of(group: Group) -> str:
    return str(group.runs[0].settings.get("task.name"))


def task_cells(lines: Sequence[Line]) -> list[dict[str, str]]:
    """The lines as text. The column of the runs' names is left out: what varies says which they are."""
    shown = [name for name in lines[0] if name not in ("run", "sd")]
    return [{name: cell(line, name) for name in shown} for line in lines]


def cell(line: Line, name: str) -> str:
    value = line[name]
    if name == "accuracy":
        return f"{value:.4f}" + ("" if line["sd"] is None else f" ± {line['sd']:.4f}")
    return f"{value:.4f}" if name in ("majority", "naive_bayes") and value == value else show(value)


def draw_tasks(lines: Sequence[Line]) -> "Figure":
    """Accuracy against the layers that were taken over, if these vary, or else a bar for each line, grouped by task."""
    from matplotlib.figure import Figure

    varied = [name for name in lines[0] if name not in RESULTS]
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    if "layers" in varied:
        draw_layers(axes, lines, [name for name in varied if name != "layers"])
    else:
        labels = [describe(line, [name for name in varied if name != "task"]) for line in lines]
        kinds = sorted(set(labels))
        width = 0.8 / len(kinds)
        for number, kind in enumerate(kinds):
            some = [line for line, label in zip(lines, labels, strict=True) if label == kind]
            places = [tasks.index(line["task"]) + (number - (len(kinds) - 1) / 2) * width for line in some]
            errors = [line["sd"] or 0.0 for line in some]
            axes.bar(
                places, [line["accuracy"] for line in some], 0.9 * width, yerr=errors, label=kind or None
            )
        axes.set_xticks(range(len(tasks)), tasks)
        axes.grid(axis="x", visible=False)
    for name, dashes in (("majority", ":"), ("naive_bayes", "--")):
        draw_baseline(axes, lines, tasks, name, dashes, "layers" in varied)
    axes.set_ylabel("accuracy on the test part")
    figure.legend(loc="outside right upper")
    return figure


def draw_layers(axes: Any, lines: Sequence[Line], others: Sequence[str]) -> None:
    """Figure 2 (left): a line for each task, or whatever else varies."""
    for kind in dict.fromkeys(describe(line, others) for line in lines):
        some = [line for line in lines if describe(line, others) == kind and isinstance(line["layers"], int)]
        some.sort(key=lambda line: line["layers"])
        errors = [line["sd"] or 0.0 for line in some]
        places, accuracies = [line["layers"] for line in some], [line["accuracy"] for line in some]
        axes.errorbar(places, accuracies, yerr=errors, marker="o", capsize=3, label=kind)
    axes.set_xlabel("pre-trained layers taken over (0: the embeddings alone)")
    axes.locator_params(axis="x", integer=True)


def draw_baseline(
    axes: Any, lines: Sequence[Line], tasks: Sequence[str], name: str, dashes: str, is_axis: bool
) -> None:
    """What there is to beat, for each task."""
    label: str | None = name.replace("_", " ")
    for place, task in enumerate(tasks):
        value = next(line[name] for line in lines if line["task"] == task)
        if value != value:  # nan: not known
            continue
        if is_axis:
            axes.axhline(value, color="black", linewidth=0.8, linestyle=dashes, label=label)
        else:
            axes.hlines(
                value, place - 0.45, place + 0.45, color="black", linewidth=1.2, linestyle=dashes, label=label
            )
        label = None


def describe(line: Line, names: Sequence[str]) -> str:
    """What tells a line from others, in words."""
    return ", ".join(f"{name} {show(line[name])}" if name != "task" else show(line[name]) for name in names)
