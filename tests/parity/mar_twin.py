"""Small PyTorch MAR and its sampler, written from the descriptions in the paper.

The keys are those of the published checkpoints (arXiv 2406.11838). `Faults` are
mistakes that the comparison has to notice.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Faults:
    """Mistakes, all absent by default.

    Attributes:
      tanh: whether GELU is the approximate one.
      kept: whether masked tokens stay in the encoder.
      sines: whether the sines of the time come before the cosines.
      shared: whether the variance is guided too.
    """

    tanh: bool = False
    kept: bool = False
    sines: bool = False
    shared: bool = False


NONE = Faults()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, faults):
        return self.fc2(F.gelu(self.fc1(x), approximate=["none", "tanh"][faults.tanh]))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads), MLP(width)

    def forward(self, x, faults):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x), faults)


class Embedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        linears = nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
        self.mlp = nn.Sequential(*linears)

    def forward(self, time, faults):
        angles = time[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128)
        waves = [angles.cos(), angles.sin()]
        return self.mlp(torch.cat(waves[::-1] if faults.sines else waves, dim=-1))


def modulation(width, count):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


class ResBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        linears = nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        self.mlp = nn.Sequential(*linears)
        self.adaLN_modulation = modulation(width, 3)

    def forward(self, x, y):
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x, y):
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.linear(x * (1 + scale) + shift)


class Head(nn.Module):
    def __init__(self, channels, condition, layers, width):
        super().__init__()
        self.channels = channels
        self.time_embed = Embedder(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(layers))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x, time, z, faults=NONE):
        y = self.time_embed(time, faults) + self.cond_embed(z)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)


class DiffLoss(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.net = Head(*sizes)


def betas(steps=1000):
    def kept(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [1 - kept((i + 1) / steps) / kept(i / steps) for i in range(steps)]
    return torch.tensor([min(x, 0.999) for x in ratios], dtype=torch.float64)


def sample(head, z, count, start, noises, scale, faults=NONE, temperature=1.0):
    """Samples of a chain of `count` steps; `z` has unguided rows after the others."""
    kept_all = torch.cumprod(1 - betas(), 0)
    stride, place, times = 999 / (count - 1), 0.0, []
    for _ in range(count):
        times.append(round(place))
        place += stride
    kept = kept_all[times]
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    beta = 1 - kept / before
    posterior = beta * (1 - before) / (1 - kept)
    clipped = torch.cat([posterior[1:2], posterior[1:]]).log()
    x, rows = start, len(start)
    for i in reversed(range(count)):
        out = head(
            torch.cat([x, x]), torch.full((2 * rows,), float(times[i])), z, faults
        )
        noise, share = out.chunk(2, dim=-1)
        guided = noise[rows:] + scale * (noise[:rows] - noise[rows:])
        if faults.shared:
            share = share[rows:] + scale * (share[:rows] - share[rows:])
        share = (share[:rows] + 1) / 2
        signal = (1 / kept[i]).sqrt() * x - (1 / kept[i] - 1).sqrt() * guided
        mean = beta[i] * before[i].sqrt() / (1 - kept[i]) * signal
        mean = mean + (1 - before[i]) * (1 - beta[i]).sqrt() / (1 - kept[i]) * x
        log_variance = share * beta[i].log() + (1 - share) * clipped[i]
        x = mean
        if i > 0:
            x = x + (log_variance / 2).exp() * noises[i] * temperature
        x = x.float()
    return x


class MAR(nn.Module):
    """Encoder, decoder and head; `conditions` drops masked tokens as published."""

    def __init__(self, channels, grid, layers, width, heads, buffer, classes, head):
        super().__init__()
        length = grid * grid
        self.length, self.buffer = length, buffer
        self.class_emb = nn.Embedding(classes, width)
        self.fake_latent = nn.Parameter(torch.randn(1, width))
        self.z_proj = nn.Linear(channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        shape = (1, buffer + length, width)
        self.encoder_pos_embed_learned = nn.Parameter(torch.randn(shape))
        self.encoder_blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.randn(shape))
        self.decoder_blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.randn(1, length, width))
        self.diffloss = DiffLoss(channels, width, *head)

    def conditions(self, latents, mask, embedding, faults=NONE):
        """Conditions of the head at all tokens; all rows mask equally many."""
        rows = len(latents)
        x = self.z_proj(latents)
        buffer = embedding[:, None].expand(-1, self.buffer, -1)
        x = torch.cat([buffer, x], dim=1) + self.encoder_pos_embed_learned
        x = self.z_proj_ln(x)
        shown = torch.zeros(rows, self.buffer, dtype=torch.bool)
        shown = ~torch.cat([shown, mask], dim=1)
        if not faults.kept:
            x = x[shown].view(rows, -1, x.shape[-1])
        for block in self.encoder_blocks:
            x = block(x, faults)
        x = self.decoder_embed(self.encoder_norm(x))
        if faults.kept:
            x = x[shown].view(rows, -1, x.shape[-1])
        full = self.mask_token.expand(rows, shown.shape[1], -1).clone()
        full[shown] = x.flatten(0, 1)
        full = full + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            full = block(full, faults)
        full = self.decoder_norm(full)[:, self.buffer :]
        return full + self.diffusion_pos_embed_learned

    def generate(self, classes, order, noise_of, masked, count, scale_of, temperature):
        """Tokens of a whole generation, step by step, with guidance.

        Args:
          classes: classes of the images.
          order: permutation of the tokens, of which the last become known first.
          noise_of: function from places [B, n] to noise [B, n, count + 1, C].
          masked: number of masked tokens before each step, and at the end.
          count: number of steps of the head's chain.
          scale_of: function from a step to the scale of guidance.
          temperature: factor of the noise.
        """
        rows, channels = len(classes), self.diffloss.net.channels
        latents = torch.zeros(rows, self.length, channels)
        null = self.fake_latent.expand(rows, -1)
        embedding = torch.cat([self.class_emb(classes), null])
        for step in range(len(masked) - 1):
            mask = torch.zeros(rows, self.length, dtype=torch.bool)
            mask = mask.scatter(1, order[:, : masked[step]], True)
            z = self.conditions(latents.repeat(2, 1, 1), mask.repeat(2, 1), embedding)
            places = order[:, masked[step + 1] : masked[step]]
            index = places.repeat(2, 1)[..., None].expand(-1, -1, z.shape[-1])
            z = z.gather(1, index).flatten(0, 1)
            noise = noise_of(places).flatten(0, 1).transpose(0, 1)
            found = sample(
                self.diffloss.net, z, count, noise[0], noise[1:], scale_of(step),
                temperature=temperature,
            )  # fmt: skip
            found = found.view(rows, -1, channels)
            index = places[..., None].expand(-1, -1, channels)
            latents = latents.scatter(1, index, found)
        return latents
