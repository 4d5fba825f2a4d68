"""PyTorch twins of TiTok and of MaskGIT's VQGAN, under the released names."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Faults:
    """Deliberate faults, for negative controls."""

    own_shortcut: bool = False
    ordered: bool = False
    unnormalized: bool = False
    token_last: bool = False
    text_turned: bool = False


class ConvBlock(nn.Module):
    def __init__(self, width, out, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        if width != out:
            self.nin_shortcut = nn.Conv2d(out, out, 1, bias=False)

    def forward(self, x, faults=Faults()):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if not hasattr(self, "nin_shortcut"):
            return x + h
        if faults.own_shortcut:  # one that reads the input, cut to fit
            x = F.pad(x, (0, 0, 0, 0, 0, max(0, h.shape[1] - x.shape[1])))
            return self.nin_shortcut(x[:, : h.shape[1]]) + h
        return self.nin_shortcut(h) + h


class Level(nn.Module):
    def __init__(self, widths, groups, upsample=False):
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.block = nn.ModuleList(ConvBlock(a, b, groups) for a, b in pairs)
        if upsample:
            self.upsample_conv = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)


class Encoder(nn.Module):
    def __init__(self, channels, multipliers, blocks, groups, out):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        widths = [channels * m for m in (1, *multipliers)]
        self.down = nn.ModuleList(
            Level([a] + [b] * blocks, groups)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        last = widths[-1]
        self.mid = nn.ModuleList(ConvBlock(last, last, groups) for _ in range(blocks))
        self.norm_out = nn.GroupNorm(groups, last, eps=1e-6)
        self.conv_out = nn.Conv2d(last, out, 1)

    def forward(self, x, faults=Faults()):
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            for block in level.block:
                x = block(x, faults)
            if i < len(self.down) - 1:
                x = F.avg_pool2d(x, 2)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, channels, multipliers, blocks, groups, inside):
        super().__init__()
        widths = [channels * m for m in multipliers]
        last = widths[-1]
        self.conv_in = nn.Conv2d(inside, last, 3, padding=1)
        self.mid = nn.ModuleList(ConvBlock(last, last, groups) for _ in range(blocks))
        before = [*widths[1:], last]
        self.up = nn.ModuleList(
            Level([before[i]] + [width] * blocks, groups, upsample=i > 0)
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x, faults=Faults()):
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for i in reversed(range(len(self.up))):
            for block in self.up[i].block:
                x = block(x, faults)
            if i > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.up[i].upsample_conv(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codes(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def nearest(self, x, normalized=False):
        book = self.embedding.weight
        if normalized:
            x, book = F.normalize(x, dim=-1), F.normalize(book, dim=-1)
        return torch.cdist(x, book).argmin(-1)


class MaskGIT(nn.Module):
    """Images in [0, 1]."""

    def __init__(self, channels, multipliers, blocks, groups, size, width):
        super().__init__()
        self.encoder = Encoder(channels, multipliers, blocks, groups, width)
        self.quantize = Codes(size, width)
        self.decoder = Decoder(channels, multipliers, blocks, groups, width)

    def encode(self, images, faults=Faults()):
        x = self.encoder(images, faults)
        return self.quantize.nearest(x.permute(0, 2, 3, 1).flatten(1, 2))

    def decode(self, codes, faults=Faults()):
        side = int(codes.shape[1] ** 0.5)
        x = self.quantize.embedding(codes).unflatten(1, (side, side))
        return self.decoder(x.permute(0, 3, 1, 2), faults).clamp(0, 1)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        h = F.gelu(self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["c_proj"](h)


class Half(nn.Module):
    def __init__(self, width, heads, layers, patches, length):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(patches**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(
            torch.zeros(length, width)
        )
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def run(self, x):
        x = self.ln_pre(x)
        for layer in self.transformer:
            x = layer(x)
        return x


class TiTokEncoder(Half):
    def __init__(self, width, heads, layers, patches, patch, length, out, legacy):
        super().__init__(width, heads, layers, patches, length)
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.conv_out = nn.Conv2d(width, out, 1)
        self.legacy = legacy

    def forward(self, images, queries, faults=Faults()):
        count = len(images)
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(count, 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        queries = queries + self.latent_token_positional_embedding
        length = len(queries)
        x = torch.cat([x, queries.expand(count, -1, -1)], dim=1)
        x = self.ln_post(self.run(x)[:, -length:])
        if self.legacy and not faults.ordered:
            x = x.reshape(count, -1, length, 1)
        else:
            x = x.transpose(1, 2)[..., None]
        return self.conv_out(x)[..., 0].transpose(1, 2)


class TiTokDecoder(Half):
    def __init__(
        self, width, heads, layers, patches, patch, length, inside, codes, text
    ):
        super().__init__(width, heads, layers, patches, length)
        if text:
            self.text_guidance_proj = nn.Linear(text[1], width)
            self.text_guidance_positional_embedding = nn.Parameter(
                torch.zeros(text[0], width)
            )
        self.patches, self.patch = patches, patch
        self.decoder_embed = nn.Linear(inside, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        if codes:
            self.ffn = nn.Sequential(
                nn.Conv2d(width, 2 * width, 1),
                nn.Tanh(),
                nn.Conv2d(2 * width, codes, 1),
            )
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch * patch, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, vectors, faults=Faults(), text=None):
        count, n = vectors.shape[:2]
        cells = self.mask_token.expand(count, self.patches**2, -1)
        first = self.class_embedding.expand(count, 1, -1)
        cells = torch.cat([first, cells], dim=1) + self.positional_embedding
        positions = self.latent_token_positional_embedding
        positions = positions[-n:] if faults.token_last else positions[:n]
        x = self.decoder_embed(vectors) + positions
        x = torch.cat([cells, x], dim=1)
        if text is not None:
            states = self.text_guidance_proj(text)
            places = self.text_guidance_positional_embedding
            states = states + (places.flip(0) if faults.text_turned else places)
            x = torch.cat([x, states], dim=1)
        x = self.run(x)[:, 1 : 1 + self.patches**2]
        x = self.ln_post(x).transpose(1, 2).unflatten(2, (self.patches, self.patches))
        x = self.ffn(x)
        if not hasattr(self, "conv_out"):
            return x
        x = x.unflatten(1, (self.patch, self.patch, 3)).permute(0, 3, 4, 1, 5, 2)
        return self.conv_out(x.flatten(4, 5).flatten(2, 3))


class TiTok(nn.Module):
    """Images in [0, 1]."""

    def __init__(
        self,
        *,
        two_stage,
        patches,
        patch,
        length,
        size,
        dim,
        encoder,
        decoder,
        pixels,
        text=None,
    ):
        super().__init__()
        self.two_stage = two_stage
        common = patches, patch, length, dim
        self.encoder = TiTokEncoder(*encoder, *common, two_stage)
        codes = pixels[-2] if two_stage else 0
        self.decoder = TiTokDecoder(*decoder, *common, codes, text)
        self.latent_tokens = nn.Parameter(torch.zeros(length, encoder[0]))
        self.quantize = Codes(size, dim)
        if two_stage:
            self.pixel_quantize = Codes(*pixels[-2:])
            self.pixel_decoder = Decoder(*pixels[:-2], pixels[-1])

    def vectors(self, images, faults=Faults()):
        return self.encoder(images, self.latent_tokens, faults)

    def encode(self, images, faults=Faults()):
        normalized = self.two_stage and not faults.unnormalized
        return self.quantize.nearest(self.vectors(images, faults), normalized)

    def decode(self, codes, faults=Faults(), text=None):
        x = self.quantize.embedding(codes)
        if self.two_stage and not faults.unnormalized:
            x = F.normalize(x, dim=-1)
        x = self.decoder(x, faults, text)
        if not self.two_stage:
            return x
        book = self.pixel_quantize.embedding.weight
        x = torch.einsum("bnhw,nc->bchw", x.softmax(1), book)
        return self.pixel_decoder(x, faults).clamp(0, 1)
