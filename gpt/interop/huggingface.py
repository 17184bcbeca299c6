"""To Hugging Face's `transformers` and back: the same numbers under other names. It needs the extra hf.

The classes that compute the same as a model here:
    gpt1, post-norm with learned positions   OpenAIGPTLMHeadModel, whose model_type is openai-gpt
    gpt2, pre-norm with learned positions    GPT2LMHeadModel, whose model_type is gpt2
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt.config import ModelConfig, RunConfig
from gpt.errors import UserError, one_line, shorten
from gpt.files import read_json
from gpt.interop.bpe import BPETokenizer, byte_letters, load_tokenizers
from gpt.interop.onnx import write_onnx
from gpt.model import GPT
from gpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = {"post": "openai-gpt", "pre": "gpt2"}
# Their setting for the activation, and their names of ours. What OpenAI calls gelu is its tanh form, too
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "openai-gpt": ("afn", {"gelu": "gelu", "relu": "relu"}),
    "gpt2": ("activation_function", {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}),
}
# Our settings and theirs, of equal values; what all of theirs have in ours; what all of ours have in theirs
SHARED = {"context_length": "n_positions", "dropout": "resid_pdrop", "tied_head": "tie_word_embeddings"}
SHARED |= {name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
THEIRS = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "conv_width": 0}
OURS: dict[str, Any] = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "add_cross_attention": False}
OURS |= {"scale_attn_by_inverse_layer_idx": False, "n_inner": None}
# What they mean if config.json is silent
DEFAULTS = OURS | {"tie_word_embeddings": True, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
# Parts of our tensors' names and of theirs, which also have `transformer.` in front of all but the head
PARTS = {"blocks.": "h.", ".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".qkv.": ".c_attn.", ".fc.": ".c_fc."}
PARTS |= {".proj.": ".c_proj.", "head.": "lm_head."}
EMBEDDINGS = {
    "openai-gpt": {"tokens.": "tokens_embed.", "positions.": "positions_embed."},
    "gpt2": {"tokens.": "wte.", "positions.": "wpe.", "norm.": "ln_f."},
}
MASK = re.compile(r"\.attn\.(masked_)?bias$")  # a constant, which older files hold for each layer


def load_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        how = "it is needed to export models; pip install -e '.[hf]'"
        raise UserError(f"transformers = (missing): {how}") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def hf_settings(config: ModelConfig) -> dict[str, Any]:
    """The config.json of the same model. Raises UserError, with the reason, if there is none."""
    kind = KINDS[config.norm_position]
    setting, activations = ACTIVATIONS[kind]
    possible = {name: [value] for name, value in THEIRS.items()} | {"activation": list(activations)}
    for name, values in possible.items():
        if (value := getattr(config, name)) not in values:
            advice = "train with model/arch=gpt1 or gpt2, or write --onnx"
            raise UserError(f"model.{name} = {value}: no class of transformers has it here; {advice}")
    shared = {theirs: getattr(config, ours) for ours, theirs in SHARED.items()}
    others: dict[str, Any] = {"embd_pdrop": config.dropout, "bos_token_id": None, "eos_token_id": None}
    others |= {"attn_pdrop": config.dropout * config.attention_dropout}
    return {"model_type": kind, setting: activations[config.activation]} | shared | others


def our_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the model that computes what one with these settings, of a config.json, does.

    Raises UserError for another class, and for settings that models here do not have.
    """
    settings, kind = DEFAULTS | dict(settings), settings.get("model_type")
    if kind not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"model_type = {shorten(kind)}: cannot be converted; choose one of {known}")
    setting, activations = ACTIVATIONS[kind]
    ours = {their_name: our_name for our_name, their_name in activations.items()}
    possible = {name: [value] for name, value in OURS.items()} | {setting: list(ours)}
    possible["n_inner"] += [4 * (settings.get("n_embd") or 0)]
    for name, values in possible.items():
        if settings.get(name) not in values:
            reason = f"models here have {' or '.join(map(str, values))}; choose another one"
            raise UserError(f"{name} = {shorten(settings.get(name))}: {reason}")
    shared = {ours: settings.get(theirs) for ours, theirs in SHARED.items()}
    position = "post" if kind == KINDS["post"] else "pre"
    others = {"norm_position": position, "activation": ours[settings[setting]], "bias": True}
    others |= {"attention_dropout": bool(settings["attn_pdrop"])}
    return RunConfig.from_dict({"model": THEIRS | shared | others}).model


def their_name(name: str, config: ModelConfig) -> str:
    """What they call a tensor of ours, without the `transformer.` that stands before most of their names."""
    for ours, theirs in (PARTS | EMBEDDINGS[KINDS[config.norm_position]]).items():
        name = name.replace(ours, theirs)
    return name


def turned(name: str, tensor: Tensor) -> Tensor:
    """A tensor of theirs as ours, or of ours as theirs: in blocks, their matrices are (inputs, outputs)."""
    return tensor.transpose(0, -1) if re.search(r"\.c_\w+\.weight$", name) else tensor


