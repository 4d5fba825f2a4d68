"""Small PyTorch LlamaGen decoder, written from the description in the paper.

The keys are those of the published checkpoints (arXiv 2406.06525). There is no cache:
every call computes the whole sequence `[condition | image]`.
"""

import torch
from torch import nn
from torch.nn import functional


def grid_rotations(
    prefix: int, grid: int, head_dim: int, extra: int = 0, base: float = 10000.0
):
    """Complex unit numbers `[prefix + grid ** 2 + extra, head_dim // 2]`.

    Each number rotates one pair of adjacent elements: the first half of them by the
    image row of the token, the second half by its column. The condition has zeros.
    """
    half = head_dim // 2
    theta = base ** (-2.0 * torch.arange(half // 2, dtype=torch.float64) / half)
    turns = torch.zeros(prefix + grid**2 + extra, half, dtype=torch.complex128)
    for cell in range(grid**2 + extra):
        row, column = divmod(cell, grid)
        angle = torch.cat([row * theta, column * theta])
        turns[prefix + cell] = torch.polar(torch.ones_like(angle), angle)
    return turns.to(torch.complex64)


def rotate_pairs(x, turns):
    """Rotates `x [R, T, H, F]` by `turns [T, F / 2]`, or by `[R, T, F / 2]`."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns.unsqueeze(-2)).flatten(-2).type_as(x)


def rotate_halves(x, angles):
    """Rotates elements `j` and `j + F / 2` of each head by `angles [T, F / 2]`."""
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sequence_angles(positions, size, base=10000.0):
    """Radians `[..., size / 2]` of each position."""
    radians = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (positions[..., None].double() * radians).float()


def rotate(x, turns):
    """Rotates pairs by complex numbers (LlamaGen), or halves by angles (the others)."""
    return rotate_pairs(x, turns) if turns.is_complex() else rotate_halves(x, turns)


def attend(q, k, v, visible):
    """Softmax attention of `[R, T, H, F]` over `[R, S, K, F]`; `visible [R, T, S]`."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("rthf,rshf->rhts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    return torch.einsum("rhts,rshf->rthf", scores.softmax(-1), v).flatten(2)


class Norm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        h = h / (h.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return h.type_as(x) * self.weight


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        hidden = -(-int(8 * width / 3) // 256) * 256
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Attention(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.size = width // heads
        self.rows = [width, kv_heads * self.size, kv_heads * self.size]
        self.wqkv = nn.Linear(width, sum(self.rows), bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x, turns, visible):
        q, k, v = (
            t.unflatten(-1, (-1, self.size)) for t in self.wqkv(x).split(self.rows, -1)
        )
        q, k = rotate_pairs(q, turns), rotate_pairs(k, turns)
        return self.wo(attend(q, k, v, visible))


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.attention = Attention(width, heads, kv_heads)
        self.feed_forward = FeedForward(width)
        self.attention_norm = Norm(width)
        self.ffn_norm = Norm(width)

    def forward(self, x, turns, visible):
        x = x + self.attention(self.attention_norm(x), turns, visible)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassCondition(nn.Module):
    """One prefix token per class; the id after the last class is the null class."""

    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, ids):
        return self.embedding_table(ids)[:, None]


class CaptionCondition(nn.Module):
    """Text features through an MLP; the null caption is a stored sequence of them."""

    def __init__(self, length, features, width):
        super().__init__()
        self.cap_proj = nn.ModuleDict(
            {
                "fc1": nn.Linear(features, width, bias=False),
                "fc2": nn.Linear(width, width, bias=False),
            }
        )
        self.register_buffer("uncond_embedding", torch.zeros(length, features))

    def forward(self, features):
        h = functional.gelu(self.cap_proj["fc1"](features), approximate="tanh")
        return self.cap_proj["fc2"](h)

    def null(self, rows):
        return self(self.uncond_embedding.expand(rows, -1, -1))


class LlamaGen(nn.Module):
    def __init__(
        self,
        *,
        vocab,
        layers,
        width,
        heads,
        grid,
        condition,
        kv_heads=None,
        base=10000.0,
        eps=1e-5,
    ):
        super().__init__()
        self.cls_embedding = condition
        self.tok_embeddings = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(
            Block(width, heads, kv_heads or heads) for _ in range(layers)
        )
        self.norm = Norm(width)
        self.output = nn.Linear(width, vocab, bias=False)
        self.grid, self.base = grid, base
        self.head_dim = width // heads
        for norm in self.modules():
            if isinstance(norm, Norm):
                norm.eps = eps

    def forward(self, prefix, tokens, real=None):
        """Logits of every position of `[prefix | tokens]`, `[R, P + T, V]`.

        Args:
          prefix: condition embeddings `[R, P, D]`.
          tokens: token ids `[R, T]`.
          real: mask `[R, P]`, False at the padding of a caption.
        """
        return self.output(
            self.norm(self.layer_outputs(prefix, tokens, real)[-1])
        ).float()

    def layer_outputs(self, prefix, tokens, real=None):
        """Output of each layer, a list of `[R, P + T, D]`."""
        x = torch.cat([prefix, self.tok_embeddings(tokens)], dim=1)
        batch, length = x.shape[:2]
        visible = torch.ones(batch, length, length, dtype=torch.bool).tril()
        if real is not None:
            visible[:, :, : real.shape[1]] &= real[:, None]
        visible |= torch.eye(length, dtype=torch.bool)
        sizes = (prefix.shape[1], self.grid, self.head_dim)
        turns = grid_rotations(*sizes, base=self.base)[:length]
        outputs = []
        for layer in self.layers:
            x = layer(x, turns, visible)
            outputs.append(x)
        return outputs


def left_padded(features, lengths):
    """Moves captions `[R, P, E]` that are padded on the right to the right end.

    Returns:
      The features, with padding of zeros, and the mask of real positions `[R, P]`.
    """
    size = features.shape[1]
    rolled, real = torch.zeros_like(features), torch.zeros(features.shape[:2])
    for row, length in enumerate(lengths):
        rolled[row, size - length :] = features[row, :length]
        real[row, size - length :] = 1
    return rolled * real[..., None], real.bool()
