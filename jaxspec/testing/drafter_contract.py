"""Checks of a drafter of one's own against the contract of `Drafter`.

With a token-exact verifier a broken drafter costs speed and raises no error; with one
that samples it may bias the output. The checks run rounds with a chosen number of
accepted tokens, and compare drafts that must agree.
"""

from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Drafter, Selection, join_target_params
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.testing.drafter_checks import DrafterChecks
from jaxspec.testing.recorded_rounds import Rounds
from jaxspec.typing import Params, PyTree

_SAMPLED: tuple[Selection, ...] = ("without_replacement", "with_replacement")


def check_drafter(
    drafter: Drafter,
    params: Params = None,
    *,
    target: Target,
    target_params: Params,
    prompt: PyTree,
    tree: Tree | DynamicTree | None = None,
    depends_on: Literal["tokens", "rounds"] = "tokens",
    selections: tuple[Selection, ...] = _SAMPLED,
    length: int = 20,
    draws: int = 900,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> None:
    """Checks that a drafter keeps the contract of `Drafter`.

    Args:
      drafter: the drafter.
      params: its parameters, in float32 for a sharp check, as `Engine.variables` takes
        them.
      target: target for which it drafts.
      target_params: parameters of the target.
      prompt: prompts of at least two sequences, as `Engine.generate` takes them.
      tree: draft tree; by default the drafter's own `tree`, else the paths
        0,1,00,01,10,000 down to `max_depth`. Children are compared with `log_q` on
        static trees only.
      depends_on: input of the drafts. "tokens": committed tokens and their features, so
        that drafts after several accepted tokens equal those after the same tokens one
        by one. "rounds": also earlier drafts or logits of rejected nodes (n-gram
        tables, `Jacobi`), which skips this comparison.
      selections: selections of samples that are tried. Those that the drafter refuses
        with a `ConfigError` or declares as others are left out.
      length: number of tokens that are generated.
      draws: number of drafts that are compared with `log_q`, for each selection.
      seed: seed of keys and samples.
      tolerance: largest difference of probabilities that must agree.

    Raises:
      ConfigError: the drafter breaks its contract; the message has one sentence for
        each part that is broken.
    """
    if depends_on not in ("tokens", "rounds"):
        raise ConfigError(f"depends_on={depends_on!r}; use 'tokens' or 'rounds'")
    batch = jax.tree.leaves(prompt)[0].shape[0]
    if batch < 2:
        raise ConfigError("the prompts have one sequence; give at least two")
    faults = list(_static_faults(drafter))
    if not faults:
        temperature = jnp.resize(jnp.array([1.0, 0.0, 0.7]), batch)
        cfg_scale = 2.0 if target.branches == 2 else 1.0
        rounds = Rounds(
            drafter,
            join_target_params(drafter, params, target_params),
            target,
            target_params,
            prompt,
            _default_tree(drafter) if tree is None else tree,
            length,
            Sampling.create(batch, temperature=temperature, cfg_scale=cfg_scale),
            seed,
        )
        checks = DrafterChecks(rounds, depends_on, selections, draws, tolerance)
        faults = list(checks.faults())
    if faults:
        raise ConfigError("the drafter breaks its contract:\n- " + "\n- ".join(faults))


def _static_faults(drafter: Any) -> Iterator[str]:
    """Functions that are missing, and objects that cannot be static under `jit`."""
    if isinstance(drafter, type):
        yield f"{drafter.__name__} is a class; pass an instance"
        return
    for name in ("init", "propose", "observe"):
        if not callable(getattr(drafter, name, None)):
            yield f"the drafter has no function `{name}`"
    try:
        hash(drafter)
    except TypeError as error:
        yield f"the drafter is not hashable ({error}); make it a frozen dataclass"


def _default_tree(drafter: Any) -> Tree | DynamicTree:
    own = getattr(drafter, "tree", None)
    if isinstance(own, Tree | DynamicTree):
        return own
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    depth = getattr(drafter, "max_depth", 3)
    return Tree.from_paths([path for path in paths if len(path) <= depth])
