"""Train a GPT, as conf/ and the key=value of the command line say:

python scripts/train.py model=small trainer.max_steps=20000
"""

import contextlib
import dataclasses
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import hydra_cli
from gpt.settings import UserError, user_errors
from sweep import Sweep

HELP = """Train a GPT: python scripts/train.py [key=value ...]

  python scripts/train.py model=tiny trainer.max_steps=200
  python scripts/train.py -m model.n_head=2,4 model.n_layer=2,4    every combination
  python scripts/train.py --cfg job                                every setting there is

A word such as model=tiny chooses a file of conf/model/; so with ablation, callbacks, data, experiment, logger,
model/arch, optimizer, scheduler and trainer. A dotted one such as model.n_layer=4 sets a single value.
--hydra-help tells what else Hydra can do."""
GROUPS = {"model", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger"}
SETTINGS = {"name", "seed", "run_dir", *GROUPS}


def train(
    cfg: DictConfig, typed: Mapping[str, Any] | None = None, quiet: bool = False, callbacks: Sequence = (), named: bool = True
) -> dict[str, Any]:
    """One run, from a composed configuration to its result; what its folder already has of it is not done again.

    `typed`: the settings that make it what it is, for TensorBoard. `callbacks`: more of Lightning's than the configuration has.
    `named`: whether another process with the same command has the same folder.
    Raises UserError, with nothing written, if it can't be run.
    """
    from gpt.run import collect, describe, earlier, keep_choices, locked, quieten, resume_logs, save_result
    from gpt.trainer import keep_freed_memory

    quieten()
    keep_freed_memory()
    settings = OmegaConf.to_container(cfg, resolve=True)
    run_dir = Path(settings["run_dir"])
    keep_choices(run_dir, settings.get("trainer") or {})
    trainer, module, data, choice = prepare(cfg, settings, typed, quiet)
    trainer.callbacks += callbacks
    starts_others = trainer.world_size > 1 and not trainer.strategy.cluster_environment.creates_processes_externally
    if trainer.world_size > 1 and not (starts_others or named):
        raise UserError(
            f"hydra.run.dir = (missing): {trainer.world_size} processes need one folder; set hydra.run.dir=outputs/NAME"
        )
    parameters = sum(p.numel() for p in module.parameters())
    with locked(run_dir) if trainer.is_global_zero else contextlib.nullcontext():
        result, checkpoint = earlier(run_dir, settings, data.sha256, trainer)
        if result:
            if not quiet:
                print("this run has had all of its steps; for more, raise trainer.max_steps", flush=True)
                report(run_dir, result, None)
            return result
        if checkpoint:
            resume_logs(trainer, checkpoint)
        if trainer.is_global_zero:
            describe(run_dir, OmegaConf.to_yaml(OmegaConf.create(settings)), trainer, data)
        if trainer.is_global_zero and not quiet:
            learnt = f"{parameters:,} parameters, {len(data.train_ids):,} {data.unit} to learn from"
            print("\n".join(filter(None, (learnt, choice))), flush=True)
        if starts_others:
            # Lightning starts the others, by this command: they join the run that now has a folder. With Hydra's help it would
            # start them from a file that Hydra has not written
            sys.argv, HydraConfig.instance().cfg = [sys.argv[0], hydra_cli.quoted("resume", str(run_dir))], None
        start = time.perf_counter()
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if "val/loss" not in trainer.callback_metrics:  # all was done before but the result
            trainer.loggers = []  # they have it
            trainer.validate(module, datamodule=data, verbose=False)
        result, sample = collect(trainer, parameters, seconds=time.perf_counter() - start)
        if trainer.is_global_zero:
            save_result(run_dir, result, sample)
    if trainer.is_global_zero and not quiet:
        report(run_dir, result, sample)
    return result


def prepare(cfg: DictConfig, settings: dict[str, Any], typed: Mapping[str, Any] | None = None, quiet: bool = False) -> tuple:
    """Trainer, module and data of a run, and a line on what was chosen for the machine, which goes into `settings`.

    Whatever can be wrong with the settings or the text is found here: UserError.
    """
    import lightning as L

    from gpt.checkpoint import make_card
    from gpt.data import CharData, DataConfig
    from gpt.model import GPT, GPTConfig, flops_per_token
    from gpt.module import GPTModule, ShardedGPTModule
    from gpt.optim import SchedulerConfig, optimizer_config
    from gpt.run import check_room, kept_tokenizer
    from gpt.settings import build, convert, did_you_mean
    from gpt.trainer import choose

    settings.pop("resume", None)  # done with
    for key in set(settings) - SETTINGS:
        raise UserError(f"{key} = {settings[key]}: no such setting; {did_you_mean(key, SETTINGS)}")
    seed = convert(settings.get("seed"), int, "seed")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed}: must be at least 0 and below 2**32; set for instance seed=1")
    settings["seed"] = seed
    optimizer = optimizer_config(settings["optimizer"])
    scheduler = build(SchedulerConfig, settings["scheduler"], "scheduler")
    asked = settings["model"].get("vocab_size")  # in general null: what the text has
    config = build(GPTConfig, settings["model"] | {"vocab_size": 1 if asked is None else asked}, "model")
    tokenizer = kept_tokenizer(Path(settings["run_dir"])) if settings["data"].get("tokenizer") == "bpe" else None
    data = CharData(build(DataConfig, settings["data"], "data"), config.context_length, seed, tokenizer)
    if asked not in (None, len(data.tokenizer)):
        raise UserError(f"model.vocab_size = {asked}: the text has {len(data.tokenizer)} {data.unit}; leave it out")
    config = dataclasses.replace(config, vocab_size=len(data.tokenizer))

    flops = flops_per_token(config) * config.context_length * data.config.batch_size
    settings["trainer"], choice = choose(settings["trainer"], flops)
    trainer = make_trainer(cfg, settings, typed, quiet)
    check_room(Path(settings["run_dir"]), config, config.context_length * data.config.batch_size, trainer)
    L.seed_everything(seed, verbose=False)  # before the model is made
    model = GPT(config)
    if settings["trainer"]["compile"]:
        model.compile()  # in place, so that the names in checkpoints stay as they are
    kind = ShardedGPTModule if settings["trainer"]["strategy"] == "fsdp" else GPTModule
    module = kind(model, optimizer, scheduler, make_card(config, data, settings), data.tokenizer.lengths)
    return trainer, module, data, choice


