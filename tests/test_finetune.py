"""Fine-tuning: its sequences, the model and its losses, runs from start to end, and what is refused."""

import io
import json
import random
import shutil
import signal
from pathlib import Path

import classify
import pytest
import torch
import torch.nn.functional as F
from test_finetune_tasks import play

import sample
from conftest import PRECISION, files_in, make_config, make_model, read_last, read_result, same
from gpt import train
from gpt.cli import main
from gpt.config import AdamWConfig, SchedulerConfig
from gpt.errors import UserError
from gpt.finetune.model import HEAD_RATE, Classifier, Inputs, collate, to_sequences
from gpt.finetune.module import ClassifierModule, ExampleBatches, language_loss
from gpt.finetune.tasks import Example
from gpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcdefghijk")  # a is 0
V, START, DELIMITER, EXTRACT = 11, 11, 12, 13
KINDS = {"classification": 1, "entailment": 1, "similarity": 2, "choice": 3}  # sequences of an example
SIZES = ["model=tiny", "model.n_embd=16", "model.context_length=32"]
MACHINE = ["trainer.accelerator=cpu", f"trainer.precision={PRECISION}"]
SEQUENCES = [  # figure 1 of Radford et al. 2018, written out by hand
    ("classification", ("abc",), [[START, 0, 1, 2, EXTRACT]]),
    ("entailment", ("ab", "cd"), [[START, 0, 1, DELIMITER, 2, 3, EXTRACT]]),
    ("similarity", ("ab", "c"), [[START, 0, 1, DELIMITER, 2, EXTRACT], [START, 2, DELIMITER, 0, 1, EXTRACT]]),
    ("choice", ("a", "b", "cc"), [[START, 0, DELIMITER, 1, EXTRACT], [START, 0, DELIMITER, 2, 2, EXTRACT]]),
    # Texts too long for 7 tokens lose what is far from the delimiter, and a single text its beginning
    ("classification", ("aaabcdef",), [[START, 1, 2, 3, 4, 5, EXTRACT]]),
    ("entailment", ("aaabcd", "dcbaaa"), [[START, 2, 3, DELIMITER, 3, 2, EXTRACT]]),  # half the room each
    ("entailment", ("aaabcd", "d"), [[START, 1, 2, 3, DELIMITER, 3, EXTRACT]]),  # or what the other leaves
    ("entailment", ("a", "dcbaaa"), [[START, 0, DELIMITER, 3, 2, 1, EXTRACT]]),
]


@pytest.mark.parametrize(("kind", "texts", "sequences"), SEQUENCES)
def test_texts_become_sequences(kind, texts, sequences):
    assert to_sequences(Example(texts, 0), kind, TOKENIZER, length=7) == sequences


def test_batch_is_padded_at_the_end_and_knows_the_extract_tokens():
    examples = [Example(("ab", "c"), 1), Example(("d", "abc"), 0)]
    inputs = collate([(to_sequences(one, "similarity", TOKENIZER, 20), one.label) for one in examples])
    assert (inputs.ids.shape, inputs.labels.tolist()) == ((4, 7), [1, 0])
    assert inputs.ids[torch.arange(4), inputs.extract].tolist() == [EXTRACT] * 4
    assert inputs.ids[0].tolist() == [START, 0, 1, DELIMITER, 2, EXTRACT, 0]
    # Given the longest length, batches are padded to one of few lengths, but never beyond it
    for length, longest, padded in ((5, 80, 32), (32, 80, 32), (33, 80, 64), (65, 80, 80), (5, 20, 20)):
        inputs = collate([([[START] * length], 0), ([[START] * 4], 1)], longest)
        assert inputs.ids.shape == (2, padded)
        assert inputs.extract.tolist() == [length - 1, 3]


