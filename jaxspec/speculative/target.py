"""Target model: the functions that the engine calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxspec.core.kv_cache import KVCache, Layers, gather_path
from jaxspec.typing import Array, Float


class Prefill(NamedTuple):
    """Result of reading the prompts.

    Attributes:
      logits: float32 [R, V], logits of the first generated token.
      features: float [R, P, E], hidden states of the prompts, for drafters.
      cache: cache with the prompts in its first slots. Its lengths are those of the
        prompts, which may differ between sequences.
    """

    logits: Float[Array, "R V"]
    features: Float[Array, "R P E"]
    cache: KVCache


@dataclass(frozen=True)
class Target:
    """Pure functions of a target model; parameters are the first argument.

    With functions at the top level of a module, or frozen dataclasses with `__call__`,
    targets and engines can be pickled and are equal to their copies.

    Attributes:
      vocab_size: size of the vocabulary, `V`.
      branches: 2 with classifier-free guidance (conditional branch first), else 1.
      prefill: function `(params, prompt, extra) -> Prefill`, which reads the prompts.
        `prompt` is any pytree of arrays with `B` as their first axis; the function
        makes the branches. The cache has `extra` slots more than the prompt.
      forward: function `(params, cache, tokens [R, T], positions [R, T],
        mask [R, T, S]) -> (logits [R, T, V], features [R, T, E], cache)`. Writes keys
        and values of the tokens to the slots from `cache.lengths` on, without a change
        of the lengths. Query `t` of sequence `r` attends to the slots in `mask[r, t]`.
      rescore: function `(params, prompt, tokens [B, T], index [B]) -> logits [R, V]`:
        logits of generated token `index` given the tokens before it, by a pass of fixed
        shape without a cache; later tokens must have no influence. None if the model
        has no such pass; near-ties then depend on rounding.
      move: function `(layers, lengths [R], nodes, path [R, A]) -> layers` that moves an
        accepted path in the cache, see `core.kv_cache.gather_path`.
      extra_tokens: number of ids from `V` on that the model reads and does not emit,
        such as masks; only extra queries of a drafter may have them.
      for_drafter: function `(drafter) -> Target` that returns the target with the
        features that a drafter reads (`drafter.feature_layers`). None if the features
        are always the same.
    """

    vocab_size: int
    branches: int
    prefill: Callable[[Any, Any, int], Prefill]
    forward: Callable[..., tuple[Array, Array, KVCache]]
    rescore: Callable[[Any, Any, Array, Array], Array] | None = None
    move: Callable[..., Layers] = gather_path
    extra_tokens: int = 0
    for_drafter: Callable[[Any], "Target"] | None = None
