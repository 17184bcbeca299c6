"""To Hugging Face's `transformers` and back: the same numbers under other names (extra hf).

The classes that compute the same as a model here:
    gpt1, post-norm with learned positions   OpenAIGPTLMHeadModel, whose model_type is openai-gpt
    gpt2, pre-norm with learned positions    GPT2LMHeadModel, whose model_type is gpt2
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gpt.config import ModelConfig, RunConfig
from gpt.errors import UserError, shorten
from gpt.files import read_json, write_json, write_text
from gpt.interop import library
from gpt.interop.bpe import BPETokenizer, byte_letters
from gpt.interop.onnx import write_onnx
from gpt.model import GPT
from gpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

KINDS = {"post": "openai-gpt", "pre": "gpt2"}  # by our norm_position
# Their setting for the activation, and their names of ours. What OpenAI calls gelu is its tanh form, too
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "openai-gpt": ("afn", {"gelu": "gelu", "relu": "relu"}),
    "gpt2": ("activation_function", {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}),
}
# Our settings and theirs, of equal values; what all of theirs have in ours; what all of ours have in theirs
SHARED = {"context_length": "n_positions", "dropout": "resid_pdrop", "tied_head": "tie_word_embeddings"}
SHARED |= {name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
THEIRS = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "conv_width": 0}
OURS = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
OURS |= {"add_cross_attention": False}
# Parts of our tensors' names and of theirs, which also have `transformer.` in front of all but the head
PARTS = {"blocks.": "h.", ".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".qkv.": ".c_attn.", ".fc.": ".c_fc."}
PARTS |= {".proj.": ".c_proj."}
EMBEDDINGS = {
    "openai-gpt": {"tokens.": "tokens_embed.", "positions.": "positions_embed."},
    "gpt2": {"tokens.": "wte.", "positions.": "wpe.", "norm.": "ln_f."},
}
# Tokens after those of the model: an unknown character, and what fills up a batch
SPECIAL = ("<unk>", "<pad>")


def hf_settings(config: ModelConfig) -> dict[str, Any]:
    """The config.json of the same model. Raises UserError, with the reason, if there is none."""
    kind = KINDS[config.norm_position]
    setting, activations = ACTIVATIONS[kind]
    possible = {name: [value] for name, value in THEIRS.items()} | {"activation": list(activations)}
    for name, values in possible.items():
        if (value := getattr(config, name)) not in values:
            advice = "train with model/arch=gpt1 or gpt2, or write --onnx"
            raise UserError(f"model.{name} = {value}: no class of transformers has it here; {advice}")
    settings: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SHARED.items()}
    settings |= {"model_type": kind, setting: activations[config.activation], "embd_pdrop": config.dropout}
    settings |= {"attn_pdrop": config.dropout * config.attention_dropout}
    return settings | {"bos_token_id": None, "eos_token_id": None}


def our_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The same model's configuration, from its config.json. Raises UserError if models here cannot be so."""
    kind = settings.get("model_type")
    if kind not in ACTIVATIONS:
        raise UserError(f"model_type = {shorten(kind)}: must be {' or '.join(ACTIVATIONS)}")
    setting, activations = ACTIVATIONS[kind]
    ours = {their_name: our_name for our_name, their_name in activations.items()}
    possible = {name: [value] for name, value in OURS.items()} | {setting: list(ours)}
    possible["n_inner"] = [None, 4 * settings["n_embd"]]
    for name, values in possible.items():
        if (value := settings.get(name, values[0])) not in values:
            raise UserError(f"{name} = {shorten(value)}: models here have {' or '.join(map(str, values))}")
    model = THEIRS | {ours: settings[theirs] for ours, theirs in SHARED.items()}
    model |= {"norm_position": "post" if kind == KINDS["post"] else "pre", "bias": True}
    model |= {"activation": ours[settings[setting]], "attention_dropout": bool(settings["attn_pdrop"])}
    return RunConfig.from_dict({"model": model}).model


