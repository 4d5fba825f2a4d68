"""Sizes of a decoder layer, read from the shapes of its tensors."""

from dataclasses import dataclass
from typing import Any

from jaxspec.convert.reading.source import Source


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of attention and MLP in a decoder layer.

    Attributes:
      query_width: number of outputs of the query projection.
      heads: number of query heads, `H`.
      kv_heads: number of key/value heads, `K`.
      head_size: head size, `F`.
      ffn_width: hidden width of the MLP.
    """

    query_width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_width: int

    def config_args(self, width: int) -> dict[str, Any]:
        """Returns arguments of a configuration, None where its default applies.

        Args:
          width: model width, `D`.
        """
        is_default = self.head_size * self.heads == width
        return {
            "heads": self.heads,
            "kv_heads": None if self.kv_heads == self.heads else self.kv_heads,
            "head_dim": None if is_default else self.head_size,
            "ffn_width": self.ffn_width,
        }


def layer_sizes(
    source: Source, root: str, *, heads: int | None = None, head_size: int = 0
) -> LayerSizes:
    """Reads the sizes of a layer in Hugging Face's names.

    The width of the queries gives either the number of heads or the head size.

    Args:
      source: source of the model.
      root: prefix of the layer's names, up to "self_attn" and "mlp".
      heads: number of query heads; None to infer it from the head size.
      head_size: head size; 0 to infer it from the number of heads.

    Raises:
      DataError: a tensor is missing.
    """
    query_width = source.shape(f"{root}self_attn.q_proj.weight")[0]
    if heads is None:
        heads = query_width // head_size
    else:
        head_size = head_size or query_width // heads
    kv_heads = source.shape(f"{root}self_attn.k_proj.weight")[0] // head_size
    ffn_width = source.shape(f"{root}mlp.gate_proj.weight")[0]
    return LayerSizes(query_width, heads, kv_heads, head_size, ffn_width)
