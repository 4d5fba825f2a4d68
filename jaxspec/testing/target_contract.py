"""Checks of a target of one's own against the contract of `Target`.

A broken target decodes without an error, and its tokens are wrong. The checks compare
passes that must agree: token by token, in one pass, as a tree, after a move of a path.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.kv_cache import KVCache, causal_mask, gather_path, tree_mask
from jaxspec.errors import ConfigError
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.topology import static_topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Int, Params, PyTree

STEPS = 5
# Node 3 is a child of node 2, whose sibling 1 must have no influence.
TREE = Tree.from_paths([(0,), (1,), (1, 0)])


def check_target(
    target: Target,
    params: Params,
    prompt: PyTree,
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> None:
    """Checks that the functions of a target agree with each other.

    Args:
      target: the target.
      params: its parameters, in float32 for a sharp check.
      prompt: prompts of at least two sequences, as `Engine.generate` takes them; they
        should differ.
      seed: seed of the tokens that are read.
      tolerance: largest difference of logits and features, relative to the largest
        logit or feature.

    Raises:
      ConfigError: the target breaks its contract; the message has one sentence for each
        part that is broken.
    """
    faults = list(target_faults(target, params, prompt, seed=seed, tolerance=tolerance))
    if faults:
        raise ConfigError("the target breaks its contract:\n- " + "\n- ".join(faults))


def target_faults(
    target: Target,
    params: Params,
    prompt: PyTree,
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> Iterator[str]:
    """Yields one sentence for each broken part; see `check_target`."""
    batch = jax.tree.leaves(prompt)[0].shape[0]
    key = jax.random.key(seed)
    tokens = jax.random.randint(key, (batch, STEPS), 0, target.vocab_size, jnp.int32)
    checks = _Checks(target, params, prompt, tokens, tolerance)
    faults = list(checks.structure())
    yield from faults
    if faults:  # the other checks would fail with errors of shapes
        return
    faults = list(checks.writes())
    yield from faults
    if not faults:
        yield from checks.one_pass()
        yield from checks.free_slots()
        yield from checks.tree()
    yield from checks.prompts()
    yield from checks.batch()
    yield from checks.branches()
    yield from checks.rescore()


@dataclass(frozen=True)
class _Checks:
    target: Target
    params: Params
    prompt: PyTree
    tokens: Int[Array, "B T"]
    tolerance: float

    @property
    def rows(self) -> Int[Array, "R T"]:
        """The tokens of all branches."""
        return jnp.concatenate([self.tokens] * self.target.branches)

    def prefill(self, prompt: PyTree = None, extra: int = 2 * STEPS + TREE.size):
        prompt = self.prompt if prompt is None else prompt
        return self.target.prefill(self.params, prompt, extra)

    def forward(self, cache, tokens, offsets=None, mask=None):
        count = tokens.shape[1]
        offsets = jnp.arange(count) if offsets is None else jnp.asarray(offsets)
        mask = causal_mask(cache, count) if mask is None else mask
        positions = cache.lengths[:, None] + offsets[None]
        return self.target.forward(self.params, cache, tokens, positions, mask)

    def stepwise(self, tokens, prompt: PyTree = None):
        """Logits [R, T, V], features and cache of a pass for each token."""
        cache, logits, features = self.prefill(prompt).cache, [], []
        for t in range(tokens.shape[1]):
            out, h, cache = self.forward(cache, tokens[:, t : t + 1])
            cache = replace(cache, lengths=cache.lengths + 1)
            logits.append(out)
            features.append(h)
        return jnp.concatenate(logits, 1), jnp.concatenate(features, 1), cache

    def differ(self, x: Any, y: Any) -> bool:
        actual, expected = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-6)
        error = np.abs(actual - expected).max(initial=0.0)
        return not error <= self.tolerance * scale  # also for NaN

    def structure(self) -> Iterator[str]:
        target, rows = self.target, len(self.rows)
        logits, features, cache = self.prefill()
        if logits.shape != (rows, target.vocab_size) or logits.dtype != jnp.float32:
            yield (
                f"prefill returns logits {logits.dtype}{list(logits.shape)}; return "
                f"float32{[rows, target.vocab_size]}: {target.branches} branches x "
                f"{len(self.tokens)} sequences"
            )
        if features.ndim != 3 or len(features) != rows:
            yield (
                f"prefill returns features {list(features.shape)}; return [{rows}, "
                "positions of the prompt, width]"
            )
        if not isinstance(cache, KVCache):
            yield f"prefill returns a {type(cache).__name__}; return a core.KVCache"
            return
        if cache.lengths.shape != (rows,) or cache.visible.shape[:1] != (rows,):
            yield (
                f"the cache has lengths {list(cache.lengths.shape)} and visible "
                f"{list(cache.visible.shape)}; both need {rows} entries on the first "
                "axis"
            )
            return
        free = cache.capacity - int(cache.lengths.max())
        if free < 2 * STEPS + TREE.size:
            yield (
                f"prefill was asked for {2 * STEPS + TREE.size} free slots, the cache "
                f"has {free} (visible.shape[1] less lengths)"
            )
        wrong = {
            tuple(x.shape)
            for x in jax.tree.leaves(cache.layers)
            if x.ndim < 3 or x.shape[0] != rows
        }
        if wrong:
            yield (
                f"layers of the cache have shapes {sorted(wrong)}; the first axis "
                f"needs {rows} entries, branch after branch"
            )
            return
        custom = self.target.move is not gather_path
        shapes = {tuple(x.shape) for x in jax.tree.leaves(cache.layers)}
        if not custom and any(len(s) != 4 or s[2] != cache.capacity for s in shapes):
            yield (
                f"layers of the cache have shapes {sorted(shapes)}, but the default "
                f"`move` expects [R, K, S, F] with S={cache.capacity} on axis 2; "
                "transpose them, or give Target a `move` for your layout"
            )
            return
        out, h, after = self.forward(cache, self.rows)
        expected = (rows, STEPS, target.vocab_size)
        if out.shape != expected or out.dtype != jnp.float32:
            yield (
                f"forward returns logits {out.dtype}{list(out.shape)} for tokens "
                f"{[rows, STEPS]}; return float32{list(expected)}"
            )
        if h.shape != (rows, STEPS, features.shape[-1]):
            yield (
                f"forward returns features {list(h.shape)}; return "
                f"{[rows, STEPS, features.shape[-1]]}, of the layers that prefill takes"
            )
        if (np.asarray(after.lengths) != np.asarray(cache.lengths)).any():
            yield (
                "forward changes `cache.lengths`; leave them: the engine adds the "
                "tokens that are accepted"
            )

    def writes(self) -> Iterator[str]:
        """Slots that a pass changes are those from `lengths` on."""
        cache = self.prefill().cache
        after = self.forward(cache, self.rows[:, :2])[2]
        lengths, capacity = np.asarray(cache.lengths), cache.capacity
        for x, y in zip(
            jax.tree.leaves(cache.layers), jax.tree.leaves(after.layers), strict=True
        ):
            axes = [a for a in range(1, x.ndim) if x.shape[a] == capacity]
            changed = np.asarray(x) != np.asarray(y)
            for axis in axes[:1] if self.target.move is not gather_path else (2,):
                others = tuple(a for a in range(1, x.ndim) if a != axis)
                slots = changed.any(axis=others)  # [R, S]
                wrong = [
                    (r, np.flatnonzero(slots[r]), lengths[r])
                    for r in range(len(slots))
                    if not np.isin(np.flatnonzero(slots[r]), lengths[r] + [0, 1]).all()
                    or not slots[r].any()
                ]
                if wrong:
                    r, found, start = wrong[0]
                    yield (
                        f"forward writes two tokens of sequence {r} to slots "
                        f"{found.tolist()}; write them to the slots from "
                        f"cache.lengths={start} on: {[int(start), int(start) + 1]}"
                    )
                    return

    def one_pass(self) -> Iterator[str]:
        """Several tokens in one pass equal the same tokens one by one."""
        cache = self.prefill().cache
        logits, features, _ = self.stepwise(self.rows)
        out, h, _ = self.forward(cache, self.rows)
        everything = tree_mask(cache, jnp.ones((STEPS, STEPS), bool))
        unmasked = self.forward(cache, self.rows, mask=everything)[0]
        ignored = not self.differ(unmasked, out)
        if ignored:
            yield (
                "forward ignores its mask: with a mask that shows every query all "
                "others, and with a causal one, the logits are the same"
            )
        if self.differ(out, logits) and not ignored:
            stuck = self.forward(cache, self.rows, offsets=[0] * STEPS)[0]
            hint = "cached keys, masks or positions differ between passes"
            if not self.differ(stuck, out):
                hint = "forward does not use `positions`"
            yield (
                f"{STEPS} tokens in one pass with a causal mask have other logits than "
                f"one after another: {hint}"
            )
        elif self.differ(h, features):
            yield "features of one pass differ from those of one pass a token"

    def free_slots(self) -> Iterator[str]:
        """Numbers in slots that the mask hides have no influence."""
        cache = self.stepwise(self.rows[:, :2])[2]
        hidden = jnp.arange(cache.capacity)[None] >= cache.lengths[:, None] + 1

        def fill(x):
            for axis in range(1, x.ndim):
                if x.shape[axis] == cache.capacity:
                    shape = [1] * x.ndim
                    shape[0], shape[axis] = hidden.shape
                    return jnp.where(hidden.reshape(shape), jnp.asarray(37, x.dtype), x)
            return x

        spoiled = replace(cache, layers=jax.tree.map(fill, cache.layers))
        token = self.rows[:, 2:3]
        if self.differ(self.forward(spoiled, token)[0], self.forward(cache, token)[0]):
            yield (
                "numbers in slots that the mask hides change the logits; slots behind "
                "the committed ones hold old drafts, so attend by the mask alone"
            )

    def tree(self) -> Iterator[str]:
        """A path of a tree equals the same tokens read without the tree."""
        shape = static_topology(TREE)
        nodes = self.rows[:, : TREE.size]
        path = np.array([0, 2, 3])
        cache = self.prefill().cache
        mask = tree_mask(cache, shape.ancestors[0])
        out, _, after = self.forward(cache, nodes, shape.depths[0], mask)
        next_token = self.rows[:, -1:]
        line = jnp.concatenate([nodes[:, path], next_token], axis=1)
        logits, _, _ = self.stepwise(line)
        if self.differ(out[:, path], logits[:, :3]):
            yield (
                "nodes of a tree have other logits than the same path alone: a query "
                "must attend to its ancestors only (`mask`), at the position of its "
                "depth (`positions`), not of its slot"
            )
            return
        indices = jnp.broadcast_to(jnp.asarray(path), (len(nodes), 3))
        layers = self.target.move(after.layers, cache.lengths, TREE.size, indices)
        moved = replace(cache, layers=layers, lengths=cache.lengths + 3)
        if self.differ(self.forward(moved, next_token)[0], logits[:, 3:]):
            yield (
                "after `move` of an accepted path the next token has other logits: "
                "slots lengths + path must be moved to the slots from lengths on"
            )

    def prompts(self) -> Iterator[str]:
        """The last token of a prompt may as well be read by `forward`."""
        x = self.prompt
        bare = isinstance(x, jax.Array | np.ndarray) and np.ndim(x) == 2
        if not bare or self.target.branches != 1 or x.shape[1] < 2 or (x < 0).any():
            return
        logits, features, _ = self.prefill()
        cache = self.prefill(jnp.asarray(x)[:, :-1]).cache
        out, h, _ = self.forward(cache, jnp.asarray(x)[:, -1:])
        if self.differ(out[:, 0], logits):
            back = self.forward(cache, jnp.asarray(x)[:, -1:], offsets=[-1])[0]
            ahead = self.forward(cache, jnp.asarray(x)[:, -1:], offsets=[1])[0]
            hint = ""
            if not self.differ(back[:, 0], logits):
                hint = "; positions of forward are one too large for it"
            elif not self.differ(ahead[:, 0], logits):
                hint = "; positions of forward are one too small for it"
            yield (
                "the last token of a prompt has other logits in forward (at position "
                f"cache.lengths) than in prefill{hint}"
            )
        elif self.differ(h[:, 0], features[:, -1]):
            yield (
                "features of the last prompt token differ between prefill and forward: "
                "both must take the outputs of the same layers"
            )

    def batch(self) -> Iterator[str]:
        """Sequences have no influence on each other."""
        count = len(self.tokens)
        if count < 2:
            return
        order = np.roll(np.arange(count), 1)
        rows = np.concatenate([order + b * count for b in range(self.target.branches)])
        prompt = jax.tree.map(lambda x: jnp.asarray(x)[order], self.prompt)
        logits = self.stepwise(self.rows[:, :2])[0]
        rolled = self.stepwise(self.rows[rows][:, :2], prompt)[0]
        if self.differ(rolled, logits[rows]):
            yield "logits of a sequence depend on its place in the batch"

    def branches(self) -> Iterator[str]:
        """The conditional branch comes first."""
        logits = np.asarray(self.prefill().logits)
        if self.target.branches != 2:
            return
        cond, null = np.split(logits, 2)
        if not self.differ(cond, np.broadcast_to(cond[:1], cond.shape)) and self.differ(
            null, np.broadcast_to(null[:1], null.shape)
        ):
            yield (
                "prompts change the logits of the second branch and not of the first; "
                "the conditional branch comes first"
            )

    def rescore(self) -> Iterator[str]:
        """`rescore` equals cached passes, and later tokens have no influence."""
        rescore = self.target.rescore
        if rescore is None:
            return
        batch = len(self.tokens)
        first = self.prefill().logits[:, None]
        logits = jnp.concatenate([first, self.stepwise(self.rows)[0]], axis=1)

        def at(index, tokens=self.tokens):
            index = jnp.full(batch, index, jnp.int32)
            return rescore(self.params, self.prompt, tokens, index)

        for i in range(1, STEPS):
            out = at(i)
            if not self.differ(out, logits[:, i]):
                continue
            near = {
                d: not self.differ(out, logits[:, i + d])
                for d in (-1, 1)
                if 0 <= i + d < logits.shape[1]
            }
            off = [f"those of token {i + d}" for d, same in near.items() if same]
            yield (
                f"rescore of token {i} (given the {i} tokens before it) differs from "
                f"the cached pass{': it returns ' + off[0] if off else ''}"
            )
            return
        later = self.tokens.at[:, 2:].set(
            (self.tokens[:, 2:] + 1) % self.target.vocab_size
        )
        if self.differ(at(2, later), at(2)):
            yield "rescore of a token depends on that token or later ones"
