"""Search for good settings with Optuna, in runs of which those that fall behind are dropped (extra tune):

python scripts/tune.py model=tiny trainer.max_steps=500 --study tiny --trials 20

The same command again adds trials to the study. So do several at once, in as many terminals; give each its share of the
cores with OMP_NUM_THREADS. What is searched stands in conf/tune.yaml.
"""

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

import hydra_cli
from gpt.settings import UserError, user_errors

if TYPE_CHECKING:
    import optuna


def read_space(path: Path) -> dict[str, dict[str, Any]]:
    """What is searched. Raises UserError for a line that says neither choices nor low and high."""
    if not path.is_file():
        raise UserError(f"--space = {path}: no such file; give a YAML file such as conf/tune.yaml")
    try:
        space = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--space = {path}: no YAML; {' '.join(str(error).split())}") from None
    if not isinstance(space, dict):
        raise UserError(f"--space = {path}: no settings; write lines such as model.n_head: {{choices: [1, 2]}}")
    for key, line in space.items():
        keys = set(line) if isinstance(line, dict) else set()
        if keys != {"choices"} and not {"low", "high"} <= keys <= {"low", "high", "log"}:
            raise UserError(f"{key} = {line}: no search; write {{choices: [a, b]}}, or {{low: a, high: b}} and maybe log: true")
    return space


def suggest(trial: "optuna.Trial", space: dict[str, dict[str, Any]]) -> list[str]:
    """A trial's overrides."""
    values = {}
    for key, line in space.items():
        if "choices" in line:
            values[key] = trial.suggest_categorical(key, line["choices"])
        else:
            whole = isinstance(line["low"], int) and isinstance(line["high"], int)
            values[key] = (trial.suggest_int if whole else trial.suggest_float)(key, **line)
    return [f"{key}={value}" for key, value in values.items()]


def run_trial(trial: "optuna.Trial", study: Path, typed: list[str], space: dict[str, dict[str, Any]]) -> float:
    """One run; a trial that takes over from a process that was killed goes on with its run."""
    import lightning as L
    import optuna

    import train
    from gpt.checkpoint import write_text

    class Report(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trial.report(trainer.callback_metrics["val/loss"].item(), trainer.global_step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"dropped after {trainer.global_step:,} steps: worse than half of the others were then")

    number = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(trial.study.trials[trial.number])
    folder = study / f"{trial.number if number is None else number:04}"
    overrides = suggest(trial, space)
    try:
        cfg = hydra_cli.compose([*typed, *overrides], study.name, folder)
        result = train.train(cfg, trial.params, quiet=True, callbacks=[Report()])
    except (UserError, optuna.TrialPruned) as error:
        write_text(folder / "error.txt", f"{error}\n")
        print(f"{folder.name}  {' '.join(overrides)}: {error}", flush=True)
        raise
    loss = result["best_val_loss"] or result["final_val_loss"]
    print(f"{folder.name}  {' '.join(overrides)}: val loss {loss:.4f}, {result['seconds']:.0f} s", flush=True)
    return loss


def tune(study_dir: Path, trials: int, typed: list[str], space: dict[str, dict[str, Any]]) -> "optuna.Study":
    """Add trials to the study in a folder, which is made if need be."""
    import optuna
    from filelock import FileLock  # comes with torch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(study_dir / ".lock"):  # two processes that begin at once would make the same tables
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{study_dir.resolve()}/study.db",
            engine_kwargs={"connect_args": {"timeout": 60}},  # seconds to wait while another process writes
            heartbeat_interval=30,  # so that the trial of a killed process is noticed, and taken over
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
        study = optuna.create_study(
            storage=storage,
            study_name=study_dir.name,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),  # minds what others are trying
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
    asked = {"overrides": typed, "space": space}
    if study.user_attrs.get("asked", asked) != asked:
        raise UserError(f"--study = {study_dir.name}: it has searched {study.user_attrs['asked']}; choose another name")
    study.set_user_attr("asked", asked)
    study.optimize(lambda trial: run_trial(trial, study_dir, typed, space), n_trials=trials, catch=(UserError,))
    return study


def draw(study: "optuna.Study", folder: Path) -> list[str]:
    """Optuna's own pictures, as far as there is something to see; returns the names of their files."""
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as pictures

    from gpt.checkpoint import atomic

    drawn = {
        "history": lambda: pictures.plot_optimization_history(study),
        "slices": lambda: pictures.plot_slice(study),
        "parallel": lambda: pictures.plot_parallel_coordinate(study),
        "importances": lambda: pictures.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
    }
    written = []
    for name, make in drawn.items():
        try:
            axes = make()
        except (ValueError, RuntimeError):  # too few trials, or all alike
            continue
        figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        with atomic(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        written.append(f"{name}.png")
    return written


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what all trials share, as for scripts/train.py")
    parser.add_argument("--study", default="study", help="its name: it lives in outputs/tune/NAME")
    parser.add_argument("--trials", type=int, default=20, help="how many this process adds")
    parser.add_argument("--space", type=Path, default=Path(hydra_cli.CONF) / "tune.yaml", help="a YAML file: what is searched")
    options = parser.parse_args(arguments)
    if options.trials < 1:
        raise UserError(f"--trials = {options.trials}: must be at least 1; set a positive number")
    if any(override.startswith("resume=") for override in options.overrides):
        raise UserError("resume = ...: not here; the same --study goes on by itself")
    try:
        import matplotlib
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f'extra = tune: {error.name} is not installed; pip install -e ".[tune]"') from None
    matplotlib.use("Agg")
    space = read_space(options.space)
    folder = Path("outputs") / "tune" / options.study
    study = tune(folder, options.trials, options.overrides, space)

    from compare import compare

    print(f"\n{compare(folder)}, {', '.join(draw(study, folder))}")
    best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
    print(f"\nbest: python scripts/train.py {' '.join([*options.overrides, best])}")


if __name__ == "__main__":
    with user_errors():
        main()
