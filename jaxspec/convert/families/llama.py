"""Decoders in Llama's names: Llama, Qwen2, Qwen3, Chameleon, Emu3, Dream, LLaDA.

Keys: transformers `modeling_{llama,qwen2,qwen3,chameleon,emu3}.py`, LLaDA's and Dream's
own modeling files. Rotary pairs lie half a head apart in all of them; rows of queries
and keys move, and with them their biases and norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import RopeScaling, TransformerConfig
from jaxspec.convert.families.layers import (
    apart,
    attention,
    biases,
    gated,
    head_norms,
    mlp,
)
from jaxspec.convert.family import (
    Derived,
    Family,
    Given,
    Plan,
    agree,
    agree_on,
    count,
    heads_of,
    only,
    setting,
)
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.errors import ConfigError


@dataclass(frozen=True)
class Names:
    """Where a release keeps a decoder.

    Attributes:
      root: before "embed_tokens", "layers" and "norm".
      head: of the output head.
    """

    root: str = "model."
    head: str = "lm_head.weight"


def decoder_rules(config: TransformerConfig, names: Names) -> tuple[Rule, ...]:
    """The rules of all layers, of the final norm and of the head."""
    theirs, ours = names.root + "layers.{i}.", "layers_{i}/"
    rules = [
        Rule(f"{theirs}input_layernorm.weight", f"{ours}attention_norm/scale"),
        *attention(theirs, f"{ours}attention"),
        Rule(f"{theirs}post_attention_layernorm.weight", f"{ours}ffn_norm/scale"),
        *mlp(theirs, f"{ours}ffn"),
        Rule(f"{names.root}norm.weight", "norm/scale"),
        Rule(names.head, "head", "linear"),
    ]
    if config.qkv_bias:
        rules += biases(theirs, f"{ours}attention")
    return (*rules, *head_norms(theirs, f"{ours}attention"))


EMBEDDING = "embed_tokens.weight"


def scaling_of(source: Source, said: Mapping[str, Any]) -> RopeScaling | None:
    """Our form of `rope_scaling` (or of the newer `rope_parameters`).

    Raises:
      ConfigError: a kind that is not known here.
    """
    entry = said.get("rope_scaling") or said.get("rope_parameters") or {}
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind in ("default", None):
        return None
    length = next(
        found
        for found in (
            entry.get("original_max_position_embeddings"),
            said.get("original_max_position_embeddings"),
            said.get("max_position_embeddings"),
            2048,
        )
        if found is not None
    )
    factor = float(entry.get("factor", 1.0))
    if kind == "linear":
        return RopeScaling("linear", factor, length)
    if kind == "llama3":
        slow, fast = entry["low_freq_factor"], entry["high_freq_factor"]
        return RopeScaling("llama3", factor, length, float(slow), float(fast))
    if kind == "yarn" and not entry.get("mscale") and entry.get("truncate", True):
        magnitude = entry.get("attention_factor")
        if magnitude is None:
            magnitude = 0.1 * float(np.log(factor)) + 1.0 if factor > 1 else 1.0
        slow = float(entry.get("beta_slow") or 1)
        fast = float(entry.get("beta_fast") or 32)
        return RopeScaling("yarn", factor, length, slow, fast, magnitude)
    raise ConfigError(
        f"'{source.name}' scales its rotary embedding by {kind!r}; linear, llama3 and "
        "plain yarn are known here"
    )


@dataclass(frozen=True)
class Usual:
    """What a model's own code takes where its config has no entry.

    Attributes:
      norm_eps: epsilon of the norms.
      rope_base: of the rotary frequencies.
    """

    norm_eps: float = 1e-6
    rope_base: float = 10000.0


def decoder_config(
    source: Source,
    given: Given,
    said: Mapping[str, Any],
    root: str,
    head: str,
    usual: Usual = Usual(),
) -> TransformerConfig:
    """Reads a Llama-like `config.json`, and compares it with the shapes.

    Raises:
      ConfigError: something is missing, disagrees, or has no counterpart here.
    """
    first = f"{root}layers.0.self_attn."
    biased = first + "q_proj.bias" in source.tensors
    out_biased = first + "o_proj.bias" in source.tensors
    known = {
        "attention_bias": (False, True) if biased and not out_biased else (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "hidden_act": ("silu", "swish"),
    }
    only(source, said, known)
    for kind in said.get("layer_types") or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                f"'{source.name}' has layers of {kind!r}, which is not known here"
            )
    vocabulary, width = source.shape(root + EMBEDDING, 2)
    layers = count(source, root + "layers.{i}.input_layernorm.weight")
    heads = setting(
        source, given, "heads", said.get("num_attention_heads"), wanted="its heads"
    )
    size = given.get("head_dim") or said.get("head_dim")
    size = size or source.shape(first + "q_proj.weight")[0] // heads
    kv_heads = source.shape(first + "k_proj.weight")[0] // size
    hidden = source.shape(f"{root}layers.0.mlp.gate_proj.weight")[0]
    found = {
        "num_attention_heads": source.shape(first + "q_proj.weight")[0] // size,
        "num_key_value_heads": kv_heads,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }
    agree_on(source, said, found)
    norm = source.tensors.get(first + "q_norm.weight")
    rope = said.get("rope_parameters") or {}
    base = given.get("rope_base", said.get("rope_theta", rope.get("rope_theta")))
    longest = given.get("max_length", said.get("max_position_embeddings", 2048))
    window = said.get("sliding_window")
    if said.get("use_sliding_window") is False:  # Qwen keeps the number beside it
        window = None
    return TransformerConfig(
        vocab_size=vocabulary,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if size * heads == width else size,
        ffn_width=hidden,
        norm_eps=given.get("norm_eps", said.get("rms_norm_eps", usual.norm_eps)),
        rope="sequence",
        rope_base=float(usual.rope_base if base is None else base),
        rope_scaling=scaling_of(source, said),
        max_length=min(longest, window or longest),
        condition="none",
        qkv_bias=biased,
        qk_norm=norm is not None and len(norm.shape) == 1,
        qk_layer_norm=norm is not None and len(norm.shape) == 2,
        norm_after=bool(said.get("swin_norm", False)),
        tied_head=head not in source.tensors,
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
        condition_dropout=0.0,
    )


# Parts of larger models that are converted on their own, or see instead of draw.
IGNORED = (
    r".*\.rotary_emb\.inv_freq",
    r"model\.vqmodel\..*",
    r"(model\.)?(vision_model|aligner|visual|vision_tower)\..*",
)


def _plain(names: Names, key: str | None = None, usual: Usual = Usual()):
    def plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
        said = source.config.get(key, {}) if key else source.config
        config = decoder_config(source, given, said, names.root, names.head, usual)
        ignored = IGNORED
        if config.tied_head:
            agree(source, "tie_word_embeddings", said.get("tie_word_embeddings"), True)
        elif said.get("tie_word_embeddings"):
            # Stored twice; the config says that they are one.
            config, ignored = replace(config, tied_head=True), (*IGNORED, names.head)
        rules = (
            Rule(names.root + EMBEDDING, "embedding/embedding"),
            *decoder_rules(config, names),
        )
        return Plan("prior", config, rules, heads_of(config), ignored=ignored)

    return plan


def _masked(token: int, shifted: bool, names: Names | None):
    """A model that fills masks: its mask token is a token of its vocabulary.

    Ours stands behind the vocabulary, so the row of the embedding is copied there.
    """

    def plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
        mask = given.get("mask_token", source.config.get("mask_token_id", token))
        if names is None:
            config, rules = _llada(source, given)
            table = "model.transformer.wte.weight"
        else:
            config = decoder_config(
                source, given, source.config, names.root, names.head
            )
            rules, table = decoder_rules(config, names), names.root + EMBEDDING
        if not 0 <= mask < config.vocab_size:
            raise ConfigError(
                f"the mask token {mask} is not one of {config.vocab_size}; give it "
                "with --set mask_token=NUMBER"
            )

        def widened(rows: np.ndarray) -> np.ndarray:
            return np.concatenate([rows, rows[mask : mask + 1]])

        return Plan(
            "prior",
            replace(config, extra_tokens=1),
            rules,
            heads_of(config),
            {"embedding/embedding": Derived((table,), widened)},
            IGNORED,
            {"objective": "masked", "shifted": shifted},
        )

    return plan


def _llada(source: Source, given: Given) -> tuple[TransformerConfig, tuple[Rule, ...]]:
    said, first = source.config, "model.transformer.blocks.0."
    known = {
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "activation_type": ("silu", "swiglu"),
        "rope": (True,),
    }
    only(source, said, known)
    table = source.shape("model.transformer.wte.weight")
    heads = setting(source, given, "heads", said.get("n_heads"), wanted="its heads")
    width = table[1]
    size = width // heads
    kv_heads = source.shape(first + "k_proj.weight")[0] // size
    head = "model.transformer.ff_out.weight"
    config = TransformerConfig(
        vocab_size=table[0],
        layers=count(source, "model.transformer.blocks.{i}.attn_norm.weight"),
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_width=source.shape(first + "ff_proj.weight")[0],
        norm_eps=given.get("norm_eps", said.get("rms_norm_eps", 1e-5)),
        rope="sequence",
        rope_base=float(given.get("rope_base", said.get("rope_theta", 10000.0))),
        max_length=given.get("max_length", said.get("max_sequence_length", 1024)),
        condition="none",
        tied_head=head not in source.tensors,
    )
    found = {
        "n_layers": config.layers,
        "n_kv_heads": kv_heads,
        "d_model": width,
        "mlp_hidden_size": config.ffn_width,
        "embedding_size": table[0],
    }
    agree_on(source, said, found)
    vocabulary = said.get("vocab_size")
    if said.get("embedding_size") is None:  # else the table may have rows to spare
        agree(source, "vocab_size", vocabulary, table[0])
    tied = said.get("weight_tying")
    agree(source, "weight_tying", tied, config.tied_head)
    theirs, ours = "model.transformer.blocks.{i}.", "layers_{i}/"
    kernel = f"{ours}attention/qkv/kernel"
    rules = (
        Rule(f"{theirs}attn_norm.weight", f"{ours}attention_norm/scale"),
        *apart(kernel, (f"{theirs}{x}_proj.weight" for x in "qkv"), "_rotary"),
        Rule(f"{theirs}attn_out.weight", f"{ours}attention/out/kernel", "linear"),
        Rule(f"{theirs}ff_norm.weight", f"{ours}ffn_norm/scale"),
        *gated(
            f"{ours}ffn/gate_up/kernel",
            f"{theirs}ff_proj.weight",
            f"{theirs}up_proj.weight",
        ),
        Rule(f"{theirs}ff_out.weight", f"{ours}ffn/down/kernel", "linear"),
        Rule("model.transformer.ln_f.weight", "norm/scale"),
        Rule(head, "head", "linear"),
    )
    return config, rules


def _says(*types: str):
    def says(source: Source) -> bool:
        there = Names().root + EMBEDDING in source.tensors
        return there and source.config.get("model_type") in types

    return says


EMU3, EMU3_USUAL = Names("model.text_model."), Usual(1e-5, 1e6)
FAMILIES = (
    Family("llama", _says("llama", "mistral"), _plain(Names())),
    Family("qwen2", _says("qwen2"), _plain(Names())),
    Family("qwen3", _says("qwen3"), _plain(Names())),
    Family("chameleon", _says("chameleon"), _plain(Names(), usual=Usual(1e-5))),
    Family(
        "emu3",
        lambda s: (
            s.config.get("model_type") == "emu3" and EMU3.root + EMBEDDING in s.tensors
        ),
        _plain(EMU3, "text_config", EMU3_USUAL),
    ),
    Family(
        "emu3-original",
        lambda s: (
            str(s.config.get("model_type")).lower() == "emu3"
            and Names().root + EMBEDDING in s.tensors
        ),
        _plain(Names(), usual=EMU3_USUAL),
    ),
    Family(
        "dream",
        lambda s: str(s.config.get("model_type")).lower() == "dream",
        _masked(151666, True, Names()),
    ),
    Family(
        "llada",
        lambda s: "model.transformer.blocks.0.ff_proj.weight" in s.tensors,
        _masked(126336, False, None),
    ),
)
