"""EAGLE's heads: version 1 (and LANTERN's), version 3, and `speculators`' form of it.

Keys: SafeAILab/EAGLE `model/cnets.py`, `model/cnets1.py`; jadohu/LANTERN; vLLM's
speculators.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import FeatureHeadConfig, TransformerConfig, to_dict
from jaxspec.convert.families.layers import attention, biases, head_norms, mlp
from jaxspec.convert.families.llama import scaling_of
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
from jaxspec.drafters.feature_head import FeatureHead
from jaxspec.errors import ConfigError


def rotary(target: TransformerConfig) -> str:
    """How a drafter's queries and keys are turned: LlamaGen's pairs are neighbours."""
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
    source: Source, given: Given, target: TransformerConfig, root: str
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
    size, width = rows // heads, target.width
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
        "norm_eps": given.get("norm_eps", said.get("rms_norm_eps", 1e-6)),
        "qkv_bias": f"{root}self_attn.q_proj.bias" in source.tensors,
    }


def _own_embedding(source: Source, target: Checkpoint) -> bool:
    """Whether the head brings a table that is not the target's."""
    table = source.tensors.get("embed_tokens.weight")
    if table is None:
        return False
    theirs = np.asarray(target.params["embedding"]["embedding"])
    if table.shape != theirs[: target.config.vocab_size].shape:
        raise ConfigError(
            f"'{source.name}' reads tokens through a table of {table.shape}, its "
            f"target has {target.config.vocab_size} of {target.config.width}: another"
        )
    mine = table.read().astype(theirs.dtype)
    return not np.array_equal(mine, theirs[: len(mine)])


IGNORED = (r".*\.rotary_emb\.inv_freq", r"t2d", r"verifier_.*")


def _rules(drafter: FeatureHead, root: str) -> tuple[Rule, ...]:
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
    own = (Rule("embed_tokens.weight", "embedding"),) if c.own_embedding else ()
    return (*first, *layer_rules(root, drafter.target, c.qkv_bias), *own)


def _plan_of(drafter: FeatureHead, root: str, derived: dict[str, Derived]) -> Plan:
    ignored = IGNORED
    if not drafter.config.own_embedding:
        ignored = (*IGNORED, r"embed_tokens\.weight")
    return Plan(
        "feature_head",
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
    config = kept(source, FeatureHeadConfig) or FeatureHeadConfig(
        1,
        **_sizes(source, given, of, root),
        taps=(of.layers - 1,),
        own_embedding=_own_embedding(source, target),
        input_norm=f"{root}input_layernorm.weight" in source.tensors,
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
    return _plan_of(FeatureHead(config, of), root, derived)


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
    config = kept(source, FeatureHeadConfig) or FeatureHeadConfig(
        3,
        **_sizes(source, given, of, root),
        taps=tuple(layer - 1 for layer in entered),
        draft_vocab=drafted,
        norm_before_residual=bool(said.get("norm_before_residual", False)),
        own_embedding=_own_embedding(source, target),
    )

    if drafted < of.vocab_size and drafted and "d2t" not in source.tensors:
        raise ConfigError(
            f"'{source.name}' drafts {drafted} of {of.vocab_size} tokens, but has no "
            "d2t that says which"
        )

    def ids(*tables: np.ndarray) -> np.ndarray:
        """`d2t` holds what is added to a draft's id, not the id."""
        found = np.arange(drafted)
        if tables:
            offsets = tables[0]
            if offsets.shape != (drafted,) or offsets.dtype.kind not in "iu":
                raise ConfigError(
                    f"'{source.name}': d2t is no list of {drafted} numbers"
                )
            found = found + offsets
        if len(tables) > 1 and not np.array_equal(np.flatnonzero(tables[1]), found):
            raise ConfigError(f"'{source.name}': d2t and t2d name different tokens")
        if len(set(found.tolist())) < drafted or found.min() < 0:
            raise ConfigError(f"'{source.name}': d2t names a token twice, or none")
        if found.max() >= of.vocab_size:
            raise ConfigError(
                f"'{source.name}' drafts token {found.max()}, its target has "
                f"{of.vocab_size}"
            )
        return found.astype(np.int32)

    names = tuple(name for name in ("d2t", "t2d") if name in source.tensors)
    names = names if "d2t" in names else ()
    derived = {"ids": Derived(names, ids)} if drafted else {}
    return _plan_of(FeatureHead(config, of), root, derived)


def _export(version: int) -> Callable[[Checkpoint], Outgoing]:
    def export(checkpoint: Checkpoint) -> Outgoing:
        drafter = checkpoint.config
        if not isinstance(drafter, FeatureHead) or drafter.config.version != version:
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
            config["eagle_aux_hidden_state_layer_ids"] = [tap + 1 for tap in c.taps]
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
