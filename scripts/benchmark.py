"""Measure speed on this machine:

python scripts/benchmark.py                                   # everything
python scripts/benchmark.py throughput sampling --compare hf  # two sections, next to Hugging Face's GPT-2

Things that are compared take turns, so that a passing load meets all of them. Each number is a median over rounds, and each
ratio is the median of the ratios within one round. The results are written to bench.md and bench.json in a new folder.
"""

import argparse
import contextlib
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from inspect import cleandoc
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch

from gpt.cli.jobs import compose_run
from gpt.config import RunConfig
from gpt.corpus import tiny_shakespeare
from gpt.data import CharData, ShuffledWindows
from gpt.files import write_json, write_text
from gpt.generate import generate, sample_next
from gpt.hardware import choose_precision, keep_freed_memory
from gpt.model import flops_per_token
from gpt.optim import build_optimizer
from gpt.runs.machine import silence_lightning
from gpt.runs.train import make_module, train
from gpt.runs.trainer import RunOptions
from gpt.settings import UserError, user_errors

TRAIN = str(Path(__file__).parents[1] / "scripts" / "train.py")
UNITS = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_bf16": "bfloat16", "amx_bf16": "AMX"}
PRODUCTS = 50  # matrix products of 1,024 x 1,024 that are timed at once
AXES = {  # of growth, one at a time, from model=small with batches of 4
    "model.context_length": (64, 128, 256, 512, 1024),
    "model.n_embd": (80, 160, 320, 640),
    "model.n_layer": (2, 5, 10, 20),
    "data.batch_size": (1, 4, 16, 64),
}


class Row(NamedTuple):
    """One line of a table."""

    measure: str
    value: float
    unit: str


# How things are timed


