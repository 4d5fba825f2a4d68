"""Every draft that could be drawn, with its chance: small vocabularies, listed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.grow import grow
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext, Selection
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.tree import Tree
from jaxspec.testing.table_drafter import table_step

_MOST_DRAFTS = 300_000


@dataclass(frozen=True)
class Conditionals:
    """A law of sequences: what follows each prefix.

    Attributes:
      tables: `tables[d]` is float64 `[V] * d + [V]`, the law of the token after each
        prefix of `d` tokens.
    """

    tables: tuple[np.ndarray, ...]

    @property
    def vocab_size(self) -> int:
        """`V`."""
        return self.tables[0].shape[-1]

    @classmethod
    def random(
        cls, vocab_size: int, length: int, seed: int, *, zeros: float = 0.0
    ) -> "Conditionals":
        """Random laws of `length` tokens; each probability is 0 with chance `zeros`."""
        rng = np.random.default_rng(seed)
        tables = []
        for d in range(length):
            x = rng.dirichlet(np.ones(vocab_size), size=(vocab_size,) * d)
            x = x * (rng.random(x.shape) >= zeros)
            empty = x.sum(-1) == 0
            x[empty] = np.eye(vocab_size)[rng.integers(vocab_size, size=empty.sum())]
            tables.append(x / x.sum(-1, keepdims=True))
        return cls(tuple(tables))

    @classmethod
    def markov(cls, steps: np.ndarray, root: int = 0) -> "Conditionals":
        """Laws that look at the last token alone: `steps [length, V, V]`."""
        vocab_size, tables = steps.shape[-1], [steps[0][root]]
        for d in range(1, len(steps)):
            shape = (vocab_size,) * (d + 1)
            tables.append(np.broadcast_to(steps[d], shape))
        return cls(tuple(tables))

    @classmethod
    def constant(cls, law: Sequence[float], length: int) -> "Conditionals":
        """The same law after every prefix."""
        law_array = np.asarray(law, np.float64)
        size = len(law_array)
        return cls(
            tuple(np.broadcast_to(law_array, (size,) * (d + 1)) for d in range(length))
        )

    def after(self, prefixes: np.ndarray) -> np.ndarray:
        """Laws `[B, V]` after `prefixes [B, d]`."""
        table = self.tables[prefixes.shape[1]]
        return (
            table[tuple(prefixes.T)]
            if prefixes.shape[1]
            else np.broadcast_to(table, (len(prefixes), self.vocab_size))
        )

    def joint(self) -> np.ndarray:
        """The law of whole sequences, `[V] * length`."""
        law = np.ones(())
        for table in self.tables:
            law = law[..., None] * table
        return law


@dataclass(frozen=True)
class Drafts:
    """Drafts as rows, and how likely each is.

    Attributes:
      draft: rows are drafts.
      chance: float64 [B]; sums to 1. Rows of chance 0 mean nothing.
      tree: their shape, or its bound.
      exact: whether every possible draft is there, or rows are independent samples.
    """

    draft: Draft
    chance: np.ndarray
    tree: Tree | DynamicTree
    exact: bool


def all_drafts(q: Conditionals, tree: Tree, selection: Selection) -> Drafts:
    """Every draft that a drafter with law `q` can make, with its chance.

    "coupled" candidates are listed as "without_replacement": that is their law when
    the noise is not known.

    Raises:
      ConfigError: there are too many.
    """
    vocab_size = q.vocab_size
    if vocab_size ** (tree.size - 1) > _MOST_DRAFTS:
        raise ConfigError(
            f"{tree.size - 1} nodes over {vocab_size} tokens are too many drafts to "
            "list; use a smaller tree or vocabulary"
        )
    rows = np.array(list(product(range(vocab_size), repeat=tree.size - 1)), np.int32)
    rows = rows.reshape(-1, tree.size - 1)
    tokens = np.pad(rows, ((0, 0), (1, 0)))
    laws = {n: _after_node(q, tokens, tree, n) for n in tree.internal}
    chance, valid = np.ones(len(tokens)), np.ones(tokens.shape, bool)
    for slot, node in enumerate(tree.internal):
        children = tree.children[slot][tree.children[slot] >= 0]
        drawn = _chance_of_children(laws[node], tokens[:, children], selection)
        chance, valid[:, children] = chance * drawn[0], drawn[1]
    log_q = np.stack([laws[n] for n in tree.internal], axis=1) if laws else None
    with np.errstate(divide="ignore"):
        log_q = None if log_q is None else jnp.asarray(np.log(log_q))
    draft = Draft(
        jnp.asarray(tokens), jnp.asarray(valid), log_q=log_q, selection=selection
    )
    return Drafts(draft, chance, tree, True)


def _after_node(law: Conditionals, tokens: np.ndarray, tree: Tree, node: int):
    return law.after(tokens[:, tree.paths[node][1 : tree.depths[node] + 1]])


def _chance_of_children(law, children, selection) -> tuple[np.ndarray, np.ndarray]:
    """Chance of each row's children, in order, given its law `[B, V]`; which exist.

    Where no token is left to draw, the child is not valid and holds token 0.
    """
    rows, count = children.shape
    chance, left = np.ones(rows), law.copy()
    valid, row = np.ones(children.shape, bool), np.arange(rows)
    for r in range(count):
        x = children[:, r]
        if selection == "with_replacement":
            chance = chance * law[row, x]
            continue
        total = left.sum(-1)
        drawn = np.where(total > 0, left[row, x] / np.where(total > 0, total, 1), 0)
        if selection == "top" or (selection == "top_and_sample" and r < count - 1):
            drawn = (left.argmax(-1) == x) & (left[row, x] > 0)
        valid[:, r] = total > 0
        chance = chance * np.where(total > 0, drawn, x == 0)
        left[row, x] = 0
    return chance, valid


def sampled_drafts(
    steps: np.ndarray,
    tree: Tree | DynamicTree,
    selection: Selection,
    rows: int,
    seed: int = 0,
) -> Drafts:
    """Drafts as the library draws them, from a drafter that looks at the last token.

    Args:
      steps: probabilities `[depth, V, V]`; see `Conditionals.markov`.
      tree: what is grown; its kind decides how.
      selection: how children are chosen.
      rows: independent drafts.
      seed: of the draws.
    """
    zeros = jnp.zeros(rows, jnp.int32)
    log_steps = jnp.log(jnp.asarray(steps))
    vocab_size = steps.shape[-1]
    ctx = DraftContext(
        root=zeros,
        tokens=zeros[:, None],
        position=zeros,
        index=zeros,
        noise=jnp.zeros((rows, tree.depth + 1, vocab_size), jnp.float32),
        keys=batch_keys(seed, rows),
        sampling=make_sampling(rows),
        tree=tree,
        selection=selection,
    )

    draft = jax.jit(lambda ctx: grow(ctx, table_step(log_steps))[0])(ctx)
    return Drafts(draft, np.full(rows, 1 / rows), tree, False)
