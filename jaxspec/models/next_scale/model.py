"""Next-scale transformer: predicts whole token maps, coarse to fine (VAR)."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxspec.config import NextScaleConfig
from jaxspec.core.kv_cache import Layers
from jaxspec.models.classes import mixed_classes
from jaxspec.models.next_scale.layers import Block, Head, modulated
from jaxspec.models.next_scale.local import LocalAttention
from jaxspec.models.next_scale.skipping import TokenSkipping
from jaxspec.nn.layers import (
    INIT,
    add_bias,
    linear,
)
from jaxspec.typing import Array, Bool, Float, Params, PyTree


class _Network(nn.Module):
    """Network from features of earlier scales to logits; see `NextScale`."""

    config: NextScaleConfig

    def setup(self):
        c = self.config
        self.classes = nn.Embed(c.classes + 1, c.width, embedding_init=INIT)
        self.start = self.param("start", INIT, (c.width,))
        self.positions = self.param("positions", INIT, (c.sequence_length, c.width))
        self.levels = self.param("levels", INIT, (len(c.scales), c.width))
        self.vectors_in = linear(c.width, "vectors_in", bias=True)
        if c.shared_modulation:
            self.modulation = linear(6 * c.width, "modulation", bias=True)
        self.blocks = [Block(c, name=f"blocks_{i}") for i in range(c.layers)]
        self.head_modulation = linear(2 * c.width, "head_modulation", bias=True)
        self.logits = Head(c.vocab_size)
        if c.mask_layers:
            self.mask = self.param("mask", INIT, (c.width,))
            self.mask_blocks = [
                Block(c, name=f"mask_blocks_{i}") for i in range(c.mask_layers)
            ]
            self.mask_modulation = linear(2 * c.width, "mask_modulation", bias=True)
            self.mask_logits = Head(c.vocab_size)

    def condition(self, classes, null):
        """Class embeddings [R, D], of the null class where `null`."""
        return mixed_classes(self.classes.embedding, classes, null, self.config.classes)

    def __call__(
        self,
        vectors,
        condition,
        cache,
        first,
        last,
        layers,
        skipping=None,
        outputs=(),
        local=None,
    ):
        """Logits [R, T, V] of the scales from `first` to before `last`, and cache.

        With `skipping` also what the layers add at the last complete map, else nothing;
        `outputs` is that of the passes before.
        """
        c = self.config
        x = self.vectors_in(vectors.astype(condition.dtype))
        if first == 0:
            begin = add_bias(condition, self.start)[:, None].astype(x.dtype)
            x = jnp.concatenate([begin, x[:, 1:]], axis=1)
        x, start, mask = self._placed(x, first, last, not cache)
        modulation = self._modulation(condition)
        nearby = None
        if local is not None and last - first == 1:
            nearby = local.nearby(c.scales, first)
        new: list[Any] = list(cache or ())
        new_outputs = list(outputs)
        for i in range(c.layers) if layers is None else layers:
            own, count, layer_outputs = cache[i] if cache else None, None, None
            if skipping is not None:
                mask = skipping.mask(c.scales, first, i)
                count = skipping.count(c.scales, first, i)
                count = None if count == x.shape[1] else count
                layer_outputs = outputs[i]
            x, own, added = self.blocks[i](
                x, modulation, mask, own, start, count, layer_outputs, nearby
            )
            if cache:
                new[i] = own
            if skipping is not None and first == skipping.complete(c.scales):
                new_outputs[i] = added
        head = self.head_modulation(nn.silu(condition))
        logits = self.logits(self._before_head(x, head))
        return logits, tuple(new), tuple(new_outputs)

    def refine(self, vectors, added, masked, condition, first, last):
        """Logits [R, T, V] of maps of which some tokens are masked."""
        c = self.config
        known = jnp.where(masked[..., None], 0.0, added)
        x = self.vectors_in((vectors + known).astype(condition.dtype))
        mask = jnp.where(masked[..., None], self.mask.reshape(1, 1, -1), 0)
        x = x + mask.astype(x.dtype)
        x, _, mask = self._placed(x, first, last, True)
        modulation = self._modulation(condition)
        for block in [*self.blocks[: c.layers - c.mask_layers], *self.mask_blocks]:
            x, *_ = block(x, modulation, mask, None, 0)
        head = self.mask_modulation(nn.silu(condition))
        return self.mask_logits(self._before_head(x, head))

    def _placed(self, x, first, last, alone):
        """`x` with its positions, the first of them, and the mask [T, S] of a pass."""
        c, sides = self.config, np.array(self.config.scales)
        level, ends = np.repeat(np.arange(len(sides)), sides**2), np.cumsum(sides**2)
        start, end = int(ends[first] - sides[first] ** 2), int(ends[last - 1])
        place = self.positions[start:end] + self.levels[level[start:end]]
        x, mask = add_bias(x, place.astype(x.dtype)), None
        if last - first > 1:  # one scale sees itself and, in VAR, all before it
            queries, keys = level[start:end, None], level[None, :end]
            seen = queries == keys if c.attends == "own" else queries >= keys
            mask = jnp.asarray(seen[:, start:] if alone else seen)
        return x, start, mask

    def _modulation(self, condition):
        """Input of the shifts, scales and gates of each block."""
        modulation = nn.silu(condition)
        shared = self.config.shared_modulation
        return self.modulation(modulation) if shared else modulation

    def _before_head(self, x, modulation):
        scale, shift = jnp.split(modulation, 2, axis=-1)
        return modulated(x, scale, shift, self.config.norm_eps)


@dataclass(frozen=True)
class NextScale:
    """Pure functions of a next-scale transformer; static and hashable.

    The loop over scales is elsewhere, see `jaxspec.next_scale`. Sources: VAR
    (arXiv 2404.02905); HMAR (arXiv 2506.04421), whose tokens attend to their own map
    alone and whose maps are refined.

    Attributes:
      config: sizes of the network.
    """

    config: NextScaleConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters, with an output layer of zeros; consumes `key`."""
        c = self.config
        vectors = jnp.zeros((1, c.sequence_length, c.code_dim), jnp.float32)
        condition = jnp.zeros((1, c.width), jnp.float32)

        def run(network, vectors, condition):
            ids = jnp.zeros(1, jnp.int32)
            network.condition(ids, ids > 0)
            if c.mask_layers:
                masked = jnp.zeros(vectors.shape[:2], bool)
                count = len(c.scales)
                network.refine(vectors, vectors, masked, condition, 0, count)
            return network(vectors, condition, None, 0, len(c.scales), None)

        return nn.init(run, _Network(c))(key, vectors, condition)["params"]

    def init_cache(self, rows: int, dtype) -> Layers:
        """Empty keys and values [R, H, S, F] of each layer; none if none are read."""
        c = self.config
        if c.attends == "own":
            return ()
        shape = (rows, c.heads, c.sequence_length, c.head_size)
        return tuple(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(c.layers)
        )

    def condition(
        self, params: Params, classes: PyTree, null: Bool[Array, "R"]
    ) -> Float[Array, "R D"]:
        """Embeddings of classes, int32 [R], or of weights of them, [R, classes].

        Args:
          params: parameters.
          classes: class ids, or weights by which embeddings are mixed.
          null: rows that get the null class instead.
        """
        network = _Network(self.config).bind({"params": params})
        return network.condition(classes, null)

    def score(
        self,
        params: Params,
        classes: PyTree,
        vectors: Float[Array, "B T C"],
        *,
        null: Bool[Array, "B"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of all tokens in one pass, without a cache, float32.

        Args:
          params: parameters.
          classes: class ids int32 [B], or weights [B, classes] of the embeddings.
          vectors: inputs of all scales, see `Scales.inputs`.
          null: sequences that get the null class.
        """
        null = jnp.zeros(len(vectors), bool) if null is None else null
        condition = self.condition(params, classes, null)
        network = _Network(self.config).bind({"params": params})
        return network(vectors, condition, None, 0, len(self.config.scales), None)[0]

    def forward(
        self,
        params: Params,
        condition: Float[Array, "R D"],
        cache: Layers,
        vectors: Float[Array, "R T C"],
        first: int,
        last: int,
        layers: tuple[int, ...] | None = None,
        local: LocalAttention | None = None,
    ) -> tuple[Float[Array, "R T V"], Layers]:
        """Logits of some scales, whose keys and values are written to the cache.

        A token attends to all tokens of its own scale and, unless the model attends to
        its own alone, of earlier ones, which the cache holds or the pass reads.

        Args:
          params: parameters.
          condition: embeddings of the classes, see `condition`.
          cache: keys and values of all scales before `first`, see `init_cache`.
          vectors: inputs of the scales from `first` to before `last`. That of the first
            scale is not read: its input is the condition.
          first: first scale of the pass; static.
          last: scale after the last of the pass; static.
          layers: layers that are used, in ascending order (VARiant, arXiv 2511.16546);
            None for all. Static.
          local: tokens that late maps attend to; a pass over several maps attends to
            all. Static. Lossy.
        """
        network = _Network(self.config).bind({"params": params})
        out: tuple[Array, Any, Any] = network(
            vectors, condition, cache, first, last, layers, local=local
        )
        return out[:2]

    def init_outputs(self, rows: int, dtype, skipping: TokenSkipping) -> Layers:
        """Zeros for what both halves of each layer add at the last complete map."""
        c = self.config
        shape = (rows, c.scales[skipping.complete(c.scales)] ** 2, c.width)
        return tuple(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(c.layers)
        )

    def forward_chosen(
        self,
        params: Params,
        condition: Float[Array, "R D"],
        cache: Layers,
        outputs: Layers,
        vectors: Float[Array, "R T C"],
        scale: int,
        layers: tuple[int, ...] | None,
        skipping: TokenSkipping,
    ) -> tuple[Float[Array, "R T V"], Layers, Layers]:
        """Logits of one scale, of whose tokens layers may leave out some. Lossy.

        Args:
          params: parameters.
          condition: embeddings of the classes, see `condition`.
          cache: keys and values of all scales before.
          outputs: additions of the layers at the last complete map, see `init_outputs`.
          vectors: inputs of the scale.
          scale: the scale; static.
          layers: layers that are used, see `forward`; static.
          skipping: tokens that are left out; static.

        Returns:
          Logits float32 of all tokens of the map, the cache, and `outputs` after it.
        """
        network = _Network(self.config).bind({"params": params})
        new: tuple[Array, Any, Any] = network(
            vectors, condition, cache, scale, scale + 1, layers, skipping, outputs
        )
        return new

    def refine(
        self,
        params: Params,
        condition: Float[Array, "R D"],
        vectors: Float[Array, "R T C"],
        added: Float[Array, "R T C"],
        masked: Bool[Array, "R T"],
        first: int,
        last: int,
    ) -> Float[Array, "R T V"]:
        """Logits of maps of which some tokens are masked, float32, without a cache.

        Source: HMAR (arXiv 2506.04421). Only for models with `mask_layers`.

        Args:
          params: parameters.
          condition: embeddings of the classes, see `condition`.
          vectors: inputs of the scales from `first` to before `last`.
          added: features that their maps add, each reduced to its map.
          masked: tokens whose `added` is not read.
          first: first scale of the pass, not the scale of one token; static.
          last: scale after the last of the pass; static.
        """
        network = _Network(self.config).bind({"params": params})
        return network.refine(vectors, added, masked, condition, first, last)
