"""PyTorch twin of FlexTok, under the released names."""

import math
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F
from torch import nn

VAE = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


@dataclass(frozen=True)
class Faults:
    """Deliberate faults, for negative controls."""

    full_encoder: bool = False
    placed_mask: bool = False
    dit_order: bool = False
    plain_scale: bool = False


RIGHT = Faults()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in ("wq", "wk", "wv", "proj"):
            setattr(self, name, nn.Linear(width, width, bias=False))

    def forward(self, x, mask, faults):
        size = x.shape[-1] // self.heads
        parts = [
            layer(x).unflatten(-1, (self.heads, size)).transpose(1, 2)
            for layer in (self.wq, self.wk, self.wv)
        ]
        q, k = (F.layer_norm(part, (size,)) for part in parts[:2])
        scale = size**-0.5 if faults.plain_scale else 8 / size
        h = F.scaled_dot_product_attention(q, k, parts[2], mask, scale=scale)
        return self.proj(h.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        hidden = int(2 * (4 * width) / 3)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.fc3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Block(nn.Module):
    """With a condition, of which each of `kinds` sequences has a share."""

    def __init__(self, width, heads, kinds=0):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Gated(width)
        self.width, self.kinds = width, kinds
        if kinds:
            self.adaLN_modulation = nn.Sequential(
                nn.SiLU(), nn.Linear(width, kinds * 6 * width)
            )

    def forward(self, x, mask=None, condition=None, lengths=(), faults=RIGHT):
        parts = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        if condition is not None:
            all_parts = self.adaLN_modulation(condition)
            all_parts = all_parts.unflatten(-1, (self.kinds, -1))
            repeats = lengths if self.kinds == 2 else [sum(lengths)]
            all_parts = torch.repeat_interleave(all_parts, torch.tensor(repeats), dim=1)
            parts = all_parts.chunk(6, dim=-1)
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = parts
        if faults.dit_order:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        h = F.layer_norm(x, (self.width,)) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attn(h, mask, faults)
        h = F.layer_norm(x, (self.width,)) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp(h)


class Trunk(nn.Module):
    def __init__(self, width, depth, heads, kinds=0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, kinds) for _ in range(depth))


class Patches(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.patch_proj = nn.Linear(inputs, width)


class Positions(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.posembs = nn.Parameter(values)


class Vector(nn.Module):
    def __init__(self, name, *shape):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(*shape)))


class Projection(nn.Module):
    def __init__(self, inputs, outputs, modulated=False):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)
        if modulated:
            self.adaLN_modulation = nn.Sequential(
                nn.SiLU(), nn.Linear(inputs, 2 * inputs)
            )


class Time(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, time):
        pace = torch.exp(-math.log(256) * torch.arange(128) / 128)
        angles = 1000 * time[:, None] * pace[None]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Chain(nn.Module):
    """Named parts."""

    def __init__(self, **parts):
        super().__init__()
        self.module_dict = nn.ModuleDict(parts)


def sinusoids(side, width):
    """Positions [1, D, side, side]: sines and cosines of the row, then the column."""
    pace = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    rows = torch.arange(side)[:, None, None] * pace + torch.zeros(1, side, 1)
    columns = rows.transpose(0, 1)
    waves = [rows.sin(), rows.cos(), columns.sin(), columns.cos()]
    return torch.cat(waves, dim=-1).permute(2, 0, 1)[None]