def to_hf(model: GPT) -> "PreTrainedModel":
    """The same model as one of `transformers`, in eval mode. Raises UserError, as `hf_settings` does."""
    settings, tf = hf_settings(model.config), load_transformers()
    theirs = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(**settings))
    theirs.generation_config.max_length = model.config.context_length  # there is no position beyond
    tensors = {their_name(name, model.config): tensor for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            key = name.removeprefix("transformer.")
            parameter.zero_()  # a bias that ours may not have
            if key in tensors:
                parameter.copy_(turned(key, tensors[key]))
    return theirs.eval()


def from_hf(source: "str | Path | PreTrainedModel") -> GPT:
    """The same model as one of ours, in eval mode: one of `transformers`, a folder, or a name on their hub.

    Of a folder, config.json and safetensors are read, as data. Raises UserError for another class, for what
    ours cannot express, and if a tensor is missing, left over or of another shape.
    """
    if not isinstance(source, (str, Path)):
        return assemble(our_config(source.config.to_dict()), source.state_dict())
    folder = Path(source) if os.path.isdir(source) else download(str(source))
    try:
        config, files = our_config(read_json(folder / "config.json")), sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError("safetensors = (missing): weights of other formats are not read; convert them")
        return assemble(config, {name: value for file in files for name, value in load_file(file).items()})
    except UserError as error:
        raise UserError(f"model = {source}: {error}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"model = {source}: damaged ({one_line(error)}); choose another one") from None


def download(name: str) -> Path:
    """The folder of a model from the Hugging Face hub, with its configuration and safetensors alone."""
    load_transformers()  # which brings the library
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except Exception as error:  # its own, those of the network, and of the file system
        reason = f"neither a folder nor found on the Hugging Face hub ({shorten(error, 200)})"
        raise UserError(f"model = {name}: {reason}; give another one") from None


def assemble(config: ModelConfig, tensors: Mapping[str, Tensor]) -> GPT:
    """A model of ours from tensors with their names, all of which must fit before memory is taken for it."""
    theirs = {k.removeprefix("transformer."): tensor for k, tensor in tensors.items() if not MASK.search(k)}
    embedding, ours = their_name("tokens.weight", config), {}
    if config.tied_head and embedding in theirs:
        theirs.setdefault("lm_head.weight", theirs[embedding])
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    for name, like in expected.items():
        key = their_name(name, config)
        if (tensor := theirs.pop(key, None)) is None:
            raise UserError(f"tensor = {key}: missing; use a model with all of its weights")
        ours[name], found = turned(key, tensor), tuple(tensor.shape)
        if found != (wanted := tuple(turned(key, like).shape)):
            reason = f"has the shape {found}, where its configuration asks for {wanted}"
            raise UserError(f"tensor = {key}: {reason}; use a model whose files belong together")
    is_tied = torch.equal(ours["head.weight"], ours["tokens.weight"])
    if theirs or (config.tied_head and not is_tied):
        name = min(theirs, default="lm_head.weight")
        raise UserError(f"tensor = {name}: not part of such a model; use a model without it")
    model = GPT(config)
    model.load_state_dict(ours)
    return model.eval()


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as the content of a tokenizer.json, with the same ids."""
    hf = load_tokenizers()
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.bpe.to_str()
    if isinstance(tokenizer, CharTokenizer):
        ids = {char: id for id, char in enumerate(tokenizer.vocabulary)}
        theirs = hf.Tokenizer(hf.models.WordLevel(ids))
        any_char = hf.Regex(r"[\s\S]")  # a dot misses new lines
        theirs.pre_tokenizer = hf.pre_tokenizers.Split(any_char, behavior="isolated")
        theirs.decoder = hf.decoders.Fuse()  # puts no spaces between tokens
    else:
        theirs = hf.Tokenizer(hf.models.BPE(byte_letters(), []))
        theirs.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        theirs.decoder = hf.decoders.ByteLevel()
    return theirs.to_str()


def tokenizer_from_hf(folder: Path) -> Tokenizer:
    """The tokenizer in a folder's tokenizer.json, which is read as data.

    Raises UserError unless its tokens are characters, bytes or pieces of bytes, as `tokenizer_json` and GPT-2
    have them.
    """
    path = folder / "tokenizer.json"
    try:
        model = read_json(path)["model"]
        vocabulary = sorted(model["vocab"], key=model["vocab"].get)
        if [model["vocab"][piece] for piece in vocabulary] != list(range(len(vocabulary))):
            raise ValueError("its ids are not consecutive")
        if model["type"] == "WordLevel" and all(len(piece) == 1 for piece in vocabulary):
            return CharTokenizer("".join(vocabulary))
        if model["type"] != "BPE":
            raise ValueError("neither characters nor pieces of bytes")
        if model["vocab"] == byte_letters():
            return ByteTokenizer()
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return BPETokenizer(vocabulary, pairs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"not one that can be used here ({shorten(error, 100)}); use another model"
        raise UserError(f"tokenizer = {path}: {reason}") from None


def export(model: GPT, tokenizer: Tokenizer, folder: Path, onnx: bool = False) -> str:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load; return what the model became.

    With `onnx`, model.onnx is written too, and alone if no class can express the model. The folder is
    written whole or not at all. Raises UserError if it exists, or if nothing can express the model.
    """
    if os.path.lexists(folder):
        raise UserError(f"--out = {folder}: already exists; choose another folder")
    try:
        theirs = to_hf(model)
        kind = type(theirs).__name__ + (" and ONNX" if onnx else "")
    except UserError as error:
        if not onnx:
            raise
        theirs, kind = None, f"ONNX alone ({error})"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.tmp-") as staging:
        staged = Path(staging) / folder.name
        staged.mkdir()
        if theirs is not None:
            theirs.save_pretrained(staged)
        # Written by hand: version 4 of transformers cannot read what version 5 writes. And without a class,
        # AutoTokenizer would take the tokenizer that goes with the class of the model
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        settings |= {"model_max_length": model.config.context_length}
        (staged / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        (staged / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
        if onnx:
            write_onnx(model, staged / "model.onnx")
        for path in staged.iterdir():  # safetensors lets nobody else read its file
            path.chmod((staged / "tokenizer.json").stat().st_mode)
        staged.rename(folder)
    return kind
