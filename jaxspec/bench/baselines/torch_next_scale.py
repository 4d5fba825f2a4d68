"""The next-scale model in PyTorch, with caches, as a speed baseline.

Attention is PyTorch's own, and each step is one graph of static shapes. Noise is given,
so that tokens can be compared.
"""

# pyright: reportMissingImports=false
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxspec.config import NextScaleConfig
from jaxspec.errors import ConfigError
from jaxspec.tokenizers.multi_scale.scales import Scales
from jaxspec.typing import Params

_MOST_SCALE = 100.0


class TorchNextScale(nn.Module):
    """Class-conditional next-scale model with both CFG branches, in float32.

    Args:
      config: Sizes of a model that reads all earlier maps.
      params: Parameters in JAX's layout.
      scales: Functions between token maps and features.
      quantizer: Their parameters.
      batch: Number of images.
      cfg_scale: CFG scale at the last map; it grows from 1 at the first one.

    Raises:
      ConfigError: The model attends to its own map alone, or refines maps.
    """

    def __init__(
        self,
        config: NextScaleConfig,
        params: Params,
        scales: Scales,
        quantizer: Params,
        batch: int,
        cfg_scale: float,
    ):
        super().__init__()
        if config.attends == "own" or config.mask_layers or config.shared_modulation:
            raise ConfigError(
                "the PyTorch next-scale model attends to all earlier maps, with a "
                "modulation in each block; choose another model or drop the baseline"
            )
        self.config, self.scales = config, scales
        self.batch, self.cfg_scale = batch, cfg_scale

        def tensor(x) -> torch.Tensor:
            return torch.from_numpy(np.array(x, np.float32))

        def parameter(x) -> nn.Parameter:
            return nn.Parameter(tensor(x), requires_grad=False)

        def affine(x) -> nn.ParameterDict:
            weight = tensor(x["kernel"]).flatten(1).T.contiguous()
            weight = nn.Parameter(weight, requires_grad=False)
            return nn.ParameterDict({"weight": weight, "bias": parameter(x["bias"])})

        def block(x) -> nn.ModuleDict:
            attention = x["attention"]
            q, v = np.asarray(attention["q_bias"]), np.asarray(attention["v_bias"])
            bias = np.concatenate([q, np.zeros_like(q), v])
            kernel = {"kernel": attention["qkv"]["kernel"], "bias": bias}
            log_scale = tensor(attention["log_scale"]).exp().clamp(max=_MOST_SCALE)
            factors = {"scale": parameter(log_scale.reshape(1, -1, 1, 1))}
            return nn.ModuleDict(
                {
                    "qkv": affine(kernel),
                    "out": affine(attention["out"]),
                    "modulation": affine(x["modulation"]),
                    "change": affine(x["change"]),
                    "down": affine(x["down"]),
                    "factors": nn.ParameterDict(factors),
                }
            )

        self.blocks = nn.ModuleList(
            block(params[f"blocks_{i}"]) for i in range(config.layers)
        )
        names = "vectors_in", "head_modulation", "logits"
        self.parts = nn.ModuleDict({name: affine(params[name]) for name in names})
        self.classes = parameter(params["classes"]["embedding"])
        self.start = parameter(params["start"])
        level = np.repeat(np.arange(len(scales)), np.array(scales.sides) ** 2)
        self.places = parameter(
            np.asarray(params["positions"]) + np.asarray(params["levels"])[level]
        )
        self.book = parameter(quantizer["codebook"])
        convs = quantizer["residual_convs"]
        self.convs = nn.ModuleList()
        for i in range(len(convs)):
            conv = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1)
            conv.weight.data = tensor(convs[str(i)]["kernel"]).permute(3, 2, 0, 1)
            conv.bias.data = tensor(convs[str(i)]["bias"])  # pyright: ignore
            self.convs.append(conv.requires_grad_(False))
        shape = 2 * batch, config.heads, config.sequence_length, config.head_size
        for i in range(config.layers):
            self.register_buffer(f"k{i}", torch.zeros(shape))
            self.register_buffer(f"v{i}", torch.zeros(shape))

    def begin(self, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditions of both branches [2 B, D] and features of no map."""
        null = torch.full_like(classes, self.config.classes)
        grid = self.scales.grid
        features = torch.zeros(self.batch, self.config.code_dim, grid, grid)
        return self.classes[torch.cat([classes, null])], features

    def forward(
        self,
        condition: torch.Tensor,
        features: torch.Tensor,
        noise: torch.Tensor,
        scale: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples one map; writes the caches.

        Args:
          condition: Conditions [2 B, D].
          features: Features of earlier maps [B, C, grid, grid].
          noise: Gumbel noise of its tokens [B, T, V].
          scale: The map.

        Returns:
          Tokens int64 [B, T], and the features with what they add.
        """
        side, grid = self.scales.sides[scale], self.scales.grid
        here = self.scales.tokens_of(scale)
        if scale:
            x = features
            if side != grid:
                x = functional.interpolate(x, (side, side), mode="area")
            x = _affine(self.parts["vectors_in"], x.flatten(2).transpose(1, 2))
            x = torch.cat([x, x])
        else:
            x = (condition + self.start)[:, None]
        x = x + self.places[here]
        given = functional.silu(condition)
        for i, block in enumerate(self.blocks):
            x = self._block(i, block, x, given, here)
        shift_scale = _affine(self.parts["head_modulation"], given)[:, None]
        factor, shift = shift_scale.chunk(2, dim=-1)
        h = _norm(x, self.config.norm_eps) * (1 + factor) + shift
        own, null = _affine(self.parts["logits"], h).chunk(2)
        strength = 1 + (self.cfg_scale - 1) * scale / (len(self.scales) - 1)
        tokens = (null + strength * (own - null) + noise).argmax(-1)
        return tokens, features + self._added(tokens, scale)

    def _block(self, i, block, x, given, here):
        modulation = _affine(block["modulation"], given)[:, None]
        gate, ffn_gate, scale, ffn_scale, shift, ffn_shift = modulation.chunk(6, -1)
        eps = self.config.norm_eps
        h = _norm(x, eps) * (1 + scale) + shift
        fused = _affine(block["qkv"], h).unflatten(-1, (3, self.config.heads, -1))
        q, k, v = fused.permute(2, 0, 3, 1, 4)
        q = functional.normalize(q, dim=-1) * block["factors"]["scale"]
        keys, values = getattr(self, f"k{i}"), getattr(self, f"v{i}")
        keys[:, :, here] = functional.normalize(k, dim=-1)
        values[:, :, here] = v
        known = slice(0, here.stop)
        out = functional.scaled_dot_product_attention(
            q, keys[:, :, known], values[:, :, known], scale=1.0
        )
        x = x + gate * _affine(block["out"], out.transpose(1, 2).flatten(2))
        h = _norm(x, eps) * (1 + ffn_scale) + ffn_shift
        h = functional.gelu(_affine(block["change"], h), approximate="tanh")
        return x + ffn_gate * _affine(block["down"], h)

    def _added(self, tokens, scale):
        side, grid = self.scales.sides[scale], self.scales.grid
        x = self.book[tokens].transpose(1, 2).unflatten(-1, (side, side))
        if side != grid:
            x = functional.interpolate(x, (grid, grid), mode="bicubic")
        share = self.scales.share
        return (1 - share) * x + share * self.convs[self.scales.convs[scale]](x)


def _affine(part, x):
    return functional.linear(x, part["weight"], part["bias"])


def _norm(x, eps):
    return functional.layer_norm(x, x.shape[-1:], eps=eps)


def torch_maps(
    model: TorchNextScale, step: Callable, classes: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Generates all maps of images; returns their tokens [B, T], int64.

    Args:
      model: Model with its caches.
      step: `model`, or a compiled version of it.
      classes: Class ids [B].
      noise: Gumbel noise of all tokens, float32 [B, T, V].
    """
    given = torch.from_numpy(np.array(noise, np.float32))
    tokens = []
    with torch.inference_mode():
        condition, features = model.begin(torch.from_numpy(np.array(classes, np.int64)))
        for scale in range(len(model.scales)):
            here = model.scales.tokens_of(scale)
            new, features = step(condition, features, given[:, here], scale)
            tokens.append(new)
    return torch.cat(tokens, dim=1).numpy()
