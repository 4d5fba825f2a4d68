"""Random block drafter with the same weights in both frameworks."""

from dataclasses import dataclass

import torch

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig, to_dict
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from tests.parity.comparing import as_jax
from tests.parity.converting import converted
from tests.parity.dflash_twin import TorchDFlash
from tests.parity.llamagen_twin import grid_rotations
from tests.parity.random_weights import randomized

VOCAB, WIDTH, GRID, BLOCK, ROWS = 40, 32, 4, 4, 3


@dataclass(frozen=True)
class Pair:
    """Drafter in both frameworks, with the parameters shared with the target.

    Attributes:
      drafter: JAX drafter.
      params: parameters of the JAX drafter.
      torch_model: PyTorch drafter.
      embedding: token embedding of the target, `[V, D]`.
      head: output head of the target, `[V, D]`.
      masks: input embeddings after the anchor, `[G - 1, D]`.
    """

    drafter: DFlash
    params: dict
    torch_model: TorchDFlash
    embedding: torch.Tensor
    head: torch.Tensor
    masks: torch.Tensor

    def block(self, anchors):
        """Input embeddings `[R, G, D]`: the anchor and the masks."""
        masks = self.masks.expand(len(anchors), -1, -1)
        return torch.cat([self.embedding[anchors][:, None], masks], dim=1)

    def turns(self, positions):
        """Rotations of the target by absolute position, of which 0 is the condition."""
        size = WIDTH // self.drafter.config.heads
        return grid_rotations(1, GRID, size, extra=2 * BLOCK)[positions]


def make_pair(*, causal):
    config = DFlashConfig(
        block_size=BLOCK,
        layers=2,
        width=WIDTH,
        heads=4,
        kv_heads=2,
        ffn_width=48,
        feature_layers=(0, 2),
        causal=causal,
        markov_rank=6,
    )
    target = TransformerConfig(
        vocab_size=VOCAB, layers=3, width=WIDTH, heads=2, grid=GRID, classes=5
    )
    torch_model = TorchDFlash(
        vocab=VOCAB,
        feature_layers=2,
        layers=2,
        width=WIDTH,
        heads=4,
        kv_heads=2,
        hidden=48,
        eps=1e-6,
        rank=6,
    )
    torch_model = randomized(torch_model, seed=0)
    # Small as in trained models, so that the epsilon of the norms matters.
    embedding = 0.02 * torch.randn(VOCAB, WIDTH)
    masks = 0.02 * torch.randn(BLOCK - 1, WIDTH)
    head = torch.randn(VOCAB, WIDTH) / WIDTH**0.5
    drafter = DFlash(config, target)
    shared = {"embedding": {"embedding": as_jax(embedding)}, "head": as_jax(head).T}
    checkpoint = converted(
        {**torch_model.state_dict(), "mask_rows": masks},
        config={"jaxspec": to_dict(config)},
        target=Checkpoint("prior", target, shared),
    )
    assert checkpoint.model == drafter
    return Pair(
        drafter,
        drafter.with_target_params(checkpoint.params, shared),
        torch_model,
        embedding,
        head,
        masks,
    )
