"""Threefry-2x32: random words as an elementwise function of key and counter."""

import jax.numpy as jnp

from jaxspec.typing import Array, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(
    key: tuple[Array, Array], counter: tuple[Array, Array]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011): two words per counter.

    The words are those of `jax.random`. As plain arithmetic, the function fuses with
    its consumers, and arrays of words can be sharded along any axis without a change of
    their values.

    Args:
      key: two uint32 arrays, the words of the key.
      counter: two uint32 arrays, which broadcast with those of the key.
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << rotation) | (y >> (32 - rotation))
            y = x ^ y
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y
