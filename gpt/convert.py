"""To Hugging Face's `transformers` and back, without a loss: the same numbers under other names (extra hf).

gpt2, pre-norm with learned positions                  GPT2LMHeadModel
gpt1, post-norm with learned positions                 OpenAIGPTLMHeadModel
modern, but for its convolution: pre-norm and rotary   PersimmonForCausalLM, which also norms queries and keys
"""

import json
import logging
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from gpt.model import GPT, GPTConfig, attention
from gpt.settings import UserError
from gpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, byte_letters, load_tokenizers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Our modules and theirs; * is the number of a block
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
GPT2_NAMES = GPT1_NAMES.replace("tokens_embed", "wte").replace("positions_embed", "wpe") + "\n norm transformer.ln_f"
PERSIMMON_NAMES = """
    tokens model.embed_tokens
    norm model.final_layernorm
    head lm_head
    blocks.*.norm1 model.layers.*.input_layernorm
    blocks.*.attn.qkv model.layers.*.self_attn.query_key_value
    blocks.*.attn.qk_norm model.layers.*.self_attn.q_layernorm
    blocks.*.attn.qk_norm model.layers.*.self_attn.k_layernorm
    blocks.*.attn.proj model.layers.*.self_attn.dense
    blocks.*.norm2 model.layers.*.post_attention_layernorm
    blocks.*.mlp.fc model.layers.*.mlp.dense_h_to_4h
    blocks.*.mlp.proj model.layers.*.mlp.dense_4h_to_h"""
NAMES = {"openai-gpt": GPT1_NAMES, "gpt2": GPT2_NAMES, "persimmon": PERSIMMON_NAMES}
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}  # the tanh form of GELU is theirs by this name
# What decides their computation beside the sizes: an imported model must have it as an exported one would
DECISIVE = ("afn", "activation_function", "hidden_act", "n_inner", "intermediate_size", "layer_norm_epsilon", "layer_norm_eps")
DECISIVE += ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "rope_parameters", "add_cross_attention")


def load_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise UserError("transformers = (missing): needed to convert; pip install -e '.[hf]'") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def hf_config(config: GPTConfig) -> "PretrainedConfig":
    """The configuration of the class that computes the same. Raises UserError, with the reason, if there is none."""
    tf, which = load_transformers(), (config.norm_position, config.positions)
    if config.conv_width:
        raise UserError(
            f"model.conv_width = {config.conv_width}: not in transformers; train with ablation=no_conv, or write --onnx"
        )
    if config.norm != "layernorm":
        raise UserError(f"model.norm = {config.norm}: none of the three classes has it; train with model.norm=layernorm")
    sizes = dict(vocab_size=config.vocab_size, bos_token_id=None, eos_token_id=None, tie_word_embeddings=config.tied_head)
    learned = dict(n_positions=config.context_length, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head)
    learned |= dict(resid_pdrop=config.dropout, embd_pdrop=config.dropout, attn_pdrop=config.dropout)
    if which == ("post", "learned") and not config.qk_norm and config.activation != "relu2":
        return tf.OpenAIGPTConfig(**sizes, **learned, afn=config.activation)  # where gelu is the tanh form
    if which == ("pre", "learned") and not config.qk_norm:
        return tf.GPT2Config(**sizes, **learned, activation_function=ACTIVATIONS[config.activation])
    if which == ("pre", "rotary"):
        return tf.PersimmonConfig(
            **sizes,
            max_position_embeddings=config.context_length,
            hidden_size=config.n_embd,
            intermediate_size=4 * config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            hidden_act=ACTIVATIONS[config.activation],
            qk_layernorm=config.qk_norm,
            hidden_dropout=config.dropout,
            attention_dropout=config.dropout,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        )
    raise UserError(
        f"model.norm_position, positions, qk_norm, activation = {', '.join(which)}, {config.qk_norm}, {config.activation}: "
        "no class of transformers combines them; see model/arch and ablation"
    )


def our_config(theirs: "PretrainedConfig") -> GPTConfig:
    """What `hf_config` would make `theirs` of. Raises UserError for another class, or settings that ours does not have."""
    kind = theirs.model_type
    if kind not in NAMES:
        raise UserError(f"model_type = {kind}: not one that can be read; choose one of {', '.join(NAMES)}")
    activation = getattr(theirs, {"openai-gpt": "afn", "gpt2": "activation_function", "persimmon": "hidden_act"}[kind])
    named = {"gelu": "gelu", "relu": "relu"} if kind == "openai-gpt" else {name: ours for ours, name in ACTIVATIONS.items()}
    if activation not in named:
        raise UserError(f"activation = {activation}: not one that this model has; choose one of {', '.join(named)}")
    config = GPTConfig(
        vocab_size=theirs.vocab_size,
        context_length=theirs.max_position_embeddings,
        n_layer=theirs.num_hidden_layers,
        n_head=theirs.num_attention_heads,
        n_embd=theirs.hidden_size,
        dropout=float(theirs.hidden_dropout if kind == "persimmon" else theirs.resid_pdrop),
        norm_position="post" if kind == "openai-gpt" else "pre",
        norm="layernorm",
        positions="rotary" if kind == "persimmon" else "learned",
        activation=named[activation],
        bias=True,
        tied_head=theirs.tie_word_embeddings,
        qk_norm=kind == "persimmon" and theirs.qk_layernorm,
        conv_width=0,
    )
    same = hf_config(config)
    for key in DECISIVE:
        value, needed = getattr(theirs, key, None), getattr(same, key, None)
        if value != needed and (key, value) != ("n_inner", 4 * config.n_embd):
            raise UserError(f"{key} = {value}: this model has {needed}; choose another one")
    return config