def make_classifier(kind: str, arch: str = "modern") -> Classifier:
    torch.manual_seed(0)
    model = Classifier(make_config(arch), kind, labels=3, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "conv" in name or name == "answer.weight":
            torch.nn.init.normal_(parameter, std=0.5)  # they start near zero, which would test nothing
    return model.eval()


def make_batch(kind: str) -> Inputs:
    draw = random.Random(1)

    def sequence() -> list[int]:
        return [START, *draw.choices(range(V), k=draw.randint(2, 11)), EXTRACT]

    return collate([([sequence() for _ in range(KINDS[kind])], number % 3) for number in range(4)])


def scores_of(model: Classifier, batch: Inputs) -> torch.Tensor:
    return model.scores(model.activations(batch.ids), batch)


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
    if kind == "similarity":  # its two orders are added before the head
        read = model.activations(batch.ids)[[0, 1], batch.extract[:2]]
        torch.testing.assert_close(scores[0], HEAD_RATE * (read[0] + read[1]) @ model.answer.weight.T)


@pytest.mark.parametrize(("kind", "answers"), [("choice", 1), ("entailment", 3)])
def test_the_language_model_inside_is_the_one_that_was_taken_over(kind, answers, arch):
    source, ids = make_model(arch, seed=7), torch.arange(10)[None]
    model = Classifier(source.config, kind, labels=3).eval()
    model.take_over(source, None, TOKENIZER)
    torch.testing.assert_close(model(ids), source.eval()(ids), atol=0, rtol=0)
    extra = sum(p.numel() for p in model.parameters()) - source.config.parameter_count()
    assert extra == (3 + answers) * 16  # the only new ones


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_layers_are_taken_over_from_the_bottom(layers):
    source, model = make_model(seed=7), make_classifier("choice")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.take_over(source, layers, TOKENIZER)
    taken = {name for name, it in source.state_dict().items() if torch.equal(model.state_dict()[name], it)}
    drawn = {name for name, it in model.state_dict().items() if torch.equal(before[name], it)}
    for number in range(2):
        name = f"blocks.{number}.mlp.fc.weight"
        assert (name in taken, name in drawn) == (number < layers, number >= layers)
    assert "tokens.weight" in taken


def module_of(model: Classifier, lm_weight: float, weights: torch.Tensor | None = None) -> ClassifierModule:
    training = AdamWConfig(), SchedulerConfig(), TOKENIZER.lengths
    return ClassifierModule(model, *training, lm_weight=lm_weight, weights=weights)


def test_weight_zero_is_plain_classification():
    model, batch = make_classifier("entailment"), make_batch("entailment")
    plain = F.cross_entropy(scores_of(model, batch), batch.labels)
    assert module_of(model, 0.0).loss(batch) == plain
    lm_loss, _ = language_loss(model, model.activations(batch.ids), batch)
    torch.testing.assert_close(module_of(model, 0.5).loss(batch), plain + 0.5 * lm_loss)
    losses = F.cross_entropy(scores_of(model, batch), batch.labels, reduction="none")
    weighted = module_of(model, 0.0, torch.tensor([1.0, 2.0, 3.0])).loss(batch)  # the labels are 0, 1, 2, 0
    torch.testing.assert_close(weighted, (losses * torch.tensor([1.0, 2.0, 3.0, 1.0])).mean())


def test_language_loss_is_over_the_texts_own_tokens():
    model = make_classifier("entailment")
    batch = collate([([[START, 3, 4, DELIMITER, 5, EXTRACT]], 0), ([[START, 6, EXTRACT]], 1)])
    loss, targets = language_loss(model, model.activations(batch.ids), batch)
    assert targets.tolist() == [3, 4, 5, 6]
    log_p = model(batch.ids).log_softmax(-1)
    torch.testing.assert_close(loss, -(log_p[0, 0, 3] + log_p[0, 1, 4] + log_p[0, 3, 5] + log_p[1, 0, 6]) / 4)


def test_batches_of_any_texts_give_every_layer_few_shapes():
    """A shape that is new costs memory for good (gpt.finetune.module.ExampleBatches)."""
    examples = [([[START, *[n % V] * n, EXTRACT]], n % 3) for n in range(1, 15)]
    model, shapes = make_classifier("classification"), set()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, _: shapes.add((id(layer), inputs[0].shape)))
    module = module_of(model, 0.5)
    for batch in ExampleBatches(examples, 3, seed=1, length=20, longest=model.config.context_length):
        module.loss(batch).backward()
    assert len(shapes) == len({layer for layer, _ in shapes}) > 2 * model.config.n_layer


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_gradients_reach_what_should_learn(lm_weight):
    model, batch = make_classifier("choice"), make_batch("choice")  # without delimiters
    module_of(model, lm_weight).loss(batch).backward()
    without = {name for name, it in model.named_parameters() if it.grad is None or not it.grad.any()}
    assert without == (set() if lm_weight else {"head.weight"})  # which no answer needs
    of_special = model.tokens.special.grad.abs().sum(dim=1)
    assert [bool(gradient) for gradient in of_special] == [True, False, True]  # start, delimiter, extract