def pairs(ours: GPT, theirs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """By their names, all tensors of ours, each with its counterpart, seen in the shape of ours."""
    found, tensors = {}, theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        for our_part, their_part in (PARTS | EMBEDDINGS[KINDS[ours.config.norm_position]]).items():
            name = name.replace(our_part, their_part)
        name = f"lm_{name}" if name.startswith("head.") else f"transformer.{name}"
        # In blocks, their matrices are (inputs, outputs)
        is_turned = re.search(r"\.c_\w+\.weight$", name)
        found[name] = tensor, tensors[name].transpose(0, -1) if is_turned else tensors[name]
    return found


def load_transformers() -> ModuleType:
    transformers = library("transformers", "hf")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def to_hf(model: GPT) -> Any:
    """The same model as one of `transformers`, in eval mode. Raises UserError, as `hf_settings` does.

    It reads SPECIAL tokens, too, and never writes them.
    """
    settings, transformers = hf_settings(model.config), load_transformers()
    first = settings["vocab_size"]
    settings["vocab_size"] += len(SPECIAL)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    generation = theirs.generation_config
    generation.max_length = model.config.context_length  # there is no position beyond
    generation.suppress_tokens = [first + number for number in range(len(SPECIAL))]
    generation.pad_token_id = first + SPECIAL.index("<pad>")
    for our_tensor, their_tensor in pairs(model, theirs).values():
        their_tensor.zero_()[: len(our_tensor)].copy_(our_tensor)
    return theirs.eval()


def from_hf(source: Any, vocab_size: int | None = None) -> GPT:
    """The same model as one of ours, in eval mode: one of `transformers`, a folder, or a name on their hub.

    Of a folder, config.json and safetensors are read, as data. If it has more tokens than `vocab_size`, the
    first ones are kept. Raises UserError for another class, for what ours cannot express, and if a tensor is
    missing, left over or of another shape.
    """
    theirs, wrong = source, {}
    if isinstance(source, (str, Path)):
        auto, options = load_transformers(), {"trust_remote_code": False}
        try:
            described = our_config(auto.AutoConfig.from_pretrained(source, **options).to_dict())
            needed = described.parameter_count()
            stored = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))
            if 0 < stored < needed:  # before memory is taken for them
                raise ValueError(f"{stored:,} bytes of safetensors, {needed:,} parameters in config.json")
            options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
            theirs, wrong = auto.AutoModelForCausalLM.from_pretrained(source, **options)
        except Exception as error:  # of the network, of the file system, and of libraries
            raise UserError(f"model = {source}: {shorten(error, 200)}") from None
    ours = GPT(our_config(theirs.config.to_dict()))
    found = pairs(ours, theirs)
    for our_tensor, their_tensor in found.values():
        our_tensor.copy_(their_tensor)
    odd = {str(name) for names in wrong.values() for name in names}  # which have been replaced or left out
    odd |= {name for name, (one, other) in found.items() if not torch.equal(one, other.float())}  # not tied
    odd |= theirs.state_dict().keys() ^ found.keys()
    if odd:
        tensors = shorten(", ".join(sorted(odd)), 200)
        raise UserError(f"model = {shorten(source, 200)}: missing, left over or misshapen: {tensors}")
    if vocab_size is not None and vocab_size < ours.config.known_vocab_size():
        whole, ours = ours.state_dict(), GPT(ours.config.model_copy(update={"vocab_size": vocab_size}))
        ours.load_state_dict({name: whole[name][: len(own)] for name, own in ours.state_dict().items()})
    return ours.eval()


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as the content of a tokenizer.json, with the same ids, and SPECIAL after them."""
    hf = library("tokenizers", "hf")
    if isinstance(tokenizer, BPETokenizer):
        theirs = hf.Tokenizer.from_str(tokenizer.bpe.to_str())
    elif isinstance(tokenizer, CharTokenizer):
        ids = {token: id for id, token in enumerate([*tokenizer.vocabulary, *SPECIAL])}
        theirs = hf.Tokenizer(hf.models.WordLevel(ids, unk_token="<unk>"))
        any_char = hf.Regex(r"[\s\S]")  # a dot misses new lines
        theirs.pre_tokenizer = hf.pre_tokenizers.Split(any_char, behavior="isolated")
        theirs.decoder = hf.decoders.Fuse()  # puts no spaces between tokens
    else:
        theirs = hf.Tokenizer(hf.models.BPE(byte_letters(), []))
        theirs.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        theirs.decoder = hf.decoders.ByteLevel()
    theirs.add_special_tokens(list(SPECIAL))
    return theirs.to_str()


def tokenizer_from_hf(folder: Path) -> Tokenizer:
    """The tokenizer in a folder's tokenizer.json, which is read as data. Raises UserError for other kinds."""
    path = folder / "tokenizer.json"
    try:
        model = read_json(path)["model"]
        ids, kind = {piece: id for piece, id in model["vocab"].items() if piece not in SPECIAL}, model["type"]
        vocabulary = sorted(ids, key=ids.__getitem__)
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError("its ids are not consecutive")
        if kind == "WordLevel" and all(len(piece) == 1 for piece in vocabulary):
            return CharTokenizer("".join(vocabulary))
        if kind != "BPE":
            raise ValueError("neither characters nor pieces of bytes")
        if ids == byte_letters():
            return ByteTokenizer()
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return BPETokenizer(vocabulary, pairs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"tokenizer = {path}: cannot be used here ({shorten(error, 100)})") from None


def export(model: GPT, tokenizer: Tokenizer, folder: Path, onnx: bool = False, cache: bool = False) -> str:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load; return what the model became.

    With `onnx`, model.onnx is written too, and alone if no class can express the model; with `cache`, one
    that continues a text. The folder is written whole or not at all. Raises UserError if it exists, or if
    nothing can express the model.
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
        settings |= {"model_max_length": model.config.context_length, "padding_side": "left"}
        settings |= {token.strip("<>") + "_token": token for token in SPECIAL}
        write_json(staged / "tokenizer_config.json", settings)
        write_text(staged / "tokenizer.json", tokenizer_json(tokenizer))
        if onnx:
            write_onnx(model, staged / "model.onnx", cache)
        for path in staged.iterdir():  # safetensors lets nobody else read its file
            path.chmod((staged / "tokenizer.json").stat().st_mode)
        staged.rename(folder)
    return kind
