"""Checks of a verifier of one's own against the contract of `Verifier`.

All drafts over a small vocabulary are enumerated, verified with many keys, and compared
with what the attributes of the verifier claim.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import jax

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Selection
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import Verifier
from jaxspec.testing.verifier_checks import VerifierChecks
from jaxspec.typing import Params

_TREES = "0,1,00", "chain-2"


def check_verifier(
    verifier: Verifier,
    params: Params = None,
    *,
    vocab_size: int = 3,
    tree: Tree | None = None,
    feature_width: int = 8,
    draws: int = 20_000,
    seed: int = 0,
) -> None:
    """Checks that a verifier keeps the contract of `Verifier`.

    Args:
      verifier: the verifier.
      params: arrays that it reads, for this vocabulary.
      vocab_size: size of the vocabulary, `V`; all drafts over it are listed.
      tree: static draft tree; by default the paths 0,1,00, or a chain of two tokens if
        the verifier refuses them.
      feature_width: width of random features that `verify` is given, `E`.
      draws: number of rounds that are sampled for a claim to be lossless.
      seed: seed of distributions and keys.

    Raises:
      ConfigError: the verifier breaks its contract; the message has one sentence for
        each part that is broken.
    """
    faults = list(_static_faults(verifier))
    if not faults:
        trees = [Tree.named(name) for name in _TREES] if tree is None else [tree]
        options = feature_width, draws, seed
        checks = [
            VerifierChecks(verifier, params, vocab_size, candidate, *options)
            for candidate in trees
        ]
        faults = list(_faults_on_first(checks))
    if faults:
        raise ConfigError("the verifier breaks its contract:\n- " + "\n- ".join(faults))


def _faults_on_first(checks: Sequence[VerifierChecks]) -> Iterator[str]:
    """Faults on the first tree for which the verifier can be traced."""
    error = None
    for candidate in checks:
        try:
            jax.eval_shape(candidate.verify, *candidate.arguments)
        except ConfigError as cause:  # a tree that the verifier refuses
            error = error or cause
        except Exception as cause:
            error = cause
            break
        else:
            yield from candidate.faults()
            return
    yield (
        f"verify raises {type(error).__name__} for a draft of its own selection, "
        f"{checks[0].verifier.selection!r}: {str(error).splitlines()[0]}"
    )


def _static_faults(verifier: Any) -> Iterator[str]:
    """Attributes that are missing, and objects that cannot be static under `jit`."""
    if isinstance(verifier, type):
        yield f"{verifier.__name__} is a class; pass an instance"
        return
    if not callable(getattr(verifier, "verify", None)):
        yield "the verifier has no function `verify`"
    for name in ("lossless", "token_exact"):
        if not isinstance(getattr(verifier, name, None), bool):
            yield f"the verifier has no bool `{name}`; derive it from verify.Verifier"
    selection = getattr(verifier, "selection", None)
    if selection not in get_args(Selection):
        choices = ", ".join(get_args(Selection))
        yield f"selection is {selection!r}; choose one of {choices}"
    try:
        hash(verifier)
    except TypeError as error:
        yield f"the verifier is not hashable ({error}); make it a frozen dataclass"
