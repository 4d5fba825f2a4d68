"""Small PyTorch DFlash drafter, written from the description in the papers.

Layers from arXiv 2602.06036, query 0 and the Markov head from arXiv 2607.05147. There
is no cache: every call gets the features of the whole context.
"""

import torch
from torch import nn
from torch.nn import functional

from tests.parity.llamagen_twin import Norm, attend, rotate


class SelfAttention(nn.Module):
    def __init__(self, width, heads, kv_heads, eps):
        super().__init__()
        self.size = width // heads
        self.q_proj = nn.Linear(width, heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)
        self.q_norm = Norm(self.size, eps)
        self.k_norm = Norm(self.size, eps)

    def forward(self, block, context, turns, visible):
        """Queries from `block` only; keys and values from `[context | block]`."""
        source = torch.cat([context, block], dim=1)
        q = self.q_norm(self.q_proj(block).unflatten(-1, (-1, self.size)))
        k = self.k_norm(self.k_proj(source).unflatten(-1, (-1, self.size)))
        v = self.v_proj(source).unflatten(-1, (-1, self.size))
        q = rotate(q, turns[:, -block.shape[1] :])
        return self.o_proj(attend(q, rotate(k, turns), v, visible))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, width, heads, kv_heads, hidden, eps):
        super().__init__()
        self.input_layernorm = Norm(width, eps)
        self.post_attention_layernorm = Norm(width, eps)
        self.self_attn = SelfAttention(width, heads, kv_heads, eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, h, context, turns, visible):
        h = h + self.self_attn(self.input_layernorm(h), context, turns, visible)
        return h + self.mlp(self.post_attention_layernorm(h))


class MarkovHead(nn.Module):
    def __init__(self, vocab, rank):
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab, rank)
        self.markov_w2 = nn.Linear(rank, vocab, bias=False)

    def forward(self, previous):
        return self.markov_w2(self.markov_w1(previous))


class TorchDFlash(nn.Module):
    def __init__(
        self,
        *,
        vocab,
        feature_layers,
        layers,
        width,
        heads,
        kv_heads,
        hidden,
        eps,
        rank,
    ):
        super().__init__()
        self.fc = nn.Linear(feature_layers * width, width, bias=False)
        self.hidden_norm = Norm(width, eps)
        self.layers = nn.ModuleList(
            Layer(width, heads, kv_heads, hidden, eps) for _ in range(layers)
        )
        self.norm = Norm(width, eps)
        self.markov_head = MarkovHead(vocab, rank)

    def forward(self, features, block, turns, causal):
        """Hidden states of the block after the final norm, `[B, G, D]`.

        Args:
          features: target features of the whole context, `[B, M, feature layers * D]`.
          block: embeddings of the anchor and the masks, `[B, G, D]`.
          turns: rotations of context and block, `[B, M + G, F / 2]`.
          causal: whether a query of the block attends to itself and earlier ones only.
        """
        context = self.hidden_norm(self.fc(features))
        batch, size = block.shape[:2]
        inside = torch.ones(size, size, dtype=torch.bool)
        inside = inside.tril() if causal else inside
        past = torch.ones(size, context.shape[1], dtype=torch.bool)
        visible = torch.cat([past, inside], dim=1).expand(batch, -1, -1)
        h = block
        for layer in self.layers:
            h = layer(h, context, turns, visible)
        return self.norm(h)

    def scores(self, hidden, head, previous):
        """Logits of each query, given the token before the one that it predicts."""
        return hidden @ head.T + self.markov_head(previous)
