"""Small PyTorch HMAR with the keys of the published checkpoints (arXiv 2506.04421)."""

import torch
from torch import nn

from tests.parity.var_twin import NONE, Block, norm


def head(width, vocab):
    shifts = nn.Module()
    shifts.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
    return shifts, nn.Linear(width, vocab)


class HMAR(nn.Module):
    """A transformer without a cache, whose last layers exist for two purposes."""

    def __init__(self, vocab, code, base, last, width, heads, scales, classes):
        super().__init__()
        length = sum(s * s for s in scales)
        self.scales = scales
        self.word_embed = nn.Linear(code, width, bias=False)
        self.word_embed_bias = nn.Parameter(torch.zeros(width))
        self.mask_embed = nn.Embedding(1, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.pos_start = nn.Parameter(torch.randn(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.randn(1, length, width))
        self.lvl_embed = nn.Embedding(len(scales), width)
        level = torch.cat([torch.full((s * s,), i) for i, s in enumerate(scales)])
        self.register_buffer("lvl_1L", level[None])
        mask = torch.where(level[:, None] == level[None], 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", mask[None, None])
        for name, count in (("base", base), ("ns", last), ("mask", last)):
            blocks = nn.ModuleList(Block(width, heads, False) for _ in range(count))
            setattr(self, f"{name}_blocks", blocks)
        self.ns_head_nm, self.ns_head = head(width, vocab)
        self.mask_head_nm, self.mask_head = head(width, vocab)

    def _logits(self, x, condition, blocks, shifts, out, level):
        same = level[:, None] == level[None]
        for block in [*self.base_blocks, *blocks]:
            x = block(x, condition, same, NONE)
        scale, shift = shifts.ada_lin(condition)[:, None].chunk(2, dim=-1)
        return out(norm(x) * (1 + scale) + shift)

    def forward(self, classes, vectors):
        """Logits of the first pass of all maps, from the inputs after the first."""
        condition, level = self.class_emb(classes), self.lvl_1L[0]
        start = condition[:, None] + self.pos_start
        x = torch.cat([start, self.word_embed(vectors) + self.word_embed_bias], dim=1)
        x = x + self.lvl_embed(level) + self.pos_1LC
        heads = self.ns_head_nm, self.ns_head
        return self._logits(x, condition, self.ns_blocks, *heads, level)

    def refine(self, classes, vectors, own, masked, scale):
        """Logits of one map, some of whose tokens are masked."""
        condition, level = self.class_emb(classes), self.lvl_1L[0]
        here = level == scale
        known = torch.where(
            masked[..., None], self.mask_embed.weight[0], self.word_embed(own)
        )
        x = self.word_embed(vectors) + known + self.word_embed_bias
        x = x + (self.lvl_embed(level) + self.pos_1LC)[:, here]
        heads = self.mask_head_nm, self.mask_head
        return self._logits(x, condition, self.mask_blocks, *heads, level[here])
