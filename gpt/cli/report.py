"""What a person sees when a run has ended: the play, the numbers, and what to type next."""

import os
import shlex
import sys
from pathlib import Path

import torch

from gpt.analysis.report import report_line
from gpt.callbacks.samples import Samples
from gpt.checkpoint import load
from gpt.cli.overrides import quote_override
from gpt.config import RunConfig
from gpt.files import read_text
from gpt.finetune.baselines import wilson_interval
from gpt.generate import generate
from gpt.runs.result import Result, TaskResult
from gpt.settings import build, printable, shorten
from gpt.tokenizer import tokenizer_class

PLAY, TEMPERATURE = 300, 0.8  # how many tokens are written for a run that took no samples, and how


def report(folder: Path, result: Result, config: RunConfig) -> None:
    """Print what the model has learnt, the run's folder, and commands that go on from here."""
    if isinstance(result, TaskResult):
        print(f"\n{describe_task_result(result, config)}")
    else:
        print(f"\n{show_sample(folder, result, config)}{describe_result(result, config.data.tokenizer)}")
    print(f"run folder: {shell_path(folder)}\n{report_line(folder)}\n\nnext:")
    print("\n".join(f"  {command}" for command in next_commands(folder, config)), flush=True)


def show_sample(folder: Path, result: Result, config: RunConfig) -> str:
    """The run's last sample under a heading that says what wrote it.

    A run that took none has its best model write now, when its clock has stopped. Empty if it has kept no model either.
    """
    sample, best = folder / "sample.txt", folder / "checkpoints" / "best.ckpt"
    if "samples" in config.callbacks and sample.exists():
        samples = build(Samples, config.callbacks["samples"], "callbacks.samples")
        step, temperature, prompt, text = result.step, samples.temperatures[0], samples.prompt, read_text(sample)
    elif result.best_step is not None and best.exists():
        model, tokenizer, _ = load(best)
        step, temperature, prompt = result.best_step, TEMPERATURE, tokenizer.default_prompt
        ids = generate(model, tokenizer.encode(prompt)[None], PLAY, temperature, generator=torch.Generator().manual_seed(0))
        text = prompt + tokenizer.decode(int(i) for i in ids)
    else:
        return ""
    asked = f", prompt {shorten(prompt)!r}" if prompt.strip("\n") else ""
    return f"what the model writes after {step:,} steps (temperature {temperature:g}{asked}):\n\n{printable(text.strip())}\n\n"


def next_commands(folder: Path, config: RunConfig) -> list[str]:
    """Commands that work from where the user stands, with what the run has kept."""
    run, commands = shell_path(folder), []
    if not (sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ):  # the shell does not find this Python by itself
        commands.append(f"source {shell_path(Path(sys.prefix))}/bin/activate")
    if config.task is not None:
        commands += next_for_task(folder, config)
    elif any((folder / "checkpoints").glob("*.ckpt")):
        prompt = ' --prompt "ROMEO:"' if config.data.path is None else ""  # another text may lack these characters
        commands += [f"python {script('sample')} {run}{prompt}", f"python {script('evaluate')} {run}"]
        commands += [f"python {script('export_html')} {run}  # a page that writes, for any browser"]
    if "tensorboard" in config.logger:
        outputs = Path("outputs")
        commands.append(
            f"tensorboard --logdir {shell_path(outputs if outputs.absolute() in folder.absolute().parents else folder)}"
        )
    return commands


def describe_task_result(result: TaskResult, config: RunConfig) -> str:
    """The accuracy on the test part with its interval, and what it has to beat, a line each."""
    correct = round(result.test_accuracy * result.test_examples)
    low, high = wilson_interval(correct, result.test_examples)
    start = "from scratch" if config.init is None else f"from {config.init}"
    bayes = result.naive_bayes_accuracy
    lines = [
        f"task {config.name}, {start}: {result.step:,} steps, {result.seconds:,.0f} s",
        f"accuracy        {result.test_accuracy:.4f}  ({correct:,} of {result.test_examples:,} test examples; "
        f"95 % interval {low:.4f} to {high:.4f})",
        f"majority class  {result.majority_accuracy:.4f}",
    ]
    return "\n".join([*lines, *([] if bayes is None else [f"naive Bayes     {bayes:.4f}"])])


def next_for_task(folder: Path, config: RunConfig) -> list[str]:
    """Commands that use a fine-tuned run, and one that trains what it should be compared with."""
    run, commands = shell_path(folder), []
    assert config.task is not None
    if any((folder / "checkpoints").glob("*.ckpt")):
        count = {"csv": len(config.task.columns), "mark": 1, "next_speech": 3}.get(config.task.name, 2)
        texts = ["What say you", "Nothing, my lord", *["Good night"] * count][:count]
        if config.task.name in ("reply", "next_speech"):  # of which each text begins with who speaks
            texts = [f"{name}:\\n{text}" for name, text in zip(("ROMEO", "JULIET", "Nurse"), texts, strict=False)]
        quoted = shlex.quote(texts[0]) if count == 1 else "$'" + "\\t".join(texts) + "'"  # how a shell writes a tab
        commands.append(f"python {script('classify')} {run} --text {quoted}")
    if config.init is not None and config.task.name != "csv":
        places = f"{shell_path(Path(config.init))},null"
        commands.append(f"python {script('finetune')} -m init={places} task={config.task.name} seed=1,2,3")
    return commands


def shell_path(path: Path) -> str:
    """A path from where the user stands, quoted for the shell."""
    return shlex.quote(printable(os.path.relpath(path)))


def script(name: str) -> str:
    """The path of a program that lies beside the one that is running, by the path by which that one was called."""
    path = Path(sys.argv[0]).with_name(f"{name}.py")
    return shlex.quote(str(path if path.is_file() else Path("scripts", path.name)))


def describe_result(result: Result, tokenizer: str) -> str:
    """The losses on one or two lines, by the unit that they are means over."""
    bits = result.final_bits_per_char
    unit = tokenizer_class(tokenizer).loss_unit
    per_character = "" if unit == "character" else f" ({bits:.4f} bits per character)"
    text = f"val loss {result.final_val_loss:.4f} nats per {unit}{per_character}"
    text += f" after {result.step:,} steps, {result.seconds:,.0f} s"
    if (best := result.best_val_loss) is not None:
        text += f"; the best was {best:.4f} at step {result.best_step:,}"
    return text


def describe_resuming(folder: Path, config: RunConfig) -> str:
    """The command that goes on with a run, quoted for the shell."""
    path = os.path.relpath(folder)
    override = quote_override("resume", path) if path[0] in "'\"" else f"resume={path}"
    return f"To continue: python {script('finetune' if config.task else 'train')} {shlex.quote(override)}"
