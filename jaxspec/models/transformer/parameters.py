"""Parts of a transformer's parameters that other modules read."""

import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.models.transformer.embeddings import FactoredEmbed
from jaxspec.nn.quantize import SCALE
from jaxspec.typing import Array, Float, Params


def head_of(config: TransformerConfig, params: Params) -> Params:
    """Parameters of the output head, in the form that `head_scores` takes."""
    if config.factors:
        return tuple(_matrix(params, f"head_{i}") for i in range(len(config.factors)))
    if config.head_width:
        return {k: params[f"head_{k}"] for k in ("in", "in_bias", "out", "out_bias")}
    if config.tied_head:
        return params["embedding"]["embedding"][: config.vocab_size].T
    return _matrix(params, "head")


def _matrix(params: Params, name: str) -> Params:
    if name + SCALE in params:
        return {"kernel": params[name], "scale": params[name + SCALE]}
    return params[name]


def activation_dtype(params: Params) -> jnp.dtype:
    """Dtype of activations and caches: that of the embedding of tokens or classes."""
    table = params["embedding"] if "embedding" in params else params["classes"]
    return table.get("part_0", table)["embedding"].dtype


def embedding_of(config: TransformerConfig, params: Params) -> Float[Array, "V D"]:
    """Embeddings of the tokens of the vocabulary."""
    if config.factors:
        network = FactoredEmbed(config.factors, config.width)
        return network.bind({"params": params["embedding"]}).embedding
    return params["embedding"]["embedding"][: config.vocab_size]
