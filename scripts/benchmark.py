"""Measure speed on this machine:

python scripts/benchmark.py                                   # everything
python scripts/benchmark.py throughput sampling --compare hf  # two sections, next to Hugging Face's GPT-2

Things that are compared take turns, so that a passing load meets all of them. Each number is a median over
rounds, and each ratio is the median of the ratios within one round. The results are written to bench.md and
bench.json in a new folder.
"""

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
from datetime import datetime
from functools import partial
from inspect import cleandoc
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from typing import Any

try:
    from gpt.errors import UserError, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
import torch

from gpt.cli.main import compose_config
from gpt.cli.options import Parser
from gpt.config import RunConfig
from gpt.data import ShuffledWindows, TextData
from gpt.files import write_json, write_text
from gpt.generate import generate, sample_next
from gpt.machine import choose_precision, keep_freed_memory, silence_lightning
from gpt.model import GPT
from gpt.module import cross_entropy
from gpt.optim import build_optimizer
from gpt.text import tiny_shakespeare
from gpt.train import RunOptions, train

Task = Callable[[], Any]  # does one step of what is timed
Rows = Iterator[tuple[str, float, str]]  # of a table: what was measured, the value, its unit

SCRIPTS = Path(__file__).parent
UNITS = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_bf16": "bfloat16", "amx_bf16": "AMX"}
PRECISION = choose_precision("cpu")[0]  # in which everything is trained here
PRODUCTS = 50  # matrix products of 1,024 x 1,024 that are timed at once
AXES = {  # of growth, one at a time, from model=small with batches of 4
    "model.context_length": (64, 128, 256, 512, 1024),
    "model.n_embd": (80, 160, 320, 640),
    "model.n_layer": (2, 5, 10, 20),
    "data.batch_size": (1, 4, 16, 64),
}


# How things are timed


def take_turns(tasks: dict[str, Task], rounds: int) -> dict[str, list[float]]:
    """The seconds of each call of all tasks, in turn, for `rounds` rounds after one that does not count."""
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


@contextlib.contextmanager
def in_own_process(maker: Callable[..., Task], *arguments: str) -> Iterator[Callable[[], float]]:
    """A task that `maker` makes in a new process: each call does a step and tells the peak memory in MiB."""
    context = get_context("spawn")
    connection, other_end = context.Pipe()
    process = context.Process(target=work, args=(other_end, maker, *arguments))
    process.start()
    other_end.close()  # here, so that each process notices the end of the other

    def step() -> float:
        connection.send("step")
        return connection.recv()

    try:
        yield step
    finally:
        connection.close()
        process.join()


def work(connection: Connection, maker: Callable[..., Task], *arguments: str) -> None:
    """Do a step for each message, until there is nobody any more who sends one."""
    keep_freed_memory()
    task = maker(*arguments)
    with contextlib.suppress(EOFError):
        while connection.recv():
            task()
            connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


# What is timed


def compose(*overrides: str) -> tuple[RunConfig, TextData, GPT]:
    """A configuration that is not compiled and on a CPU, with its text and its untrained model."""
    config = compose_config(["trainer.accelerator=cpu", "trainer.compile=false", *overrides])
    data = TextData(config.data, config.model.context_length, config.seed)
    return config, data, GPT(config.model.model_copy(update={"vocab_size": len(data.tokenizer)}))


def step_of(model: torch.nn.Module, loss: Task, optimizer: torch.optim.Optimizer, clip: float = 0.0) -> Task:
    """One optimizer step: forward, backward, clipping, update."""

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16-mixed"):
            value = loss()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_step(*overrides: str) -> Task:
    """A step of a configuration without Lightning's loop."""
    config, data, model = compose(*overrides)
    sizes = config.model.context_length, config.data.batch_size
    batches = iter(ShuffledWindows(data.train_ids, *sizes, seed=0, length=10**9))

    def loss() -> torch.Tensor:
        inputs, targets = next(batches)
        return cross_entropy(model(inputs), targets)

    optimizer = build_optimizer(model, config.optimizer, PRECISION)
    return step_of(model, loss, optimizer, config.trainer.gradient_clip_val)


