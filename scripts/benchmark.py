"""Measure what this project promises about speed, on this machine:

python scripts/benchmark.py                              # everything
python scripts/benchmark.py throughput sampling --compare hf  # some of it, with Hugging Face's GPT-2 beside it

Two things that are compared take turns, so that both meet the same noise; each number is a median. Writes bench.json,
bench.md and pictures into a folder of its own.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from gpt.settings import UserError, user_errors

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "scripts" / "train.py")
NOTEBOOK = ["experiment=notebook"]
FOLDER = tempfile.TemporaryDirectory(prefix="gpt-benchmark-")  # of this process
AXES = {  # of growth, one at a time off model=small with batches of 4
    "model.context_length": (64, 128, 256, 512, 1024),
    "model.n_embd": (80, 160, 320, 640),
    "model.n_layer": (2, 5, 10, 20),
    "data.batch_size": (1, 4, 16, 64),
}


class Row(NamedTuple):
    """One line of the table; `target` is what it is held against, None where it only informs."""

    measure: str
    value: float
    unit: str
    target: str | None = None
    met: bool | None = None


def at_least(measure: str, value: float, unit: str, target: float) -> Row:
    return Row(measure, value, unit, f">= {target:g}", value >= target)


def at_most(measure: str, value: float, unit: str, target: float) -> Row:
    return Row(measure, value, unit, f"<= {target:g}", value <= target)


# What can be timed


def take_turns(things: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each thing; each is called once before, unmeasured, then all in turn, `rounds` times."""
    seconds = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            start = time.perf_counter()
            thing()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def compose(*overrides: str) -> Any:
    """The configuration of a run, in a folder that goes when this process ends."""
    import hydra_cli

    return hydra_cli.compose(["trainer.accelerator=cpu", *overrides], "benchmark", Path(tempfile.mkdtemp(dir=FOLDER.name)))


def bare_step(*overrides: str) -> Callable[[], None]:
    """One optimizer step of a configuration, without Lightning's loop: forward, backward, clipping, update."""
    import torch
    from omegaconf import OmegaConf

    import train
    from gpt.data import RandomWindows
    from gpt.optim import build_optimizer

    cfg = compose(*overrides)
    settings = OmegaConf.to_container(cfg, resolve=True)
    _, module, data, _ = train.prepare(cfg, settings)
    module.train()
    precision = torch.autocast("cpu", torch.bfloat16, enabled=settings["trainer"]["precision"] == "bf16-mixed")
    optimizer = build_optimizer(module.model, module.optimizer_config)
    batches = iter(RandomWindows(data.train_ids, data.context_length, data.config.batch_size, seed=0, length=10**9))

    def step() -> None:
        with precision:
            loss = module.loss(next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.trainer.gradient_clip_val or math.inf)
        optimizer.step()
        optimizer.zero_grad()

    step.characters = cfg.data.batch_size * cfg.model.context_length
    step.model = module.model
    return step


def matmul_rates(size: int = 512) -> dict[str, float]:
    """GFLOP/s of square matrix products: what the machine could do at best."""
    import torch

    things = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size).to(getattr(torch, name)) for _ in range(2))
        things[name] = lambda a=a, b=b: [a @ b for _ in range(10)]
    return {name: 10 * 2 * size**3 / seconds / 1e9 for name, seconds in take_turns(things, rounds=7).items()}


def hf_model(dropout: float) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=65, n_positions=256, n_embd=160, n_layer=5, n_head=5, activation_function="relu")
    dropouts = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=None, eos_token_id=None))