class FlexTok(nn.Module):
    """Images of 16 x 16 pixels, latents of 8 x 8, patches of 2 x 2 latents."""

    def __init__(self, *, length=6, levels=(5, 4, 3), encoder, decoder, kinds):
        super().__init__()
        (width, depth, heads), (flow_width, flow_depth, flow_heads) = encoder, decoder
        self.length, self.levels, self.patch, self.side = length, levels, 2, 4
        self.vae = nn.Module()
        self.vae.vae = diffusers.AutoencoderKL(**VAE)
        inputs = 4 * VAE["latent_channels"]
        self.encoder = Chain(
            enc_patch_emb=Patches(inputs, width),
            enc_posemb_module=Positions(sinusoids(4, width)),
            enc_register_module=Vector("registers", length, width),
            enc_transformer=Trunk(width, depth, heads),
            enc_to_latents=Projection(width, len(levels)),
        )
        self.decoder = Chain(
            dec_from_latents=Projection(len(levels), flow_width),
            dec_registers_posemb_module=Positions(
                torch.zeros(1, 1, flow_width, length)
            ),
            dec_nested_dropout=Vector("dropout_mask_token", flow_width),
            dec_latent_dropout=Vector("nullcond", flow_width),
            dec_noise_patch_emb=Patches(inputs, flow_width),
            dec_patches_posemb_module=Positions(sinusoids(4, flow_width)),
            dec_time_embedder=Time(flow_width),
            dec_transformer=Trunk(flow_width, flow_depth, flow_heads, kinds),
            dec_to_patches=Projection(flow_width, inputs, modulated=True),
        )

    def with_sinusoids(self):
        """Restores the positions, after all parameters were drawn at random."""
        for part in ("enc_posemb_module", "dec_patches_posemb_module"):
            half = self.encoder if part.startswith("enc") else self.decoder
            posembs = half.module_dict[part].posembs
            posembs.copy_(sinusoids(4, posembs.shape[1]))
        return self

    def _patched(self, part, positions, grid):
        """Patches [B, 16, D] of latents [B, C, 8, 8], with their positions."""
        x = grid.unflatten(3, (4, 2)).unflatten(2, (4, 2))  # b c h i w j
        x = part.patch_proj(x.permute(0, 2, 4, 3, 5, 1).flatten(3))
        return (x + positions.posembs.permute(0, 2, 3, 1)).flatten(1, 2)

    def latents(self, images):
        return self.vae.vae.encode(images).latent_dist.mode()

    def vectors(self, images, scale, faults=RIGHT):
        """Outputs of the encoder, before they are bounded."""
        m = self.encoder.module_dict
        grid = scale * self.latents(images)
        x = self._patched(m["enc_patch_emb"], m["enc_posemb_module"], grid)
        queries = m["enc_register_module"].registers.expand(len(x), -1, -1)
        x = torch.cat([x, queries], dim=1)
        place = torch.arange(x.shape[1])
        mask = (place[None] < 16) | (place[None] <= place[:, None])
        mask = None if faults.full_encoder else mask
        for block in m["enc_transformer"].blocks:
            x = block(x, mask, faults=faults)
        x = F.layer_norm(x[:, 16:], (x.shape[-1],))
        return m["enc_to_latents"].proj(x)

    def encode(self, images, scale, faults=RIGHT):
        """Token ids: digits of rounded values, that of the first channel fastest."""
        ids, base = 0, 1
        z = self.vectors(images, scale, faults)
        for channel, count in enumerate(self.levels):
            half = (count - 1) * (1 + 1e-3) / 2
            offset = 0.5 if count % 2 == 0 else 0.0
            bounded = torch.tanh(z[..., channel] + math.atanh(offset / half)) * half
            ids = ids + base * (torch.round(bounded - offset).long() + count // 2)
            base *= count
        return ids

    def embedded(self, ids):
        digits = []
        for count in self.levels:
            digits.append((ids % count - count // 2) / (count // 2))
            ids = ids // count
        return torch.stack(digits, dim=-1)

    def velocity(self, grid, time, quants, kept, null, faults=RIGHT):
        m = self.decoder.module_dict
        tokens = m["dec_from_latents"].proj(quants)
        places = m["dec_registers_posemb_module"].posembs[0].transpose(1, 2)
        hidden = m["dec_nested_dropout"].dropout_mask_token
        tokens = tokens + places
        later = torch.arange(self.length)[None, :, None] >= kept
        if faults.placed_mask:
            hidden = hidden + places
        tokens = torch.where(later, hidden.expand_as(tokens), tokens)
        if null:
            tokens = m["dec_latent_dropout"].nullcond.expand_as(tokens)
        x = self._patched(
            m["dec_noise_patch_emb"], m["dec_patches_posemb_module"], grid
        )
        lengths = (x.shape[1], self.length)
        x = torch.cat([x, tokens], dim=1)
        condition = m["dec_time_embedder"](time)
        for block in m["dec_transformer"].blocks:
            x = block(x, None, condition, lengths, faults)
        head = m["dec_to_patches"]
        shift, scale = head.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        x = F.layer_norm(x[:, : lengths[0]], (x.shape[-1],)) * (1 + scale) + shift
        x = head.proj(x).unflatten(1, (4, 4)).unflatten(3, (2, 2, -1))  # b h w i j c
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def decode(self, ids, noise, scale, steps, guidance, faults=RIGHT):
        """Images of the first tokens, with adaptive projected guidance."""
        kept = ids.shape[1]
        quants = self.embedded(F.pad(ids, (0, self.length - kept)))
        x, average = noise, 0.0
        for i in range(steps, 0, -1):
            time = torch.full((len(x),), i / steps)
            given, null = (
                self.velocity(x, time, quants, kept, null, faults)
                for null in (False, True)
            )
            average = given - null - 0.5 * average
            axes = (1, 2, 3)
            norm = torch.linalg.vector_norm(average, dim=axes, keepdim=True)
            change = average * torch.minimum(torch.ones(()), 2.5 / norm)
            unit = given / torch.linalg.vector_norm(given, dim=axes, keepdim=True)
            change = change - (change * unit).sum(dim=axes, keepdim=True) * unit
            x = x - (given + (guidance - 1) * change) / steps
        return self.vae.vae.decode(x / scale).sample