def make_trainer(cfg: DictConfig, settings: Mapping[str, Any], typed: Mapping[str, Any] | None, quiet: bool) -> Any:
    """Lightning's Trainer with everything that runs beside training, of `cfg` and what each run has."""
    from gpt.callbacks import GracefulStop, ProgressBar, ProgressLines, Samples, StepSeed
    from gpt.tensorboard import AttentionMaps, HParams, TokenEmbeddings, WeightNorms
    from gpt.trainer import build_trainer

    run_dir, callbacks = Path(settings["run_dir"]), hydra_cli.make_all(cfg.get("callbacks"))
    if settings["trainer"]["strategy"] == "fsdp":
        if settings["optimizer"]["name"] == "muon" or "ema" in (cfg.get("callbacks") or {}):
            raise UserError(
                "trainer.strategy = fsdp: gives each process a part of every weight, and Muon and averaging need all of it; "
                "set optimizer=adamw, and callbacks=default"
            )
        whole = (Samples, AttentionMaps, TokenEmbeddings, WeightNorms)
        callbacks = [callback for callback in callbacks if not isinstance(callback, whole)]
    again = (
        "the same command goes on"
        if quiet
        else f"to go on: python scripts/train.py {shlex.quote(hydra_cli.quoted('resume', os.path.relpath(run_dir)))}"
    )
    callbacks += [
        StepSeed(settings["seed"]),
        HParams(dict(typed or {}) or {"name": settings["name"]}),
        GracefulStop(run_dir / "checkpoints" / "last.ckpt", again),
    ]
    if not quiet:
        callbacks.append(ProgressBar() if sys.stdout.isatty() else ProgressLines())
    trainer = build_trainer(settings["trainer"], run_dir, callbacks, hydra_cli.make_all(cfg.get("logger")))
    if (size := settings["data"]["batch_size"]) % trainer.world_size:
        raise UserError(f"data.batch_size = {size}: not divisible among {trainer.world_size} processes; set a multiple")
    if trainer.world_size > 1 and quiet and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise UserError(f"trainer.devices = {trainer.world_size}: in a sweep or search, one for each job; let Slurm start more")
    return trainer


