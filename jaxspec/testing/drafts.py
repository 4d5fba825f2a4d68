"""Enumeration of all drafts over a small vocabulary, with their probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.tree_drafting import grow
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.table_drafter import table_step

_MOST_DRAFTS = 300_000


@dataclass(frozen=True)
class Conditionals:
    """Distribution of sequences, given by the conditional distribution of each token.

    Attributes:
      tables: probabilities of the next token; `tables[d]` is float64 `[V] * (d + 1)`,
        indexed by the `d` tokens before it and by the token.
    """

    tables: tuple[np.ndarray, ...]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, `V`."""
        return self.tables[0].shape[-1]

    @classmethod
    def random(
        cls, vocab_size: int, length: int, seed: int, *, zeros: float = 0.0
    ) -> "Conditionals":
        """Random distributions of `length` tokens.

        Args:
          vocab_size: size of the vocabulary, `V`.
          length: number of tokens.
          seed: seed of the distributions.
          zeros: probability with which each conditional probability is set to 0.
        """
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
        """Distributions that depend on the last token only.

        Args:
          steps: transition probabilities `[length, V, V]`, indexed by position, last
            token and next token.
          root: token before the first.
        """
        vocab_size, tables = steps.shape[-1], [steps[0][root]]
        for d in range(1, len(steps)):
            shape = (vocab_size,) * (d + 1)
            tables.append(np.broadcast_to(steps[d], shape))
        return cls(tuple(tables))

    @classmethod
    def constant(cls, probs: Sequence[float], length: int) -> "Conditionals":
        """The same distribution `probs`, `[V]`, for each of `length` tokens."""
        probs_array = np.asarray(probs, np.float64)
        size = len(probs_array)
        return cls(
            tuple(
                np.broadcast_to(probs_array, (size,) * (d + 1)) for d in range(length)
            )
        )

    def after(self, prefixes: np.ndarray) -> np.ndarray:
        """Probabilities `[B, V]` of the token after prefixes `[B, d]`."""
        table = self.tables[prefixes.shape[1]]
        return (
            table[tuple(prefixes.T)]
            if prefixes.shape[1]
            else np.broadcast_to(table, (len(prefixes), self.vocab_size))
        )

    def joint(self) -> np.ndarray:
        """Probabilities of whole sequences, `[V] * length`."""
        probability = np.ones(())
        for table in self.tables:
            probability = probability[..., None] * table
        return probability


@dataclass(frozen=True)
class Drafts:
    """Batch of drafts with their probabilities.

    Attributes:
      draft: batch of `B` drafts.
      chance: probabilities of the drafts, float64 [B], with sum 1. Drafts with
        probability 0 are to be ignored.
      tree: draft tree, or the bound of a dynamic one.
      exact: True if the batch holds every possible draft, False if it holds independent
        samples.
    """

    draft: Draft
    chance: np.ndarray
    tree: Tree | DynamicTree
    exact: bool


def all_drafts(q: Conditionals, tree: Tree, selection: Selection) -> Drafts:
    """All drafts that a drafter can propose, with their probabilities.

    The selection "coupled" is enumerated as "without_replacement", which is its
    distribution over random noise.

    Args:
      q: distribution of the drafter.
      tree: draft tree.
      selection: selection of the children of a node.

    Raises:
      ConfigError: there are too many drafts.
    """
    vocab_size = q.vocab_size
    if vocab_size ** (tree.size - 1) > _MOST_DRAFTS:
        raise ConfigError(
            f"{tree.size - 1} nodes over {vocab_size} tokens are too many drafts to "
            "list; use a smaller tree or vocabulary"
        )
    tokens = np.array(list(product(range(vocab_size), repeat=tree.size - 1)), np.int32)
    tokens = np.pad(tokens.reshape(-1, tree.size - 1), ((0, 0), (1, 0)))
    node_q = {n: _after_node(q, tokens, tree, n) for n in tree.internal}
    chance, valid = np.ones(len(tokens)), np.ones(tokens.shape, bool)
    for i, node in enumerate(tree.internal):
        children = tree.children[i][tree.children[i] >= 0]
        factor, valid[:, children] = _chance_of_children(
            node_q[node], tokens[:, children], selection
        )
        chance = chance * factor
    log_q = None
    if node_q:
        with np.errstate(divide="ignore"):
            log_q = np.log(np.stack([node_q[n] for n in tree.internal], axis=1))
        log_q = jnp.asarray(log_q)
    draft = Draft(
        jnp.asarray(tokens), jnp.asarray(valid), log_q=log_q, selection=selection
    )
    return Drafts(draft, chance, tree, True)


def _after_node(q: Conditionals, tokens: np.ndarray, tree: Tree, node: int):
    return q.after(tokens[:, tree.paths[node][1 : tree.depths[node] + 1]])


def _chance_of_children(q, children, selection) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the children of a node, and which of them are valid.

    A child for which no token remains is not valid and holds token 0.

    Args:
      q: probabilities of the next token in each draft, `[B, V]`.
      children: tokens of the children in order, `[B, W]`.
      selection: selection of the children.
    """
    batch, count = children.shape
    chance, remaining = np.ones(batch), q.copy()
    valid, index = np.ones(children.shape, bool), np.arange(batch)
    for r in range(count):
        x = children[:, r]
        if selection == "with_replacement":
            chance = chance * q[index, x]
            continue
        total, mass = remaining.sum(-1), remaining[index, x]
        factor = np.where(total > 0, mass / np.where(total > 0, total, 1), 0)
        if selection == "top" or (selection == "top_and_sample" and r < count - 1):
            factor = (remaining.argmax(-1) == x) & (mass > 0)
        valid[:, r] = total > 0
        chance = chance * np.where(total > 0, factor, x == 0)
        remaining[index, x] = 0
    return chance, valid


def sampled_drafts(
    steps: np.ndarray,
    tree: Tree | DynamicTree,
    selection: Selection,
    batch: int,
    seed: int = 0,
) -> Drafts:
    """Drafts sampled by the code of the drafters, from a table of probabilities.

    Args:
      steps: transition probabilities of the drafter, `[depth, V, V]`, see
        `Conditionals.markov`.
      tree: draft tree or dynamic tree.
      selection: selection of the children of a node.
      batch: number of independent drafts.
      seed: seed of the samples.
    """
    zeros = jnp.zeros(batch, jnp.int32)
    log_steps = jnp.log(jnp.asarray(steps))
    vocab_size = steps.shape[-1]
    ctx = DraftContext(
        root=zeros,
        tokens=zeros[:, None],
        position=zeros,
        index=zeros,
        noise=jnp.zeros((batch, tree.depth + 1, vocab_size), jnp.float32),
        keys=batch_keys(seed, batch),
        sampling=Sampling.create(batch),
        tree=tree,
        selection=selection,
    )

    draft = jax.jit(lambda ctx: grow(ctx, table_step(log_steps))[0])(ctx)
    return Drafts(draft, np.full(batch, 1 / batch), tree, False)