def hf_model(dropout: float) -> Any:
    """Hugging Face's GPT-2 in the sizes of experiment=notebook."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=65, n_positions=256, n_embd=160, n_layer=5, n_head=5, activation_function="relu")
    dropouts = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=None, eos_token_id=None))


def hf_step(dropout: str) -> Task:
    """One step of Hugging Face's GPT-2 as its documentation trains it, in the precision of our own."""
    model, ids = hf_model(float(dropout)).train(), torch.randint(65, (64, 256))
    model.loss_type = "ForCausalLM"  # which it is anyway, but then with a warning
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    return step_of(model, lambda: model(input_ids=ids, labels=ids).loss, optimizer)


def matrix_products(dtype: str) -> Task:
    a, b = (torch.randn(1024, 1024).to(getattr(torch, dtype)) for _ in range(2))
    return lambda: [a @ b for _ in range(PRODUCTS)]


# The sections. Each docstring is printed above its table


def throughput(compare: bool) -> Rows:
    """Training steps of experiment=notebook (64 windows of 256 characters), in turns with matrix products
    and, with --compare hf, Hugging Face's GPT2LMHeadModel in the same sizes and precision. Each has its own
    process. The share of the matrix rate counts the operations of ModelConfig.flops_per_token."""
    dtypes = ["float32"] + ["bfloat16"] * (PRECISION == "bf16-mixed")
    for dropout in ("0.2", "0.0"):
        ours = ["experiment=notebook", f"model.dropout={dropout}"]
        with contextlib.ExitStack() as stack:
            made_by = {dtype: (matrix_products, dtype) for dtype in dtypes} | {"ours": (bare_step, *ours)}
            made_by |= {"hf": (hf_step, dropout)} if compare else {}
            tasks = {name: stack.enter_context(in_own_process(*words)) for name, words in made_by.items()}
            seconds = take_turns(tasks, rounds=5)
        typical = {name: median(values) for name, values in seconds.items()}
        config, _, model = compose(*ours)
        of_products, tokens = PRODUCTS * 2 * 1024**3 / 1e9, config.tokens_per_batch
        for dtype in dtypes:
            yield f"matrix products, {dtype}", of_products / typical[dtype], "GFLOP/s"
        yield f"training, dropout {dropout}", tokens / typical["ours"], "characters/s"
        fastest, of_a_step = min(dtypes, key=typical.get), model.config.flops_per_token() * tokens / 1e9
        share = median_ratio(seconds[fastest], seconds["ours"]) * of_a_step / of_products
        yield f"  its share of the matrix rate in {fastest}", 100 * share, "%"
        if compare:
            yield "  Hugging Face", tokens / typical["hf"], "characters/s"
            yield "  ours : Hugging Face", median_ratio(seconds["hf"], seconds["ours"]), "x"


