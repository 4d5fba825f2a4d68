"""LlamaGen's guidance and filters in PyTorch, written from their description."""

import torch


def guide(conditional, unconditional, scale):
    return unconditional + scale * (conditional - unconditional)


def filtered(scores, temperature, top_k, top_p):
    """Probabilities of `scores [R, V]`: temperature, then top-k, then top-p."""
    scores = scores / max(temperature, 1e-5)
    if top_k:
        least = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    ordered, order = scores.sort(dim=-1, descending=True)
    beyond = ordered.softmax(-1).cumsum(-1) > top_p
    beyond = torch.cat([torch.zeros_like(beyond[:, :1]), beyond[:, :-1]], dim=1)
    removed = torch.zeros_like(beyond).scatter(1, order, beyond)
    return scores.masked_fill(removed, float("-inf")).softmax(-1)
