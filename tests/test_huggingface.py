"""Through the real `transformers`, `tokenizers` and onnxruntime: the same numbers on both sides."""

import json
from pathlib import Path

import pytest
import torch

import export_hf
from conftest import TINY, make_config, make_model
from gpt.checkpoint import find, load
from gpt.convert import from_hf, to_hf
from gpt.extras.bpe import BPETokenizer
from gpt.extras.huggingface import export, hf_config, our_config
from gpt.generate import generate
from gpt.model import GPT
from gpt.settings import UserError
from gpt.tokenizer import ByteTokenizer, CharTokenizer

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")

EXPRESSIBLE = {
    "gpt1": ("OpenAIGPTLMHeadModel", "gpt1", {}),
    "gpt1 relu untied": ("OpenAIGPTLMHeadModel", "gpt1", dict(activation="relu", tied_head=False, bias=False)),
    "gpt2": ("GPT2LMHeadModel", "gpt2", {}),
    "gpt2 relu2 no bias": ("GPT2LMHeadModel", "gpt2", dict(activation="relu2", tied_head=False, bias=False)),
}


def make_perturbed(arch: str, **changes) -> GPT:
    """A model all of whose parameters are far from where they start."""
    model = make_model(arch, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", EXPRESSIBLE)
@torch.no_grad()
def test_model_keeps_its_logits_there_and_back(name):
    kind, arch, changes = EXPRESSIBLE[name]
    model, ids = make_perturbed(arch, **changes), torch.randint(11, (3, 16))
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
def test_published_shapes_are_converted(config):
    """With random weights in the real shapes. What from_pretrained downloads takes the same way."""
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    model, ids = from_hf(theirs), torch.randint(config.vocab_size, (1, 20))
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("modern", {}, "conv_width = 3: transformers has no such convolution; train with model/arch=gpt2"),
        ("modern", dict(conv_width=0, norm="rmsnorm"), "norm = rmsnorm"),
        ("modern", dict(conv_width=0, norm_position="post"), "no class of transformers combines them"),
        ("gpt2", dict(qk_norm=True), "no class of transformers combines them"),
    ],
)
def test_model_that_no_class_can_express_is_refused(arch, changes, reason):
    with pytest.raises(UserError, match=reason):
        hf_config(make_config(arch, **changes))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.LlamaConfig(), "model_type = llama: cannot be converted"),
        (transformers.GPT2Config(activation_function="gelu"), "activation = gelu: this model does not have it"),
        (transformers.GPT2Config(n_inner=100), "n_inner = 100"),
        (transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True"),
        (transformers.PersimmonConfig(), "model_type = persimmon: cannot be converted"),
    ],
)
def test_model_that_ours_cannot_express_is_refused(config, reason):
    with pytest.raises(UserError, match=reason):
        our_config(config)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_exported_tokenizer_gives_the_same_ids(kind, tmp_path, text):
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


def test_exported_run_is_a_pipeline(call, text, capsys):
    settings = [*TINY, "model/arch=gpt2", f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run"]
    assert call(*settings)[0] == 0
    export_hf.main(["run", "--out", "exported/hf"])
    back = from_hf("exported/hf")
    assert torch.equal(back.head.weight, load(find("run"))[0].head.weight)
    assert "GPT2LMHeadModel" in capsys.readouterr().out
    assert [path.name for path in Path("exported").iterdir()] == ["hf"]  # nothing unfinished beside it
    prompt = "ROMEO"
    model, tokenizer, _ = load(find("run"))
    generated = generate(model, tokenizer.encode(prompt)[None], 11, temperature=0)
    pipe = transformers.pipeline("text-generation", "exported/hf")
    written = pipe(prompt, max_new_tokens=11, do_sample=False)[0]["generated_text"]
    assert written == prompt + tokenizer.decode(int(i) for i in generated)
    with pytest.raises(UserError, match="already exists"):
        export_hf.main(["run", "--out", "exported/hf"])


@pytest.mark.parametrize("arch", ["gpt1", "modern"])
@torch.no_grad()
def test_onnx_has_the_same_logits(arch, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    model, folder = make_perturbed(arch), tmp_path / "onnx"
    assert "ONNX" in export(model, CharTokenizer("abcdefghijk"), folder, onnx=True)
    assert (folder / "config.json").exists() == (arch == "gpt1")  # no class of transformers has a convolution
    session = runtime.InferenceSession(folder / "model.onnx")
    for shape in ((1, 1), (3, 16), (2, 5)):
        ids = torch.randint(11, shape)
        logits = torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0])
        torch.testing.assert_close(logits, model(ids), atol=1e-5, rtol=0)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model in the format of `transformers`, to be edited."""
    export(make_model("gpt2"), CharTokenizer("abcdefghijk"), tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_module(folder: Path, marker: Path) -> None:
    """Code that a config.json can name, and that leaves a file behind if it is run."""
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil:\n    pass\n")


AUTO_MAP = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}


@pytest.mark.parametrize("model_type", ["gpt2", "evil"])
def test_code_in_a_folder_is_not_run(exported, tmp_path, model_type):
    write_module(exported, tmp_path / "it_ran")
    edit_config(exported, auto_map=AUTO_MAP, model_type=model_type, quantization_config={"quant_method": "evil"})
    if model_type == "gpt2":
        assert from_hf(exported).config.n_embd == 16
    else:
        with pytest.raises(UserError, match="cannot be read"):
            from_hf(exported)
    assert not (tmp_path / "it_ran").exists()


def test_pickled_weights_are_not_read(exported, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "it_ran"), "w")

    (exported / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, exported / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        from_hf(exported)
    assert not (tmp_path / "it_ran").exists()


def test_folder_of_an_adapter_is_refused(exported):
    """An adapter names another model, and transformers would download that."""
    (exported / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/model"}))
    for folder in (exported, str(exported)):
        with pytest.raises(UserError, match=r"a folder with adapter_config\.json"):
            from_hf(folder)


def test_nothing_is_downloaded_for_a_folder(exported, monkeypatch):
    options = []
    for name in ("AutoConfig", "AutoModelForCausalLM"):
        kind = getattr(transformers, name)
        original = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, f=original, **kw: options.append(kw) or f(*a, **kw))
    from_hf(exported)
    assert [kw["local_files_only"] for kw in options] == [True, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_embd": 30_000, "n_head": 1},
        {"n_embd": 10**12},
        {"vocab_size": -1},
        {"n_layer": "two"},
        {"n_layer": None},
        {"resid_pdrop": "a\nb"},
        {"model_type": "x" * 10**5},
    ],
    ids=["claims more weights", "huge", "negative", "text", "nothing", "two lines", "long"],
)
def test_folder_with_a_damaged_configuration_is_one_line(exported, changes):
    edit_config(exported, **changes)
    with pytest.raises(UserError) as error:
        from_hf(exported)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_folder_that_is_no_model_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        from_hf(tmp_path)
