"""The model that is sped up, as the engine sees it: a record of functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxspec.core.kv_cache import KVCache, Layers, gather_path
from jaxspec.typing import Array, Float


class Prefill(NamedTuple):
    """What reading the prompt yields.

    Attributes:
      logits: float32 [R, V], scores of the first generated token.
      features: [R, P, E], tapped hidden states of the prompt.
      cache: holds the prompt in its first slots; its lengths say how long each row's
        is. Positions of one row may differ from another's.
    """

    logits: Float[Array, "R V"]
    features: Float[Array, "R P E"]
    cache: KVCache


@dataclass(frozen=True)
class Target:
    """Pure functions of a target model; parameters always come first.

    Functions at the top of a module, or frozen dataclasses with `__call__`, make
    targets (and engines) that can be pickled and are equal to their copies.

    Attributes:
      vocab_size: `V`.
      branches: 2 with classifier-free guidance (rows are conditional first, then
        unconditional), else 1.
      prefill: `(params, prompt, extra) -> Prefill`. `prompt` is any tree of arrays
        with `B` rows; the branches are made here. The cache has the
        prompt's slots and `extra` more.
      forward: `(params, cache, tokens [R, T], positions [R, T], mask [R, T, S]) ->
        (logits [R, T, V], features [R, T, E], cache)`. Writes the tokens' keys and
        values at slots `cache.lengths ..`, leaves the lengths as they are, and lets
        position `t` of row `r` attend to the slots of `mask[r, t]`.
      rescore: `(params, prompt, tokens [B, T], index [B]) -> logits [R, V]`, scores of
        generated token `index` given the `index` tokens before it, by one forward of
        fixed shape without a cache; later tokens must not matter. None if the model
        has none: then near-ties are decided by the rounding of the moment.
      extra_tokens: ids from `V` on that the model reads and never emits, such as masks;
        only a drafter's extra rows may hold them.
      for_drafter: `(drafter) -> Target`, the same target with the features that a
        drafter reads (`drafter.feature_layers`). None if the features are always the
        same.
      move: `(layers, lengths [R], nodes, path [R, A]) -> layers`, commits an accepted
        path, see `core.kv_cache.gather_path`.
    """

    vocab_size: int
    branches: int
    prefill: Callable[[Any, Any, int], Prefill]
    forward: Callable[..., tuple[Array, Array, KVCache]]
    rescore: Callable[[Any, Any, Array, Array], Array] | None = None
    move: Callable[..., Layers] = gather_path
    extra_tokens: int = 0
    for_drafter: Callable[[Any], "Target"] | None = None
