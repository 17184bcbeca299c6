"""Train a GPT, as conf/ and key=value on the command line say:

    python scripts/train.py model=small trainer.max_steps=20000
"""

import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt.settings import UserError, build, convert, did_you_mean, user_errors

CONF = str(Path(__file__).parents[1] / "conf")
TRUSTED = ("gpt.", "lightning.pytorch.")  # what a _target_ in conf/ may name


def train(cfg: DictConfig) -> dict[str, Any]:
    """One run, from its composed configuration to its result. Raises UserError, with nothing written, if it cannot be run."""
    import lightning as L

    from gpt.callbacks import ProgressBar, ProgressLines, Samples, Throughput
    from gpt.checkpoint import make_card, read, write_text
    from gpt.data import CharData, DataConfig
    from gpt.model import GPT, GPTConfig, parameter_count
    from gpt.module import GPTModule
    from gpt.optim import OPTIMIZERS, SchedulerConfig
    from gpt.run import describe, write_json
    from gpt.trainer import build_trainer, keep_freed_memory

    quieten()
    keep_freed_memory()
    settings = OmegaConf.to_container(cfg, resolve=True)
    run_dir = Path(settings["run_dir"])
    seed = convert(settings["seed"], int, "seed")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed}: must be at least 0 and below 2**32; set for instance seed=1")
    optimizer_name = settings["optimizer"]["name"]
    if optimizer_name not in OPTIMIZERS:
        raise UserError(f"optimizer.name = {optimizer_name}: unknown; {did_you_mean(str(optimizer_name), OPTIMIZERS)}")
    optimizer = build(OPTIMIZERS[optimizer_name], settings["optimizer"], "optimizer")
    scheduler = build(SchedulerConfig, settings["scheduler"], "scheduler")
    callbacks = make_all(cfg.callbacks) + [ProgressBar() if sys.stdout.isatty() else ProgressLines()]
    trainer = build_trainer(settings["trainer"], run_dir, callbacks, make_all(cfg.logger))

    sizes = settings["model"]
    asked = sizes["vocab_size"]
    config = build(GPTConfig, sizes | {"vocab_size": 1 if asked is None else asked}, "model")
    data = CharData(build(DataConfig, settings["data"], "data"), config.context_length, seed)
    found = len(data.tokenizer)
    if asked not in (None, found):
        raise UserError(f"model.vocab_size = {asked}: the text has {found} characters; leave it out")
    config = build(GPTConfig, sizes | {"vocab_size": found}, "model")

    L.seed_everything(seed, verbose=False)  # before the model is made
    model = GPT(config)
    module = GPTModule(model, optimizer, scheduler, make_card(config, data.tokenizer, settings))
    if settings["trainer"]["compile"]:
        model.compile()  # in place: the names in checkpoints stay as they are
    describe(run_dir, OmegaConf.to_yaml(cfg, resolve=True), {"corpus_sha256": data.sha256, "device": str(trainer.strategy.root_device)})

    print(f"{parameter_count(config):,} parameters, {len(data.train_ids):,} characters to learn from, run folder {run_dir}", flush=True)
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start

    best = run_dir / "checkpoints" / "best.ckpt"
    throughput = next((callback for callback in callbacks if isinstance(callback, Throughput)), None)
    result = {
        "best_val_loss": trainer.checkpoint_callbacks[0].best_model_score.item(),
        "best_step": read(best)["global_step"],
        "final_val_loss": trainer.callback_metrics["val/loss"].item(),
        "step": trainer.global_step,
        "parameters": parameter_count(config),
        "seconds": round(seconds, 1),
        "chars_per_second": round(throughput.characters / throughput.seconds, 1) if throughput else None,
    }
    write_json(run_dir / "result.json", result)
    sample = next((callback.latest for callback in callbacks if isinstance(callback, Samples)), None)
    if sample is not None:
        write_text(run_dir / "sample.txt", sample)
    report(run_dir, result, sample)
    return result


def make_all(group: DictConfig) -> list[Any]:
    """The objects that a config group lists. Raises UserError for a _target_ outside TRUSTED, or arguments that it refuses."""
    made = []
    for name, node in group.items():
        target = str(node.get("_target_"))
        if not target.startswith(TRUSTED):
            raise UserError(f"{name}._target_ = {target}: not allowed; name something in {' or '.join(TRUSTED)}")
        try:
            made.append(hydra.utils.instantiate(node))
        except HydraException as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise UserError(f"{name} = {target}: {one_line(error)}; see conf/") from None
    return made


def report(run_dir: Path, result: dict[str, Any], sample: str | None) -> None:
    """What the user sees at the end: the numbers, the play, what to do next."""
    if sample is not None:
        print(f"\n{sample}\n")
    print(
        f"val loss {result['final_val_loss']:.4f} nats per character at step {result['step']:,}, "
        f"best {result['best_val_loss']:.4f} at step {result['best_step']:,}; {result['seconds']:,.0f} s\n"
        f"run folder: {run_dir}\n"
        f"next:\n"
        f'  python scripts/sample.py {run_dir} --prompt "ROMEO:"\n'
        f"  python scripts/evaluate.py {run_dir}\n"
        f"  tensorboard --logdir outputs",
        flush=True,
    )


def quieten() -> None:
    """Lightning's advertising, and its advice on loaders with worker processes, which ours neither has nor needs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Experiment logs directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def composition_error(error: Exception) -> UserError:
    """Hydra's complaint about an override as one line, with the nearest setting for one that does not exist."""
    if found := re.search(r"full_key: (\S+)", str(error)):
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            config = OmegaConf.to_container(hydra.compose("train", overrides=[]), resolve=False)
        known = [f"{group}.{key}" for group, values in config.items() if isinstance(values, dict) for key in values] + list(config)
        given = next((argument.split("=", 1)[1] for argument in sys.argv if argument.split("=", 1)[0] == found[1] and "=" in argument), "")
        return UserError(f"{found[1]} = {given}: no such setting; {did_you_mean(found[1], known)}")
    if found := re.search(r"Could not find '(.+)/(.+)'\s+Available options in .*?:\s+(.*)", str(error), re.S):
        return UserError(f"{found[1]} = {found[2]}: no such file in conf/{found[1]}; choose one of {', '.join(found[3].split())}")
    return UserError(f"configuration = {' '.join(sys.argv[1:])}: {one_line(error)}; see python scripts/train.py --help")


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(cfg: DictConfig) -> float:
    try:
        return train(cfg)["best_val_loss"]
    except UserError as error:
        if not any(Path(cfg.run_dir).iterdir()):  # Hydra has made the folder, nothing is in it
            Path(cfg.run_dir).rmdir()
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs go on
            print(f"error: {error}", file=sys.stderr)
        raise


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through to us
    with user_errors():
        try:
            main()
        except (HydraException, OmegaConfBaseException) as error:
            raise composition_error(error) from None
        except SystemExit as stop:
            if stop.code == 2:
                raise UserError("options = --: settings are key=value, without dashes; write trainer.max_steps=3") from None
            raise
