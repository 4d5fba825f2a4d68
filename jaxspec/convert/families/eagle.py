"""EAGLE drafters: EAGLE-1 and -2, LANTERN's, and EAGLE-3, also of `speculators`.

Tensor names: SafeAILab/EAGLE `model/cnets.py`, `model/cnets1.py`; jadohu/LANTERN;
vLLM's speculators.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig, to_dict
from jaxspec.convert.families.draft_ids import draft_ids, draft_tables
from jaxspec.convert.families.embeddings import has_own_embedding
from jaxspec.convert.families.key_rules import attention, head_norms, mlp, qkv_biases
from jaxspec.convert.families.layer_sizes import layer_sizes
from jaxspec.convert.families.rotary import (
    read_rope_base,
    read_rope_scaling,
    rotary_suffix,
)
from jaxspec.convert.family import (
    ComputedParam,
    ExportPlan,
    Family,
    Overrides,
    Plan,
    heads_of,
)
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import infer_setting
from jaxspec.convert.source_config import (
    check_consistent,
    check_entry,
    check_supported,
    exported_config,
)
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.errors import ConfigError
from jaxspec.nn.rope import Rotary


def layer_rules(root: str, target: Rotary, bias: bool) -> tuple[KeyRule, ...]:
    """Returns the rules of the single decoder layer, attention and SwiGLU."""
    rotary = rotary_suffix(target)
    return (
        *attention(root, "attention", rotary),
        *(qkv_biases(root, "attention", rotary) if bias else ()),
        KeyRule(f"{root}post_attention_layernorm.weight", "post_norm/scale"),
        *mlp(root, "ffn"),
    )


def _shared_args(
    source: Source,
    overrides: Overrides,
    target: TransformerConfig,
    root: str,
    width: int,
    default_eps: float = 1e-6,
) -> dict[str, Any]:
    """Infers the arguments that all versions of `EagleConfig` share."""
    source_config = source.config.get("transformer_layer_config", source.config)
    query_width = source.shape(f"{root}self_attn.q_proj.weight")[0]
    heads = infer_setting(
        source,
        overrides,
        "heads",
        source_config.get("num_attention_heads"),
        # LANTERN's drafter for LlamaGen has no config.
        target.heads if query_width == target.heads * target.head_size else None,
        description="its number of heads",
    )
    sizes = layer_sizes(source, root, heads=heads)
    expected = {
        "hidden_size": width,
        "intermediate_size": sizes.ffn_width,
        "head_dim": sizes.head_size,
        "num_key_value_heads": sizes.kv_heads,
    }
    check_consistent(source, source_config, expected)
    vocab_size = source.config.get("vocab_size")
    check_entry(source, "vocab_size", vocab_size, target.vocab_size, "its target")
    supported = {"hidden_act": ("silu", "swish"), "mlp_bias": (False,)}
    check_supported(source, source_config, supported)
    rope_settings: dict[str, Any] = {}
    if target.rope == "sequence":
        # EAGLE's code reads the drafter's config, not the target's.
        base = read_rope_base(source_config)
        rope_settings["rope_base"] = float(10000.0 if base is None else base)
        rope_settings["rope_scaling"] = read_rope_scaling(source, source_config)
    return {
        **rope_settings,
        "width": width,
        **sizes.config_args(width),
        "norm_eps": overrides.get(
            "norm_eps", source_config.get("rms_norm_eps", default_eps)
        ),
        "qkv_bias": f"{root}self_attn.q_proj.bias" in source.tensors,
    }


TABLE = "embed_tokens.weight"
IGNORED = (r".*\.rotary_emb\.inv_freq", r"t2d", r"verifier_.*")


def _rules(drafter: Eagle, root: str) -> tuple[KeyRule, ...]:
    """Returns all rules of a drafter; `root` is the prefix of its layer's names."""
    c = drafter.config
    if c.version == 1:
        version_rules = (
            KeyRule("fc.weight", "pair/kernel", "linear"),
            KeyRule("fc.bias", "pair/bias"),
        )
        if c.input_norm:
            version_rules += (
                KeyRule(f"{root}input_layernorm.weight", "input_norm/scale"),
            )
        if c.qk_layer_norm:
            version_rules += head_norms(root, "attention")
    else:
        version_rules = (
            KeyRule("fc.weight", "joined/kernel", "linear"),
            KeyRule(f"{root}input_layernorm.weight", "embedding_norm/scale"),
            KeyRule(f"{root}hidden_norm.weight", "hidden_norm/scale"),
            KeyRule("norm.weight", "norm/scale"),
            KeyRule("lm_head.weight", "head", "linear"),
        )
    embedding = (KeyRule(TABLE, "embedding"),) if c.own_embedding else ()
    layer = layer_rules(root, drafter.target, c.qkv_bias)
    return (*version_rules, *layer, *embedding)


def _make_plan(drafter: Eagle, root: str, computed: dict[str, ComputedParam]) -> Plan:
    assert isinstance(drafter.target, TransformerConfig)  # of files, never another
    ignored = IGNORED
    if not drafter.config.own_embedding:
        ignored = (*IGNORED, re.escape(TABLE))
    return Plan(
        "eagle",
        drafter.config,
        _rules(drafter, root),
        heads_of(drafter.config),
        computed,
        ignored,
        target=drafter.target,
    )


