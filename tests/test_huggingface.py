"""Through the real `transformers`, `tokenizers` and onnxruntime: the same numbers on both sides."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import export_hf
from conftest import make_config, make_model
from gpt.checkpoint import load
from gpt.errors import UserError
from gpt.generate import generate_text
from gpt.interop.bpe import BPETokenizer
from gpt.interop.huggingface import export, from_hf, hf_settings, our_config, to_hf, tokenizer_from_hf
from gpt.interop.weights import load_weights
from gpt.model import GPT
from gpt.tokenizer import ByteTokenizer, CharTokenizer

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")

PLAIN = dict(tied_head=False, bias=False)
EXPRESSIBLE = {
    "gpt1": ("OpenAIGPTLMHeadModel", "gpt1", {}),
    "gpt1 relu untied": ("OpenAIGPTLMHeadModel", "gpt1", dict(activation="relu", **PLAIN)),
    "gpt2": ("GPT2LMHeadModel", "gpt2", dict(attention_dropout=False)),
    "gpt2 relu2 no bias": ("GPT2LMHeadModel", "gpt2", dict(activation="relu2", **PLAIN)),
}
CHARS = CharTokenizer("abcdefghijk")


def make_perturbed(arch: str, **changes) -> GPT:
    """A model all of whose parameters are far from where they start."""
    model = make_model(arch, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", EXPRESSIBLE)
@torch.no_grad()
def test_model_keeps_its_logits_there_and_back(name, tmp_path):
    kind, arch, changes = EXPRESSIBLE[name]
    model, ids = make_perturbed(arch, dropout=0.1, **changes), torch.randint(11, (3, 16))
    theirs = to_hf(model)
    assert type(theirs).__name__ == kind
    torch.testing.assert_close(theirs(ids).logits[..., :11], model(ids), atol=1e-5, rtol=0)
    assert export(model, CHARS, tmp_path / "hf") == kind
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(loaded(ids).logits[..., :11], model(ids), atol=1e-5, rtol=0)
    for source in (theirs, tmp_path / "hf"):
        back = from_hf(source, 11)
        torch.testing.assert_close(back(ids), model(ids), atol=1e-6, rtol=0)
        assert back.config == model.config.model_copy(update={"bias": True})


@pytest.mark.parametrize("kind", ["openai-gpt", "gpt2"])
@torch.no_grad()
def test_published_shapes_are_converted(kind):
    """With random weights in the real shapes, but for the number of layers. Downloads take the same way."""
    config = transformers.AutoConfig.for_model(kind, n_layer=2)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    model, ids = from_hf(theirs), torch.randint(config.vocab_size, (1, 20))
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())


INEXPRESSIBLE = [
    ("gpt2", dict(conv_width=3), "conv_width = 3: no class of transformers has it here; train with"),
    ("modern", dict(conv_width=0), "positions = rotary"),
    ("gpt1", dict(activation="relu2"), "activation = relu2"),
    ("gpt2", dict(qk_norm=True), "qk_norm = True"),
]


FOREIGN = {
    "model_type = llama: must be openai-gpt or gpt2": {"model_type": "llama"},
    "activation_function = gelu: models here have": {"activation_function": "gelu"},
    "n_inner = 100": {"n_inner": 100},
    "layer_norm_epsilon = 1e-06": {"layer_norm_epsilon": 1e-6},
    "scale_attn_by_inverse_layer_idx = True": {"scale_attn_by_inverse_layer_idx": True},
}


def test_model_that_the_other_side_cannot_express_is_refused():
    for arch, changes, reason in INEXPRESSIBLE:
        with pytest.raises(UserError, match=reason):
            hf_settings(make_config(arch, **changes))
    for reason, changes in FOREIGN.items():
        with pytest.raises(UserError, match=reason):
            our_config(transformers.GPT2Config().to_dict() | changes)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_exported_tokenizer_gives_the_same_ids(kind, tmp_path, text):
    content = text.read_text() if kind == "char" else "π 🙂\n\n  é" + text.read_text()
    chars, pieces = CharTokenizer.from_text(content), BPETokenizer.from_parts([content], 300)
    tokenizer = {"char": chars, "byte": ByteTokenizer(), "bpe": pieces}[kind]
    export(make_model("gpt2", vocab_size=len(tokenizer)), tokenizer, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs(content)["input_ids"]
    assert ids == tokenizer.encode(content).tolist()
    assert theirs.decode(ids, skip_special_tokens=True) == content
    assert len(theirs) == len(tokenizer) + 2
    assert (theirs.unk_token_id, theirs.pad_token_id) == (len(tokenizer), len(tokenizer) + 1)
    assert tokenizer_from_hf(tmp_path / "hf").state == tokenizer.state


def test_exported_run_is_a_pipeline(succeed, capsys):
    succeed("model/arch=gpt2", "trainer.max_steps=4", "hydra.run.dir=run")
    export_hf.main(["run", "--out", "exported/hf"])
    assert capsys.readouterr().out == "exported/hf: GPT2LMHeadModel\n"
    model, tokenizer, _ = load("run")
    assert torch.equal(load_weights("exported/hf")[0].head.weight, model.head.weight)
    assert [path.name for path in Path("exported").iterdir()] == ["hf"]  # nothing unfinished next to it
    pipe = transformers.pipeline("text-generation", "exported/hf")
    written = pipe("ROMEO", max_new_tokens=11, do_sample=False)[0]["generated_text"]
    assert written == generate_text(model, tokenizer, "ROMEO", 11, temperature=0)
    prompts = ["ROMEO", "O", "light 5"]  # the last has an unknown character
    batch = pipe(prompts, batch_size=3, do_sample=False, max_new_tokens=5)
    several = [written[0]["generated_text"] for written in batch]
    assert several[:2] == [generate_text(model, tokenizer, text, 5, temperature=0) for text in prompts[:2]]
    assert several[2].startswith("light ")
    with pytest.raises(UserError, match="already exists"):
        export_hf.main(["run", "--out", "exported/hf"])


@pytest.mark.parametrize("arch", ["gpt1", "modern"])
@torch.no_grad()
def test_onnx_has_the_same_logits(arch, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    model, folder = make_perturbed(arch), tmp_path / "onnx"
    assert "ONNX" in export(model, CHARS, folder, onnx=True)
    assert (folder / "config.json").exists() == (arch == "gpt1")  # no class of transformers has a convolution
    session = runtime.InferenceSession(folder / "model.onnx")
    for ids in (torch.randint(11, shape) for shape in ((1, 1), (3, 16), (2, 5))):
        logits = torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0])
        torch.testing.assert_close(logits, model(ids), atol=1e-5, rtol=0)
    export(model, CHARS, tmp_path / "cached", onnx=True, cache=True)
    session = runtime.InferenceSession(tmp_path / "cached/model.onnx")
    ids, sizes = torch.randint(11, (3, 16)), {"batch": 3, "past": 0}
    shapes = {it.name: [sizes.get(size, size) for size in it.shape] for it in session.get_inputs()[1:]}
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for start, end in itertools.pairwise((0, 5, 6, 7, 16)):  # a prompt, steps, and several ids at once
        logits, *read = session.run(None, {"ids": ids[:, start:end].numpy()} | state)
        state = dict(zip(state, read, strict=True))
        torch.testing.assert_close(torch.from_numpy(logits), model(ids)[:, start:end], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="--cache is of model"):
        export_hf.main(["run", "--out", "exported/hf", "--cache"])


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model in the format of `transformers`, to be edited."""
    export(make_model("gpt2"), CHARS, tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        from_hf(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    return str(error.value)


EDITS = [
    ({"n_layer": 3}, "missing, left over or misshapen: transformer.h.2.attn.c_attn.bias, "),
    ({"n_layer": 1}, "misshapen: transformer.h.1.attn."),
    ({"n_positions": 8}, "misshapen: ('transformer.wpe.weight', torch.Size([16, 16]), torch.Size([8, 16]))"),
    ({"tie_word_embeddings": False}, "misshapen: lm_head.weight"),
    ({"vocab_size": 2**20}, "bytes of safetensors, 16,7"),  # refused before memory is taken
    ({"n_layer": "two"}, "n_layer"),
    ({"resid_pdrop": "a\nb"}, "resid_pdrop"),
    ({"model_type": "x" * 10**5}, "xxx..."),
]


@pytest.mark.parametrize(("changes", "reason"), EDITS)
def test_configuration_that_does_not_fit_its_tensors_is_one_line(exported, changes, reason):
    edit_config(exported, **changes)
    assert reason in refusal(exported)


def test_tensors_are_read_by_name_whatever_the_file(exported):
    """Files on the hub have shorter names, and hold the causal mask; a name that is unknown is refused."""
    path = exported / "model.safetensors"
    tensors, expected = load_file(path), from_hf(exported).state_dict()
    shorter = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(shorter | {"h.0.attn.bias": torch.ones(1, 1, 16, 16)}, path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in from_hf(exported).state_dict().items())
    shorter["h.0.ln_one.weight"] = shorter.pop("h.0.ln_1.weight")
    save_file(shorter, path)
    assert "misshapen: h.0.ln_one.weight, transformer.h.0.ln_1.weight" in refusal(exported)
    save_file(tensors | {"lm_head.weight": torch.ones(13, 16)}, path)  # which the configuration calls tied
    assert "misshapen: transformer.wte.weight" in refusal(exported)


def test_code_and_pickles_in_a_folder_are_not_run(exported, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "it_ran"), "w")

    (exported / "evil.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\nclass Evil:\n    pass\n")
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edit_config(exported, auto_map=auto_map, quantization_config={"quant_method": "evil"})
    assert from_hf(exported).config.n_embd == 16
    (exported / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, exported / "pytorch_model.bin")
    assert "no file named model.safetensors" in refusal(exported)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_folder_is_one_line(exported, name, content):
    (exported / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^(model|tokenizer) = {exported}"):
        tokenizer_from_hf(exported) if name == "tokenizer.json" else from_hf(exported)


def test_run_that_starts_from_a_folder_needs_every_tensor(exported, refuse):
    """Or it would begin with random ones."""
    edit_config(exported, n_layer=3)
    assert "missing, left over or misshapen: transformer.h.2.attn" in refuse(f"init={exported}")


def test_rotary_model_continues_with_another_context(trained, succeed, refuse):
    """Learned positions have as many places as they were trained for."""
    longer = ["model.context_length=40", "trainer.max_steps=1", "data.batch_size=2"]
    succeed("init=run", "model.n_embd=16", *longer, "hydra.run.dir=longer")
    assert load("longer")[0].config == load("run")[0].config.model_copy(update={"context_length": 40})
    succeed("model/arch=gpt2", "trainer.max_steps=1", "hydra.run.dir=gpt2")
    err = refuse("init=gpt2", *longer)
    assert "model.context_length = 40: the weights of init=gpt2 have 16; leave it out" in err
