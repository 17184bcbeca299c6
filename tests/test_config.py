import dataclasses

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import ROOT
from gpt.config import RunConfig, flatten, read_config_file
from gpt.data import CharData
from gpt.settings import UserError


def plain_values(*overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["name=x", *overrides])
    values = OmegaConf.to_container(cfg, resolve=True)
    del values["resume"]
    return values


@pytest.fixture
def config(text) -> RunConfig:
    sizes = ("model=tiny", "model.context_length=16", "trainer.accelerator=cpu")
    return RunConfig.from_dict(plain_values(*sizes, f"data.path={text}"))


def test_configuration_cannot_be_changed(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.n_head = 1


def test_dictionary_round_trip(config):
    values = config.to_dict()
    assert RunConfig.from_dict(values) == config
    assert RunConfig.from_dict(yaml.safe_load(yaml.safe_dump(values))) == config
    assert values["optimizer"]["betas"] == [0.9, 0.99]


def test_resolving_decides_vocabulary_precision_and_compilation(config):
    data = CharData(config.data, 16, config.seed)
    resolved, reasons = config.resolve(data)
    assert config.model.vocab_size is None
    assert resolved.model.vocab_size == len(data.tokenizer) == 29
    assert resolved.trainer.precision in ("32-true", "bf16-mixed")
    assert resolved.trainer.compile is False  # so short a run is not compiled anywhere
    assert len(reasons) == 2
    assert resolved.resolve(data) == (resolved, [])


@pytest.mark.parametrize(
    ("overrides", "is_compiled"),
    [
        ([], True),
        (["model.dropout=0.1"], True),
        (["model.dropout=0.1", "model.attention_dropout=true"], False),
        (["model.attention_dropout=true"], True),
        (["model.activation=relu"], False),
    ],
)
def test_long_runs_are_compiled_unless_the_model_has_many_masks(text, monkeypatch, overrides, is_compiled):
    monkeypatch.setattr("gpt.hardware.has_compiler", lambda device: True)
    words = ["model=tiny", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed", "trainer.max_steps=1e9", f"data.path={text}"]
    config = RunConfig.from_dict(plain_values(*words, *overrides))
    assert config.resolve(CharData(config.data, 16, config.seed))[0].trainer.compile is is_compiled


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (7, 1), (2000, 250)])
def test_validation_interval_is_an_eighth_of_the_steps_unless_it_is_set(config, steps, interval):
    data = CharData(config.data, 16, config.seed)
    undecided = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_steps=steps))
    assert undecided.resolve(data)[0].trainer.val_check_interval == interval
    decided = dataclasses.replace(undecided, trainer=dataclasses.replace(undecided.trainer, val_check_interval=5))
    assert decided.resolve(data)[0].trainer.val_check_interval == 5


def test_another_vocabulary_than_asked_for_is_refused(config):
    data = CharData(config.data, 16, config.seed)
    asked = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=7))
    with pytest.raises(UserError, match=r"model\.vocab_size = 7: the text has 29 characters"):
        asked.resolve(data)


def test_flat_names_are_those_of_the_command_line(config):
    flat = config.flat()
    assert flat["model.context_length"] == 16
    assert flat["seed"] == 1337
    assert "callbacks.samples.tokens" not in flat  # it decides nothing
    assert flat == flatten(config.to_dict())
    with_ema = dataclasses.replace(config, callbacks=config.callbacks | {"ema": {"decay": 0.9}})
    assert with_ema.flat()["callbacks.ema.decay"] == 0.9


@pytest.mark.parametrize("damage", [None, 3, "text", [], {"model": 3}, {"model": {"n_head": []}}, {"callbacks": {"samples": 1}}])
def test_flatten_takes_anything(damage):
    assert "seed" in flatten(damage if isinstance(damage, dict) else {"callbacks": damage, "data": damage})


def test_seeds_of_32_bits(config):
    for seed in (0, 2**31, 2**32 - 1):
        assert RunConfig.from_dict(config.to_dict() | {"seed": seed}).seed == seed


BOMB = "a: &a [x, x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
DAMAGED = {
    "empty": "",
    "list": "- 1\n",
    "text": "hello",
    "tag": "a: !!python/object/apply:os.system [touch it_ran]",
    "billion laughs": BOMB,
    "recursion": "a: &a [*a]",
    "depth": "[" * 5000,
    "not YAML": "a: [",
    "not text": "a: \x00",
    "long number": "a: " + "9" * 10_000,
    "number key": "1: 2",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_configuration_file_is_refused(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(DAMAGED[damage])
    with pytest.raises(UserError, match="missing or damaged"):
        read_config_file(path)
    assert list(tmp_path.iterdir()) == [path]