def hf_step(dropout: float) -> Callable[[], None]:
    """One step of Hugging Face's GPT-2 in the notebook experiment's sizes, in a process that knows nothing of ours."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=hf_training, args=(dropout, theirs), daemon=True).start()

    def step() -> None:
        ours.send(None)
        ours.recv()

    return step


def hf_training(dropout: float, asked: Any) -> None:
    """As its documentation trains it: a step whenever the pipe `asked` says so."""
    import torch

    model = hf_model(dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    ids = torch.randint(65, (64, 256))

    while True:
        asked.recv()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        asked.send(None)


# The sections of the table


def throughput(options: argparse.Namespace) -> list[Row]:
    """Training at the published notebook's sizes, against the machine's ceiling and against Hugging Face."""
    from gpt.model import flops_per_token

    rates = matmul_rates()
    rows = [Row(f"matrix products, {name}", rate, "GFLOP/s") for name, rate in rates.items()]
    for dropout, target in ((0.2, 4), (0.0, 2.5)):
        steps = {"ours": bare_step(*NOTEBOOK, f"model.dropout={dropout}")}
        if options.compare:
            steps["hf"] = hf_step(dropout)
        seconds = take_turns(steps, rounds=3)
        speed = {name: steps["ours"].characters / seconds[name] for name in seconds}
        rows.append(Row(f"training, 1.6 M, 64 x 256, dropout {dropout}", speed["ours"], "characters/s"))
        share = 100 * speed["ours"] * flops_per_token(steps["ours"].model.config) / max(rates.values()) / 1e9
        rows.append(at_least("  of the best matrix-product rate", share, "%", 55))
        if options.compare:
            rows.append(Row("  Hugging Face GPT2LMHeadModel", speed["hf"], "characters/s"))
            rows.append(at_least("  ours : Hugging Face's", speed["ours"] / speed["hf"], "x", target))
    return rows


def loop(options: argparse.Namespace) -> list[Row]:
    """What Lightning's loop adds to a bare one, callbacks and loggers of the default configuration included."""
    import train

    def seconds_a_step(steps: int, rounds: int, *overrides: str) -> tuple[float, float]:
        """Of Lightning's loop and of a bare one, in turn."""
        bare, both = bare_step(*overrides), []
        for _ in range(rounds):
            cfg = compose(
                *overrides, f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "callbacks.samples=null"
            )
            with contextlib.redirect_stdout(io.StringIO()):  # its report
                speed = train.train(cfg)["chars_per_second"]
            alone = take_turns({"bare": lambda: [bare() for _ in range(steps)]}, rounds=1)["bare"] / steps
            both.append((bare.characters / speed, alone))
        return tuple(median(values) for values in zip(*both, strict=True))

    ours, bare = seconds_a_step(300, 5, "model=tiny")
    rows = [at_most("Lightning's loop at model=tiny, added to a step", 1000 * (ours - bare), "ms", 1)]
    ours, bare = seconds_a_step(8, 1, *NOTEBOOK)
    return [*rows, at_most("Lightning's loop at the notebook's sizes, added", 100 * (ours / bare - 1), "%", 3)]


def sampling(options: argparse.Namespace) -> list[Row]:
    """500 characters after a full context of 256, from the default model."""
    import torch

    from gpt.generate import generate, pick

    model = bare_step("model=small").model.eval()
    prompt, tokens, streams = torch.randint(65, (1, 256)), 500, 32

    @torch.no_grad()
    def recompute(tokens: int = 50) -> None:
        window = prompt
        for _ in range(tokens):
            drawn = pick(model(window)[:, -1], temperature=0.8)[:, None]
            window = torch.cat((window, drawn), dim=1)[:, -256:]

    things = {
        "recompute": recompute,
        "cached": lambda: list(generate(model, prompt, tokens, temperature=0.8)),
        "batched": lambda: list(generate(model, prompt.expand(streams, -1), tokens, temperature=0.8)),
    }
    if options.compare:
        other = hf_model(0.0).eval()
        first = prompt[:, :1]  # GPT-2's positions end at 256: so many are all that it can write in one go
        things["hf"] = lambda: other.generate(first, max_new_tokens=250, do_sample=True, temperature=0.8, top_k=0, pad_token_id=0)
    seconds = take_turns(things, rounds=5)
    speed = {"recompute": 50 / seconds["recompute"], "cached": tokens / seconds["cached"]}
    speed["batched"] = streams * tokens / seconds["batched"]
    rows = [
        Row("sampling, recomputing the window", speed["recompute"], "characters/s"),
        Row("sampling, cached, one stream", speed["cached"], "characters/s"),
        at_least("  cached : recomputing", speed["cached"] / speed["recompute"], "x", 15),
        Row(f"sampling, cached, {streams} streams", speed["batched"], "characters/s"),
        at_least(f"  {streams} streams : one", speed["batched"] / speed["cached"], "x", 10),
    ]
    if options.compare:
        speed["hf"] = 250 / seconds["hf"]
        rows.append(Row("  transformers' generate, cached", speed["hf"], "characters/s"))
        rows.append(at_least("  ours : transformers'", speed["cached"] / speed["hf"], "x", 4))
    return rows


