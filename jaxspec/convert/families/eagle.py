"""EAGLE's heads: version 1 (and LANTERN's), version 3, and `speculators`' form of it.

Keys: SafeAILab/EAGLE `model/cnets.py`, `model/cnets1.py`; jadohu/LANTERN; vLLM's
speculators.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import EagleConfig, TransformerConfig, to_dict
from jaxspec.convert.families.draft_ids import draft_ids
from jaxspec.convert.families.layers import attention, biases, head_norms, mlp
from jaxspec.convert.families.llama import scaling_of
from jaxspec.convert.families.tables import own_table
from jaxspec.convert.family import (
    Derived,
    Family,
    Given,
    Outgoing,
    Plan,
    agree,
    agree_on,
    heads_of,
    kept,
    only,
    setting,
)
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.drafters.feature_head import Eagle
from jaxspec.errors import ConfigError


def rotary(target: TransformerConfig) -> str:
    """How a drafter's queries and keys are turned: LlamaGen's pairs are neighbors."""
    if target.rope == "grid":
        return ""
    return "_rotary"


def layer_rules(root: str, target: TransformerConfig, bias: bool) -> tuple[Rule, ...]:
    """Attention and SwiGLU of the one decoder layer."""
    turned = rotary(target)
    return (
        *attention(root, "attention", turned),
        *(biases(root, "attention", turned) if bias else ()),
        Rule(f"{root}post_attention_layernorm.weight", "post_norm/scale"),
        *mlp(root, "ffn"),
    )


def _sizes(
    source: Source,
    given: Given,
    target: TransformerConfig,
    root: str,
    width: int,
    usual_eps: float = 1e-6,
) -> dict[str, Any]:
    said = source.config.get("transformer_layer_config", source.config)
    rows = source.shape(f"{root}self_attn.q_proj.weight")[0]
    heads = setting(
        source,
        given,
        "heads",
        said.get("num_attention_heads"),
        # LANTERN's drafter for LlamaGen comes without a config.
        target.heads if rows == target.heads * target.head_size else None,
        wanted="its number of heads",
    )
    size = rows // heads
    kv_heads = source.shape(f"{root}self_attn.k_proj.weight")[0] // size
    hidden = source.shape(f"{root}mlp.gate_proj.weight")[0]
    found = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "head_dim": size,
        "num_key_value_heads": kv_heads,
    }
    agree_on(source, said, found)
    agree(source, "vocab_size", source.config.get("vocab_size"), target.vocab_size,
          "its target")  # fmt: skip
    only(source, said, {"hidden_act": ("silu", "swish"), "mlp_bias": (False,)})
    turns: dict[str, Any] = {}
    if target.rope == "sequence":  # by its own config, whatever the target does
        entry = said.get("rope_parameters") or {}
        base = said.get("rope_theta", entry.get("rope_theta"))
        turns["rope_base"] = float(10000.0 if base is None else base)
        turns["rope_scaling"] = scaling_of(source, said)
    return {
        **turns,
        "width": width,
        "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "head_dim": None if size * heads == width else size,
        "ffn_width": hidden,
        "norm_eps": given.get("norm_eps", said.get("rms_norm_eps", usual_eps)),
        "qkv_bias": f"{root}self_attn.q_proj.bias" in source.tensors,
    }


TABLE = "embed_tokens.weight"
IGNORED = (r".*\.rotary_emb\.inv_freq", r"t2d", r"verifier_.*")


def _rules(drafter: Eagle, root: str) -> tuple[Rule, ...]:
    """All rules of a head; `root` is that of its layer."""
    c = drafter.config
    if c.version == 1:
        first = (
            Rule("fc.weight", "pair/kernel", "linear"),
            Rule("fc.bias", "pair/bias"),
        )
        if c.input_norm:
            first += (Rule(f"{root}input_layernorm.weight", "input_norm/scale"),)
        if c.qk_layer_norm:
            first += head_norms(root, "attention")
    else:
        first = (
            Rule("fc.weight", "joined/kernel", "linear"),
            Rule(f"{root}input_layernorm.weight", "embedding_norm/scale"),
            Rule(f"{root}hidden_norm.weight", "hidden_norm/scale"),
            Rule("norm.weight", "norm/scale"),
            Rule("lm_head.weight", "head", "linear"),
        )
    own = (Rule(TABLE, "embedding"),) if c.own_embedding else ()
    return (*first, *layer_rules(root, drafter.target, c.qkv_bias), *own)


def _plan_of(drafter: Eagle, root: str, derived: dict[str, Derived]) -> Plan:
    ignored = IGNORED
    if not drafter.config.own_embedding:
        ignored = (*IGNORED, re.escape(TABLE))
    return Plan(
        "eagle",
        drafter,
        _rules(drafter, root),
        heads_of(drafter.config),
        derived,
        ignored,
    )


def _upscale(source: Source, given: Given) -> float:
    """`embed_upscale`, an argument of Lumina-mGPT's drafter that no tensor shows."""
    return given.get("embed_upscale", source.config.get("embed_upscale", 1.0))


