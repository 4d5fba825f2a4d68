"""Rules of a decoder layer's two halves, in the names of the Hugging Face layout."""

from collections.abc import Iterable

from jaxspec.convert.mapping import Rule


def apart(
    ours: str, theirs: Iterable[str], turned: str, kind: str = "heads"
) -> tuple[Rule, ...]:
    """Queries, keys and values that one parameter of ours holds."""
    q, k, v = theirs
    return (
        Rule(q, ours, kind + turned, 0, 3, axis=-3),
        Rule(k, ours, kind + turned, 1, 3, axis=-3),
        Rule(v, ours, kind, 2, 3, axis=-3),
    )


def attention(theirs: str, ours: str, turned: str = "_rotary") -> tuple[Rule, ...]:
    """`self_attn.{q,k,v,o}_proj.weight` as one map and the one behind.

    Args:
      theirs: up to "self_attn".
      ours: path of the attention.
      turned: "_rotary" where rotary pairs lie half a head apart, "" for neighbors.
    """
    q, k, v, o = (f"{theirs}self_attn.{x}_proj.weight" for x in "qkvo")
    return (
        *apart(f"{ours}/qkv/kernel", (q, k, v), turned),
        Rule(o, f"{ours}/out/kernel", "linear"),
    )


def head_norms(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Norms of queries and keys, each with a scale and perhaps a bias."""
    return tuple(
        Rule(
            f"{theirs}self_attn.{x}_norm.{part}",
            f"{ours}/{x}_norm/{name}",
            {"q": "query_norm", "k": "key_norm"}[x],
        )
        for x in "qk"
        for part, name in (("weight", "scale"), ("bias", "bias"))
    )


def biases(theirs: str, ours: str, turned: str = "_rotary") -> tuple[Rule, ...]:
    """Those of queries, keys and values."""
    q, k, v = (f"{theirs}self_attn.{x}_proj.bias" for x in "qkv")
    return apart(f"{ours}/qkv/bias", (q, k, v), turned, "heads_vector")


def gated(ours: str, gate: str, up: str) -> tuple[Rule, ...]:
    """The two maps of a gated unit as one."""
    return (
        Rule(gate, ours, "layer", 0, 2, axis=-2),
        Rule(up, ours, "layer", 1, 2, axis=-2),
    )


def mlp(theirs: str, ours: str) -> tuple[Rule, ...]:
    """`mlp.{gate,up,down}_proj.weight` as a SwiGLU."""
    gate, up, down = (f"{theirs}mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
    return (
        *gated(f"{ours}/gate_up/kernel", gate, up),
        Rule(down, f"{ours}/down/kernel", "linear"),
    )
