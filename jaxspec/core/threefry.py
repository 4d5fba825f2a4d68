"""Random words that are a pure function of a key and a counter, element by element."""

import jax.numpy as jnp

from jaxspec.typing import Array, Int

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(
    key: tuple[Array, Array], counter: tuple[Array, Array]
) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011): two words a counter.

    The generator behind `jax.random`, which yields the same words, as plain arithmetic:
    so that it fuses with what uses it, and that an array of words can be split over
    devices along any axis without a change of its values.

    Args:
      key: two uint32 arrays.
      counter: two uint32 arrays, which broadcast with the key's.
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << turn) | (y >> (32 - turn))
            y = x ^ y
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y
