"""Rules of a decoder layer's two halves, in the names of the Hugging Face layout."""

from jaxspec.convert.mapping import Rule, joined


def attention(theirs: str, ours: str, turned: str = "rotary") -> tuple[Rule, ...]:
    """`self_attn.{q,k,v,o}_proj.weight` as one map and the one behind.

    Args:
      theirs: up to "self_attn".
      ours: path of the attention.
      turned: transform of queries and keys; "linear" where pairs are neighbours.
    """
    q, k, v, o = (f"{theirs}self_attn.{x}_proj.weight" for x in "qkvo")
    return (
        Rule(q, f"{ours}/qkv/kernel", turned, 0, 3),
        Rule(k, f"{ours}/qkv/kernel", turned, 1, 3),
        Rule(v, f"{ours}/qkv/kernel", "linear", 2, 3),
        Rule(o, f"{ours}/out/kernel", "linear"),
    )


def biases(theirs: str, ours: str, turned: str = "rotary_vector") -> tuple[Rule, ...]:
    """Those of queries, keys and values."""
    q, k, v = (f"{theirs}self_attn.{x}_proj.bias" for x in "qkv")
    return (
        Rule(q, f"{ours}/qkv/bias", turned, 0, 3),
        Rule(k, f"{ours}/qkv/bias", turned, 1, 3),
        Rule(v, f"{ours}/qkv/bias", "same", 2, 3),
    )


def mlp(theirs: str, ours: str) -> tuple[Rule, ...]:
    """`mlp.{gate,up,down}_proj.weight` as a SwiGLU."""
    gate, up, down = (f"{theirs}mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
    return (
        *joined(f"{ours}/gate_up/kernel", "linear", gate, up),
        Rule(down, f"{ours}/down/kernel", "linear"),
    )
