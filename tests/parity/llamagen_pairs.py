"""Random LlamaGen decoder with the same weights in both frameworks, and prompts."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import torch

from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.prompts import Caption
from tests.parity.comparing import as_jax
from tests.parity.converting import converted
from tests.parity.llamagen_twin import (
    CaptionCondition,
    ClassCondition,
    LlamaGen,
    left_padded,
)
from tests.parity.random_weights import randomized

VOCAB, GRID, CLASSES, ROWS = 40, 4, 5, 3
CAPTION_LENGTH, CAPTION_WIDTH = 6, 10

STATIC = ("self", "feature_layers")
score = jax.jit(Transformer.score, static_argnames=STATIC)
read_prompt = jax.jit(Transformer.read_prompt, static_argnames=STATIC)
extend = jax.jit(Transformer.extend, static_argnames=STATIC)


@dataclass(frozen=True)
class Pair:
    """JAX model, its parameters, and the PyTorch model."""

    model: Transformer
    params: dict
    torch_model: LlamaGen


@dataclass(frozen=True)
class Prompt:
    """`ROWS` prompts for both frameworks.

    Attributes:
      inputs: prompts for `Transformer`.
      conditional: prompts embedded by the PyTorch model, `[R, P, D]`.
      null: embedded null condition, `[R, P, D]`.
      real: mask `[R, P]`, False at padding.
    """

    inputs: object
    conditional: torch.Tensor
    null: torch.Tensor
    real: torch.Tensor

    def prefix(self, null):
        """Prefix for the PyTorch model, with the null condition where `null`."""
        return torch.where(null[:, None, None], self.null, self.conditional)


def make_pair(condition, *, width=24, heads=2, kv_heads=None, config=None):
    """Pair of models; `config` is a JSON config as in folders of `gpt_hf.py`."""
    config = config or {}
    torch_model = LlamaGen(
        vocab=VOCAB,
        layers=2,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        base=config.get("rope_base", 10000.0),
        eps=config.get("norm_eps", 1e-5),
        grid=GRID,
        condition=ClassCondition(CLASSES, width)
        if condition == "class"
        else CaptionCondition(CAPTION_LENGTH, CAPTION_WIDTH, width),
    )
    torch_model = randomized(torch_model, seed=0)
    # Small as in trained models, so that the epsilon of the norms matters.
    torch_model.tok_embeddings.weight.mul_(0.05)
    checkpoint = converted(
        torch_model.state_dict(), config=config, heads=heads, grid=GRID
    )
    return Pair(Transformer(checkpoint.config), checkpoint.params, torch_model)


def make_prompt(pair):
    """Classes, or captions of 4, 1 and 6 features (no padding)."""
    embed = pair.torch_model.cls_embedding
    torch.manual_seed(1)
    if pair.model.config.condition == "class":
        ids = torch.tensor([0, 3, 4])
        real = torch.ones(ROWS, 1, dtype=torch.bool)
        null = embed(torch.full_like(ids, CLASSES))
        return Prompt(as_jax(ids), embed(ids), null, real)
    features = torch.randn(ROWS, CAPTION_LENGTH, CAPTION_WIDTH)
    features, real = left_padded(features, [4, 1, 6])
    # Features at padding must not matter.
    filled = torch.where(real[..., None], features, 7.0)
    actual = Caption(as_jax(filled), jnp.asarray(real.numpy()))
    return Prompt(actual, embed(features), embed.null(ROWS), real)


def make_tokens(length=GRID**2, seed=2):
    torch.manual_seed(seed)
    return torch.randint(VOCAB, (ROWS, length))