@torch.no_grad()
def transfer(ours: GPT, theirs: "PreTrainedModel", export: bool) -> None:
    """Copy all parameters, to theirs or from theirs; a bias that the source does not have is zero."""
    heads = ours.config.n_head
    for line in NAMES[theirs.config.model_type].split("\n")[1:]:
        name, their_name = line.split()
        if name.endswith("qk_norm") and not ours.config.qk_norm:
            continue
        for n in range(ours.config.n_layer if "*" in name else 1):
            module = ours.get_submodule(name.replace("*", str(n)))
            other = theirs.get_submodule(their_name.replace("*", str(n)))
            source, target = (module, other) if export else (other, module)
            for key, parameter in target.named_parameters():
                value = getattr(source, key, None)
                if value is None:
                    value = torch.zeros_like(parameter)
                elif type(other).__name__ == "Conv1D" and key == "weight":
                    value = value.T
                elif their_name.endswith("query_key_value"):  # ours: queries, keys, values; theirs: the three of each head
                    outer = (3, heads) if export else (heads, 3)
                    value = value.unflatten(0, (*outer, -1)).transpose(0, 1).flatten(0, 2)
                parameter.copy_(value)


def to_hf(model: GPT) -> "PreTrainedModel":
    """The same model as one of `transformers`, in eval mode. Raises UserError, with the reason, if no class can express it."""
    config = hf_config(model.config)
    theirs = load_transformers().AutoModelForCausalLM.from_config(config)
    theirs.generation_config.max_length = model.config.context_length  # there is no position beyond
    transfer(model, theirs, export=True)
    return theirs.eval()


def from_hf(source: "str | Path | PreTrainedModel") -> GPT:
    """The same model as one of ours, in eval mode, from one of `transformers` or from where `from_pretrained` finds it.

    Only safetensors are read from files. Raises UserError for another class, or what ours cannot express.
    """
    if isinstance(source, (str, Path)):
        source = load_transformers().AutoModelForCausalLM.from_pretrained(source, use_safetensors=True)
    model = GPT(our_config(source.config))
    transfer(model, source, export=False)
    if source.config.model_type == "persimmon" and model.config.qk_norm:
        for block in source.model.layers:
            q, k = block.self_attn.q_layernorm, block.self_attn.k_layernorm
            if not (torch.equal(q.weight, k.weight) and torch.equal(q.bias, k.bias)):
                raise UserError("q_layernorm = (another than k_layernorm): this model has one for both; choose another one")
    return model.eval()


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as the content of a tokenizer.json, with the same ids."""
    hf = load_tokenizers()
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.bpe.to_str()
    if isinstance(tokenizer, CharTokenizer):
        made = hf.Tokenizer(hf.models.WordLevel({char: n for n, char in enumerate(tokenizer.vocabulary)}))
        made.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r"[\s\S]"), behavior="isolated")  # a dot leaves out new lines
        made.decoder = hf.decoders.Fuse()  # puts no spaces between them
    else:
        made = hf.Tokenizer(hf.models.BPE({letter: byte for letter, byte in byte_letters().items()}, []))
        made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = hf.decoders.ByteLevel()
    return made.to_str()


def export(model: GPT, tokenizer: Tokenizer, folder: Path, onnx: bool = False) -> str:
    """Write what AutoModelForCausalLM and AutoTokenizer load, all of the folder or nothing; return what the model has become.

    With `onnx` also model.onnx, and that alone where no class can express the model. Raises UserError if the folder exists, or
    if nothing can express the model.
    """
    if folder.exists():
        raise UserError(f"--out = {folder}: is there already; choose another folder")
    try:
        theirs = to_hf(model)
    except UserError as error:
        if not onnx:
            raise
        theirs, kind = None, f"ONNX alone ({error})"
    else:
        kind = type(theirs).__name__ + (" and ONNX" if onnx else "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.tmp-") as staged:
        made = Path(staged) / folder.name
        made.mkdir()
        if theirs is not None:
            theirs.save_pretrained(made)
        # Written by hand: what transformers 5 writes, 4 does not read, and without a class it takes the model's own tokenizer
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context_length}
        (made / "tokenizer_config.json").write_text(json.dumps(about | {"clean_up_tokenization_spaces": False}, indent=2))
        (made / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
        if onnx:
            write_onnx(model, made / "model.onnx")
        for path in made.iterdir():  # safetensors lets nobody else read its file
            path.chmod((made / "tokenizer.json").stat().st_mode)
        made.rename(folder)
    return kind


def write_onnx(model: GPT, path: Path) -> None:
    """Write the model as ONNX, of any architecture: `ids` (B, T) to `logits` (B, T, V). Needs the extra onnx."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("onnxscript = (missing): needed to write ONNX; pip install -e '.[onnx]'") from None
    for block in model.blocks:  # torch's kernel asks for sizes while it is traced
        block.attn.mix = lambda q, k, v: attention(q, k, v, torch.nn.Identity())[0]
    try:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of torchvision
        sizes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("position", max=model.config.context_length)}}
        example = torch.zeros(2, min(2, model.config.context_length), dtype=torch.int64)
        with warnings.catch_warnings(action="ignore"):
            made = torch.onnx.export(
                model, (example,), input_names=["ids"], output_names=["logits"], dynamic_shapes=sizes, verbose=False
            )
    finally:
        for block in model.blocks:
            del block.attn.mix
    path.write_bytes(made.model_proto.SerializeToString())
