"""The DFlash drafter in PyTorch, for the speculative baseline."""

# pyright: reportMissingImports=false
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from jaxspec.bench.baselines.torch_decoder import TorchDecoder, rotate
from jaxspec.bench.baselines.torch_speculative import Pass
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


class TorchDFlash:
    """Block network that reads features of the target (arXiv 2602.06036).

    Args:
      config: Config of the drafter: causal, with a Markov head, without refinements,
        confidence, window, the same place and the row above.
      params: Parameters of the drafter, in JAX's layout.
      target: Float32 target, whose embeddings, head and positions are used.

    Raises:
      ConfigError: The drafter has an unsupported option, or the target is bfloat16.
    """

    def __init__(
        self,
        config: DFlashConfig,
        params: Params,
        target: TorchDecoder,
    ):
        unsupported = (
            config.refinements,
            config.confidence,
            config.window,
            config.above,
            config.same_place,
            not config.causal,
            not config.markov_rank,
        )
        if any(unsupported):
            raise ConfigError("the PyTorch loop supports plain causal DFlash alone")
        if target.embedding.dtype != torch.float32:
            raise ConfigError("the drafter of the PyTorch loop needs a float32 target")
        self.config, self.target = config, target
        self.feature_layers = config.feature_layers
        device = self.device = target.embedding.device
        self.layers = _layers(params, config, device)
        self.own = {
            name: _tensor(params[name], device)
            for name in ("mask_rows", "markov_in", "markov_out")
        }
        self.project = _tensor(params["project"]["kernel"], device)
        self.context_scale = _tensor(params["context_norm"]["scale"], device)
        self.norm_scale = _tensor(params["norm"]["scale"], device)

    def reset(self, batch: int, slots: int) -> None:
        """See `TorchDrafter`."""
        d = self.config
        shape = (2 * batch, d.num_kv_heads, slots, d.head_size)
        self.context = [
            tuple(torch.zeros(shape, device=self.device) for _ in range(2))
            for _ in range(d.layers)
        ]

    def observe(self, tree: Tree | None, scored: Pass, path, counts, index) -> None:
        """Writes keys and values of accepted positions; later ones are overwritten."""
        eps = self.config.norm_eps
        each = torch.arange(2 * len(path), device=self.device)[:, None]
        assert scored.features is not None
        context = scored.features[each, path.repeat(2, 1)] @ self.project
        context = functional.rms_norm(
            context, context.shape[-1:], self.context_scale, eps
        )
        positions = index[:, None] + torch.arange(path.shape[1], device=self.device)
        slots = positions.repeat(2, 1)
        rotation = self.target.rotations[slots]
        for layer, (keys, values) in zip(self.layers, self.context, strict=True):
            k, v = self._keys_values(layer, context, rotation)
            keys[each, :, slots] = k.transpose(1, 2)
            values[each, :, slots] = v.transpose(1, 2)

    def draft(self, tree: Tree, roots, index, gumbel) -> torch.Tensor:
        """See `TorchDrafter`."""
        d, depth, batch = self.config, tree.depth, len(roots)
        if depth > d.block_size:
            raise ConfigError(
                f"the tree has {depth} levels, the drafter makes {d.block_size}"
            )
        masks = self.own["mask_rows"][: depth - 1].expand(batch, -1, -1)
        h = torch.cat([self.target.embedding[roots][:, None], masks], dim=1)
        h = h.repeat(2, 1, 1)
        ahead = torch.arange(depth, device=self.device)
        rotation = self.target.rotations[index[:, None] + ahead].repeat(2, 1, 1, 1)
        width = int(index.max())
        past = torch.arange(width, device=self.device) < index[:, None, None]
        block = torch.ones(depth, depth, dtype=torch.bool, device=self.device).tril()
        mask = [past.expand(-1, depth, -1), block.expand(batch, -1, -1)]
        mask = torch.cat(mask, dim=-1).repeat(2, 1, 1)[:, None]
        for layer, (past_k, past_v) in zip(self.layers, self.context, strict=True):
            x = functional.rms_norm(h, h.shape[-1:], layer["input_norm"], d.norm_eps)
            q = (x @ layer["query"]).unflatten(-1, (-1, d.head_size))
            q = functional.rms_norm(q, q.shape[-1:], layer["q_norm"], d.norm_eps)
            k, v = self._keys_values(layer, x, rotation)
            k = torch.cat([past_k[:, :, :width], k], 2)
            v = torch.cat([past_v[:, :, :width], v], 2)
            out = functional.scaled_dot_product_attention(
                rotate(q, rotation).transpose(1, 2),
                k,
                v,
                attn_mask=mask,
                enable_gqa=True,
            )
            h = h + out.transpose(1, 2).flatten(2) @ layer["out"]
            x = functional.rms_norm(h, h.shape[-1:], layer["post_norm"], d.norm_eps)
            gate, up = (x @ layer["gate_up"]).chunk(2, dim=-1)
            h = h + (functional.silu(gate) * up) @ layer["down"]
        h = functional.rms_norm(h, h.shape[-1:], self.norm_scale, d.norm_eps)
        base = self.target.guided(h)
        ids = torch.zeros(batch, tree.size, dtype=torch.long, device=self.device)
        ids[:, 0] = roots
        for node in tree.internal:
            children = [n for n in range(1, tree.size) if tree.parents[n] == node]
            level = tree.depths[node]
            bias = self.own["markov_in"][ids[:, node]] @ self.own["markov_out"]
            log_p = torch.log_softmax(base[:, level] + bias, dim=-1)
            scores = log_p + gumbel[:, level]
            best = torch.topk(scores, max(tree.ranks[n] for n in children) + 1).indices
            for child in children:
                ids[:, child] = best[:, tree.ranks[child]]
        return ids

    def _keys_values(self, layer: dict[str, Any], x, rotation):
        """Keys and values [2 B, K, N, F] of inputs [2 B, N, D]."""
        d = self.config
        k = (x @ layer["key"]).unflatten(-1, (-1, d.head_size))
        k = functional.rms_norm(k, k.shape[-1:], layer["k_norm"], d.norm_eps)
        v = (x @ layer["value"]).unflatten(-1, (-1, d.head_size))
        return rotate(k, rotation).transpose(1, 2), v.transpose(1, 2)


def _layers(params: Params, config: DFlashConfig, device) -> list[dict[str, Any]]:
    """Parameters of the drafter's layers, matrices as [D, ...]."""
    result = []
    for i in range(config.layers):
        layer = params[f"layers_{i}"]
        matrices = {
            name: _tensor(layer[name]["kernel"], device).flatten(1)
            for name in ("key", "value", "out")
        }
        # Query heads of one key/value head are apart: [D, groups, K, F].
        query = _tensor(layer["query"]["kernel"], device)
        matrices["query"] = query.transpose(1, 2).flatten(1)
        for name in ("gate_up", "down"):
            matrices[name] = _tensor(layer["ffn"][name]["kernel"], device).flatten(1)
        norms = ("input_norm", "q_norm", "k_norm", "post_norm")
        result.append(matrices | {n: _tensor(layer[n]["scale"], device) for n in norms})
    return result


def _tensor(x: Any, device) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32)).to(device)
