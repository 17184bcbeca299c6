"""The exact loss of a trained model, over all of the validation and all of the training split:

python scripts/evaluate.py outputs/RUN
"""

import argparse
import math

from gpt.settings import UserError, build, user_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", nargs="?", metavar="RUN", help="a run folder (its best) or a .ckpt file; else the newest run"
    )
    parser.add_argument("--data", help="another text to evaluate on, split like the run's; else the run's own")
    return parser.parse_args(arguments)


def evaluate(place: str | None, path: str | None = None) -> dict[str, dict[str, float]]:
    """What the checkpoint meant by `place` reaches on each split: {"val": {"loss": ..., "bits_per_char": ...}, "train": ...}."""
    import lightning as L

    from gpt.checkpoint import find, load
    from gpt.data import CharData, DataConfig
    from gpt.module import GPTModule
    from gpt.run import quieten
    from gpt.trainer import keep_freed_memory

    quieten()
    keep_freed_memory()
    checkpoint = find(place)
    model, tokenizer, card = load(checkpoint)
    run = card["config"]
    settings = run["data"] | ({"path": path} if path else {})
    data = CharData(build(DataConfig, settings, "data"), model.config.context_length, seed=0, tokenizer=tokenizer)
    if path is None and data.sha256 != card["text_sha256"]:
        raise UserError(f"data.path = {data.config.path}: no longer the text of {checkpoint}; give it with --data FILE")
    precision = run["trainer"]["precision"]  # as in training, so that the loss is the same to the last digit
    trainer = L.Trainer(devices=1, precision=precision, logger=False, enable_progress_bar=False)
    module = GPTModule(model, lengths=tokenizer.lengths)
    return {
        split: {
            name.removeprefix("val/"): value
            for name, value in trainer.validate(module, data.exact(ids), verbose=False)[0].items()
        }
        for split, ids in (("val", data.val_ids), ("train", data.train_ids))
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    for split, found in evaluate(options.checkpoint, options.data).items():
        unit = "character" if math.isclose(found["bits_per_char"] * math.log(2), found["loss"]) else "token"
        print(
            f"{split:5} loss {found['loss']:.6f} nats per {unit}, "
            f"{found['bits_per_char']:.6f} bits per character, {found['bits_per_byte']:.6f} per byte"
        )


if __name__ == "__main__":
    with user_errors():
        main()
