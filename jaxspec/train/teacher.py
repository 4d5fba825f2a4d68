"""Frozen target as the teacher of a drafter."""

import jax
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.drafters.common.target_params import shared_target_params, target_logits
from jaxspec.drafters.common.training import TeacherOutputs
from jaxspec.models.transformer.model import Transformer
from jaxspec.train.feature_cache import cached_layers
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


def run_teacher(
    target: TransformerConfig,
    params: Params,
    feature_layers: tuple[int, ...],
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    cached: Float[Array, "B 2 Y E"] | None = None,
) -> TeacherOutputs:
    """Runs the frozen target on sequences; no gradient flows into it.

    Args:
      target: configuration of the target.
      params: its parameters.
      feature_layers: indices of the layers that the drafter reads.
      tokens: int32 [B, T], sequences of the data.
      prompts: conditions of the sequences, as the target takes them.
      null: bool [B], True for sequences read without their condition.
      cached: outputs of `train.feature_cache.cached_layers` for these sequences, from
        which logits and features are computed; None to run the target.
    """
    if cached is None:
        logits, features = Transformer(target).score(
            params, prompts, tokens, null=null, feature_layers=feature_layers
        )
    else:
        logits, features = _from_cache(target, params, feature_layers, null, cached)
    logits, features = jax.lax.stop_gradient((logits, features))
    by_position = jnp.pad(tokens, ((0, 0), (target.prefix_length, 0)))
    return TeacherOutputs(by_position, logits, features, params, prompts, null)


def _from_cache(target, params, feature_layers, null, cached):
    """Logits and features of `feature_layers`, from outputs of `cached_layers`."""
    branch = jnp.where(null[:, None, None], cached[:, 1], cached[:, 0])
    dtype = params["norm"]["scale"].dtype
    parts = jnp.split(branch.astype(dtype), cached.shape[-1] // target.width, axis=-1)
    layers = cached_layers(target.layers, feature_layers)
    by_layer = dict(zip(layers, parts, strict=True))
    features = [by_layer[layer] for layer in feature_layers]
    features = (
        jnp.concatenate(features, axis=-1) if feature_layers else parts[0][..., :0]
    )
    shared = shared_target_params(target, params, norm=True)
    return target_logits(target, shared, by_layer[target.layers - 1]), features
