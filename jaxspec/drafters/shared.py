"""What drafters that read features share with their target."""

from jaxspec.config import TransformerConfig
from jaxspec.models.transformer import head_of
from jaxspec.nn.layers import head_scores, rms_norm
from jaxspec.typing import Array, Float, Params


def shared_target_params(
    target: TransformerConfig, params: Params, *, norm: bool
) -> Params:
    """The target's "embedding" [V, D] and "head" (see `head_scores`); frozen.

    With `norm`, its final norm's scale "norm" [D], too.
    """
    embedding = params["embedding"]["embedding"][: target.vocab_size]
    shared = {"embedding": embedding, "head": head_of(target, params)}
    return {**shared, "norm": params["norm"]["scale"]} if norm else shared


def scores_of(
    target: TransformerConfig, shared: Params, features: Float[Array, "... D"]
) -> Float[Array, "... V"]:
    """Logits float32 of a layer's outputs by the target's norm and head."""
    h = target_norm(target, shared, features)
    return head_scores(shared["head"], h)


def target_norm(
    target: TransformerConfig, params: Params, features: Float[Array, "... D"]
) -> Float[Array, "... D"]:
    """The target's final norm of its last layer's outputs."""
    return rms_norm(features, params["norm"], target.norm_eps)