def loop(compare: bool) -> Rows:
    """What Lightning's loop adds to a bare training step, with the callbacks and loggers of the default
    configuration except for samples. Runs of the loop and of bare steps take turns."""
    for name, steps, rounds in (("model=tiny", 300, 5), ("experiment=notebook", 8, 1)):
        length = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
        overrides = [name, *length, "callbacks.samples=null"]
        config, step, in_loop, alone = compose(*overrides)[0], bare_step(*overrides), [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                speed = train(config, Path(folder, "run"), RunOptions(quiet=True)).chars_per_second
            in_loop.append(1000 * config.tokens_per_batch / speed)
            alone.append(1000 * mean(take_turns({"step": step}, rounds=steps)["step"]))
        yield f"{name}, a bare step", median(alone), "ms"
        yield "  added by the loop", median(in_loop) - median(alone), "ms"
        yield "  the same, as a share", 100 * (median_ratio(in_loop, alone) - 1), "%"


def sampling(compare: bool) -> Rows:
    """500 characters after a full context of 256, by an untrained model=small: with the key/value cache, in
    one stream and in 32, and 50 characters for which the whole window is computed again. With --compare hf,
    250 characters by the generate function of transformers, whose positions end at 256."""
    model, prompt = compose("model=small")[2].eval(), torch.randint(65, (1, 256))

    @torch.no_grad()
    def recompute() -> None:
        window = prompt
        for _ in range(50):
            drawn = sample_next(model(window)[:, -1], temperature=0.8)[:, None]
            window = torch.cat((window, drawn), dim=1)[:, -256:]

    def cached(streams: int) -> list[torch.Tensor]:
        return list(generate(model, prompt.expand(streams, -1), 500, temperature=0.8))

    tasks: dict[str, Task] = {
        "recomputing the window": recompute,
        "cached, one stream": partial(cached, 1),
        "cached, 32 streams": partial(cached, 32),
    }
    if compare:
        settings = dict(max_new_tokens=250, do_sample=True, temperature=0.8, top_k=0, pad_token_id=0)
        tasks["transformers, cached"] = partial(hf_model(0.0).eval().generate, prompt[:, :1], **settings)
    seconds = take_turns(tasks, rounds=5)
    written = dict(zip(tasks, (50, 500, 32 * 500, 250), strict=False))  # characters
    rates = {name: [written[name] / value for value in values] for name, values in seconds.items()}
    yield from ((name, median(values), "characters/s") for name, values in rates.items())
    recomputed, one, many, *others = rates.values()
    yield "cached : recomputing", median_ratio(one, recomputed), "x"
    yield "32 streams : one", median_ratio(many, one), "x"
    yield from (("ours : transformers", median_ratio(one, other), "x") for other in others)


def page(compare: bool) -> Rows:
    """The page of an untrained model=small in headless Chromium (extra browser): from opening the file to its
    first character, and 250 characters, which fit into the context, with every head's attention recorded."""
    from playwright.sync_api import sync_playwright

    from gpt.interop.page import render

    _, data, model = compose("model=small")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder, "play.html")
        write_text(path, render(model.eval(), data.tokenizer, "benchmark", {}, "ROMEO:"))
        tab = driver.chromium.launch(executable_path=shutil.which("chromium")).new_page()

        def open_page() -> None:
            tab.goto(path.as_uri())
            tab.evaluate("gpt.generate(gpt.encode('ROMEO:'), 1)")

        writing = partial(tab.evaluate, "gpt.generate(gpt.encode('ROMEO:'), 250, 0.8)")
        seconds = take_turns({"opening": open_page, "writing": writing}, rounds=5)
    yield "from opening the file to the first character", median(seconds["opening"]), "s"
    yield "writing", 250 / median(seconds["writing"]), "characters/s"


def startup(compare: bool) -> Rows:
    """From the start of a process to its end, next to the imports that it cannot avoid."""
    run = "train.py model=tiny trainer.max_steps=1 trainer.accelerator=cpu ~callbacks ~logger"
    with tempfile.TemporaryDirectory() as folder:
        call = partial(subprocess.run, check=True, capture_output=True, cwd=folder)
        programs = ("train.py --help", "train.py --cfg job", run, "sample.py --pretrained --exact --tokens 1")
        tasks = {
            line: partial(call, [sys.executable, SCRIPTS / line.split()[0], *line.split()[1:]])
            for line in programs
        }
        for line in ("import hydra", "import torch, lightning"):
            tasks[line] = partial(call, [sys.executable, "-c", line])
        seconds = take_turns(tasks, rounds=5)
    yield from ((name, median(values), "s") for name, values in seconds.items())


def growth(compare: bool) -> Rows:
    """A training step of model=small with batches of 4 windows, with one setting changed at a time, and of a
    larger model: its time, and the peak memory of a process that does nothing else."""
    points = [[f"{axis}={value}"] for axis, values in AXES.items() for value in values]
    for overrides in [*points, ["model=medium", "data.batch_size=64"]]:
        with in_own_process(bare_step, *overrides) as step:
            yield " ".join(overrides), 1000 * median(take_turns({"step": step}, rounds=3)["step"]), "ms"
            yield "  peak memory", step(), "MiB"


