"""Small PyTorch VAR and its tokenizer, written from the descriptions in the paper.

The keys are those of the published checkpoints (arXiv 2404.02905). There is no cache.
`Faults` are mistakes that the comparison has to notice.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

CONVS = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@dataclass(frozen=True)
class Faults:
    """Mistakes, all absent by default.

    Attributes:
      gates: whether gates come last among the modulations, as in DiT.
      antialias: whether resizing is that for antialiasing, whose cubic kernel has the
        constant -0.5 instead of -0.75.
      shifted: whether each scale has the residual convolution of the next one.
      normalized: whether codes are compared by their cosine.
    """

    gates: bool = False
    antialias: bool = False
    shifted: bool = False
    normalized: bool = False


NONE = Faults()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), 4.0).log())
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        fused = F.linear(x, self.mat_qkv.weight, bias)
        q, k, v = fused.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = self.scale_mul_1H11.clamp(max=math.log(100)).exp()
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
        scores = (q @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
    def __init__(self, width, heads, shared):
        super().__init__()
        self.attn, self.ffn, self.shared = Attention(width, heads), MLP(width), shared
        if shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, condition, mask, faults):
        if self.shared:
            modulation = self.ada_gss + condition
        else:
            modulation = self.ada_lin(condition).unflatten(-1, (6, -1))[:, None]
        parts = modulation.unbind(2)
        if faults.gates:
            parts = parts[4:] + parts[:4]
        gate1, gate2, scale1, scale2, shift1, shift2 = parts
        x = x + gate1 * self.attn(norm(x) * (1 + scale1) + shift1, mask)
        return x + gate2 * self.ffn(norm(x) * (1 + scale2) + shift2)


class VAR(nn.Module):
    """The transformer; `forward` scores all scales at once."""

    def __init__(
        self, vocab, code, layers, width, heads, scales, classes, shared=False
    ):
        super().__init__()
        length = sum(s * s for s in scales)
        self.shared, self.scales = shared, scales
        self.word_embed = nn.Linear(code, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.pos_start = nn.Parameter(torch.randn(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.randn(1, length, width))
        self.lvl_embed = nn.Embedding(len(scales), width)
        level = torch.cat([torch.full((s * s,), i) for i, s in enumerate(scales)])
        self.register_buffer("lvl_1L", level[None])
        mask = torch.where(level[:, None] >= level[None], 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", mask[None, None])
        if shared:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, heads, shared) for _ in range(layers))
        self.head_nm = nn.Module()
        self.head_nm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, vocab)

    def forward(self, classes, vectors, faults=NONE):
        """Logits of all tokens, from the inputs of the scales after the first."""
        condition = self.class_emb(classes)
        start = condition[:, None] + self.pos_start
        x = torch.cat([start, self.word_embed(vectors)], dim=1)
        level = self.lvl_1L[0, : x.shape[1]]
        x = x + self.lvl_embed(level) + self.pos_1LC[:, : x.shape[1]]
        mask = level[:, None] >= level[None]
        given = condition
        if self.shared:
            given = self.shared_ada_lin(condition).unflatten(-1, (6, -1))[:, None]
        for block in self.blocks:
            x = block(x, given, mask, faults)
        scale, shift = self.head_nm.ada_lin(condition)[:, None].chunk(2, dim=-1)
        return self.head(norm(x) * (1 + scale) + shift)


class Residual(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.norm1, self.norm2 = (
            nn.GroupNorm(32, inside, 1e-6),
            nn.GroupNorm(32, outside, 1e-6),
        )
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, 1e-6)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        scores = q.transpose(1, 2) @ k * x.shape[1] ** -0.5
        out = v @ scores.softmax(-1).transpose(1, 2)
        return x + self.proj_out(out.reshape(x.shape))


class Resampled(nn.Module):
    def __init__(self, width, up):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, 1 if up else 2, 1 if up else 0)

    def forward(self, x):
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Half(nn.Module):
    """Encoder or decoder."""

    def __init__(self, up, channels, multipliers, blocks, latent):
        super().__init__()
        widths = [channels * m for m in multipliers]
        levels, self.is_decoder = len(widths), up
        ends = (latent, widths[-1]) if up else (3, widths[0])
        self.conv_in = nn.Conv2d(*ends, 3, padding=1)
        width = ends[1]
        stack = [nn.Module() for _ in range(levels)]
        for i in reversed(range(levels)) if up else range(levels):
            level = stack[i]
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                level.block.append(Residual(width, widths[i]))
                width = widths[i]
                if i == levels - 1:
                    level.attn.append(PixelAttention(width))
            if i != (0 if up else levels - 1):
                name = "upsample" if up else "downsample"
                setattr(level, name, Resampled(width, up))
        setattr(self, "up" if up else "down", nn.ModuleList(stack))
        inner = widths[-1]
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = (
            Residual(inner, inner),
            PixelAttention(inner),
        )
        self.mid.block_2 = Residual(inner, inner)
        self.norm_out = nn.GroupNorm(32, width, 1e-6)
        self.conv_out = nn.Conv2d(width, 3 if up else latent, 3, padding=1)

    def forward(self, x):
        def middle(x):
            return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))

        x = self.conv_in(x)
        levels = list(self.up)[::-1] if self.is_decoder else list(self.down)
        if self.is_decoder:
            x = middle(x)
        for level in levels:
            for j, block in enumerate(level.block):
                x = block(x)
                if len(level.attn):
                    x = level.attn[j](x)
            for name in ("upsample", "downsample"):
                if hasattr(level, name):
                    x = getattr(level, name)(x)
        if not self.is_decoder:
            x = middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Tokenizer(nn.Module):
    """The multi-scale tokenizer."""

    def __init__(self, channels, multipliers, blocks, codes, width, scales):
        super().__init__()
        self.scales = scales
        self.encoder = Half(False, channels, multipliers, blocks, width)
        self.decoder = Half(True, channels, multipliers, blocks + 1, width)
        self.quant_conv = nn.Conv2d(width, width, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(width, width, 3, padding=1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, width)
        self.quantize.quant_resi = nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(4)
        )
        self.quantize.register_buffer(
            "ema_vocab_hit_SV", torch.zeros(len(scales), codes)
        )

    def added(self, ids, k, faults=NONE):
        """Features that the tokens [B, s * s] of scale `k` add."""
        side, grid = self.scales[k], self.scales[-1]
        h = self.quantize.embedding(ids).transpose(1, 2).unflatten(-1, (side, side))
        if side != grid:
            smooth = {"antialias": True} if faults.antialias else {}
            h = F.interpolate(h, (grid, grid), mode="bicubic", **smooth)
        at = min(k + faults.shifted, len(self.scales) - 1)
        conv = self.quantize.quant_resi.qresi_ls[CONVS[at]]
        return 0.5 * h + 0.5 * conv(h)

    def encode(self, images, faults=NONE):
        """Tokens of all scales."""
        rest, out = self.quant_conv(self.encoder(images)), []
        book = self.quantize.embedding.weight
        for k, side in enumerate(self.scales):
            z = self.down(rest, side).flatten(2).transpose(1, 2)
            if faults.normalized:
                ids = (F.normalize(z, dim=-1) @ F.normalize(book, dim=-1).T).argmax(-1)
            else:
                ids = torch.cdist(z, book[None]).argmin(-1)
            out.append(ids)
            rest = rest - self.added(ids, k, faults)
        return torch.cat(out, dim=1)

    def down(self, x, side):
        if side == self.scales[-1]:
            return x
        return F.interpolate(x, (side, side), mode="area")

    def split(self, tokens):
        return tokens.split([s * s for s in self.scales], dim=1)

    def decode(self, tokens, count=None, faults=NONE):
        """Images of the first `count` scales."""
        parts = self.split(tokens)[:count]
        total = sum(self.added(ids, k, faults) for k, ids in enumerate(parts))
        return self.decoder(self.post_quant_conv(total))

    def inputs(self, tokens, faults=NONE):
        """Inputs of all scales but the first."""
        total, out = 0, []
        for k, ids in enumerate(self.split(tokens)[:-1]):
            total = total + self.added(ids, k, faults)
            out.append(self.down(total, self.scales[k + 1]).flatten(2).transpose(1, 2))
        return torch.cat(out, dim=1)
