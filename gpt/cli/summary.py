"""What a person sees when a run has ended: the play, the numbers, and what to type next."""

import math
import os
import shlex
import sys
from pathlib import Path

from gpt.analysis import report_line
from gpt.checkpoint import SUFFIX, checkpoint_path, load
from gpt.cli.overrides import quote
from gpt.config import RunConfig
from gpt.errors import printable, shorten
from gpt.finetune.predict import wilson_interval
from gpt.generate import generate_text
from gpt.result import Result
from gpt.tokenizer import tokenizer_class

PLAY, TEMPERATURE = 300, 0.8  # how many tokens are written for a run that took no samples, and how


def summarise(folder: Path, result: Result, config: RunConfig) -> None:
    """Print what the model has learnt, the run's folder, and commands that continue from here."""
    if config.task is not None:
        learnt = describe_task_result(result, config)
    else:
        learnt = show_sample(folder, result, config) + describe_result(result, config)
    print(f"\n{learnt}\nrun folder: {shell_path(folder)}\n{report_line(folder)}\n\nnext:")
    print("\n".join(f"  {command}" for command in next_commands(folder, config)), flush=True)


def show_sample(folder: Path, result: Result, config: RunConfig) -> str:
    """The run's last sample under a heading that says what wrote it.

    A run that took none has its best model write now, when its clock has stopped. Empty if none is kept.
    """
    sample, best = folder / "sample.txt", checkpoint_path(folder, "best")
    if (samples := config.callbacks.get("samples")) and sample.exists():
        step, temperature, prompt = result.step, samples["temperatures"][0], samples["prompt"]
        text = sample.read_text(encoding="utf-8")
    elif result.best_step is not None and best.exists():
        model, tokenizer, _ = load(best)
        step, temperature, prompt = result.best_step, TEMPERATURE, tokenizer.default_prompt
        text = generate_text(model, tokenizer, prompt, PLAY, temperature=temperature, seed=0)
    else:
        return ""
    asked = f", prompt {shorten(prompt)!r}" if prompt.strip("\n") else ""
    heading = f"what the model writes after {step:,} steps (temperature {temperature:g}{asked})"
    return f"{heading}:\n\n{printable(text.strip())}\n\n"


def describe_result(result: Result, config: RunConfig) -> str:
    """The losses on one line, by the unit that they are means over."""
    unit = tokenizer_class(config.data.tokenizer).loss_unit
    per_character = "" if unit == "character" else f" ({result.final_bits_per_char:.4f} bits per character)"
    text = f"val loss {result.final_val_loss:.4f} nats per {unit}{per_character}"
    if math.isnan(result.final_val_loss):
        text = "no val loss, because nothing is held out,"
    text += f" after {result.step:,} steps, {result.seconds:,.0f} s"
    if (best := result.best_val_loss) is not None:
        text += f"; the best was {best:.4f} at step {result.best_step:,}"
    return text


def describe_task_result(result: Result, config: RunConfig) -> str:
    """The accuracy on the test part with its interval, and what it has to beat, a line each."""
    correct = round(result.test_accuracy * result.test_examples)
    low, high = wilson_interval(correct, result.test_examples)
    start = "from scratch" if config.init is None else f"from {config.init}"
    counts = f"{correct:,} of {result.test_examples:,} test examples; 95 % interval {low:.4f} to {high:.4f}"
    bayes = result.naive_bayes_accuracy
    recall = shorten(", ".join(f"{label} {share:.2f}" for label, share in result.recall.items()), 200)
    lines = [
        f"task {config.name}, {start}: {result.step:,} steps, {result.seconds:,.0f} s",
        f"accuracy        {result.test_accuracy:.4f}  ({counts})",
        *([] if result.macro_f1 is None else [f"macro F1        {result.macro_f1:.4f}  (recall {recall})"]),
        f"majority class  {result.majority_accuracy:.4f}",
        *([] if bayes is None else [f"naive Bayes     {bayes:.4f}"]),
    ]
    return "\n".join(lines)


def next_commands(folder: Path, config: RunConfig) -> list[str]:
    """Commands that work from where the user stands, with what the run has kept."""
    run, commands = shell_path(folder), list(filter(None, [activation()]))
    has_checkpoint = any((folder / "checkpoints").glob(f"*{SUFFIX}"))
    if config.task is not None:
        commands += [f"{program('classify')} {run} --text {example_texts(config)}"] if has_checkpoint else []
        if config.init is not None and config.task.name != "csv":
            places = f"{shell_path(Path(config.init))},null"
            commands.append(f"{program('finetune')} -m init={places} task={config.task.name} seed=1,2,3")
    elif has_checkpoint:
        prompt = ' --prompt "ROMEO:"' if config.data.path is None else ""  # which another text may not know
        commands += [f"{program('sample')} {run}{prompt}", f"{program('evaluate')} {run}"]
        commands += [f"{program('export_html')} {run}  # a page that writes, for any browser"]
    if "tensorboard" in config.logger:
        outputs = Path("outputs")
        shown = outputs if outputs.absolute() in folder.absolute().parents else folder
        commands.append(f"tensorboard --logdir {shell_path(shown)}")
    return commands


def example_texts(config: RunConfig) -> str:
    """As many texts as an example of the task has, quoted for the shell."""
    assert config.task is not None
    count = {"csv": len(config.task.columns), "mark": 1, "which_word": 5}.get(config.task.name, 2)
    texts = ["What say you", "Nothing, my lord", *["Good night"] * count][:count]
    if config.task.name in ("follows", "same_line", "which_word"):  # of which texts are words of a line
        texts = ["I pray you, my good", "lord", "long", "that", "were"][:count]
    return shlex.quote(texts[0]) if count == 1 else "$'" + "\\t".join(texts) + "'"  # \t: a tab


def describe_resuming(folder: Path, config: RunConfig) -> str:
    """The command that continues a run, quoted for the shell."""
    override = shlex.quote(f"resume={quote(os.path.relpath(folder))}")
    commands = [activation(), f"{program('finetune' if config.task else 'train')} {override}"]
    return f"To continue: {' && '.join(filter(None, commands))}"


def activation() -> str:
    """The command by which the shell finds the Python of this environment. Empty if it does."""
    is_found = sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ
    return "" if is_found else f"source {shell_path(Path(sys.prefix, 'bin', 'activate'))}"


def shell_path(path: Path) -> str:
    """A path from where the user stands, quoted for the shell."""
    return shlex.quote(printable(os.path.relpath(path)))


def program(name: str) -> str:
    """How to start another program of this project, by how the one that is running was started."""
    path = Path(sys.argv[0])
    if path.name.startswith("gpt-"):  # an installed copy
        return f"gpt-{name.replace('_', '-')}"
    path = path.with_name(f"{name}.py")
    return f"python {shlex.quote(str(path if path.is_file() else Path('scripts', path.name)))}"