def _embed_upscale(source: Source, overrides: Overrides) -> float:
    """Reads `embed_upscale` of Lumina-mGPT's drafter, which no tensor shows."""
    return overrides.get("embed_upscale", source.config.get("embed_upscale", 1.0))


def _plan_eagle1(
    source: Source, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    assert target is not None
    root, target_config = "layers.0.", target.config
    if "layers.1.self_attn.q_proj.weight" in source.tensors:
        raise ConfigError(f"'{source.name}' has more than one layer, EAGLE has one")
    input_norm = f"{root}input_layernorm.weight" in source.tensors
    width = target_config.width
    # Drafters with an input norm have Chameleon's layer, and its default epsilon.
    default_eps = 1e-5 if input_norm else 1e-6
    config = exported_config(source, EagleConfig) or EagleConfig(
        1,
        **_shared_args(source, overrides, target_config, root, width, default_eps),
        feature_layers=(target_config.layers - 1,),
        own_embedding=has_own_embedding(source, TABLE, target, width),
        input_norm=input_norm,
        qk_layer_norm=f"{root}self_attn.q_norm.weight" in source.tensors,
        # The published code ignores scales below 1.
        embedding_scale=max(1.0, float(_embed_upscale(source, overrides))),
        # LANTERN's drafters were trained on LlamaGen's features of caption padding.
        caption_padding="published" if target_config.condition == "caption" else "self",
    )
    computed = {}
    if "fc.bias" not in source.tensors:
        dtype = source.tensors["fc.weight"].dtype
        computed["pair/bias"] = ComputedParam((), lambda: np.zeros(width, dtype))
    return _make_plan(Eagle(config, target_config), root, computed)


def _plan_eagle3(
    source: Source, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    assert target is not None
    target_config, source_config = target.config, source.config
    root = (
        "midlayer." if "midlayer.hidden_norm.weight" in source.tensors else "layers.0."
    )
    if (
        source_config.get("fc_norm")
        or source_config.get("norm_before_fc")
        or source_config.get("norm_output")
    ):
        raise ConfigError(
            f"'{source.name}' is a variant of EAGLE-3 (fc_norm, norm_before_fc or "
            "norm_output) that is not supported"
        )
    # Ids of layers whose inputs are the features; ours are outputs of the layer before.
    layer_ids = overrides.get("layers")
    layer_ids = layer_ids or source_config.get("eagle_aux_hidden_state_layer_ids")
    layer_ids = layer_ids or (2, target_config.layers // 2, target_config.layers - 3)
    layer_ids = (layer_ids,) if isinstance(layer_ids, int) else layer_ids
    head = source.tensors.get("lm_head.weight")
    draft_vocab = 0 if head is None else head.shape[0]
    width = _eagle3_width(source, target_config)
    config = exported_config(source, EagleConfig) or EagleConfig(
        3,
        **_shared_args(source, overrides, target_config, root, width),
        feature_layers=tuple(layer - 1 for layer in layer_ids),
        draft_vocab=draft_vocab,
        norm_before_residual=bool(source_config.get("norm_before_residual", False)),
        own_embedding=has_own_embedding(source, TABLE, target, width),
    )
    computed = {}
    if draft_vocab:
        computed["ids"] = draft_ids(source, draft_vocab, target_config.vocab_size)
    return _make_plan(Eagle(config, target_config), root, computed)


def _eagle3_width(source: Source, target: TransformerConfig) -> int:
    """Returns the model width of an EAGLE-3 drafter, not always its target's.

    Raises:
      ConfigError: the drafter was trained for a target of another width, or its width
        differs from the target's and it has no embedding or output head of its own.
    """
    target_width = source.config.get("target_hidden_size")
    check_entry(source, "target_hidden_size", target_width, target.width, "its target")
    width = source.shape("fc.weight", 2)[0]
    missing = [n for n in (TABLE, "lm_head.weight") if n not in source.tensors]
    if width != target.width and missing:
        raise ConfigError(
            f"'{source.name}' is {width} wide, its target {target.width}, so they can "
            f"share no table, but it has no {' and no '.join(missing)}; check whether "
            "this is its target, and whether a file is missing"
        )
    return width


def _export(version: int) -> Callable[[Checkpoint], ExportPlan]:
    def export(checkpoint: Checkpoint) -> ExportPlan:
        drafter = checkpoint.model
        if not isinstance(drafter, Eagle) or drafter.config.version != version:
            raise ConfigError(
                f"only EAGLE-{version} drafters can be exported as eagle{version}"
            )
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
        extra_tensors, omitted = {}, ()
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
            extra_tensors = draft_tables(ids, target.vocab_size)
            omitted = ("ids",)
        root = "midlayer." if version == 3 else "layers.0."
        rules = _rules(drafter, root)
        return ExportPlan(rules, config, heads_of(c), extra_tensors, omitted)

    return export


FAMILIES = (
    Family(
        "eagle3",
        lambda s: any(
            f"{root}hidden_norm.weight" in s.tensors
            for root in ("midlayer.", "layers.0.")
        ),
        _plan_eagle3,
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
        _plan_eagle1,
        drafter=True,
        export=_export(1),
    ),
)