def take_turns(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Call all tasks in turn, `rounds` times after a first round that does not count. Returns the seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


class Worker:
    """A process of its own that does one step of a task of TASKS at every call, and tells its peak memory in MiB."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, __file__, "worker", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> None:
        print("step", file=self.process.stdin, flush=True)
        self.peak_memory = float(self.process.stdout.readline())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # which closes its standard input and so ends it


def work(task: str, *arguments: str) -> None:
    """The other end of a Worker: do a step for each line of standard input."""
    replies, sys.stdout = sys.stdout, sys.stderr
    step = TASKS[task](*arguments)
    for _ in sys.stdin:
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=replies, flush=True)


# What is timed


def compose(*overrides: str) -> tuple[RunConfig, CharData]:
    """The resolved configuration of a run on a CPU, and its text."""
    config = compose_run(["trainer.accelerator=cpu", *overrides], "benchmark")
    data = CharData(config.data, config.model.context_length, config.seed)
    return config.resolve(data)[0], data


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


class BareStep:
    """One optimizer step of a configuration without Lightning's loop: forward, backward, clipping, update."""

    def __init__(self, *overrides: str) -> None:
        self.config, data = compose(*overrides)
        self.module, self.tokenizer = make_module(self.config, data).train(), data.tokenizer
        self.optimizer = build_optimizer(self.module.model, self.config.optimizer, self.config.trainer.precision)
        sizes = self.config.model.context_length, self.config.data.batch_size
        self.batches = iter(ShuffledWindows(data.train_ids, *sizes, seed=0, length=10**9))

    def __call__(self) -> None:
        with autocast(self.config.trainer.precision):
            loss = self.module.loss(next(self.batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.trainer.gradient_clip_val or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()


def hf_model(dropout: float) -> Any:
    """Hugging Face's GPT-2 in the sizes of experiment=notebook."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=65, n_positions=256, n_embd=160, n_layer=5, n_head=5, activation_function="relu")
    dropouts = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=None, eos_token_id=None))


def hf_step(dropout: str) -> Callable[[], None]:
    """One step of Hugging Face's GPT-2 as its documentation trains it, in the precision in which ours would be trained."""
    model = hf_model(float(dropout)).train()
    model.loss_type = "ForCausalLM"  # which it is anyway, but then with a warning
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    ids = torch.randint(65, (64, 256))

    def step() -> None:
        with autocast(choose_precision("cpu")[0]):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def matrix_products(dtype: str) -> Callable[[], Any]:
    a, b = (torch.randn(1024, 1024).to(getattr(torch, dtype)) for _ in range(2))
    return lambda: [a @ b for _ in range(PRODUCTS)]


TASKS: dict[str, Callable[..., Callable[[], Any]]] = {"ours": BareStep, "hf": hf_step, "matrix": matrix_products}


# The sections. Each docstring is printed above its table


def throughput(options: argparse.Namespace) -> Iterator[Row]:
    """Training steps of experiment=notebook (64 windows of 256 characters), in turns with matrix products and, with
    --compare hf, with Hugging Face's GPT2LMHeadModel in the same sizes and precision. Each has a process of its own.
    The share of the matrix rate counts the operations of gpt.model.flops_per_token."""
    dtypes = ["float32"] + ["bfloat16"] * (choose_precision("cpu")[0] == "bf16-mixed")
    for dropout in ("0.2", "0.0"):
        overrides = ["experiment=notebook", f"model.dropout={dropout}"]
        workers = {dtype: ["matrix", dtype] for dtype in dtypes} | {"ours": ["ours", *overrides]}
        workers |= {"hf": ["hf", dropout]} if options.compare else {}
        with contextlib.ExitStack() as stack:
            tasks = {name: stack.enter_context(Worker(*words)) for name, words in workers.items()}
            seconds = take_turns(tasks, rounds=5)
        config, typical = compose(*overrides)[0], {name: median(values) for name, values in seconds.items()}
        of_products, tokens = PRODUCTS * 2 * 1024**3 / 1e9, config.tokens_per_batch
        for dtype in dtypes:
            yield Row(f"matrix products, {dtype}", of_products / typical[dtype], "GFLOP/s")
        yield Row(f"training, dropout {dropout}", tokens / typical["ours"], "characters/s")
        fastest = min(dtypes, key=typical.get)
        share = median_ratio(seconds[fastest], seconds["ours"]) * flops_per_token(config.model) * tokens / 1e9 / of_products
        yield Row(f"  its share of the matrix rate in {fastest}", 100 * share, "%")
        if options.compare:
            yield Row("  Hugging Face", tokens / typical["hf"], "characters/s")
            yield Row("  ours : Hugging Face", median_ratio(seconds["hf"], seconds["ours"]), "x")


def loop(options: argparse.Namespace) -> Iterator[Row]:
    """What Lightning's loop adds to a bare training step, with the callbacks and loggers of the default configuration
    except for samples. Runs of the loop and of bare steps take turns."""
    for name, steps, rounds in (("model=tiny", 300, 5), ("experiment=notebook", 8, 1)):
        bare = BareStep(name, f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "callbacks.samples=null")
        in_loop, alone = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                speed = train(bare.config, Path(folder, "run"), RunOptions(quiet=True)).chars_per_second
            in_loop.append(1000 * bare.config.tokens_per_batch / speed)
            alone.append(1000 * mean(take_turns({"step": bare}, rounds=steps)["step"]))
        yield Row(f"{name}, a bare step", median(alone), "ms")
        yield Row("  added by the loop", median(in_loop) - median(alone), "ms")
        yield Row("  the same, as a share", 100 * (median_ratio(in_loop, alone) - 1), "%")


def sampling(options: argparse.Namespace) -> Iterator[Row]:
    """500 characters after a full context of 256, by an untrained model=small: with the key/value cache, in one stream and
    in 32, and 50 characters for which the whole window is computed anew. With --compare hf, 250 characters by the generate
    function of transformers, whose positions end at 256."""
    model = BareStep("model=small").module.model.eval()
    prompt = torch.randint(65, (1, 256))

    @torch.no_grad()
    def recompute() -> None:
        window = prompt
        for _ in range(50):
            drawn = sample_next(model(window)[:, -1], temperature=0.8)[:, None]
            window = torch.cat((window, drawn), dim=1)[:, -256:]

    tasks: dict[str, tuple[int, Callable[[], Any]]] = {  # characters, and what writes them
        "recomputing the window": (50, recompute),
        "cached, one stream": (500, lambda: list(generate(model, prompt, 500, temperature=0.8))),
        "cached, 32 streams": (32 * 500, lambda: list(generate(model, prompt.expand(32, -1), 500, temperature=0.8))),
    }
    if options.compare:
        other, settings = hf_model(0.0).eval(), dict(do_sample=True, temperature=0.8, top_k=0, pad_token_id=0)
        tasks["transformers, cached, one stream"] = (
            250,
            lambda: other.generate(prompt[:, :1], max_new_tokens=250, **settings),
        )
    seconds = take_turns({name: task for name, (_, task) in tasks.items()}, rounds=5)
    rates = {name: [tasks[name][0] / value for value in values] for name, values in seconds.items()}
    yield from (Row(name, median(values), "characters/s") for name, values in rates.items())
    recomputed, cached, batched, *others = rates.values()
    yield Row("cached : recomputing", median_ratio(cached, recomputed), "x")
    yield Row("32 streams : one", median_ratio(batched, cached), "x")
    yield from (Row("ours : transformers", median_ratio(cached, other), "x") for other in others)


def page(options: argparse.Namespace) -> Iterator[Row]:
    """The page of an untrained model=small in headless Chromium (extra browser): from opening the file to its first character,
    and 250 characters, which fit into the context, with the attention of every head recorded."""
    from playwright.sync_api import sync_playwright

    from gpt.extras.page import render

    step = BareStep("model=small")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder, "play.html")
        write_text(path, render(step.module.model.eval(), step.tokenizer, "benchmark", {}, "ROMEO:"))
        browser, first, rates = driver.chromium.launch(executable_path=shutil.which("chromium")), [], []
        for _ in range(5):
            tab, start = browser.new_page(), time.perf_counter()
            tab.goto(path.as_uri())
            tab.evaluate("gpt.generate(gpt.encode('ROMEO:'), 1)")
            first.append(time.perf_counter() - start)
            start = time.perf_counter()
            tab.evaluate("gpt.generate(gpt.encode('ROMEO:'), 250, 0.8)")
            rates.append(250 / (time.perf_counter() - start))
            tab.close()
    yield Row("from opening the file to the first character", median(first), "s")
    yield Row("writing", median(rates), "characters/s")


def startup(options: argparse.Namespace) -> Iterator[Row]:
    """From the start of a process to its end, next to the imports that it cannot avoid."""
    run = ["model=tiny", "trainer.max_steps=1", "trainer.accelerator=cpu", "~callbacks", "~logger"]
    commands = {
        "import hydra": ["-c", "import hydra"],
        "train.py --help": [TRAIN, "--help"],
        "train.py --cfg job": [TRAIN, "--cfg", "job"],
        "import torch, lightning": ["-c", "import torch, lightning"],
        "train.py model=tiny, one step and a validation": [TRAIN, *run],
    }
    with tempfile.TemporaryDirectory() as folder:
        call = partial(subprocess.run, check=True, capture_output=True, cwd=folder)
        seconds = take_turns({name: partial(call, [sys.executable, *words]) for name, words in commands.items()}, rounds=5)
    yield from (Row(name, median(values), "s") for name, values in seconds.items())


def growth(options: argparse.Namespace) -> Iterator[Row]:
    """A training step of model=small with batches of 4 windows, with one setting changed at a time, and of a larger model: its
    time, and the peak memory of a process that does nothing else."""
    points = [[f"{axis}={value}"] for axis, values in AXES.items() for value in values]
    for overrides in [*points, ["model=medium", "data.batch_size=64"]]:
        with Worker("ours", *overrides) as step:
            seconds = take_turns({"step": step}, rounds=3)["step"]
        yield Row(" ".join(overrides), 1000 * median(seconds), "ms")
        yield Row("  peak memory", step.peak_memory, "MiB")


def texts(options: argparse.Namespace) -> Iterator[Row]:
    """A text of 2 GB, read from a file, into ids in another file, on one core. This includes both checksums and the survey of
    the characters."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        with path.open("w", encoding="utf-8") as file:
            file.writelines([tiny_shakespeare(Path("data"))] * 1800)
        for kind in ("char", "byte"):
            config = replace(compose_run([], "benchmark").data, path=str(path), folder=folder, tokenizer=kind)
            start = time.perf_counter()
            CharData(config, context_length=256, seed=0)
            yield Row(f"data.tokenizer={kind}", path.stat().st_size / 1e6 / (time.perf_counter() - start), "MB/s")
    os.sched_setaffinity(0, cores)


def time_to_loss(options: argparse.Namespace) -> Iterator[Row]:
    """experiment=speedrun with three seeds: seconds from the start of the process until a validation finds a loss of at most
    1.88, 1.5407 (the published notebook) and 1.4697 (nanoGPT), and the loss at the end. Medians over the seeds."""
    reached: dict[float, list[float]] = {1.88: [], 1.5407: [], 1.4697: []}
    final = []
    for seed in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            command, losses, start = [sys.executable, TRAIN, "experiment=speedrun", f"seed={seed}"], [], time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
                for line in process.stdout:
                    if line.startswith("step "):
                        losses.append((float(line.split()[-1]), time.perf_counter() - start))
        for threshold, times in reached.items():
            times.append(next((seconds for loss, seconds in losses if loss <= threshold), math.inf))
        final.append(losses[-1])
    yield from (Row(f"val loss at most {threshold}, after", median(times), "s") for threshold, times in reached.items())
    yield Row("last validation, after", median(seconds for _, seconds in final), "s")
    yield Row("  its loss", median(loss for loss, _ in final), "nats")


SECTIONS = {part.__name__: part for part in (throughput, loop, sampling, page, startup, growth, texts, time_to_loss)}


# What is written


def describe_machine() -> str:
    """What the numbers depend on: the date, the processor and its units, and the version of torch."""
    able = torch.cpu.get_capabilities()
    units = ", ".join(name for key, name in UNITS.items() if able.get(key))
    cpu = f"{os.cpu_count()} cores, {able.get('cpu_name', 'CPU')} ({units})"
    return f"{datetime.now():%Y-%m-%d}, {cpu}, torch {torch.__version__}"


def describe_load(start: float, end: float) -> str:
    """The load averages of the last minute. This program alone keeps all cores busy, and now and then a little more."""
    text = f"Load average of the last minute: {start:.1f} at the start, {end:.1f} at the end."
    if max(start, end) > (cores := os.cpu_count() or 1) + 0.5:
        text += f" **Other programs were running on these {cores} cores, so the numbers cannot be trusted.**"
    return text


def table(rows: Iterable[Row]) -> str:
    lines = ["| measure | value |", "| --- | ---: |"]
    for measure, value, unit in rows:
        number = "never" if math.isinf(value) else f"{value:,.0f} {unit}" if value >= 100 else f"{value:.4g} {unit}"
        lines.append(f"| {measure.replace('  ', '&nbsp;&nbsp;')} | {number} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--compare", choices=["hf"], help="also measure Hugging Face's transformers (extra bench)")
    parser.add_argument("--out", type=Path, help="where to write; a new folder under outputs/ by default")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        raise UserError(f"SECTION = {unknown.pop()}: unknown; choose among {', '.join(SECTIONS)}")
    folder = options.out or Path("outputs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_bench"
    load_at_start, results, tables = os.getloadavg()[0], {}, ""
    for name in options.sections or SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = list(SECTIONS[name](options))
        tables += f"\n## {name}\n\n{cleandoc(SECTIONS[name].__doc__)}\n\n{table(rows)}\n"
        results[name] = [row._replace(value=None)._asdict() if math.isinf(row.value) else row._asdict() for row in rows]
        machine, load = describe_machine(), describe_load(load_at_start, os.getloadavg()[0])
        write_json(folder / "bench.json", {"machine": machine, "load": load, "sections": results})
        write_text(folder / "bench.md", f"{machine}\n\n{load}\n{tables}")
    print((folder / "bench.md").read_text(encoding="utf-8"))
    print(f"written: {folder}/")


if __name__ == "__main__":
    with user_errors():
        silence_lightning()
        keep_freed_memory()
        if sys.argv[1:2] == ["worker"]:
            work(*sys.argv[2:])
        else:
            main()
