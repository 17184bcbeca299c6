"""Through the real `transformers`, `tokenizers` and onnxruntime: the same numbers on both sides."""

from pathlib import Path

import pytest
import torch

import export_hf
from conftest import TINY, make_config, make_model
from gpt.checkpoint import find, load
from gpt.convert import export, from_hf, hf_config, our_config, to_hf
from gpt.data import CharData, DataConfig
from gpt.generate import generate
from gpt.model import GPT
from gpt.settings import UserError
from gpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")

EXPRESSIBLE = {
    "gpt1": ("OpenAIGPTLMHeadModel", "gpt1", {}),
    "gpt1 relu untied": ("OpenAIGPTLMHeadModel", "gpt1", dict(activation="relu", tied_head=False, bias=False)),
    "gpt2": ("GPT2LMHeadModel", "gpt2", {}),
    "gpt2 relu2 no bias": ("GPT2LMHeadModel", "gpt2", dict(activation="relu2", tied_head=False, bias=False)),
    "modern": ("PersimmonForCausalLM", "modern", dict(conv_width=0)),
    "modern gelu bias": ("PersimmonForCausalLM", "modern", dict(conv_width=0, qk_norm=False, bias=True, activation="gelu")),
}


def stirred(arch: str, **changes) -> GPT:
    """A model all of whose parameters are far from what they start as."""
    model = make_model(arch, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", EXPRESSIBLE)
@torch.no_grad()
def test_there_and_back(name):
    kind, arch, changes = EXPRESSIBLE[name]
    model, ids = stirred(arch, **changes), torch.randint(11, (3, 16))
    theirs = to_hf(model)
    assert type(theirs).__name__ == kind
    torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(from_hf(theirs)(ids), model(ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(transformers.OpenAIGPTConfig(), id="openai-gpt, 117 M"),
        pytest.param(transformers.GPT2Config(), id="gpt2, 124 M"),
        pytest.param(transformers.GPT2Config(n_embd=1600, n_head=25, n_layer=2), id="gpt2-xl's width"),
    ],
)
@torch.no_grad()
def test_the_published_shapes(config):
    """Random weights in the real shapes: what from_pretrained downloads takes the same way."""
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    model, ids = from_hf(theirs), torch.randint(config.vocab_size, (1, 20))
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("modern", {}, "conv_width = 3: not in transformers; train with ablation=no_conv"),
        ("modern", dict(conv_width=0, norm="rmsnorm"), "norm = rmsnorm"),
        ("modern", dict(conv_width=0, norm_position="post"), "no class of transformers combines them"),
        ("gpt2", dict(qk_norm=True), "no class of transformers combines them"),
    ],
)
def test_what_no_class_has_is_refused(arch, changes, reason):
    with pytest.raises(UserError, match=reason):
        hf_config(make_config(arch, **changes))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.LlamaConfig(), "model_type = llama: not one that can be read"),
        (transformers.GPT2Config(activation_function="gelu"), "activation = gelu: not one that this model has"),
        (transformers.GPT2Config(n_inner=100), "n_inner = 100"),
        (transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True"),
        (transformers.PersimmonConfig(), "rope_parameters = "),
    ],
)
def test_what_we_cannot_compute_is_refused(config, reason):
    with pytest.raises(UserError, match=reason):
        our_config(config)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_tokenizers(kind, tmp_path, text):
    content = text.read_text() if kind == "char" else "π 🙂\n\n  é" + text.read_text()
    make = {
        "char": CharTokenizer.from_text,
        "byte": lambda _: ByteTokenizer(),
        "bpe": lambda t: BPETokenizer.from_parts([t], 300),
    }
    tokenizer = make[kind](content)
    export(make_model("gpt2", vocab_size=len(tokenizer)), tokenizer, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs(content)["input_ids"]
    assert ids == tokenizer.encode(content).tolist()
    assert theirs.decode(ids) == content
    assert len(theirs) == len(tokenizer)


def test_a_run_becomes_a_pipeline(call, text, capsys):
    settings = [*TINY, "model/arch=gpt2", f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run"]
    assert call(*settings)[0] == 0
    export_hf.main(["run", "--out", "exported/hf"])
    back = from_hf("exported/hf")
    assert torch.equal(back.head.weight, load(find("run"))[0].head.weight)
    assert "GPT2LMHeadModel" in capsys.readouterr().out
    assert [path.name for path in Path("exported").iterdir()] == ["hf"]  # nothing half-made beside it
    data = CharData(DataConfig(path=str(text), folder="", val_fraction=0.1, batch_size=1), context_length=16, seed=0)
    prompt = "ROMEO"
    model, tokenizer, _ = load(find("run"))
    drawn = generate(model, data.tokenizer.encode(prompt)[None], 11, temperature=0)
    pipe = transformers.pipeline("text-generation", "exported/hf")
    written = pipe(prompt, max_new_tokens=11, do_sample=False)[0]["generated_text"]
    assert written == prompt + tokenizer.decode(int(i) for i in drawn)
    with pytest.raises(UserError, match="is there already"):
        export_hf.main(["run", "--out", "exported/hf"])


@pytest.mark.parametrize("arch", ["gpt1", "modern"])
@torch.no_grad()
def test_onnx(arch, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    model, folder = stirred(arch), tmp_path / "onnx"
    assert "ONNX" in export(model, CharTokenizer("abcdefghijk"), folder, onnx=True)
    assert (folder / "config.json").exists() == (arch == "gpt1")  # no class of transformers has a convolution
    session = runtime.InferenceSession(folder / "model.onnx")
    for shape in ((1, 1), (3, 16), (2, 5)):
        ids = torch.randint(11, shape)
        logits = torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0])
        torch.testing.assert_close(logits, model(ids), atol=1e-5, rtol=0)