def _plan1(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    assert target is not None
    root, of = "layers.0.", target.config
    if "layers.1.self_attn.q_proj.weight" in source.tensors:
        raise ConfigError(f"'{source.name}' has more than the one layer of EAGLE")
    input_norm = f"{root}input_layernorm.weight" in source.tensors
    usual = 1e-5 if input_norm else 1e-6  # Chameleon's layer has Chameleon's epsilon
    config = kept(source, EagleConfig) or EagleConfig(
        1,
        **_sizes(source, given, of, root, of.width, usual),
        feature_layers=(of.layers - 1,),
        own_embedding=own_table(source, TABLE, target, of.width),
        input_norm=input_norm,
        qk_layer_norm=f"{root}self_attn.q_norm.weight" in source.tensors,
        # The published code leaves embeddings alone unless they are to grow.
        embedding_scale=max(1.0, float(_upscale(source, given))),
        # LANTERN's heads for LlamaGen were trained on what its target does there.
        caption_padding="published" if of.condition == "caption" else "self",
    )
    derived = {}
    if "fc.bias" not in source.tensors:
        dtype = source.tensors["fc.weight"].dtype
        derived["pair/bias"] = Derived((), lambda: np.zeros(of.width, dtype))
    return _plan_of(Eagle(config, of), root, derived)


def _plan3(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    assert target is not None
    of, said = target.config, source.config
    root = (
        "midlayer." if "midlayer.hidden_norm.weight" in source.tensors else "layers.0."
    )
    if said.get("fc_norm") or said.get("norm_before_fc") or said.get("norm_output"):
        raise ConfigError(
            f"'{source.name}' is a variant of EAGLE-3 (fc_norm, norm_before_fc or "
            "norm_output) that is not known here"
        )
    # Layers are named by what enters them, ours by what leaves them.
    entered = given.get("layers") or said.get("eagle_aux_hidden_state_layer_ids")
    entered = entered or (2, of.layers // 2, of.layers - 3)
    entered = (entered,) if isinstance(entered, int) else entered
    head = source.tensors.get("lm_head.weight")
    drafted = 0 if head is None else head.shape[0]
    width = _width3(source, of)
    config = kept(source, EagleConfig) or EagleConfig(
        3,
        **_sizes(source, given, of, root, width),
        feature_layers=tuple(layer - 1 for layer in entered),
        draft_vocab=drafted,
        norm_before_residual=bool(said.get("norm_before_residual", False)),
        own_embedding=own_table(source, TABLE, target, width),
    )
    derived = {"ids": draft_ids(source, drafted, of.vocab_size)} if drafted else {}
    return _plan_of(Eagle(config, of), root, derived)


def _width3(source: Source, target: TransformerConfig) -> int:
    """`D` of an EAGLE-3 head, which its target may not share.

    Raises:
      ConfigError: it was made for a target of another width, or lacks what it cannot
        share with this one.
    """
    wide = source.config.get("target_hidden_size")
    agree(source, "target_hidden_size", wide, target.width, "its target")
    width = source.shape("fc.weight", 2)[0]
    lacks = [n for n in (TABLE, "lm_head.weight") if n not in source.tensors]
    if width != target.width and lacks:
        raise ConfigError(
            f"'{source.name}' is {width} wide, its target {target.width}, so that they "
            f"share no table, but it has no {' and no '.join(lacks)}; check whether "
            "this is its target, and whether a file is missing"
        )
    return width


def _export(version: int) -> Callable[[Checkpoint], Outgoing]:
    def export(checkpoint: Checkpoint) -> Outgoing:
        drafter = checkpoint.config
        if not isinstance(drafter, Eagle) or drafter.config.version != version:
            raise ConfigError(f"only a feature head of version {version} goes out so")
        c, target = drafter.config, drafter.target
        config: dict[str, Any] = {
            "architectures": [f"LlamaForCausalLMEagle{'3' if version == 3 else ''}"],
            "model_type": "llama",
            "hidden_size": c.width,
            "intermediate_size": c.ffn_width,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.num_kv_heads,
            "head_dim": c.head_size,
            "num_hidden_layers": 1,
            "rms_norm_eps": c.norm_eps,
            "rope_theta": target.rope_base if c.rope_base is None else c.rope_base,
            "vocab_size": target.vocab_size,
            "jaxspec": to_dict(c),
        }
        computed, left_out = {}, ()
        if version == 3:
            if c.width != target.width:
                config["target_hidden_size"] = target.width
            config["eagle_aux_hidden_state_layer_ids"] = [
                layer + 1 for layer in c.feature_layers
            ]
            config["norm_before_residual"] = c.norm_before_residual
        if c.draft_vocab:
            config["draft_vocab_size"] = c.draft_vocab
            ids = np.asarray(checkpoint.params["ids"], np.int64)
            used = np.zeros(target.vocab_size, bool)
            used[ids] = True
            computed = {"d2t": ids - np.arange(len(ids)), "t2d": used}
            left_out = ("ids",)
        root = "midlayer." if version == 3 else "layers.0."
        return Outgoing(_rules(drafter, root), config, heads_of(c), computed, left_out)

    return export


FAMILIES = (
    Family(
        "eagle3",
        lambda s: any(
            f"{root}hidden_norm.weight" in s.tensors
            for root in ("midlayer.", "layers.0.")
        ),
        _plan3,
        drafter=True,
        export=_export(3),
    ),
    Family(
        "eagle1",
        lambda s: (
            "fc.weight" in s.tensors
            and "layers.0.self_attn.q_proj.weight" in s.tensors
            and "hidden_norm.weight" not in s.tensors
            and "layers.0.hidden_norm.weight" not in s.tensors
        ),
        _plan1,
        drafter=True,
        export=_export(1),
    ),
)
