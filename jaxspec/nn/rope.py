"""Rotary position embeddings over adjacent pairs, angles in float32."""

import einops
import jax.numpy as jnp
import numpy as np

from jaxspec.config import RopeScaling, TransformerConfig
from jaxspec.typing import Array, Float, Int


def grid_table(
    prefix: int, grid: int, head_dim: int, base: float, extra: int = 0
) -> np.ndarray:
    """LlamaGen's 2-D table: cosines and sines by absolute position.

    The first half of the pairs turns with the row, the second with the column. The
    rows of the `prefix` condition positions are zeros, not identities: they turn the
    queries and keys of the condition into zero vectors, as in the original.

    Args:
      prefix: condition positions.
      grid: tokens along a side; token `t` is at row `t // grid`, column `t % grid`.
      head_dim: `F`, a multiple of 4.
      base: of the frequencies.
      extra: rows beyond the grid, for drafts that reach over its end.

    Returns:
      float32 `[prefix + grid ** 2 + extra, F / 2, 2]`.
    """
    half = head_dim // 2
    radians = frequencies(half, base)
    tokens = np.arange(grid * grid + extra)
    rows = np.outer(tokens // grid, radians)
    columns = np.outer(tokens % grid, radians)
    angles = np.concatenate([rows, columns], axis=-1)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    zeros = np.zeros((prefix, *table.shape[1:]))
    return np.concatenate([zeros, table]).astype(np.float32)


def frequencies(
    head_dim: int, base: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Radians a position, float64 `[F / 2]`, stretched where `scaling` says so."""
    plain = base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    if scaling is None:
        return plain
    stretched = plain / scaling.factor
    if scaling.kind == "linear":
        return stretched
    if scaling.kind == "llama3":
        turns = scaling.original_length * plain / (2 * np.pi)
        kept = (turns - scaling.slow) / (scaling.fast - scaling.slow)
    else:  # yarn blends along the index of the frequency, between whole numbers
        first, last = (
            head_dim
            * np.log(scaling.original_length / (turns * 2 * np.pi))
            / (2 * np.log(base))
            for turns in (scaling.fast, scaling.slow)
        )
        first, last = max(np.floor(first), 0), min(np.ceil(last), head_dim - 1)
        kept = 1 - (np.arange(head_dim // 2) - first) / max(last - first, 1e-3)
    kept = np.clip(kept, 0, 1)
    return kept * plain + (1 - kept) * stretched


def sequence_angles(
    positions: Int[Array, "R T"],
    head_dim: int,
    base: float,
    scaling: RopeScaling | None = None,
) -> Float[Array, "R T f 2"]:
    """1-D cosines and sines of each position, `f = F / 2`."""
    radians = frequencies(head_dim, base, scaling).astype(np.float32)[None, None]
    angles = positions[..., None].astype(jnp.float32) * radians
    turns = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return turns if scaling is None else turns * scaling.magnitude


def angles_of(
    config: TransformerConfig,
    positions: Int[Array, "R T"],
    head_dim: int,
    overhang: int = 64,
) -> Float[Array, "R T f 2"]:
    """Angles of absolute positions by a transformer's scheme, for heads of any size.

    Args:
      config: of the transformer.
      positions: int32.
      head_dim: `F`.
      overhang: positions beyond a grid that a draft may reach; they get rows of the
        table like any other and are never committed.
    """
    if config.rope == "sequence":
        return sequence_angles(
            positions, head_dim, config.rope_base, config.rope_scaling
        )
    table = grid_table(
        config.prefix_length, config.grid, head_dim, config.rope_base, overhang
    )
    return jnp.asarray(table)[positions]


def rotate(
    x: Float[Array, "R T H F"], angles: Float[Array, "R T f 2"]
) -> Float[Array, "R T H F"]:
    """Turns each adjacent pair of the last axis; float32 inside.

    Every channel is joined to the other one of its pair. Pairs taken apart and stacked
    again cost a TPU more than the products of a layer.
    """
    cos, sin = (y[..., None, :] for y in pair_turns(angles))
    own = x.astype(jnp.float32)
    other = jnp.flip(own.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)
    return (own * cos + other * sin).astype(x.dtype)


def pair_turns(
    angles: Float[Array, "... f 2"],
) -> tuple[Float[Array, "... F"], Float[Array, "... F"]]:
    """What a channel, and what the other of its pair, is multiplied by; `F = 2 f`."""
    cos, sin = angles[..., 0], angles[..., 1]
    signed = jnp.stack([-sin, sin], axis=-1)
    return jnp.repeat(cos, 2, axis=-1), signed.reshape(*sin.shape[:-1], -1)


def turned(
    fused: Float[Array, "R T g K F"], angles: Float[Array, "R T f 2"]
) -> tuple[Float[Array, "R T H F"], Float[Array, "R K T F"], Float[Array, "R K T F"]]:
    """Turned queries and keys, and values, of a fused map; `H = (g - 2) K`."""
    q = einops.rearrange(fused[:, :, :-2], "r t g k f -> r t (k g) f")
    k, v = rotate(fused[:, :, -2], angles), fused[:, :, -1]
    k, v = (einops.rearrange(x, "r t k f -> r k t f") for x in (k, v))
    return rotate(q, angles), k, v
