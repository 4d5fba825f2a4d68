"""Speculative decoding in PyTorch with a DFlash drafter, as a baseline of engines.

The loop is that of LANTERN and EAGLE: Python between eager passes, one sequence at a
time, caches that are gathered after each round. Target, drafter, tree and sampling
noise are those of jaxspec, so that tokens and calls are equal and only the engines
differ.
"""

# pyright: reportMissingImports=false
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from jaxspec.bench.baselines.torch_decoder import TorchDecoder
from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError
from jaxspec.nn.rope import grid_table
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


class Rounds(NamedTuple):
    """Result of one sequence.

    Attributes:
      tokens: int64 [T].
      calls: number of target calls, the prefill included.
    """

    tokens: np.ndarray
    calls: int


class TorchSpeculative:
    """Target and DFlash drafter of one sequence, with both CFG branches.

    Args:
      config: Config of a class-conditional model with a 2-D grid.
      params: Parameters of the target, in JAX's layout.
      drafter: Config of the drafter: causal, without refinements, confidence, window
        and the row above.
      own: Parameters of the drafter, in JAX's layout.
      tree: Static draft tree.
      cfg_scale: CFG scale.
      device: PyTorch device.

    Raises:
      ConfigError: The target or the drafter has an unsupported option.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Params,
        drafter: DFlashConfig,
        own: Params,
        tree: Tree,
        cfg_scale: float,
        device: str = "cpu",
    ):
        unsupported = (
            drafter.refinements,
            drafter.confidence,
            drafter.window,
            drafter.above,
            drafter.same_place,
            not drafter.causal,
            not drafter.markov_rank,
        )
        if any(unsupported):
            raise ConfigError("the PyTorch loop supports plain causal DFlash alone")
        self.tree, self.scale, self.drafter = tree, cfg_scale, drafter
        self.length = config.grid**2
        # Embeddings, matrices and checks of the target; its caches are not used.
        self.target = TorchDecoder(config, params, 1, 0, device)
        self.layers = _layers(own, drafter, device)
        self.own = {
            name: _tensor(own[name], device)
            for name in ("mask_rows", "markov_in", "markov_out")
        }
        self.project = _tensor(own["project"]["kernel"], device)
        self.context_scale = _tensor(own["context_norm"]["scale"], device)
        self.norm_scale = _tensor(own["norm"]["scale"], device)
        extra = tree.size + drafter.block_size + 1
        table = grid_table(1, config.grid, config.head_size, config.rope_base, extra)
        self.rotations = _tensor(table, device)
        self.depths = torch.tensor(np.asarray(tree.depths), device=device).long()
        self.ancestors = torch.tensor(np.asarray(tree.ancestors), device=device)
        self.device = device

    def generate(self, label: int, noise: np.ndarray) -> Rounds:
        """Generates one image.

        Args:
          label: Class of the image.
          noise: Gumbel noise of each position, float32 [T + depth, V].
        """
        gumbel = torch.tensor(noise, device=self.device)
        with torch.inference_mode():
            self._reset()
            x = self.target.prefix(torch.tensor([label], device=self.device))
            logits, features = self._pass(x, torch.zeros(1).long(), None, 0)
            tokens = [int(torch.argmax(logits[0] + gumbel[0]))]
            self._commit_features(features, torch.zeros(1).long())
            filled, calls = 1, 1
            while len(tokens) < self.length:
                emitted = self._round(tokens[-1], len(tokens), filled, gumbel)
                filled += len(emitted)
                tokens += emitted
                calls += 1
            return Rounds(np.array(tokens[: self.length]), calls)

    def _reset(self) -> None:
        """Empties the caches."""
        c, d = self.target.config, self.drafter
        slots = self.length + self.tree.size + 2
        shape = (2, c.num_kv_heads, slots, c.head_size)
        self.cache = [
            [torch.zeros(shape, device=self.device) for _ in range(2)]
            for _ in range(c.layers)
        ]
        empty = torch.zeros((2, d.num_kv_heads, 0, d.head_size), device=self.device)
        self.context = [(empty, empty) for _ in range(d.layers)]

    def _round(self, root: int, index: int, filled: int, gumbel) -> list[int]:
        """Tokens of one round: draft, pass over the tree, acceptance, commit.

        Args:
          root: Last token, which the target has not read.
          index: Number of tokens so far.
          filled: Filled slots of the target's cache, the prefix included.
          gumbel: Noise of all positions.
        """
        tree = self.tree
        ids = self._draft(root, filled, gumbel[index : index + tree.depth])
        positions = filled + self.depths
        window = torch.zeros(tree.size, filled + tree.size, dtype=torch.bool)
        window[:, :filled] = True
        window[:, filled:] = self.ancestors
        x = self.target.embedding[ids][None].expand(2, -1, -1)
        logits, features = self._pass(x, positions, window.to(self.device), filled)
        path, emitted = [0], []
        while True:
            node, depth = path[-1], len(path) - 1
            token = int(torch.argmax(logits[node] + gumbel[index + depth]))
            emitted.append(token)
            children = [
                n
                for n in range(1, tree.size)
                if tree.parents[n] == node and int(ids[n]) == token
            ]
            if not children:
                break
            path.append(children[0])
        kept = torch.tensor(path, device=self.device)
        for layer in self.cache:
            for cached in layer:
                moved = cached[:, :, filled + kept].clone()
                cached[:, :, filled : filled + len(path)] = moved
        self._commit_features(features[:, kept], filled + torch.arange(len(path)))
        return emitted

    def _pass(self, x, positions, mask, start: int):
        """Guided logits [N, V] and features [2, N, E]; writes the caches from `start`.

        Args:
          x: Input embeddings [2, N, D].
          positions: Positions of the inputs, int64 [N].
          mask: bool [N, start + N], slots that each input attends to; None for its own.
          start: First slot that is written.
        """
        c, w = self.target.config, self.target.weights
        rotation, count = self.rotations[positions], x.shape[1]
        features = []
        for i in range(c.layers):
            h = functional.rms_norm(x, x.shape[-1:], w["attention_norm"][i], c.norm_eps)
            fused = functional.linear(h, w["qkv"][i])
            fused = fused.view(2, count, -1, c.num_kv_heads, c.head_size)
            q = fused[:, :, :-2].transpose(2, 3).flatten(2, 3)
            q, k = _rotate(q, rotation), _rotate(fused[:, :, -2], rotation)
            keys, values = self.cache[i]
            keys[:, :, start : start + count] = k.transpose(1, 2)
            values[:, :, start : start + count] = fused[:, :, -1].transpose(1, 2)
            out = functional.scaled_dot_product_attention(
                q.transpose(1, 2),
                keys[:, :, : start + count],
                values[:, :, : start + count],
                attn_mask=mask,
                enable_gqa=True,
            )
            x = x + functional.linear(out.transpose(1, 2).flatten(2), w["out"][i])
            h = functional.rms_norm(x, x.shape[-1:], w["ffn_norm"][i], c.norm_eps)
            gate, up = functional.linear(h, w["gate_up"][i]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, w["down"][i])
            if i in self.drafter.feature_layers:
                features.append(x)
        h = functional.rms_norm(x, x.shape[-1:], self.target.norm, c.norm_eps)
        return self._guided(h), torch.cat(features, dim=-1)

    def _guided(self, h):
        """Logits [N, V] after CFG, of hidden states [2, N, D]."""
        conditional, null = functional.linear(h, self.target.head).float()
        return null + self.scale * (conditional - null)

    def _commit_features(self, features, positions) -> None:
        """Appends keys and values of committed positions to the drafter's context."""
        eps = self.drafter.norm_eps
        context = features @ self.project
        context = functional.rms_norm(
            context, context.shape[-1:], self.context_scale, eps
        )
        rotation = self.rotations[positions]
        for i, layer in enumerate(self.layers):
            k, v = self._keys_values(layer, context, rotation)
            old_k, old_v = self.context[i]
            self.context[i] = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)

    def _keys_values(self, layer: dict[str, Any], x, rotation):
        """Keys and values [2, K, N, F] of inputs [2, N, D]."""
        d = self.drafter
        k = (x @ layer["key"]).unflatten(-1, (-1, d.head_size))
        k = functional.rms_norm(k, k.shape[-1:], layer["k_norm"], d.norm_eps)
        v = (x @ layer["value"]).unflatten(-1, (-1, d.head_size))
        return _rotate(k, rotation).transpose(1, 2), v.transpose(1, 2)

    def _draft(self, root: int, filled: int, gumbel):
        """Tokens of the tree's nodes, int64 [N]: the best under the shared noise."""
        d, tree = self.drafter, self.tree
        depth = tree.depth
        anchor = self.target.embedding[root][None]
        h = torch.cat([anchor, self.own["mask_rows"][: depth - 1]])
        h = h[None].expand(2, -1, -1)
        rotation = self.rotations[filled + torch.arange(depth)]
        for layer, (past_k, past_v) in zip(self.layers, self.context, strict=True):
            x = functional.rms_norm(h, h.shape[-1:], layer["input_norm"], d.norm_eps)
            q = (x @ layer["query"]).unflatten(-1, (-1, d.head_size))
            q = functional.rms_norm(q, q.shape[-1:], layer["q_norm"], d.norm_eps)
            k, v = self._keys_values(layer, x, rotation)
            k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
            mask = torch.ones(depth, k.shape[2], dtype=torch.bool, device=self.device)
            mask = mask.tril(k.shape[2] - depth)
            out = functional.scaled_dot_product_attention(
                _rotate(q, rotation).transpose(1, 2), k, v, attn_mask=mask
            )
            h = h + out.transpose(1, 2).flatten(2) @ layer["out"]
            x = functional.rms_norm(h, h.shape[-1:], layer["post_norm"], d.norm_eps)
            gate, up = (x @ layer["gate_up"]).chunk(2, dim=-1)
            h = h + (functional.silu(gate) * up) @ layer["down"]
        h = functional.rms_norm(h, h.shape[-1:], self.norm_scale, d.norm_eps)
        base = self._guided(h)
        ids = torch.zeros(tree.size, dtype=torch.long, device=self.device)
        ids[0] = root
        for node in tree.internal:
            children = [n for n in range(1, tree.size) if tree.parents[n] == node]
            level = tree.depths[node]
            bias = self.own["markov_in"][ids[node]] @ self.own["markov_out"]
            scores = torch.log_softmax(base[level] + bias, dim=-1) + gumbel[level]
            best = torch.topk(scores, max(tree.ranks[n] for n in children) + 1).indices
            for child in children:
                ids[child] = best[tree.ranks[child]]
        return ids


def _layers(own: Params, drafter: DFlashConfig, device: str) -> list[dict[str, Any]]:
    """Parameters of the drafter's layers, matrices as [D, ...]."""
    result = []
    for i in range(drafter.layers):
        layer = own[f"layers_{i}"]
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


def _tensor(x: Any, device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32)).to(device)


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotates adjacent pairs of [2, N, H, F] by cosines and sines [N, F / 2, 2]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation[None, :, None, :, 0], rotation[None, :, None, :, 1]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2)
