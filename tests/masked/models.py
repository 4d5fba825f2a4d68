"""A masked model whose law is known, and a small network."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.masked import MaskedVariables
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from tests.models.tiny import random_params

CONFIG = TransformerConfig(
    vocab_size=11, layers=2, width=16, heads=2, grid=4, classes=3, extra_tokens=1
)
MODEL = MaskedDiffusion(Transformer(CONFIG))
VARIABLES = MaskedVariables(random_params(CONFIG))
CLASSES = jnp.array([0, 2, 1])


@dataclass(frozen=True)
class Joint:
    """Stands for a network that knows the joint distribution of `T` tokens exactly.

    Parameters: probabilities float32 [V, ..., V] with `T` axes.
    """

    length: int
    size: int

    @property
    def model(self):
        """Stands for a network."""
        return SimpleNamespace(
            config=SimpleNamespace(condition="none", sequence_length=self.length)
        )

    @property
    def mask_token(self):
        """See `MaskedDiffusion`."""
        return self.size

    def score(self, params, prompt, tokens):
        """Log-probabilities of each token given those that are not masked."""
        known = tokens[..., None] == jnp.arange(self.size)
        allowed = known | (tokens == self.size)[..., None]  # [B, T, V]
        weights = jnp.broadcast_to(params, (len(tokens), *params.shape))
        for axis in range(self.length):
            shape = [len(tokens), *(1,) * self.length]
            shape[axis + 1] = self.size
            weights = weights * allowed[:, axis].reshape(shape)
        marginals = []
        for axis in range(self.length):
            others = tuple(i + 1 for i in range(self.length) if i != axis)
            marginals.append(jnp.sum(weights, axis=others))
        return jnp.log(jnp.stack(marginals, axis=1))


def random_joint(length=3, size=3, seed=0):
    """Parameters of `Joint`, far from independent tokens."""
    p = np.random.default_rng(seed).dirichlet(np.full(size**length, 0.4))
    return jnp.asarray(p.reshape((size,) * length), jnp.float32)