# Runs


@pytest.fixture
def play_file(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_text(play("we", 600), encoding="utf-8")
    return path


@pytest.fixture
def pretrained(call, play_file: Path, tmp_path_factory) -> Path:
    """A language model that has taken four steps on the play, trained once and copied for each test."""
    store = tmp_path_factory.getbasetemp() / "pretrained"
    if not store.exists():
        settings = "trainer.max_steps=4", "callbacks.samples=null", f"hydra.run.dir={store}"
        code, _, err = call(*SIZES, *MACHINE, f"data.path={play_file}", *settings)
        assert code == 0, err
    return shutil.copytree(store, "pre")


@pytest.fixture
def tune(call, play_file: Path):
    """Call scripts/finetune.py, as `call` calls scripts/train.py, and expect an exit code."""

    def run(*arguments: str, ends_with: int = 0) -> tuple[str, str]:
        fixed = [] if any("resume=" in word for word in arguments) else [f"data.path={play_file}", *MACHINE]
        code, out, err = call(*arguments, *fixed, main=main.finetune, name="finetune.py")
        assert code == ends_with, out + err
        return out, err

    return run


def answers(capsys, *arguments: str) -> list[dict]:
    classify.main([*arguments, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_fine_tuning_learns_and_classify_needs_the_checkpoint_alone(pretrained, play_file, tune, capsys):
    longer = "finetune.epochs=12", "optimizer.lr=5e-3"
    out, _ = tune("init=pre", "task=mark", *longer, "hydra.run.dir=tuned")
    result = read_result("tuned")
    assert result["test_accuracy"] > 0.9 > result["majority_accuracy"]
    recall = result["recall"]  # every mark is as frequent
    assert (set(recall), sum(recall.values()) / 3) == (set(".?!"), pytest.approx(result["test_accuracy"]))
    assert result["macro_f1"] == pytest.approx(result["test_accuracy"], abs=0.02)
    for line in (
        f"accuracy        {result['test_accuracy']:.4f}  (",
        "95 % interval",
        f"macro F1        {result['macro_f1']:.4f}  (recall . {recall['.']:.2f}",
        "classify.py tuned --text",
    ):
        assert line in out
    assert len(json.loads(Path("tuned/run.json").read_text())["init_sha256"]) == 64

    alone = Path("tuned/checkpoints/best.safetensors").rename("alone.safetensors")
    play_file.unlink()
    (answer,) = answers(capsys, str(alone), "--text", "we say 7, or what")
    assert answer["label"] == "?"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    for program, arguments, message in (
        (classify, [str(alone), "--text", "we\tsay"], "is about one text; separate several by tabs"),
        (sample, [str(alone)], "fine-tuned for a task, not a language model"),
        (classify, ["pre", "--text", "x"], "answers no questions"),
    ):
        with pytest.raises(ValueError, match=message):
            program.main(arguments)


@pytest.mark.parametrize("task", ["follows", "same_line", "which_word"])
def test_every_kind_of_task_trains(task, pretrained, tune, capsys):
    tune("init=pre", f"task={task}", "trainer.max_steps=2", "hydra.run.dir=tuned")
    texts = "we say so\tor what" + "\talas" * (task == "which_word")
    (answer,) = answers(capsys, "tuned", "--text", texts)
    assert len(answer["probabilities"]) == 2


def test_table_with_rare_labels_and_unknown_characters(pretrained, tune, capsys, monkeypatch):
    said = [(f"we {n}{'é' * (n % 2)}", "0;yes" if n % 8 == 0 else "what;no") for n in range(80)]
    Path("my.csv").write_text("text;label\n" + "".join(f"{first}, or {rest}\n" for first, rest in said))
    table = ["task=csv", "task.path=my.csv", "task.columns=[text]", "task.label=label"]
    Path("odd.csv").write_text(Path("my.csv").read_text() + "ééé;no\n")
    odd = [word.replace("my.csv", "odd.csv") for word in table]
    _, err = tune("init=pre", *odd, "finetune.drop_unknown=true", ends_with=2)
    assert "a text has no character that the tokenizer knows" in err
    settings = "finetune.class_weights=balanced", "finetune.drop_unknown=true", "optimizer.lr=1e-2"
    command = "init=pre", *table, *settings, "finetune.epochs=12", "hydra.run.dir=tuned"
    with monkeypatch.context() as patch:
        patch.setattr(train, "naive_bayes_accuracy", lambda task: 1 / 0)  # whatever a baseline may do
        _, err = tune(*command, ends_with=1)
    assert "ZeroDivisionError" in err
    result = read_result("tuned")
    tune(*command)  # which has only the baseline left to do
    assert 0 < (accuracy := read_result("tuned")["naive_bayes_accuracy"]) <= 1
    assert read_result("tuned") == result | {"naive_bayes_accuracy": accuracy}
    assert (result["majority_accuracy"], result["macro_f1"] > 0.9) == (pytest.approx(7 / 8), True)
    lines = "we é7, or what\nééé\n\nwe 8, or 0\n\udcff we\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode(errors="surrogateescape"))))
    with pytest.raises(UserError, match="2 of 4 lines: no answer"):
        classify.main(["tuned"])
    shown = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in shown] == ["no", "-", "yes", "-"]
    texts = ["we é7, or what", "ééé", "we 8, or 0", "\ufffd we"]
    assert [line.rpartition(")  ")[2] for line in shown] == texts
    assert ("none of them empty or unknown" in shown[1], "not UTF-8" in shown[3]) == (True, True)


@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(lm_weight, pretrained, tune, monkeypatch):
    whole = ["init=pre", "task=mark", "finetune.epochs=2", f"finetune.lm_weight={lm_weight}"]
    whole += ["trainer.val_check_interval=3", "model.dropout=0.1"]
    tune(*whole, "hydra.run.dir=whole")
    training_step = ClassifierModule.training_step

    def stop_at_the_second(self, batch, batch_idx):
        if self.trainer.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "training_step", stop_at_the_second)
        out, _ = tune(*whole, "hydra.run.dir=parts", ends_with=143)
    assert read_last("parts")["global_step"] == 2
    assert "finetune.py resume=parts" in out
    Path("pre").rename("moved")  # a run that has begun needs its own checkpoint alone
    tune("resume=parts")
    assert read_result("parts")["step"] == read_result("whole")["step"]
    assert same(read_last("whole")["state_dict"], read_last("parts")["state_dict"])


def test_a_sweep_ends_with_a_table_and_a_picture(pretrained, tune):
    short = "trainer.max_steps=1"
    out, _ = tune("-m", "init=./pre,null", *SIZES, short, "seed=1,2", "hydra.sweep.dir=sweep")
    rows = [line.split()[1] for line in out.splitlines() if line.startswith("|") and "±" in line]
    assert sorted(rows) == ["./pre", "null"]
    runs = {path.parent.name for path in Path("sweep").glob("*/result.json")}
    assert runs == {f"init-{init}_seed-{seed}" for init in ("pre", "null") for seed in (1, 2)}
    assert Path("sweep/tasks.png").stat().st_size > 1000
    tune("-m", "init=pre", "finetune.layers=0,2", short, "hydra.sweep.dir=layers")
    assert Path("layers/tasks.png").exists()


REFUSED = {
    "init=nowhere": "init = nowhere: no such file",
    "finetune.layers=3": "finetune.layers = 3: the model has 2 layers",
    "model.n_layer=4": "model.n_layer = 4: the weights of init=pre have 2",
    "data.tokenizer=byte": "data.tokenizer = byte: the weights of init=pre have char",
    "task=csv": "task = csv: needs more",
    "trainer.compile=true": "trainer.compile = true: not for sequences",
    "task=which_word finetune.class_weights=balanced": "finetune.class_weights = balanced: not for a choice",
    "callbacks=default": "it is for language models; set callbacks=finetune",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_makes_no_run_is_one_line_and_leaves_nothing(override, pretrained, tune):
    before = files_in()
    _, err = tune("init=pre", *override.split(), "hydra.run.dir=new", ends_with=2)
    assert err.count("\n") == 1
    assert REFUSED[override] in err
    assert files_in() == before
