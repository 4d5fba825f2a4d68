"""Rules for attention and MLP layers in Hugging Face's names."""

from collections.abc import Iterable

from jaxspec.convert.mapping import KeyRule


def split_qkv(
    target: str, sources: Iterable[str], rotary: str, kind: str = "heads"
) -> tuple[KeyRule, ...]:
    """Returns rules for separate queries, keys and values of one fused parameter.

    Args:
      target: path of the parameter.
      sources: names of the tensors of queries, keys and values.
      rotary: suffix of the transform of queries and keys, "_rotary" or "".
      kind: transform without that suffix, "heads" or "heads_vector".
    """
    q, k, v = sources
    return (
        KeyRule(q, target, kind + rotary, 0, 3, axis=-3),
        KeyRule(k, target, kind + rotary, 1, 3, axis=-3),
        KeyRule(v, target, kind, 2, 3, axis=-3),
    )


def attention(source: str, target: str, rotary: str = "_rotary") -> tuple[KeyRule, ...]:
    """Returns rules for the kernels `self_attn.{q,k,v,o}_proj.weight`.

    Args:
      source: prefix of the names, up to "self_attn".
      target: path of the attention layer.
      rotary: "_rotary" if rotary pairs are half a head apart, "" if they are neighbors.
    """
    q, k, v, o = (f"{source}self_attn.{x}_proj.weight" for x in "qkvo")
    return (
        *split_qkv(f"{target}/qkv/kernel", (q, k, v), rotary),
        KeyRule(o, f"{target}/out/kernel", "linear"),
    )


def head_norms(source: str, target: str) -> tuple[KeyRule, ...]:
    """Returns rules for the norms of queries and keys: scales and optional biases."""
    return tuple(
        KeyRule(
            f"{source}self_attn.{x}_norm.{part}",
            f"{target}/{x}_norm/{name}",
            {"q": "query_norm", "k": "key_norm"}[x],
        )
        for x in "qk"
        for part, name in (("weight", "scale"), ("bias", "bias"))
    )


def qkv_biases(
    source: str, target: str, rotary: str = "_rotary"
) -> tuple[KeyRule, ...]:
    """Returns rules for the biases of queries, keys and values."""
    q, k, v = (f"{source}self_attn.{x}_proj.bias" for x in "qkv")
    return split_qkv(f"{target}/qkv/bias", (q, k, v), rotary, "heads_vector")


def gate_up(target: str, gate: str, up: str) -> tuple[KeyRule, ...]:
    """Returns rules for the two input kernels of a gated MLP, fused into one."""
    return (
        KeyRule(gate, target, "layer", 0, 2, axis=-2),
        KeyRule(up, target, "layer", 1, 2, axis=-2),
    )


def mlp(source: str, target: str) -> tuple[KeyRule, ...]:
    """Returns rules for a SwiGLU, `mlp.{gate,up,down}_proj.weight`."""
    gate, up, down = (f"{source}mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
    return (
        *gate_up(f"{target}/gate_up/kernel", gate, up),
        KeyRule(down, f"{target}/down/kernel", "linear"),
    )
