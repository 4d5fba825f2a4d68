"""Checks of what an engine is made of and called with."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxspec.core.kv_cache import KVCache, gather_path
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import join_target_params
from jaxspec.speculative.prefix import prefill, without_prefix
from jaxspec.speculative.state import Variables
from jaxspec.speculative.target import Prefill, Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import deepest, parse_tree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params, PyTree


def check_parts(target: Any, drafter: Any, verifier: Any) -> None:
    """Checks that the parts of an engine are objects of their kind, and fit.

    Raises:
      ConfigError: a part is a name, a class or of another kind, or the drafter has
        another vocabulary than the target.
    """
    if not isinstance(target, Target):
        raise ConfigError(
            f"target is {_kind(target)}, no Target; use model.as_target(), or "
            "jaxspec.Target(...) of functions of your own"
        )
    if isinstance(verifier, type) or not hasattr(verifier, "verify"):
        made = f"{verifier.__name__}()" if isinstance(verifier, type) else "Coupled()"
        raise ConfigError(
            f"verifier={_shown(verifier)} is no verifier; use an instance of a class "
            f"of jaxspec.verify: {made}"
        )
    if drafter is None:
        return
    if isinstance(drafter, type) or not hasattr(drafter, "propose"):
        made = f"{drafter.__name__}(...)" if isinstance(drafter, type) else "Jacobi(V)"
        raise ConfigError(
            f"drafter={_shown(drafter)} is no drafter; use an instance of a class of "
            f"jaxspec.drafters: {made}"
        )
    size = getattr(drafter, "vocab_size", None)
    if size is None:
        size = getattr(getattr(drafter, "target", None), "vocab_size", None)
    if isinstance(size, int) and size != target.vocab_size:
        raise ConfigError(
            f"the drafter {type(drafter).__name__} has {size} tokens, the target "
            f"{target.vocab_size}; they must share a vocabulary"
        )


def as_tree(tree: Any, drafter: Any) -> Tree | DynamicTree:
    """Draft tree from an object or from a name, see `parse_tree`.

    Raises:
      ConfigError: it is no tree, or no name of one.
    """
    if isinstance(tree, str):
        return parse_tree(tree, deepest(drafter))
    if isinstance(tree, type) or not hasattr(tree, "depth"):
        raise ConfigError(
            f"tree={_shown(tree)} is no tree; use Tree.named(name) or "
            "trees.parse_tree(name)"
        )
    return tree


def check_call(
    target: Target, variables: Any, sampling: Any, stopping: Any = None
) -> None:
    """Checks the arguments of `Engine.init` and `Engine.generate`.

    Under `jit` the guidance scale is unknown: there, a target of one branch ignores it.

    Raises:
      ConfigError: an argument is of another kind, or guidance has no second branch.
    """
    if not isinstance(variables, Variables):
        raise ConfigError(
            f"variables are {_kind(variables)}; the first argument is "
            "engine.variables(target=..., drafter=...), the second the prompt"
        )
    if not isinstance(sampling, Sampling):
        raise ConfigError(
            f"sampling is {_kind(sampling)}; use Sampling.create(temperature=...)"
        )
    if not isinstance(stopping, StoppingCriteria | None):
        raise ConfigError(
            f"stopping is {_kind(stopping)}; use "
            "StoppingCriteria.create(max_new_tokens=...)"
        )
    scale = sampling.cfg_scale
    if target.branches > 1 or isinstance(scale, Tracer):
        return
    guided = np.ravel(scale)[np.ravel(scale) != 1]
    if guided.size:
        raise ConfigError(
            f"cfg_scale={guided[0]:g} needs an unconditional branch, and the target "
            "has one branch only; use model.as_target(cfg=True), or cfg_scale=1"
        )


def checked_prefill(
    target: Target, params: Params, prompt: PyTree, extra: int
) -> Prefill:
    """Calls `prefill`, and checks the layout of the cache.

    Raises:
      ConfigError: parameters are missing, or the cache is not laid out as the target's
        `move` expects.
    """
    try:
        out = Prefill(*prefill(target, params, prompt, extra))
    except KeyError as error:
        raise ConfigError(
            f"the target's prefill finds no entry {error}; pass parameters as "
            "engine.variables(target=..., drafter=...), and prompts as it takes them"
        ) from error
    if target.move is gather_path:
        _check_slots(target, params, prompt, extra, out.cache)
    return out


def _check_slots(
    target: Target, params: Params, prompt: PyTree, extra: int, cache: KVCache
) -> None:
    """Checks that slots are axis 2 of all layers, as `gather_path` expects."""
    slots = cache.capacity
    shapes = {x.shape for x in jax.tree.leaves(cache.layers)}
    wrong = [s for s in shapes if len(s) != 4 or s[2] != slots]
    ambiguous = not wrong and any(s[1] == slots or s[3] == slots for s in shapes)
    if ambiguous:  # heads or a head's size are as many as slots: add some slots
        more = 2 * extra + 1024
        grown = jax.eval_shape(
            lambda p, x: target.prefill(p, x, more), params, without_prefix(prompt)
        )
        cache = Prefill(*grown).cache
        slots = cache.capacity
        shapes = {x.shape for x in jax.tree.leaves(cache.layers)}
        wrong = [s for s in shapes if s[2] != slots]
    if wrong:
        raise ConfigError(
            f"the cache has layers of shape {list(wrong[0])}, but with {slots} slots "
            f"the default `move` expects [R, K, {slots}, F]; transpose them, or give "
            "Target a `move` for your layout"
        )


def join_drafter_params(drafter: Any, params: Params, target_params: Params) -> Params:
    """Joins a drafter's parameters with the target's, see `join_target_params`.

    Raises:
      ConfigError: the drafter has parameters and none are given, or those of the
        target have no entry that the drafter reads.
    """
    if params is None and callable(getattr(drafter, "init_params", None)):
        raise ConfigError(
            f"the drafter {type(drafter).__name__} has parameters; pass them as "
            "engine.variables(target=..., drafter=...)"
        )
    try:
        return join_target_params(drafter, params, target_params)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the drafter {type(drafter).__name__} cannot read the parameters of the "
            f"target ({type(error).__name__}: {error}); pass the model's and the "
            "drafter's in this order: engine.variables(target=..., drafter=...)"
        ) from error


def _kind(value: Any) -> str:
    """Kind of a value with its article."""
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return "None" if value is None else f"{article} {name}"


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)[:60]
