"""Small bundle with random weights, which compiles fast."""

import jax

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.tokenizers.vqgan.model import Tokenizer
from tests.models.tiny import random_params
from tests.train.tiny import get_config


def save_bundle(folder):
    """Writes `tokenizer/` and `prior/` of the tiny preset."""
    config = get_config()
    params = Tokenizer(config.tokenizer).init(jax.random.key(1))
    save(folder / "tokenizer", Checkpoint("tokenizer", config.tokenizer, params))
    params = random_params(config.prior)
    save(folder / "prior", Checkpoint("prior", config.prior, params))
    return folder
