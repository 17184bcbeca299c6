"""To Hugging Face's `transformers` and back: the same numbers under other names. This needs the extra called hf.

The classes that compute the same as a model here:
    gpt1, post-norm with learned positions   OpenAIGPTLMHeadModel
    gpt2, pre-norm with learned positions    GPT2LMHeadModel
"""

import json
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from gpt.config import ModelConfig
from gpt.errors import UserError, one_line, shorten
from gpt.files import read_json
from gpt.interop.bpe import BPETokenizer, byte_letters, load_tokenizers
from gpt.interop.onnx import write_onnx
from gpt.model import GPT
from gpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Our modules and theirs. The star stands for the number of a block
GPT1_NAMES = """
    tokens transformer.tokens_embed
    positions transformer.positions_embed
    head lm_head
    blocks.*.norm1 transformer.h.*.ln_1
    blocks.*.attn.qkv transformer.h.*.attn.c_attn
    blocks.*.attn.proj transformer.h.*.attn.c_proj
    blocks.*.norm2 transformer.h.*.ln_2
    blocks.*.mlp.fc transformer.h.*.mlp.c_fc
    blocks.*.mlp.proj transformer.h.*.mlp.c_proj"""
GPT2_NAMES = (
    GPT1_NAMES.replace("tokens_embed", "wte").replace("positions_embed", "wpe") + "\n norm transformer.ln_f"
)
NAMES = {"openai-gpt": GPT1_NAMES, "gpt2": GPT2_NAMES}
ACTIVATIONS = {
    "gelu": "gelu_new",
    "relu": "relu",
    "relu2": "relu2",
}  # gelu_new is their name for GELU's tanh form
# Settings that change what their models compute and that ours do not have: an imported model needs the value of an exported one
FIXED_SETTINGS = ["afn", "activation_function", "n_inner", "layer_norm_epsilon", "scale_attn_weights"]
FIXED_SETTINGS += ["scale_attn_by_inverse_layer_idx", "add_cross_attention"]


