"""Our decoder in PyTorch, written to be fast there; a yardstick, not a reference.

One fused map for queries, keys and values and one for gate and up, caches of a fixed
size that are written in place, the library's own attention and norm, and a step that
samples on the device: what `torch.compile` needs for one graph a step.
"""

# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.nn.rope import grid_table
from jaxspec.typing import Params

_UNSUPPORTED = (
    "qkv_bias qk_norm qk_layer_norm norm_after tied_head head_width extra_tokens"
)


class TorchDecoder(nn.Module):
    """A class-conditional decoder with our parameters; both guidance streams.

    Args:
      config: of a model with a 2-D grid and classes, without what newer families add.
      params: ours, float or bfloat16.
      batch: images side by side.
      length: tokens of each.
      device: where it runs.

    Raises:
      ConfigError: the model has something that this twin lacks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Params,
        batch: int,
        length: int,
        device: str = "cpu",
    ):
        super().__init__()
        odd = [name for name in _UNSUPPORTED.split() if getattr(config, name)]
        if odd or config.condition != "class" or config.rope != "grid":
            raise ConfigError(f"the PyTorch twin has no {odd or config.condition}")
        self.config, self.batch, self.length = config, batch, length

        def tensor(x, dtype=None) -> torch.Tensor:
            found = torch.from_numpy(np.array(x, np.float32))
            kind = torch.float32 if x.dtype == np.float32 else torch.bfloat16
            return found.to(device=device, dtype=dtype or kind)

        def kept(x) -> nn.Parameter:
            return nn.Parameter(tensor(x), requires_grad=False)

        def matrix(x) -> nn.Parameter:
            """`[D, ...]` as PyTorch keeps it, `[..., D]`."""
            flat = tensor(x).flatten(1)
            return nn.Parameter(flat.T.contiguous(), requires_grad=False)

        layers = [params[f"layers_{i}"] for i in range(config.layers)]
        lists = {
            "qkv": [matrix(x["attention"]["qkv"]["kernel"]) for x in layers],
            "out": [matrix(x["attention"]["out"]["kernel"]) for x in layers],
            "gate_up": [matrix(x["ffn"]["gate_up"]["kernel"]) for x in layers],
            "down": [matrix(x["ffn"]["down"]["kernel"]) for x in layers],
            "attention_norm": [kept(x["attention_norm"]["scale"]) for x in layers],
            "ffn_norm": [kept(x["ffn_norm"]["scale"]) for x in layers],
        }
        self.weights = nn.ModuleDict({k: nn.ParameterList(v) for k, v in lists.items()})
        self.embedding = kept(params["embedding"]["embedding"])
        self.classes = kept(params["classes"]["embedding"])
        self.norm = kept(params["norm"]["scale"])
        self.head = matrix(params["head"])
        table = grid_table(1, config.grid, config.head_size, config.rope_base)
        self.register_buffer("turns", tensor(table))
        slots = length + 1
        shape = (2 * batch, config.num_kv_heads, slots, config.head_size)
        for i in range(config.layers):
            for name in ("k", "v"):
                empty = torch.zeros(shape, dtype=self.embedding.dtype, device=device)
                self.register_buffer(f"{name}{i}", empty)
        self.register_buffer("slots", torch.arange(slots, device=device))

    def prefix(self, classes: torch.Tensor) -> torch.Tensor:
        """The condition of both streams, [2 B, 1, D]."""
        null = torch.full_like(classes, self.config.classes)
        return self.classes[torch.cat([classes, null])][:, None]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B] of both streams, [2 B, 1, D]."""
        return self.embedding[torch.cat([tokens, tokens])][:, None]

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Guided float32 logits [B, V] of one position int64 [1]; writes the caches."""
        c, w = self.config, self.weights
        rows, heads, size = x.shape[0], c.num_kv_heads, c.head_size
        turns = self.turns[position]
        seen = (self.slots <= position)[None, None, None]
        for i in range(c.layers):
            h = functional.rms_norm(x, x.shape[-1:], w["attention_norm"][i], c.norm_eps)
            fused = functional.linear(h, w["qkv"][i]).view(rows, 1, -1, heads, size)
            q = fused[:, :, :-2].transpose(2, 3).flatten(2, 3)
            q, k = _rotate(q, turns), _rotate(fused[:, :, -2], turns)
            keys, values = getattr(self, f"k{i}"), getattr(self, f"v{i}")
            keys.index_copy_(2, position, k.transpose(1, 2))
            values.index_copy_(2, position, fused[:, :, -1].transpose(1, 2))
            out = functional.scaled_dot_product_attention(
                q.transpose(1, 2), keys, values, attn_mask=seen, enable_gqa=True
            )
            x = x + functional.linear(out.transpose(1, 2).flatten(2), w["out"][i])
            h = functional.rms_norm(x, x.shape[-1:], w["ffn_norm"][i], c.norm_eps)
            gate, up = functional.linear(h, w["gate_up"][i]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, w["down"][i])
        h = functional.rms_norm(x[:, -1], x.shape[-1:], self.norm, c.norm_eps)
        given, null = functional.linear(h, self.head).float().chunk(2)
        return null + self.scale * (given - null)

    scale = 2.0

    def sample(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The next token int64 [B], drawn at temperature 1 on the device."""
        law = torch.softmax(self(x, position), dim=-1)
        return torch.argmax(law / torch.empty_like(law).exponential_(1.0), dim=-1)

    def likeliest(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The likeliest next token int64 [B]."""
        return torch.argmax(self(x, position), dim=-1)


def _rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns adjacent pairs of `[R, 1, H, F]` by `[1, F / 2, 2]`."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns[:, None, :, 0], turns[:, None, :, 1]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def torch_loop(decoder: TorchDecoder, step: Callable[..., torch.Tensor]) -> Any:
    """Draws `length` tokens of each image with a step; [B, length], on the host.

    Args:
      decoder: with its caches.
      step: `decoder.sample`, `decoder.likeliest`, or one of them compiled.
    """
    device = decoder.embedding.device
    classes = torch.zeros(decoder.batch, dtype=torch.long, device=device)
    places = torch.arange(decoder.length, device=device)[:, None]
    tokens = []
    with torch.inference_mode():
        x = decoder.prefix(classes)
        for position in places:
            token = step(x, position).clone()
            tokens.append(token)
            x = decoder.embed(token)
        return torch.stack(tokens, dim=1).cpu().numpy()
