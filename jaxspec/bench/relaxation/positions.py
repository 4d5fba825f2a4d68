"""Where rules are compared: made-up distributions, and a model's own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bundle import Bundle
from jaxspec.errors import ConfigError
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.pipeline import Settings, draw, spread_classes
from jaxspec.rules import verifier_params
from jaxspec.spec.draft import DraftContext, InitContext
from jaxspec.spec.neighbors import Neighbors, neighbor_table
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import active_steps, apply_cfg, process_logits
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import CoupledRelaxed


@dataclass(frozen=True)
class Position:
    """One place in a sequence: what target and drafter say comes next.

    Attributes:
      p: float64 [V], the target's probabilities.
      q: float64 [V], the drafter's.
      codebook: float32 [V, d].
      neighbors: of its codes.
    """

    p: np.ndarray
    q: np.ndarray
    codebook: np.ndarray
    neighbors: Neighbors


def toy_positions(
    count: int, *, near: bool, codes: int = 64, width: int = 4, most: int = 50
) -> list[Position]:
    """Random unit vectors for codes, `p` from `Dirichlet(.5)`, a drafter near or far.

    Args:
      count: positions, each with a codebook of its own.
      near: `q` is `p` with standard normal noise on its logits; else it is another draw
        from `Dirichlet(.5)`, which knows nothing of `p`.
      codes: `V`.
      width: `d`.
      most: neighbors that rules may test.
    """
    positions = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        book = rng.normal(size=(codes, width))
        book = (book / np.linalg.norm(book, axis=1, keepdims=True)).astype(np.float32)
        p, q = rng.dirichlet(np.full(codes, 0.5), size=2)
        if near:
            q = p * np.exp(rng.normal(size=codes))
            q = q / q.sum()
        positions.append(Position(p, q, book, neighbor_table(jnp.asarray(book), most)))
    return positions


def model_positions(
    bundle: Bundle,
    count: int,
    *,
    cfg_scale: float = 2.0,
    seed: int = 0,
    most: int = 100,
) -> list[Position]:
    """Random places in images that were drawn plainly, one in each image.

    `p` and `q` are the processed distributions of the target and of its drafter after
    the same prefix, temperature 1; the drafter's is that of the first drafted token.

    Args:
      bundle: models.
      count: images; their classes are spread evenly.
      cfg_scale: classifier-free guidance scale.
      seed: of the images and of the places.
      most: neighbors that rules may test.

    Raises:
      ConfigError: the bundle has no drafter.
    """
    if bundle.drafter is None:
        raise ConfigError(f"bundle '{bundle.name}' has no drafter to measure with")
    classes = spread_classes(len(bundle.class_names), count)
    settings = Settings(classes, seed=seed, cfg_scale=cfg_scale, batch=count)
    tokens = jnp.asarray(draw(bundle, settings, Tree.root()).tokens)
    length = tokens.shape[1]
    index = jnp.asarray(np.random.default_rng(seed).integers(1, length, size=count))
    model, drafter = Transformer(bundle.prior.config), bundle.drafter.config
    streams = make_target(model, guided=cfg_scale != 1.0).streams
    sampling, tree = settings.sampling(count), Tree.chain(1)
    order = active_steps(sampling)
    first = model.config.prefix_length - 1  # position that scores the first token

    def both(params, drafter_params, tokens, index):
        prompt = jnp.concatenate([jnp.asarray(classes)] * streams)
        null = jnp.repeat(jnp.arange(streams) > 0, count)
        logits, features = model.score(
            params,
            prompt,
            jnp.concatenate([tokens] * streams),
            null=null,
            feature_layers=drafter.config.feature_layers,
        )
        place = jnp.concatenate([index] * streams) + first
        logits = jnp.take_along_axis(logits, place[:, None, None], axis=1)[:, 0]
        scores = process_logits(apply_cfg(logits, sampling, index), sampling, order)
        # The drafter has read what stands before the root, the newest token.
        start = InitContext(prompt, features, place, tree, count, length)
        state = drafter.init(drafter_params, start)
        ctx = DraftContext(
            root=jnp.take_along_axis(tokens, index[:, None] - 1, axis=1)[:, 0],
            tokens=tokens,
            position=index + first,
            index=index,
            noise=jnp.zeros((count, 2, model.config.vocab_size)),
            keys=batch_keys(seed, count),
            sampling=sampling,
            tree=tree,
            selection="without_replacement",
            order=order,
        )
        draft, _ = drafter.propose(drafter_params, state, ctx)
        return jax.nn.log_softmax(scores, axis=-1), draft.log_q[:, 0]

    params = bundle.prior.params
    bound = drafter.with_target_params(bundle.drafter.params, params)
    with jax.default_matmul_precision("highest"):
        logs = jax.jit(both)(params, bound, tokens, index)
    p, q = (np.exp(np.asarray(x, np.float64)) for x in logs)
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    book = np.asarray(bundle.tokenizer.params["codebook"])
    needed = verifier_params(CoupledRelaxed(most, 1.0), bundle)
    assert needed is not None
    return [
        Position(*pair, book, needed["neighbors"]) for pair in zip(p, q, strict=True)
    ]