def load_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise UserError(
            "transformers = (missing): it is needed to convert models; pip install -e '.[hf]'"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def hf_config(config: ModelConfig) -> "PretrainedConfig":
    """The configuration of the class that computes the same. Raises UserError, with the reason, if there is none."""
    tf, kind = load_transformers(), (config.norm_position, config.positions)
    if config.conv_width:
        reason = "transformers has no such convolution; train with model/arch=gpt2 or gpt1, or write --onnx"
        raise UserError(f"model.conv_width = {config.conv_width}: {reason}")
    if config.norm != "layernorm":
        raise UserError(
            f"model.norm = {config.norm}: no class of transformers has it here; train with model.norm=layernorm"
        )
    sizes = dict(
        vocab_size=config.vocab_size,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=config.tied_head,
    )
    learned = dict(
        n_positions=config.context_length, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head
    )
    attn_pdrop = config.dropout if config.attention_dropout else 0.0
    dropout = dict(resid_pdrop=config.dropout, embd_pdrop=config.dropout, attn_pdrop=attn_pdrop)
    if kind == ("post", "learned") and not config.qk_norm and config.activation != "relu2":
        return tf.OpenAIModelConfig(
            **sizes, **learned, **dropout, afn=config.activation
        )  # where "gelu" is the tanh form
    if kind == ("pre", "learned") and not config.qk_norm:
        return tf.GPT2Config(
            **sizes, **learned, **dropout, activation_function=ACTIVATIONS[config.activation]
        )
    raise UserError(
        f"model.norm_position, positions, qk_norm, activation = {', '.join(kind)}, {config.qk_norm}, {config.activation}: "
        "no class of transformers combines them; train with model/arch=gpt1 or gpt2, or write --onnx"
    )


def our_config(theirs: "PretrainedConfig") -> ModelConfig:
    """The configuration of which `hf_config` would make `theirs`.

    Raises UserError for another class, and for settings that ours does not have.
    """
    kind = theirs.model_type
    if kind not in NAMES:
        raise UserError(
            f"model_type = {shorten(kind)}: cannot be converted; choose one of {', '.join(NAMES)}"
        )
    activation = getattr(theirs, {"openai-gpt": "afn", "gpt2": "activation_function"}[kind])
    known = (
        {"gelu": "gelu", "relu": "relu"}
        if kind == "openai-gpt"
        else {name: ours for ours, name in ACTIVATIONS.items()}
    )
    if activation not in known:
        raise UserError(
            f"activation = {shorten(activation)}: this model does not have it; choose one of {', '.join(known)}"
        )
    try:
        config = ModelConfig(
            vocab_size=theirs.vocab_size,
            context_length=theirs.max_position_embeddings,
            n_layer=theirs.num_hidden_layers,
            n_head=theirs.num_attention_heads,
            n_embd=theirs.hidden_size,
            dropout=float(theirs.resid_pdrop),
            norm_position="post" if kind == "openai-gpt" else "pre",
            norm="layernorm",
            positions="learned",
            activation=known[activation],
            bias=True,
            tied_head=bool(theirs.tie_word_embeddings),
            attention_dropout=bool(theirs.attn_pdrop),
            qk_norm=False,
            conv_width=0,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"config = {kind}: {one_line(error)[:200]}; choose another model") from None
    same = hf_config(config)
    for key in FIXED_SETTINGS:
        value, needed = getattr(theirs, key, None), getattr(same, key, None)
        if value != needed and (key, value) != ("n_inner", 4 * config.n_embd):
            raise UserError(f"{key} = {shorten(value)}: this model has {shorten(needed)}; choose another one")
    return config


@torch.no_grad()
def copy_parameters(ours: GPT, theirs: "PreTrainedModel", export: bool) -> None:
    """Copy all parameters from ours to theirs (export) or from theirs to ours. A bias that the source lacks becomes zero."""
    for line in NAMES[theirs.config.model_type].split("\n")[1:]:
        name, their_name = line.split()
        for block in range(ours.config.n_layer if "*" in name else 1):
            module = ours.get_submodule(name.replace("*", str(block)))
            their_module = theirs.get_submodule(their_name.replace("*", str(block)))
            source, target = (module, their_module) if export else (their_module, module)
            for key, parameter in target.named_parameters():
                value: Any = getattr(source, key, None)
                if value is None:
                    value = torch.zeros_like(parameter)
                elif type(their_module).__name__ == "Conv1D" and key == "weight":
                    value = value.T
                parameter.copy_(value)


def to_hf(model: GPT) -> "PreTrainedModel":
    """The same model as one of `transformers`, in eval mode. Raises UserError, with the reason, if no class can express it."""
    config = hf_config(model.config)
    theirs = load_transformers().AutoModelForCausalLM.from_config(config)
    theirs.generation_config.max_length = model.config.context_length  # there is no position beyond
    copy_parameters(model, theirs, export=True)
    return theirs.eval()


def from_hf(source: "str | Path | PreTrainedModel") -> GPT:
    """The same model as one of ours, in eval mode, from one of `transformers` or from where `from_pretrained` finds it.

    Raises UserError for another class, and for what ours cannot express.
    """
    theirs = load_hf(source) if isinstance(source, (str, Path)) else source
    model = GPT(our_config(theirs.config))
    copy_parameters(model, theirs, export=False)
    return model.eval()


def load_hf(source: str | Path) -> "PreTrainedModel":
    """A model of `transformers` from a folder or the Hugging Face hub, which may be anybody's: nothing in it is executed.

    Of its config.json only the sizes and choices that `our_config` checks are used, so no code, quantisation or kernel that
    it names is loaded. Weights are read from safetensors alone. For a folder, nothing is downloaded, and a folder of an
    adapter is refused, because it names another model to load. Raises UserError.
    """
    tf, is_folder = load_transformers(), os.path.isdir(source)
    if is_folder and os.path.lexists(Path(source) / "adapter_config.json"):
        raise UserError(
            f"model = {source}: a folder with adapter_config.json, an adapter of another model; merge the two first"
        )
    options: dict[str, Any] = dict(trust_remote_code=False, local_files_only=is_folder)
    try:
        config = our_config(tf.AutoConfig.from_pretrained(source, **options))
        held = sum(path.stat().st_size for path in Path(source).glob("*.safetensors"))
        if is_folder and held < (needed := config.parameter_count()):  # a parameter takes at least a byte
            raise UserError(
                f"model = {source}: its safetensors have {held:,} bytes, and config.json asks for {needed:,} parameters; "
                "use a model with all of its weights"
            )
        theirs = tf.AutoModelForCausalLM.from_pretrained(
            source, config=hf_config(config), use_safetensors=True, **options
        )
    except UserError:
        raise
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, TypeError, KeyError, safetensors its own
        raise UserError(
            f"model = {source}: cannot be read ({one_line(error)[:200]}); choose another one"
        ) from None
    return theirs


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as the content of a tokenizer.json, with the same ids."""
    hf = load_tokenizers()
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.bpe.to_str()
    if isinstance(tokenizer, CharTokenizer):
        theirs = hf.Tokenizer(
            hf.models.WordLevel({char: number for number, char in enumerate(tokenizer.vocabulary)})
        )
        theirs.pre_tokenizer = hf.pre_tokenizers.Split(
            hf.Regex(r"[\s\S]"), behavior="isolated"
        )  # a dot misses new lines
        theirs.decoder = hf.decoders.Fuse()  # puts no spaces between tokens
    else:
        theirs = hf.Tokenizer(hf.models.BPE(byte_letters(), []))
        theirs.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        theirs.decoder = hf.decoders.ByteLevel()
    return theirs.to_str()


def tokenizer_from_hf(folder: Path) -> Tokenizer:
    """The tokenizer in a folder's tokenizer.json, which is read as data.

    Raises UserError unless its tokens are characters, bytes or pieces of bytes, as `tokenizer_json` and GPT-2 have them.
    """
    path = folder / "tokenizer.json"
    content = read_json(path)
    try:
        model: dict[str, Any] = content["model"]
        vocabulary, kind = sorted(model["vocab"], key=model["vocab"].get), model["type"]
        if sorted(model["vocab"].values()) != list(range(len(vocabulary))):
            raise ValueError("its ids are not consecutive")
        if kind == "WordLevel" and all(len(piece) == 1 for piece in vocabulary):
            return CharTokenizer("".join(vocabulary))
        if kind == "BPE":
            if model["vocab"] == byte_letters():
                return ByteTokenizer()
            merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            return BPETokenizer(vocabulary, [(left, right) for left, right in merges])
        raise ValueError("neither characters nor pieces of bytes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"tokenizer = {path}: not one that can be used here ({shorten(error, 100)}); use another model"
        ) from None


def export(model: GPT, tokenizer: Tokenizer, folder: Path, onnx: bool = False) -> str:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load, whole or not at all; return what the model became.

    With `onnx`, model.onnx is written too, and alone if no class can express the model.
    Raises UserError if the folder exists, or if nothing can express the model.
    """
    if os.path.lexists(folder):
        raise UserError(f"--out = {folder}: already exists; choose another folder")
    try:
        theirs = to_hf(model)
    except UserError as error:
        if not onnx:
            raise
        theirs, kind = None, f"ONNX alone ({error})"
    else:
        kind = type(theirs).__name__ + (" and ONNX" if onnx else "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.tmp-") as staging:
        staged = Path(staging) / folder.name
        staged.mkdir()
        if theirs is not None:
            theirs.save_pretrained(staged)
        # Written by hand: version 4 of transformers cannot read what version 5 writes. And without a class, AutoTokenizer would
        # take the tokenizer that goes with the class of the model
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.context_length,
        }
        settings |= {"clean_up_tokenization_spaces": False}
        (staged / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        (staged / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
        if onnx:
            write_onnx(model, staged / "model.onnx")
        for path in staged.iterdir():  # safetensors lets nobody else read its file
            path.chmod((staged / "tokenizer.json").stat().st_mode)
        staged.rename(folder)
    return kind
