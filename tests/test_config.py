import pytest
import yaml
from pydantic import ValidationError

from conftest import TINY
from gpt.cli.main import compose_config
from gpt.config import ModelConfig, RunConfig, setting_names
from gpt.data import TextData
from gpt.errors import UserError
from gpt.model import GPT
from gpt.resume import resolve
from gpt.run import read_config


@pytest.fixture
def config(text) -> RunConfig:
    undecided = "trainer.precision=auto", "trainer.val_check_interval=null"
    return compose_config([*TINY, *undecided, f"data.path={text}"])


def data_of(config: RunConfig) -> TextData:
    return TextData(config.data, config.model.context_length, config.seed)


def updated(config: RunConfig, group: str, **changes) -> RunConfig:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=changes)})


def test_default_size_is_one_line_and_nothing_can_be_changed(config):
    default = ModelConfig(vocab_size=65)
    assert GPT(default).config is default
    assert (default.n_layer, default.n_head, default.n_embd, default.context_length) == (5, 2, 160, 256)
    for group, name in ((config, "seed"), (config.model, "n_head"), (config.optimizer, "lr")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(group, name, 1)


def test_configuration_of_a_run_is_read_as_it_was_written(trained):
    values = read_config(trained)
    config = RunConfig.from_dict(values)
    assert config.to_dict() == values
    assert RunConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert values["optimizer"]["betas"] == [0.9, 0.99]
    assert values["model"]["vocab_size"] == 29  # decided by the text, so that nothing is left to be decided
    assert values["trainer"]["compile"] is False
    order = "name seed model data optimizer scheduler trainer callbacks logger"
    assert list(values) == order.split()


def test_numbers_are_converted_but_not_rounded():
    trainer = {"max_steps": 1e3, "devices": 2, "precision": 32}
    config = RunConfig.from_dict({"trainer": trainer, "name": 7, "seed": "5"})
    assert (config.trainer.max_steps, type(config.trainer.max_steps)) == (1000, int)
    assert (config.trainer.devices, config.trainer.precision) == ("2", "32-true")
    assert (config.name, config.seed) == ("7", 5)

    for seed in (0, 2**31, 2**32 - 1):
        assert RunConfig(seed=seed).seed == seed


def test_callbacks_set_to_null_are_left_out_and_arguments_of_lightnings_trainer_are_kept():
    values = {"callbacks": {"samples": None, "last": {"_target_": "x"}}, "logger": None}
    config = RunConfig.from_dict(values | {"trainer": {"limit_val_batches": 2}})
    assert (config.callbacks, config.logger) == ({"last": {"_target_": "x"}}, {})
    assert config.trainer.model_extra == {"limit_val_batches": 2}
    assert RunConfig.from_dict(config.to_dict()) == config


def test_resolving_decides_vocabulary_precision_and_compilation(config):
    data = data_of(config)
    resolved, reasons = resolve(config, None, data)
    assert config.model.vocab_size is None
    assert resolved.model.vocab_size == len(data.tokenizer) == 29
    assert resolved.trainer.precision in ("32-true", "bf16-mixed")
    assert resolved.trainer.compile is False  # so short a run is not compiled anywhere
    assert len(reasons) == 2
    assert resolve(resolved, None, data) == (resolved, [])
    longer = updated(config, "trainer", max_steps=10**9)
    assert resolve(longer, resolved, data)[0].trainer.compile is False  # as it was decided when the run began


COMPILED = {"": True, "dropout": True, "dropout attention_dropout": False, "attention_dropout": True}


@pytest.mark.parametrize(("settings", "is_compiled"), [*COMPILED.items(), ("activation", False)])
def test_long_runs_are_compiled_unless_the_model_has_many_masks(config, monkeypatch, settings, is_compiled):
    monkeypatch.setattr("gpt.machine.has_compiler", lambda device: True)
    values = {"dropout": 0.1, "attention_dropout": True, "activation": "relu"}
    config = updated(config, "model", **{name: values[name] for name in settings.split()})
    config = updated(config, "trainer", precision="bf16-mixed", max_steps=10**9)
    assert resolve(config, None, data_of(config))[0].trainer.compile is is_compiled


def test_flat_names_are_those_of_the_command_line(config):
    flat = config.flat()
    assert flat["model.context_length"] == 16
    assert flat["seed"] == 1337
    assert flat.keys() - {"callbacks.ema.decay"} <= {*setting_names()}
    assert "callbacks.samples.tokens" not in flat  # it decides nothing
    ema = {"_target_": "gpt.callbacks.EMA", "decay": 0.9}
    with_ema = config.model_copy(update={"callbacks": config.callbacks | {"ema": ema}}).flat()
    assert with_ema == flat | {"callbacks.ema.decay": 0.9}


def test_configuration_of_an_earlier_version_is_refused_with_advice(tmp_path):
    (tmp_path / "config.yaml").write_text("callbacks: {best: {}, samples: {prompt: a}}\n")
    with pytest.raises(UserError, match=r"earlier version; python scripts/convert_checkpoint\.py"):
        read_config(tmp_path)
