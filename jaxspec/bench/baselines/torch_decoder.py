"""The decoder in PyTorch, optimized for `torch.compile`, as a speed baseline.

Queries, keys and values are one fused projection, as are gate and up. Caches have a
fixed size and are written in place. Attention and RMSNorm are PyTorch's own. Sampling
runs on the device, so that each step is one graph.
"""

# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxspec.config import TransformerConfig
from jaxspec.config.orders import cells_of
from jaxspec.errors import ConfigError
from jaxspec.nn.rope import grid_table
from jaxspec.typing import Params

_UNSUPPORTED = (
    "qkv_bias qk_norm qk_layer_norm norm_after tied_head head_width factors "
    "extra_tokens"
)
# Positions behind the grid, for drafts that extend past its end.
EXTRA = 256


class TorchDecoder(nn.Module):
    """Class-conditional decoder with both CFG branches.

    Args:
      config: Config of a class-conditional model with a 2-D grid, in any order; the
        options in `_UNSUPPORTED` must be unset.
      params: Parameters in JAX's layout, float32 or bfloat16.
      batch: Number of images.
      length: Tokens of each image.
      device: PyTorch device.
      scale: CFG scale.

    Raises:
      ConfigError: The model has an unsupported option.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Params,
        batch: int,
        length: int,
        device: str = "cpu",
        scale: float = 2.0,
    ):
        super().__init__()
        self.scale = scale
        options = [name for name in _UNSUPPORTED.split() if getattr(config, name)]
        kind = config.condition, config.rope
        if options or kind != ("class", "grid"):
            raise ConfigError(
                f"the PyTorch decoder does not support {options or kind}; "
                "choose another model or drop the baselines"
            )
        self.config, self.batch, self.length = config, batch, length

        def tensor(x, dtype=None) -> torch.Tensor:
            array = torch.from_numpy(np.array(x, np.float32))
            source_dtype = torch.float32 if x.dtype == np.float32 else torch.bfloat16
            return array.to(device=device, dtype=dtype or source_dtype)

        def parameter(x) -> nn.Parameter:
            return nn.Parameter(tensor(x), requires_grad=False)

        def matrix(x) -> nn.Parameter:
            """Transposes `[D, ...]` to PyTorch's layout, `[..., D]`."""
            flat = tensor(x).flatten(1)
            return nn.Parameter(flat.T.contiguous(), requires_grad=False)

        layers = [params[f"layers_{i}"] for i in range(config.layers)]
        lists = {
            "qkv": [matrix(x["attention"]["qkv"]["kernel"]) for x in layers],
            "out": [matrix(x["attention"]["out"]["kernel"]) for x in layers],
            "gate_up": [matrix(x["ffn"]["gate_up"]["kernel"]) for x in layers],
            "down": [matrix(x["ffn"]["down"]["kernel"]) for x in layers],
            "attention_norm": [parameter(x["attention_norm"]["scale"]) for x in layers],
            "ffn_norm": [parameter(x["ffn_norm"]["scale"]) for x in layers],
        }
        self.weights = nn.ModuleDict({k: nn.ParameterList(v) for k, v in lists.items()})
        self.embedding = parameter(params["embedding"]["embedding"])
        self.classes = parameter(params["classes"]["embedding"])
        self.norm = parameter(params["norm"]["scale"])
        self.head = matrix(params["head"])
        size, base, order = config.head_size, config.rope_base, config.order
        table = grid_table(1, config.grid, size, base, EXTRA, order)
        self.register_buffer("rotations", tensor(table))
        rows = np.zeros((len(table), config.width), np.float32)
        if config.next_cell:
            cells = np.asarray(cells_of(order, config.grid))
            learned = params["next_cell"]["cells"]["embedding"]
            rows[: len(cells)] = np.asarray(learned, np.float32)[cells]
        self.register_buffer("next_cells", tensor(rows, self.embedding.dtype))
        slots = length + 1
        shape = (2 * batch, config.num_kv_heads, slots, config.head_size)
        for i in range(config.layers):
            for name in ("k", "v"):
                empty = torch.zeros(shape, dtype=self.embedding.dtype, device=device)
                self.register_buffer(f"{name}{i}", empty)
        self.register_buffer("slots", torch.arange(slots, device=device))

    def prefix(self, classes: torch.Tensor) -> torch.Tensor:
        """Class embeddings of both CFG branches [2 B, 1, D]."""
        null = torch.full_like(classes, self.config.classes)
        return self.classes[torch.cat([classes, null])][:, None]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens [B] in both CFG branches [2 B, 1, D]."""
        return self.embedding[torch.cat([tokens, tokens])][:, None]

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Computes float32 logits [B, V] after CFG; writes the caches.

        Args:
          x: Input embeddings [2 B, 1, D].
          position: Position of the input, int64 [1].
        """
        c, w = self.config, self.weights
        batch, heads, size = x.shape[0], c.num_kv_heads, c.head_size
        rotation = self.rotations[position]
        visible = (self.slots <= position)[None, None, None]
        if c.next_cell:
            x = x + self.next_cells[position]
        for i in range(c.layers):
            h = functional.rms_norm(x, x.shape[-1:], w["attention_norm"][i], c.norm_eps)
            fused = functional.linear(h, w["qkv"][i]).view(batch, 1, -1, heads, size)
            q = fused[:, :, :-2].transpose(2, 3).flatten(2, 3)
            q, k = rotate(q, rotation), rotate(fused[:, :, -2], rotation)
            keys, values = getattr(self, f"k{i}"), getattr(self, f"v{i}")
            keys.index_copy_(2, position, k.transpose(1, 2))
            values.index_copy_(2, position, fused[:, :, -1].transpose(1, 2))
            out = functional.scaled_dot_product_attention(
                q.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True
            )
            x = x + functional.linear(out.transpose(1, 2).flatten(2), w["out"][i])
            h = functional.rms_norm(x, x.shape[-1:], w["ffn_norm"][i], c.norm_eps)
            gate, up = functional.linear(h, w["gate_up"][i]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, w["down"][i])
        h = functional.rms_norm(x[:, -1], x.shape[-1:], self.norm, c.norm_eps)
        return self.guided(h)

    def guided(self, h: torch.Tensor) -> torch.Tensor:
        """Float32 logits [B, ..., V] after CFG, of hidden states [2 B, ..., D]."""
        conditional, null = functional.linear(h, self.head).float().chunk(2)
        return null + self.scale * (conditional - null)

    def sample(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Samples the next token int64 [B] at temperature 1, on the device."""
        probs = torch.softmax(self(x, position), dim=-1)
        noise = torch.empty_like(probs).exponential_(1.0)
        return torch.argmax(probs / noise, dim=-1)

    def greedy(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Most likely next token int64 [B]."""
        return torch.argmax(self(x, position), dim=-1)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotates adjacent pairs of channels.

    Args:
      x: Queries or keys [R, N, H, F].
      rotation: Cosines and sines [N, F / 2, 2], or [R, N, F / 2, 2].
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation[..., None, :, 0], rotation[..., None, :, 1]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).type_as(x)


def torch_loop(decoder: TorchDecoder, step: Callable[..., torch.Tensor]) -> Any:
    """Decodes `length` tokens of each image; returns them [B, length] on the host.

    Args:
      decoder: Decoder with its caches.
      step: `decoder.sample`, `decoder.greedy`, or a compiled version of one of them.
    """
    device = decoder.embedding.device
    classes = torch.zeros(decoder.batch, dtype=torch.long, device=device)
    positions = torch.arange(decoder.length, device=device)[:, None]
    tokens = []
    with torch.inference_mode():
        x = decoder.prefix(classes)
        for position in positions:
            token = step(x, position).clone()
            tokens.append(token)
            x = decoder.embed(token)
        return torch.stack(tokens, dim=1).cpu().numpy()