def report(run_dir: Path, result: dict[str, Any], sample: str | None) -> None:
    """What the user sees at the end: the play, the numbers, what to do next."""
    run = os.path.relpath(run_dir)
    inside = sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ  # else the shell doesn't find our python
    activate = "" if inside else f"  source {os.path.relpath(sys.prefix)}/bin/activate\n"
    if sample is not None:
        print(f"\n{sample}\n")
    best, bits = result["best_val_loss"], result["final_bits_per_char"]
    is_char = math.isclose(bits * math.log(2), result["final_val_loss"], rel_tol=1e-6)
    unit = "character" if is_char else f"token ({bits:.4f} bits per character)"
    print(
        f"val loss {result['final_val_loss']:.4f} nats per {unit} after {result['step']:,} steps, {result['seconds']:,.0f} s"
        + (f"; the best was {best:.4f} at step {result['best_step']:,}\n" if best is not None else "\n")
        + f"run folder: {run}\n\n"
        f"next:\n{activate}"
        f'  python scripts/sample.py {run} --prompt "ROMEO:"\n'
        f"  python scripts/evaluate.py {run}\n"
        f"  tensorboard --logdir outputs",
        flush=True,
    )


@hydra.main(version_base="1.3", config_path=hydra_cli.CONF, config_name="train")
def main(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    made = Path(hydra_config.runtime.output_dir)  # by Hydra; without a run in it, it goes
    constant = hydra_config.job.config.override_dirname.exclude_keys
    named = any(override.startswith("hydra.run.dir=") for override in hydra_config.overrides.hydra)
    try:
        typed = hydra_cli.typed_values(hydra_config.overrides.task)
        if typed.pop("resume", None) is not None:
            from gpt.run import own_settings

            if sweeping:
                raise UserError(f"resume = {cfg.resume}: not in a sweep, which the same command continues; leave -m out")
            if named:
                raise UserError(f"resume = {cfg.resume}: goes on in the run's own folder; leave hydra.run.dir out")
            cfg, named = OmegaConf.create(own_settings(str(cfg.resume), typed)), True
            with contextlib.suppress(OSError):
                made.rmdir()
        typed = {key: value for key, value in typed.items() if key not in constant}
        return train(cfg, typed, quiet=sweeping, named=named or sweeping)["best_val_loss"]
    except UserError as error:
        if sweeping:
            raise  # sweep.py tells it, and the other jobs are done
        with contextlib.suppress(OSError):  # it holds something, or is not there
            made.rmdir()
        raise SystemExit(2) from error  # past Hydra, which would add lines of its own


def cli() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through, to be told in one line
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (hydra_cli.SCRIPTS, os.environ.get("PYTHONPATH"))))  # for launchers
    if {"-h", "--help"} & set(sys.argv):  # Hydra's lists every group by loading everything again, in a second
        print(HELP)
        return
    with user_errors():
        Sweep.folder = None
        hydra_cli.run(main)
        if Sweep.folder:
            Sweep.conclude()


if __name__ == "__main__":
    cli()
