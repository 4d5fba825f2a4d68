"""Target parameters that feature-based drafters share: embedding, norm and head."""

from jaxspec.config import TransformerConfig
from jaxspec.drafters.common.feature_target import DrafterTarget, FeatureTarget
from jaxspec.models.transformer.parameters import embedding_of, head_of
from jaxspec.nn.layers import head_scores, rms_norm
from jaxspec.typing import Array, Float, Params


def shared_target_params(
    target: DrafterTarget, params: Params, *, norm: bool
) -> Params:
    """Selects the target's parameters that a drafter reads and never trains.

    Args:
      target: configuration of the target.
      params: parameters of the target.
      norm: whether the scale of the final norm is included.

    Returns:
      A dict: "embedding" [V, D], "head" (see `head_scores`) and, with `norm`, "norm"
      [D]; None for a target whose features are normalized already.

    Raises:
      ConfigError: see `FeatureTarget.shared_params`.
    """
    if isinstance(target, FeatureTarget):
        shared = target.shared_params(params)
        names = ("embedding", "head", "norm") if norm else ("embedding", "head")
        return {name: shared[name] for name in names}
    shared = {
        "embedding": embedding_of(target, params),
        "head": head_of(target, params),
    }
    return {**shared, "norm": params["norm"]["scale"]} if norm else shared


def target_logits(
    target: TransformerConfig, shared: Params, features: Float[Array, "... D"]
) -> Float[Array, "... V"]:
    """Logits float32 of a layer's outputs under the target's final norm and head."""
    h = target_norm(target, shared, features)
    return head_scores(shared["head"], h)


def target_norm(
    target: DrafterTarget, params: Params, features: Float[Array, "... D"]
) -> Float[Array, "... D"]:
    """Applies the target's final norm, if it has one here, to a layer's outputs."""
    if params["norm"] is None:
        return features
    return rms_norm(features, params["norm"], target.norm_eps)
