"""Rotary position embeddings of adjacent channel pairs, with angles in float32."""

from typing import Literal, Protocol, runtime_checkable

import einops
import jax.numpy as jnp
import numpy as np

from jaxspec.config import RopeScaling
from jaxspec.config.orders import Order, cells_of
from jaxspec.typing import Array, Float, Int


def grid_table(
    prefix: int,
    grid: int,
    head_dim: int,
    base: float,
    extra: int = 0,
    order: Order = "raster",
) -> np.ndarray:
    """Table of the 2-D rotary embedding of LlamaGen, by absolute position.

    The first half of the pairs rotates with the image row, the second with the column.
    The entries of the `prefix` condition positions are zeros, not identities: as in
    LlamaGen, they map the queries and keys of the condition to zero.

    Args:
      prefix: number of condition positions.
      grid: tokens per side; cell `n` is in image row `n // grid`, column `n % grid`.
      head_dim: size of a head, `F`, a multiple of 4.
      base: base of the frequencies.
      extra: number of entries after the grid, for drafts that extend past its end.
      order: order of the cells, see `config.orders`.

    Returns:
      Cosines and sines, float32 `[prefix + grid ** 2 + extra, F / 2, 2]`.
    """
    half = head_dim // 2
    radians = frequencies(half, base)
    after = grid * grid + np.arange(extra)
    cells = np.concatenate([np.array(cells_of(order, grid)), after])
    row_angles = np.outer(cells // grid, radians)
    column_angles = np.outer(cells % grid, radians)
    angles = np.concatenate([row_angles, column_angles], axis=-1)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    zeros = np.zeros((prefix, *table.shape[1:]))
    return np.concatenate([zeros, table]).astype(np.float32)


def frequencies(
    head_dim: int, base: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Radians per position of each pair, float64 `[F / 2]`.

    Args:
      head_dim: size of a head, `F`.
      base: base of the frequencies.
      scaling: context extension, which divides low frequencies by its factor; None for
        none.
    """
    original = base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    if scaling is None:
        return original
    stretched = original / scaling.factor
    if scaling.kind == "linear":
        return stretched
    # Both other kinds interpolate; `weight` is the share of the original frequency.
    if scaling.kind == "llama3":
        turns = scaling.original_length * original / (2 * np.pi)
        weight = (turns - scaling.slow) / (scaling.fast - scaling.slow)
    else:  # YaRN interpolates along the index of the pair, between integers
        first, last = (
            head_dim
            * np.log(scaling.original_length / (turns * 2 * np.pi))
            / (2 * np.log(base))
            for turns in (scaling.fast, scaling.slow)
        )
        first, last = max(np.floor(first), 0), min(np.ceil(last), head_dim - 1)
        weight = 1 - (np.arange(head_dim // 2) - first) / max(last - first, 1e-3)
    weight = np.clip(weight, 0, 1)
    return weight * original + (1 - weight) * stretched


def sequence_angles(
    positions: Int[Array, "R T"],
    head_dim: int,
    base: float,
    scaling: RopeScaling | None = None,
) -> Float[Array, "R T f 2"]:
    """Cosines and sines of the 1-D rotary embedding.

    Args:
      positions: absolute positions, int32.
      head_dim: size of a head, `F = 2 f`.
      base: base of the frequencies.
      scaling: context extension, or None.
    """
    radians = frequencies(head_dim, base, scaling).astype(np.float32)[None, None]
    angles = positions[..., None].astype(jnp.float32) * radians
    cos_sin = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return cos_sin if scaling is None else cos_sin * scaling.magnitude


@runtime_checkable
class Rotary(Protocol):
    """Settings of a rotary embedding; a `TransformerConfig` has them."""

    @property
    def rope(self) -> Literal["grid", "sequence"]:
        """Kind: 2-D positions on a grid, or 1-D positions."""
        ...

    @property
    def rope_base(self) -> float:
        """Base of the frequencies."""
        ...

    @property
    def rope_scaling(self) -> RopeScaling | None:
        """Scaling of 1-D frequencies; None for none."""
        ...

    @property
    def grid(self) -> int:
        """Number of tokens along each side of a grid."""
        ...

    @property
    def order(self) -> Order:
        """Order of the cells of a grid."""
        ...

    @property
    def prefix_length(self) -> int:
        """Number of condition positions before a grid."""
        ...


def angles_of(
    config: Rotary,
    positions: Int[Array, "R T"],
    head_dim: int,
    overhang: int = 64,
) -> Float[Array, "R T f 2"]:
    """Cosines and sines of the rotary embedding of a transformer.

    Args:
      config: settings of the embedding, such as the configuration of a transformer.
      positions: absolute positions, int32.
      head_dim: size of a head, `F = 2 f`; drafters' heads may differ from the model's.
      overhang: number of positions after a grid for which angles are computed. A draft
        may extend past the grid; its tokens there are never committed.
    """
    if config.rope == "sequence":
        return sequence_angles(
            positions, head_dim, config.rope_base, config.rope_scaling
        )
    table = grid_table(
        config.prefix_length,
        config.grid,
        head_dim,
        config.rope_base,
        overhang,
        config.order,
    )
    return jnp.asarray(table)[positions]


def rotate(
    x: Float[Array, "R T H F"], angles: Float[Array, "R T f 2"]
) -> Float[Array, "R T H F"]:
    """Rotates each adjacent pair of the last axis, in float32.

    Each channel is multiplied by a cosine, and the other channel of its pair by a
    signed sine. Splitting the pairs and stacking the results instead takes a TPU longer
    than the matrix products of a layer.
    """
    cos, sin = (y[..., None, :] for y in pairwise_cos_sin(angles))
    wide = x.astype(jnp.float32)
    partner = jnp.flip(wide.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)
    return (wide * cos + partner * sin).astype(x.dtype)


def pairwise_cos_sin(
    angles: Float[Array, "... f 2"],
) -> tuple[Float[Array, "... F"], Float[Array, "... F"]]:
    """Factors of a channel and of the other channel of its pair; `F = 2 f`."""
    cos, sin = angles[..., 0], angles[..., 1]
    signed = jnp.stack([-sin, sin], axis=-1)
    return jnp.repeat(cos, 2, axis=-1), signed.reshape(*sin.shape[:-1], -1)


def split_and_rotate(
    fused: Float[Array, "R T g K F"], angles: Float[Array, "R T f 2"]
) -> tuple[Float[Array, "R T H F"], Float[Array, "R K T F"], Float[Array, "R K T F"]]:
    """Rotated queries, rotated keys and values of a fused projection.

    Args:
      fused: output of the projection: for each key/value head, its `g - 2 = H / K`
        queries, its key and its value.
      angles: cosines and sines of the tokens' positions, `f = F / 2`.
    """
    q = einops.rearrange(fused[:, :, :-2], "r t g k f -> r t (k g) f")
    k, v = rotate(fused[:, :, -2], angles), fused[:, :, -1]
    k, v = (einops.rearrange(x, "r t k f -> r k t f") for x in (k, v))
    return rotate(q, angles), k, v
