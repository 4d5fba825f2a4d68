"""Speculative decoding in PyTorch, as a baseline of engines.

The loop is that of LANTERN and EAGLE: Python between eager passes, acceptance on the
host, caches that are gathered after each round; unlike theirs it takes a batch. Target,
drafter, tree and sampling noise are those of jaxspec, so that the engines differ and
not the models. Near-ties are not scored again, as jaxspec does: with them a call more
or less is possible, and another token where rounding decides.
"""

# pyright: reportMissingImports=false
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from jaxspec.bench.baselines.torch_decoder import EXTRA, TorchDecoder, rotate
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.tree import Tree


class Rounds(NamedTuple):
    """Result of a batch.

    Attributes:
      tokens: int64 [B, T].
      calls: Target calls of each sequence, the prefill included, int64 [B].
    """

    tokens: np.ndarray
    calls: np.ndarray


class Pass(NamedTuple):
    """Scores of one pass of the target over N nodes.

    Attributes:
      logits: Logits after CFG, [B, N, V].
      features: Hidden states after the drafter's feature layers [2 B, N, E], both CFG
        branches; None for a drafter without.
    """

    logits: torch.Tensor
    features: torch.Tensor | None


class TorchDrafter(Protocol):
    """A drafter of static trees."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs the drafter reads."""
        ...

    def reset(self, batch: int, slots: int) -> None:
        """Forgets everything, for `batch` sequences of at most `slots` positions."""
        ...

    def draft(self, tree: Tree, roots, index, gumbel) -> torch.Tensor:
        """Tokens of the nodes, int64 [B, N]: the best under the shared noise.

        Args:
          tree: Tree to fill.
          roots: Last tokens, int64 [B].
          index: Number of tokens of each sequence, int64 [B].
          gumbel: Noise of the positions behind the roots, float32 [B, depth, V].
        """
        ...

    def observe(self, tree: Tree | None, scored: Pass, path, counts, index) -> None:
        """Reads a pass.

        Args:
          tree: Tree of the pass; None for the prefill, which has one node.
          scored: Its scores.
          path: Accepted nodes, int64 [B, A], the root first; zeros behind them.
          counts: Number of accepted nodes, the root included, int64 [B].
          index: Position of the root, int64 [B].
        """
        ...


