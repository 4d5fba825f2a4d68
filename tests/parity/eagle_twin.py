"""Small PyTorch EAGLE, Medusa and Hydra heads, written from their papers.

The keys are those of the released checkpoints (arXiv 2401.15077, 2503.01840,
2401.10774, 2402.05109). There is no cache: every call computes the whole sequence.
"""

import torch
from torch import nn
from torch.nn import functional

from tests.parity.dflash_twin import Mlp
from tests.parity.llamagen_twin import Norm, attend, rotate


class Attention(nn.Module):
    def __init__(self, width, reads, heads, kv_heads):
        super().__init__()
        self.size = width // heads
        self.q_proj = nn.Linear(reads, width, bias=False)
        self.k_proj = nn.Linear(reads, kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(reads, kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def heads(self, x):
        return tuple(
            f(x).unflatten(-1, (-1, self.size))
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )

    def forward(self, x, turns):
        """Attention; `turns` are angles of halves, or complex rotations of pairs."""
        q, k, v = self.heads(x)
        length = x.shape[1]
        past = torch.ones(length, length, dtype=torch.bool).tril()
        past = past.expand(len(x), -1, -1)
        return self.o_proj(attend(rotate(q, turns), rotate(k, turns), v, past))


class Layer(nn.Module):
    """Layer of EAGLE-1, without a norm before the attention."""

    def __init__(self, width, heads, kv_heads, hidden, eps):
        super().__init__()
        self.self_attn = Attention(width, width, heads, kv_heads)
        self.mlp = Mlp(width, hidden)
        self.post_attention_layernorm = Norm(width, eps)

    def forward(self, h, turns):
        h = h + self.self_attn(h, turns)
        return h + self.mlp(self.post_attention_layernorm(h))


class HeadNorm(nn.Module):
    """LayerNorm of each head; neighboring heads share their weights."""

    def __init__(self, shards, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shards, size))
        self.bias = nn.Parameter(torch.zeros(shards, size))

    def forward(self, x):
        each = x.shape[-2] // len(self.weight)
        scale, bias = (y.repeat_interleave(each, 0) for y in (self.weight, self.bias))
        centered = x - x.mean(-1, keepdim=True)
        spread = (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centered / spread * scale + bias


class NormedAttention(Attention):
    """Attention with query and key norms (LANTERN drafters for Anole and Lumina)."""

    def __init__(self, width, heads, kv_heads, shards):
        super().__init__(width, width, heads, kv_heads)
        self.q_norm = HeadNorm(min(shards, heads), self.size)
        self.k_norm = HeadNorm(min(shards, kv_heads), self.size)

    def heads(self, x):
        q, k, v = super().heads(x)
        return self.q_norm(q), self.k_norm(k), v


class NormedLayer(Layer):
    def __init__(self, width, heads, kv_heads, hidden, eps, shards):
        super().__init__(width, heads, kv_heads, hidden, eps)
        self.self_attn = NormedAttention(width, heads, kv_heads, shards)
        self.input_layernorm = Norm(width, eps)

    def forward(self, h, turns):
        h = h + self.self_attn(self.input_layernorm(h), turns)
        return h + self.mlp(self.post_attention_layernorm(h))


class Eagle1(nn.Module):
    def __init__(
        self, *, vocab, width, heads, kv_heads, hidden, eps=1e-6, shards=0, scale=1.0
    ):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, width)
        self.fc = nn.Linear(2 * width, width)
        sizes = width, heads, kv_heads, hidden, eps
        layer = NormedLayer(*sizes, shards) if shards else Layer(*sizes)
        self.layers = nn.ModuleList([layer])
        self.scale = scale

    def forward(self, features, tokens, turns):
        """Next features, from features and the tokens one position later."""
        embedding = self.embed_tokens(tokens) * self.scale
        pair = torch.cat([embedding, features], dim=-1)
        return self.layers[0](self.fc(pair), turns)


class MidLayer(nn.Module):
    def __init__(self, width, heads, kv_heads, hidden, eps):
        super().__init__()
        self.self_attn = Attention(width, 2 * width, heads, kv_heads)
        self.mlp = Mlp(width, hidden)
        self.input_layernorm = Norm(width, eps)
        self.hidden_norm = Norm(width, eps)
        self.post_attention_layernorm = Norm(width, eps)

    def forward(self, embedding, h, turns, normed_residual):
        normed = self.hidden_norm(h)
        x = torch.cat([self.input_layernorm(embedding), normed], dim=-1)
        h = (normed if normed_residual else h) + self.self_attn(x, turns)
        return h + self.mlp(self.post_attention_layernorm(h))


class Eagle3(nn.Module):
    """EAGLE-3; with `target_width`, its width differs and it has its own embedding."""

    def __init__(
        self,
        *,
        vocab,
        drafted,
        feature_layers,
        width,
        heads,
        kv_heads,
        hidden,
        target_width=None,
        eps=1e-6,
    ):
        super().__init__()
        self.fc = nn.Linear(feature_layers * (target_width or width), width, bias=False)
        if target_width is not None:
            self.embed_tokens = nn.Embedding(vocab, width)
        self.midlayer = MidLayer(width, heads, kv_heads, hidden, eps)
        self.norm = Norm(width, eps)
        self.lm_head = nn.Linear(width, drafted, bias=False)
        d2t = torch.zeros(drafted, dtype=torch.long)
        t2d = torch.zeros(vocab, dtype=torch.bool)
        if drafted < vocab:  # else they are as they were made, and not used
            ids = torch.randperm(vocab)[:drafted].sort().values
            d2t = ids - torch.arange(drafted)
            t2d[ids] = True
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", t2d)

    def forward(self, features, embedding, turns, normed_residual=False):
        """Outputs and scores over the drafted vocabulary."""
        h = self.midlayer(embedding, self.fc(features), turns, normed_residual)
        return h, self.lm_head(self.norm(h))


class Linear(nn.Module):
    def __init__(self, reads, width, changes=False):
        super().__init__()
        self.linear = nn.Linear(reads, width)
        if changes:
            self.res_connection = nn.Linear(reads, width)

    def forward(self, x):
        residual = self.res_connection(x) if hasattr(self, "res_connection") else x
        return residual + functional.silu(self.linear(x))


class Medusa(nn.Sequential):
    """Its keys begin with the number of the head."""

    def __init__(self, vocab, width, heads, blocks):
        super().__init__(
            *(
                nn.Sequential(
                    *(Linear(width, width) for _ in range(blocks)),
                    nn.Linear(width, vocab, bias=False),
                )
                for _ in range(heads)
            )
        )


class Hydra(nn.Module):
    """It registers its target's embedding, by which it reads a path."""

    def __init__(self, vocab, width, heads, blocks):
        super().__init__()
        self.input_embed_fn = nn.Embedding(vocab, width)
        self.hydra_mlp = nn.ModuleList(
            nn.Sequential(
                Linear((i + 2) * width, width, changes=True),
                *(Linear(width, width) for _ in range(blocks - 1)),
            )
            for i in range(heads)
        )
        self.hydra_lm_head = nn.ModuleList(
            nn.Linear(width, vocab) for _ in range(heads)
        )

    def forward(self, place, h, path):
        """Logits of one head; `path` holds the concatenated embeddings."""
        x = self.hydra_mlp[place](torch.cat([h, path], dim=-1))
        return self.hydra_lm_head[place](x)


class HydraPlusPlus(nn.Module):
    """Hydra++: after a decoder layer and norm, with dropout between the blocks."""

    def __init__(self, vocab, width, heads, blocks, attention, hidden, eps=1e-6):
        super().__init__()
        self.input_embed_fn = nn.Embedding(vocab, width)

        def first(i):
            return Linear((i + 2) * width, width, changes=True)

        def mlp(i):
            parts = [nn.Dropout(), first(i)]
            for _ in range(blocks - 1):
                parts += [nn.Dropout(), Linear(width, width)]
            return nn.Sequential(*parts)

        self.hydra_mlp = nn.ModuleList(mlp(i) for i in range(heads))
        self.hydra_lm_head = nn.ModuleList(
            nn.Sequential(nn.Dropout(), nn.Linear(width, vocab)) for _ in range(heads)
        )
        layer = Layer(width, attention, attention, hidden, eps)
        layer.input_layernorm = Norm(width, eps)
        self.prefix_embeding_layer = nn.ModuleDict(
            {"layers": nn.ModuleList([layer]), "norm": Norm(width, eps)}
        )

    def prefix(self, h, turns):
        layer = self.prefix_embeding_layer["layers"][0]
        h = h + layer.self_attn(layer.input_layernorm(h), turns)
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        return self.prefix_embeding_layer["norm"](h)

    def forward(self, place, h, path):
        x = self.hydra_mlp[place](torch.cat([h, path], dim=-1))
        return self.hydra_lm_head[place](x)
