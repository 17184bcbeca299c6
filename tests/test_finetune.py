"""Fine-tuning: the model and its losses, runs from start to end, and what is refused."""

import json
import signal
from pathlib import Path

import classify
import finetune
import pytest
import torch
import torch.nn.functional as F

import sample
import train
from conftest import PRECISION, make_config, make_model
from gpt.checkpoint import read
from gpt.finetune.data import ExampleBatches
from gpt.finetune.inputs import SPECIAL, Inputs, collate
from gpt.finetune.model import Classifier
from gpt.finetune.module import ClassifierModule, language_loss, task_scores
from gpt.optim import AdamWConfig, SchedulerConfig

V, START, DELIMITER, EXTRACT = 11, 11, 12, 13
KINDS = {"classification": 1, "entailment": 1, "similarity": 2, "choice": 3}  # sequences of an example
ADAMW = AdamWConfig(name="adamw", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
CONSTANT = SchedulerConfig(shape="linear", warmup_ratio=0.0, decay_ratio=0.0, min_lr_ratio=1.0)
SIZES = ["model=tiny", "model.n_embd=16", "model.context_length=32", "trainer.accelerator=cpu", f"trainer.precision={PRECISION}"]


def make_classifier(kind: str, arch: str = "modern", dropout: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(make_config(arch), kind, 3, dropout)
    for name, parameter in model.named_parameters():
        if "conv" in name or name == "answer.weight":
            torch.nn.init.normal_(parameter, std=0.5)  # they start at zero or near it, which would test nothing
    return model.eval()


def make_batch(kind: str, examples: int = 4) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def sequence() -> list[int]:
        length = int(torch.randint(2, 12, (), generator=generator))
        return [START, *torch.randint(V, (length,), generator=generator).tolist(), EXTRACT]

    return collate([([sequence() for _ in range(KINDS[kind])], number % 3) for number in range(examples)])


def scores_of(model: Classifier, batch: Inputs) -> torch.Tensor:
    return task_scores(model, model.activations(batch.ids), batch)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_the_size_of_a_batch_changes_a_score(kind, arch):
    model, batch, each = make_classifier(kind, arch), make_batch(kind), KINDS[kind]
    scores = scores_of(model, batch)
    assert scores.shape == (4, 3)
    padded = batch._replace(ids=F.pad(batch.ids, (0, 16 - batch.ids.size(1)), value=5))
    torch.testing.assert_close(scores_of(model, padded), scores, atol=1e-5, rtol=0)
    for number in range(4):
        rows = slice(number * each, (number + 1) * each)
        length = int(batch.extract[rows].max()) + 1
        alone = Inputs(batch.ids[rows, :length], batch.extract[rows], batch.labels[number : number + 1])
        torch.testing.assert_close(scores_of(model, alone)[0], scores[number], atol=1e-5, rtol=0)


def test_two_orders_are_added_before_the_head():
    model, batch = make_classifier("similarity"), make_batch("similarity", 1)
    read = model.activations(batch.ids)[[0, 1], batch.extract]
    torch.testing.assert_close(scores_of(model, batch)[0], (read[0] + read[1]) @ model.answer.weight.T)


def test_the_language_model_inside_is_the_one_that_was_taken_over(arch):
    source, ids = make_model(arch, seed=7), torch.arange(10)[None]
    model = Classifier(make_config(arch), "choice", 3, 0.1).eval()
    model.take_over(source, None)
    torch.testing.assert_close(model(ids), source.eval()(ids), atol=0, rtol=0)
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in source.parameters())
    assert extra == (SPECIAL + 1) * 16  # the only new parameters


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_layers_are_taken_over_from_the_bottom(layers):
    source, model = make_model(seed=7), Classifier(make_config(), "choice", 3, 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.take_over(source, layers)
    taken = {name for name, tensor in source.state_dict().items() if torch.equal(model.state_dict()[name], tensor)}
    drawn = {name for name, tensor in model.state_dict().items() if torch.equal(before[name], tensor)}
    for number in range(2):
        name = f"blocks.{number}.mlp.fc.weight"
        assert (name in taken) == (number < layers)
        assert (name in drawn) == (number >= layers)
    assert "tokens.weight" in taken


def module_of(model: Classifier, lm_weight: float) -> ClassifierModule:
    return ClassifierModule(model, ADAMW, CONSTANT, torch.ones(2, V, dtype=torch.int64), lm_weight)


def test_weight_zero_is_plain_classification():
    model, batch = make_classifier("entailment"), make_batch("entailment")
    plain = F.cross_entropy(scores_of(model, batch), batch.labels)
    assert module_of(model, 0.0).loss(batch) == plain
    lm_loss, _ = language_loss(model, model.activations(batch.ids), batch)
    torch.testing.assert_close(module_of(model, 0.5).loss(batch), plain + 0.5 * lm_loss)


def test_language_loss_is_over_the_texts_own_tokens():
    model = make_classifier("entailment")
    one, other = [START, 3, 4, DELIMITER, 5, EXTRACT], [START, 6, EXTRACT]
    batch = collate([([one], 0), ([other], 1)])
    loss, targets = language_loss(model, model.activations(batch.ids), batch)
    assert targets.tolist() == [3, 4, 5, 6]
    log_probabilities = model(batch.ids).log_softmax(-1)
    by_hand = [log_probabilities[0, 0, 3], log_probabilities[0, 1, 4], log_probabilities[0, 3, 5], log_probabilities[1, 0, 6]]
    torch.testing.assert_close(loss, -sum(by_hand) / 4)


def test_batches_of_any_texts_give_every_layer_few_shapes():
    """A shape that is new costs memory for good (gpt.finetune.data.ExampleBatches)."""
    examples = [([[START, *[n % V] * n, EXTRACT]], n % 3) for n in range(1, 15)]
    model, shapes = make_classifier("classification"), set()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, _: shapes.add((id(layer), inputs[0].shape)))
    module = module_of(model, 0.5)
    for batch in ExampleBatches(examples, 3, seed=1, length=20, longest=model.config.context_length):
        module.loss(batch).backward()
    layers = {layer for layer, _ in shapes}
    assert len(layers) > 2 * model.config.n_layer
    assert len(shapes) == len(layers)


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_gradients_reach_what_should_learn(lm_weight):
    model, batch = make_classifier("choice"), make_batch("choice")  # without delimiters
    module_of(model, lm_weight).loss(batch).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert without == (set() if lm_weight else {"head.weight"})  # which no answer needs
    special = model.tokens.special.grad.abs().sum(dim=1)
    assert [bool(gradient) for gradient in special] == [True, False, True]  # of start, delimiter and extract


@pytest.fixture
def play(tmp_path: Path) -> Path:
    """A play whose questions begin with Why, its exclamations with O, and all else with So."""
    path, lines = tmp_path / "play.txt", []
    words = ["be", "it", "done", "not", "now", "all", "day", "for", "ever", "we", "go", "on"]
    for n in range(600):
        start, end = (("So", "."), ("Why", "?"), ("O", "!"))[n * 7 % 3]
        speaker = ("ROMEO", "JULIET", "NURSE")[n % 3]
        lines.append(f"{speaker}:\n{start} {words[n % 11]} {words[n * 5 % 11]}{end}\n")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def pretrained(call, play: Path) -> Path:
    """A language model that has taken four steps on the play."""
    code, _, err = call(*SIZES, f"data.path={play}", "trainer.max_steps=4", "callbacks.samples=null", "hydra.run.dir=pre")
    assert code == 0, err
    return Path("pre")


@pytest.fixture
def tune(call, play: Path, monkeypatch):
    """Call scripts/finetune.py, as `call` calls scripts/train.py."""
    monkeypatch.setattr(train, "cli", finetune.cli)
    fixed = [f"data.path={play}", "trainer.accelerator=cpu", f"trainer.precision={PRECISION}"]
    return lambda *arguments: call(*arguments, *(() if any("resume=" in word for word in arguments) else fixed))


def answers(capsys, *arguments: str) -> list[dict]:
    classify.main([*arguments, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_fine_tuning_learns_and_classify_needs_the_checkpoint_alone(pretrained, play, tune, capsys, tmp_path):
    code, out, err = tune("init=pre", "task=mark", "finetune.epochs=12", "optimizer.lr=5e-3", "hydra.run.dir=tuned")
    assert code == 0, err
    result = json.loads(Path("tuned/result.json").read_text())
    assert result["test_accuracy"] > 0.9 > result["majority_accuracy"]
    assert f"accuracy        {result['test_accuracy']:.4f}  (" in out
    assert "95 % interval" in out
    assert "classify.py tuned --text" in out
    run = json.loads(Path("tuned/run.json").read_text())
    assert len(run["init_sha256"]) == 64

    alone = tmp_path / "alone.ckpt"
    Path("tuned/checkpoints/best.ckpt").rename(alone)
    play.unlink()
    (answer,) = answers(capsys, str(alone), "--text", "Why go on")
    assert answer["label"] == "?"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    for script, place in ((sample, alone), (classify, "pre")):
        with pytest.raises(ValueError, match=r"fine-tuned for a task, not a language model|answers no questions"):
            script.main([str(place)] + (["--text", "x"] if script is classify else []))


@pytest.mark.parametrize("task", ["reply", "same_speaker", "next_speech"])
def test_every_kind_of_task_trains(task, pretrained, tune, capsys):
    code, _, err = tune("init=pre", f"task={task}", "trainer.max_steps=2", "hydra.run.dir=tuned")
    assert code == 0, err
    texts = {"next_speech": "So be it\tO now\tWhy"}.get(task, "So be it\tO now")
    (answer,) = answers(capsys, "tuned", "--text", texts)
    assert len(answer["probabilities"]) == 2


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(lm_weight, pretrained, tune, monkeypatch):
    whole = ["init=pre", "task=mark", "finetune.epochs=2", "trainer.val_check_interval=3", "model.dropout=0.1"]
    whole.append(f"finetune.lm_weight={lm_weight}")
    assert tune(*whole, "hydra.run.dir=whole")[0] == 0
    steps = json.loads(Path("whole/result.json").read_text())["step"]
    training_step = ClassifierModule.training_step

    def stop_at_the_second(self, batch, batch_idx):
        if self.trainer.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "training_step", stop_at_the_second)
        code, out, err = tune(*whole, "hydra.run.dir=parts")
    assert (code, read(Path("parts/checkpoints/last.ckpt"))["global_step"]) == (143, 2), err
    assert "finetune.py resume=parts" in out + err
    Path("pre").rename("moved")  # a run that has begun needs its own checkpoint alone
    code, _, err = tune("resume=parts")
    assert code == 0, err
    assert json.loads(Path("parts/result.json").read_text())["step"] == steps
    first, second = (read(Path(run, "checkpoints", "last.ckpt"))["state_dict"] for run in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sweep_ends_with_a_table_and_a_picture(pretrained, tune):
    code, out, err = tune("-m", "init=./pre,null", *SIZES[:3], "trainer.max_steps=1", "seed=1,2", "hydra.sweep.dir=sweep")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines() if line.startswith("mark")]
    assert {row[1] for row in rows} == {"pre", "null"}
    assert all("±" in row for row in rows)
    runs = {path.parent.name for path in Path("sweep").glob("*/result.json")}
    assert runs == {"init=pre,seed=1", "init=pre,seed=2", "init=null,seed=1", "init=null,seed=2"}
    assert Path("sweep/tasks.png").stat().st_size > 1000
    code, out, err = tune("-m", "init=pre", "finetune.layers=0,2", "trainer.max_steps=1", "hydra.sweep.dir=layers")
    assert code == 0, err
    assert Path("layers/tasks.png").exists()


REFUSED = {
    "task=poem": "task = poem: no such file in conf/task/",
    "init=nowhere": "init = nowhere: no such file",
    "finetune.layers=3": "finetune.layers = 3: the model has 2 layers",
    "model.n_layer=4": "model.n_layer = 4: the weights of init=pre have 2",
    "data.tokenizer=byte": "data.tokenizer = byte: the weights of init=pre have char",
    "task=csv": "task = csv: needs more",
    "trainer.compile=true": "trainer.compile = true: not for sequences",
    "callbacks=default": "callbacks.samples",
    "finetune.dropout=1": "finetune.dropout = 1",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_makes_no_run_is_one_line_and_leaves_nothing(override, pretrained, tune):
    before = {str(path) for path in Path().rglob("*")}
    given = ["init=pre"] if not override.startswith("init=") else []
    code, _, err = tune(*given, override, "hydra.run.dir=new")
    assert code == 2
    assert REFUSED[override] in err
    assert err.count("\n") == 1
    assert {str(path) for path in Path().rglob("*")} == before


def test_train_goes_on_from_other_weights(call, pretrained, play, tmp_path):
    code, _, err = call(
        "init=pre",
        f"data.path={play}",
        "trainer.max_steps=1",
        "trainer.accelerator=cpu",
        "optimizer=adamw",
        "optimizer.lr=1e-9",
        "callbacks.samples=null",
        "hydra.run.dir=new",
    )
    assert code == 0, err
    first, second = (read(Path(run, "checkpoints", "last.ckpt"))["state_dict"] for run in ("pre", "new"))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    other = tmp_path / "other.txt"
    other.write_text("été " * 500)
    code, _, err = call("init=pre", f"data.path={other}", "trainer.accelerator=cpu", "hydra.run.dir=refused")
    assert code == 2
    assert "'é'" in err
    assert not Path("refused").exists()