def texts(compare: bool) -> Rows:
    """A text of 2 GB, read from a file, into ids in another file, on one core. This includes both checksums
    and the survey of the characters."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        with path.open("w", encoding="utf-8") as file:
            file.writelines([tiny_shakespeare(Path("data"))] * 1800)
        for kind in ("char", "byte"):
            config = compose_config([f"data.path={path}", f"data.folder={folder}", f"data.tokenizer={kind}"])
            start = time.perf_counter()
            TextData(config.data, context_length=256, seed=0)
            seconds = time.perf_counter() - start
            yield f"data.tokenizer={kind}", path.stat().st_size / 1e6 / seconds, "MB/s"
    os.sched_setaffinity(0, cores)


def time_to_loss(compare: bool) -> Rows:
    """experiment=speedrun with three seeds: seconds from the start of the process until a validation finds a
    loss of at most 1.88, 1.5407 (the published notebook) and 1.4697 (nanoGPT), and the loss at the end, as
    medians over the seeds."""
    curves = []  # of each seed: the loss of each validation, and the seconds until then
    for seed in (1, 2, 3):
        command = [sys.executable, SCRIPTS / "train.py", "experiment=speedrun", f"seed={seed}"]
        start, output = time.perf_counter(), subprocess.PIPE
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(command, stdout=output, text=True, cwd=folder) as process,
        ):
            lines = (line for line in process.stdout if line.startswith("step "))
            curves.append([(float(line.split()[-1]), time.perf_counter() - start) for line in lines])
    for threshold in (1.88, 1.5407, 1.4697):
        reached = [next((after for loss, after in curve if loss <= threshold), math.inf) for curve in curves]
        yield f"val loss at most {threshold}, after", median(reached), "s"
    yield "last validation, after", median(curve[-1][1] for curve in curves), "s"
    yield "  its loss", median(curve[-1][0] for curve in curves), "nats"


PARTS = (throughput, loop, sampling, page, startup, growth, texts, time_to_loss)
SECTIONS: dict[str, Callable[[bool], Rows]] = {part.__name__: part for part in PARTS}


# What is written


def describe_machine() -> str:
    """What the numbers depend on: the date, the processor and its units, and the version of torch."""
    able = torch.cpu.get_capabilities()
    units = ", ".join(name for key, name in UNITS.items() if able.get(key))
    cpu = f"{os.cpu_count()} cores, {able.get('cpu_name', 'CPU')} ({units})"
    return f"{datetime.now():%Y-%m-%d}, {cpu}, torch {torch.__version__}"


def describe_load(start: float, end: float) -> str:
    """The load averages of the last minute. This program alone keeps all cores busy, or a little more."""
    text = f"Load average of the last minute: {start:.1f} at the start, {end:.1f} at the end."
    if max(start, end) > (cores := os.cpu_count() or 1) + 0.5:
        text += f" **Other programs were running on these {cores} cores, so the numbers cannot be trusted.**"
    return text


def table(rows: Iterable[tuple[str, float, str]]) -> str:
    lines = ["| measure | value |", "| --- | ---: |"]
    for measure, value, unit in rows:
        number = "never" if math.isinf(value) else f"{value:{',.0f' if value >= 100 else '.4g'}} {unit}"
        lines.append(f"| {measure.replace('  ', '&nbsp;&nbsp;')} | {number} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {names}; all by default")
    parser.add_argument("--compare", choices=["hf"], help="with Hugging Face's transformers (extra bench)")
    parser.add_argument("--out", type=Path, help="where to write; a new folder under outputs/ by default")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        raise UserError(f"SECTION = {unknown.pop()}: unknown; choose among {names}")
    folder = options.out or Path("outputs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_bench"
    load_at_start, results, tables = os.getloadavg()[0], {}, ""
    for name in options.sections or SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = list(SECTIONS[name](options.compare is not None))
        tables += f"\n## {name}\n\n{cleandoc(SECTIONS[name].__doc__)}\n\n{table(rows)}\n"
        results[name] = [(what, value if math.isfinite(value) else None, unit) for what, value, unit in rows]
        machine, load = describe_machine(), describe_load(load_at_start, os.getloadavg()[0])
        write_json(folder / "bench.json", {"machine": machine, "load": load, "sections": results})
        write_text(folder / "bench.md", f"{machine}\n\n{load}\n{tables}")
    print((folder / "bench.md").read_text(encoding="utf-8"))
    print(f"written: {folder}/")


if __name__ == "__main__":
    with user_errors():
        silence_lightning()
        keep_freed_memory()
        main()
