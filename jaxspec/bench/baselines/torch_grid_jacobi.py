"""The `GridJacobi` drafter in PyTorch, for the speculative baseline."""

# pyright: reportMissingImports=false
from typing import Any

import numpy as np
import torch

from jaxspec.bench.baselines.torch_decoder import TorchDecoder
from jaxspec.bench.baselines.torch_speculative import Pass
from jaxspec.drafters.training_free.grid_jacobi import GridJacobi, nearest_cells
from jaxspec.drafters.training_free.jacobi import BELOW, LEAST
from jaxspec.speculative.trees.tree import Tree


class TorchGridJacobi:
    """Drafts from the target's last scores of a cell, or of its nearest scored cells.

    Args:
      drafter: Settings.
      target: Target, on whose device it runs.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, drafter: GridJacobi, target: TorchDecoder):
        self.drafter = drafter
        device = self.device = target.embedding.device
        cells, distance = nearest_cells(drafter.grid, drafter.order, drafter.neighbors)
        self.cells = torch.tensor(cells, device=device).long()
        self.shapes: dict[Tree, Any] = {}
        self.weights = 1 / torch.tensor(distance, device=device)

    def reset(self, batch: int, slots: int) -> None:
        """See `TorchDrafter`."""
        cells = self.drafter.grid**2
        shape = (batch, cells, self.drafter.vocab_size)
        self.log_p = torch.zeros(shape, device=self.device)
        self.known = torch.zeros(batch, cells, dtype=torch.bool, device=self.device)

    def draft(self, tree: Tree, roots, index, gumbel) -> torch.Tensor:
        """See `TorchDrafter`."""
        cells = self.drafter.grid**2
        each = torch.arange(len(roots), device=self.device)[:, None]
        ahead = torch.arange(tree.depth, device=self.device)
        place = (index[:, None] + ahead).clamp(max=cells - 1)
        known = self.known[each, place][..., None]
        scores = torch.where(known, self.log_p[each, place], self._guesses(place))
        ranked = torch.log_softmax(scores, dim=-1) + gumbel
        best = torch.topk(ranked, max(tree.ranks) + 1).indices
        ids = [roots]
        ids += [best[:, tree.depths[n] - 1, tree.ranks[n]] for n in range(1, tree.size)]
        return torch.stack(ids, dim=1)

    def observe(self, tree: Tree | None, scored: Pass, path, counts, index) -> None:
        """Keeps the scores of emitted tokens and of the positions behind them."""
        if tree is None:
            return  # as in JAX, where the prefill is not observed
        cells = self.drafter.grid**2
        each = torch.arange(len(path), device=self.device)[:, None]
        log_p = torch.log_softmax(scored.logits, dim=-1).clamp(min=LEAST)
        ancestors, depths = self._shape_of(tree)
        last = path.gather(1, counts[:, None] - 1)
        below = ancestors.T[last[:, 0]]  # [B, N]
        ahead = torch.arange(tree.depth, device=self.device)
        at = counts[:, None] + ahead  # [B, G]
        weights = (depths == at[..., None]) * (1 + (BELOW - 1) * below[:, None].float())
        total = weights.sum(-1, keepdim=True)
        behind = (weights / total.clamp(min=1)) @ log_p
        steps = torch.arange(path.shape[1], device=self.device)
        places = [index[:, None] + steps, index[:, None] + at]
        values = [log_p[each, path], behind]
        exist = [steps < counts[:, None], total[..., 0] > 0]
        for place, value, kept in zip(places, values, exist, strict=True):
            kept = kept & (place < cells)
            row, column = torch.nonzero(kept, as_tuple=True)
            self.log_p[row, place[kept]] = value[row, column]
            self.known[row, place[kept]] = True

    def _shape_of(self, tree: Tree) -> tuple[torch.Tensor, torch.Tensor]:
        """Ancestors and depths of the nodes, on the device."""
        if tree not in self.shapes:
            arrays = tree.ancestors, tree.depths
            self.shapes[tree] = tuple(
                torch.tensor(np.asarray(x), device=self.device) for x in arrays
            )
        return self.shapes[tree]

    def _guesses(self, place) -> torch.Tensor:
        """Weighted means over the nearest known cells, else the last known scores."""
        count = self.drafter.neighbors
        cells = self.cells[place]  # [B, G, n], -1 for none
        batch, depth, _ = cells.shape
        each = torch.arange(batch, device=self.device)[:, None, None]
        known = self.known[each, cells.clamp(min=0)] & (cells >= 0)
        kept = known & (known.cumsum(-1) <= count)
        weight = self.weights[place].masked_fill(~kept, 0.0)
        total = weight.sum(-1, keepdim=True)
        weight = weight / total.masked_fill(total == 0, 1.0)
        # The kept ones first, so that few rows are read.
        first = torch.argsort(kept.int(), dim=-1, descending=True, stable=True)
        first = first[..., :count]
        rows = self.log_p[each, cells.gather(-1, first).clamp(min=0)]
        means = (weight.gather(-1, first)[..., None] * rows).sum(-2)
        index = torch.arange(self.known.shape[1], device=self.device)
        last = (self.known * index).amax(1)
        latest = self.log_p[torch.arange(batch, device=self.device), last]
        return torch.where(total > 0, means, latest[:, None])