class TorchSpeculative:
    """Target with both CFG branches, and a drafter.

    Args:
      target: Target; its caches are not used.
      drafter: Drafter, with its parameters.
      tree: Static draft tree.

    Raises:
      ConfigError: The tree is too large.
    """

    def __init__(
        self,
        target: TorchDecoder,
        drafter: TorchDrafter,
        tree: Tree,
    ):
        if tree.size > EXTRA:
            raise ConfigError(
                f"the PyTorch loop takes trees of at most {EXTRA} nodes, this one has "
                f"{tree.size}"
            )
        self.tree, self.drafter = tree, drafter
        self.target, self.length = target, target.config.grid**2
        device = self.device = target.embedding.device
        self.depths = torch.tensor(np.asarray(tree.depths), device=device).long()
        self.ancestors = torch.tensor(np.asarray(tree.ancestors), device=device)

    def generate(self, labels: np.ndarray, noise: np.ndarray) -> Rounds:
        """Generates one image for each label.

        Args:
          labels: Classes of the images, [B].
          noise: Gumbel noise of each position, float32 [B, T + depth, V].
        """
        batch = len(labels)
        gumbel = torch.tensor(noise, device=self.device)
        with torch.inference_mode():
            self._reset(batch)
            classes = torch.tensor(np.asarray(labels), device=self.device)
            zero = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
            scored = self._pass(self.target.prefix(classes), zero, None, zero)
            first = torch.argmax(scored.logits[:, 0] + gumbel[:, 0], dim=-1).tolist()
            self.drafter.observe(None, scored, zero, zero[:, 0] + 1, zero[:, 0])
            tokens = [[token] for token in first]
            calls = np.ones(batch, np.int64)
            while unfinished := [
                n for n in range(batch) if len(tokens[n]) < self.length
            ]:
                emitted = self._round(tokens, gumbel)
                for n in unfinished:
                    tokens[n] += emitted[n]
                calls[unfinished] += 1
            return Rounds(np.array([row[: self.length] for row in tokens]), calls)

    def _reset(self, batch: int) -> None:
        """Empties the caches."""
        c, slots = self.target.config, self.length + EXTRA
        shape = (2 * batch, c.num_kv_heads, slots, c.head_size)
        like = {"dtype": self.target.embedding.dtype, "device": self.device}
        self.cache = [
            [torch.zeros(shape, **like) for _ in range(2)] for _ in range(c.layers)
        ]
        self.drafter.reset(batch, slots)

    def _round(self, tokens: list[list[int]], gumbel) -> list[list[int]]:
        """Tokens of one round: draft, pass over the tree, acceptance, commit.

        Finished sequences take part as if they had one token, and are ignored.

        Args:
          tokens: Tokens of each sequence so far; the target has not read the last.
          gumbel: Noise of all positions.
        """
        tree, batch = self.tree, len(tokens)
        filled = [len(row) if len(row) < self.length else 1 for row in tokens]
        roots = [row[n - 1] for row, n in zip(tokens, filled, strict=True)]
        # The prefix is one position: a sequence of n tokens has read n positions.
        index = torch.tensor(filled, device=self.device)
        each = torch.arange(batch, device=self.device)[:, None]
        depth = torch.arange(tree.depth, device=self.device)
        noise = gumbel[each, index[:, None] + depth]
        ids = self.drafter.draft(
            tree, torch.tensor(roots, device=self.device), index, noise
        )
        positions = index[:, None] + self.depths
        slots = index[:, None] + torch.arange(tree.size, device=self.device)
        width = max(filled) + tree.size
        mask = torch.arange(width, device=self.device) < index[:, None, None]
        mask = mask.repeat(1, tree.size, 1)
        nodes = torch.arange(tree.size, device=self.device)[None, :, None]
        mask[each[..., None], nodes, slots[:, None]] = self.ancestors
        x = self.target.embedding[ids].repeat(2, 1, 1)
        scored = self._pass(x, positions, mask, slots)
        chosen = torch.argmax(scored.logits + gumbel[each, positions], dim=-1).tolist()
        paths, emitted = [], []
        for drafted, sampled in zip(ids.tolist(), chosen, strict=True):
            path = [0]
            while True:
                children = [
                    n
                    for n in range(1, tree.size)
                    if tree.parents[n] == path[-1] and drafted[n] == sampled[path[-1]]
                ]
                if not children:
                    break
                path.append(children[0])
            paths.append(path)
            emitted.append([sampled[n] for n in path])
        longest = max(map(len, paths))
        padded = [path + [0] * (longest - len(path)) for path in paths]
        path = torch.tensor(padded, device=self.device)
        counts = torch.tensor([len(path) for path in paths], device=self.device)
        self._keep(slots[:, :longest], index[:, None] + path)
        self.drafter.observe(tree, scored, path, counts, index)
        return emitted

    def _keep(self, slots, source) -> None:
        """Moves keys and values of accepted nodes, [B, A], to the front.

        Those behind a sequence's accepted ones are overwritten before they are read.
        """
        slots, source = slots.repeat(2, 1), source.repeat(2, 1)
        each = torch.arange(len(slots), device=self.device)[:, None]
        for layer in self.cache:
            for cached in layer:
                cached[each, :, slots] = cached[each, :, source]

    def _pass(self, x, positions, mask, slots) -> Pass:
        """Scores nodes, and writes their keys and values.

        Args:
          x: Input embeddings [2 B, N, D].
          positions: Positions of the inputs, int64 [B, N].
          mask: bool [B, N, W], slots that each input attends to; None for its own.
          slots: Slots that are written, int64 [B, N]; those below W are read.
        """
        c, w = self.target.config, self.target.weights
        count = x.shape[1]
        width = count if mask is None else mask.shape[-1]
        if mask is not None:
            mask = mask.repeat(2, 1, 1)[:, None]
        if c.next_cell:
            x = x + self.target.next_cells[positions].repeat(2, 1, 1)
        rotation = self.target.rotations[positions].repeat(2, 1, 1, 1)
        slots = slots.repeat(2, 1)
        each = torch.arange(len(slots), device=self.device)[:, None]
        features: list[Any] = []
        for i in range(c.layers):
            h = functional.rms_norm(x, x.shape[-1:], w["attention_norm"][i], c.norm_eps)
            fused = functional.linear(h, w["qkv"][i])
            fused = fused.view(len(x), count, -1, c.num_kv_heads, c.head_size)
            q = fused[:, :, :-2].transpose(2, 3).flatten(2, 3)
            q, k = rotate(q, rotation), rotate(fused[:, :, -2], rotation)
            keys, values = self.cache[i]
            keys[each, :, slots] = k
            values[each, :, slots] = fused[:, :, -1]
            out = functional.scaled_dot_product_attention(
                q.transpose(1, 2),
                keys[:, :, :width],
                values[:, :, :width],
                attn_mask=mask,
                enable_gqa=True,
            )
            x = x + functional.linear(out.transpose(1, 2).flatten(2), w["out"][i])
            h = functional.rms_norm(x, x.shape[-1:], w["ffn_norm"][i], c.norm_eps)
            gate, up = functional.linear(h, w["gate_up"][i]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, w["down"][i])
            if i in self.drafter.feature_layers:
                features.append(x)
        h = functional.rms_norm(x, x.shape[-1:], self.target.norm, c.norm_eps)
        joined = torch.cat(features, dim=-1) if features else None
        return Pass(self.target.guided(h), joined)