def startup(options: argparse.Namespace) -> list[Row]:
    """From the start of a process to what a user waits for."""

    def call(*words: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=folder)

    with tempfile.TemporaryDirectory() as folder:
        first = ["model=tiny", "trainer.max_steps=1", "trainer.accelerator=cpu", "~callbacks", "~logger"]
        seconds = take_turns(
            {
                "hydra": call("-c", "import hydra"),
                "help": call(TRAIN, "--help"),
                "cfg": call(TRAIN, "--cfg", "job"),
                "lightning": call("-c", "import torch, lightning"),
                "first": call(TRAIN, *first),
            },
            rounds=5,
        )
    return [
        Row("import hydra", seconds["hydra"], "s"),
        at_most("  train.py --help", seconds["help"] / seconds["hydra"], "x", 1.5),
        at_most("  train.py --cfg job", seconds["cfg"] / seconds["hydra"], "x", 1.5),
        Row("import torch, lightning", seconds["lightning"], "s"),
        at_most("  train.py, one step, its validation and the end", seconds["first"] / seconds["lightning"], "x", 2),
    ]


def one_point(overrides: list[str]) -> dict[str, float]:
    """Seconds a step and peak resident memory of a configuration; for a process of its own."""
    step = bare_step(*overrides)
    seconds = take_turns({"step": step}, rounds=3)["step"]
    return {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def growth(options: argparse.Namespace) -> list[Row]:
    """Time and memory of a training step against context length, width, depth and batch; medium's memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def measure(*overrides: str) -> dict[str, float]:
        done = subprocess.run([sys.executable, __file__, "point", *overrides], check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    figure, axes = plt.subplots(2, len(AXES), figsize=(13, 6), dpi=110, sharey="row")
    rows = []
    for column, (axis, values) in enumerate(AXES.items()):
        points = [measure(f"{axis}={value}") for value in values]
        for row, (key, factor, label) in enumerate((("seconds", 1000, "step (ms)"), ("mib", 1, "peak memory (MiB)"))):
            panel = axes[row][column]
            panel.loglog(values, [factor * point[key] for point in points], marker="o", color="black", linewidth=1)
            panel.set_xticks(values, [f"{value:,}" for value in values])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(label)
        axes[1][column].set_xlabel(axis)
        for value, point in zip(values, points, strict=True):
            rows.append(Row(f"{axis}={value}: a step", 1000 * point["seconds"], "ms"))
            rows.append(Row(f"{axis}={value}: peak memory", point["mib"], "MiB"))
    figure.tight_layout()
    figure.savefig(options.out / "growth.png")
    medium = measure("model=medium", "data.batch_size=64")
    return [*rows, at_most("model=medium, 64 x 256: peak memory", medium["mib"] / 1024, "GiB", 6)]


def time_to_loss(options: argparse.Namespace) -> list[Row]:
    """Wall clock, from the start of the process, until a validation of experiment=speedrun finds a loss; three seeds."""
    targets = {1.88: 40.0, 1.5407: 240.0, 1.4697: 300.0}
    reached: dict[float, list[float]] = {target: [] for target in targets}
    final = []
    for seed in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, TRAIN, "experiment=speedrun", f"seed={seed}"]
            start, losses = time.perf_counter(), []
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
                for line in process.stdout:
                    if line.startswith("step "):
                        losses.append((float(line.split()[-1]), time.perf_counter() - start))
            for target, times in reached.items():
                times.append(next((seconds for loss, seconds in losses if loss <= target), math.inf))
            final.append(losses[-1][0])
    rows = [
        at_most(f"speedrun: val loss <= {target}, after", median(reached[target]), "s", targets[target]) for target in targets
    ]
    return [*rows, Row("speedrun: final val loss", median(final), "nats")]


def texts(options: argparse.Namespace) -> list[Row]:
    """A text of 2 GB into ids, on one core, from file to file, both checksums and the survey of characters in it."""
    import os

    from gpt.corpus import tiny_shakespeare
    from gpt.data import CharData, DataConfig

    cores, rows = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, {min(cores)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines([tiny_shakespeare(Path("data"))] * 1800)
        for kind in ("char", "byte"):
            config = DataConfig(path=str(path), folder=folder, val_fraction=0.1, batch_size=1, tokenizer=kind)
            start = time.perf_counter()
            CharData(config, context_length=256, seed=0)
            rate = path.stat().st_size / 1e6 / (time.perf_counter() - start)
            rows.append(at_least(f"{kind}: 2 GB of text into ids, one core", rate, "MB/s", 100))
    os.sched_setaffinity(0, cores)
    return rows


SECTIONS = {part.__name__: part for part in (throughput, loop, sampling, startup, growth, texts, time_to_loss)}


def describe() -> str:
    import torch

    able = torch.cpu.get_capabilities()
    units = [unit for unit in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if able.get(unit)]
    cpu = f"{able['num_physical_cores']} cores, {able['cpu_name']} ({', '.join(units)})"
    return f"{cpu}, torch {torch.__version__}, {datetime.now():%Y-%m-%d}"


def table(rows: list[Row]) -> str:
    lines = ["| measure | value | target | met |", "| --- | ---: | ---: | --- |"]
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "**no**"
        value = f"{row.value:,.0f} {row.unit}" if row.value >= 100 else f"{row.value:.4g} {row.unit}"
        measure, value = row.measure.replace("  ", "&nbsp;&nbsp;"), value if math.isfinite(row.value) else "never"
        lines.append(f"| {measure} | {value} | {row.target or ''} | {met} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}; else all")
    parser.add_argument("--compare", choices=["hf"], help="run Hugging Face's transformers beside it (extra bench)")
    parser.add_argument("--out", type=Path, help="where to write; else a new folder under outputs/")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        raise UserError(f"SECTION = {unknown.pop()}: unknown; choose among {', '.join(SECTIONS)}")
    options.out = options.out or Path("outputs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_bench"
    options.out.mkdir(parents=True, exist_ok=True)

    from gpt.checkpoint import write_text
    from gpt.run import quieten
    from gpt.trainer import keep_freed_memory

    quieten()
    keep_freed_memory()
    rows = []
    for name in options.sections or SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += SECTIONS[name](options)
        finite = [row if math.isfinite(row.value) else row._replace(value=None) for row in rows]  # JSON has no infinity
        content = {"machine": describe(), "rows": [row._asdict() for row in finite]}
        write_text(options.out / "bench.json", json.dumps(content, indent=2) + "\n")
        write_text(options.out / "bench.md", f"{describe()}\n\n{table(rows)}\n")
    print((options.out / "bench.md").read_text(encoding="utf-8"))
    print(f"written: {options.out}/")


if __name__ == "__main__":
    with user_errors():
        if sys.argv[1:2] == ["point"]:  # one point of `growth`, in a process of its own
            print(json.dumps(one_point(sys.argv[2:])))
        else:
            main()
