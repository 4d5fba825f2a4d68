"""Verifiers by name, and the arrays that a bundle's models give them."""

import dataclasses
import typing
from typing import Any

import jax.numpy as jnp

from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.parameters import embedding_of
from jaxspec.pipeline.bundle import Bundle
from jaxspec.speculative import verify
from jaxspec.speculative.verify import Verifier
from jaxspec.speculative.verify.neighbors import Neighbors, neighbor_table
from jaxspec.typing import Array

# Judge is missing: its head is a function, which no command line can give.
VERIFIERS = {
    "coupled": verify.Coupled,
    "rejection": verify.Rejection,
    "block": verify.Block,
    "kseq": verify.KSeq,
    "greedy-set": verify.GreedySet,
    "lantern": verify.Lantern,
    "coupled-relaxed": verify.CoupledRelaxed,
    "grouped": verify.Grouped,
    "annealed": verify.Annealed,
    "entropic": verify.Entropic,
    "typical": verify.Typical,
    "skipped": verify.Skipped,
}


def parse_verifier(text: str) -> Verifier:
    """A verifier by name, with settings: `lantern:k=10,lam=2`.

    Raises:
      ConfigError: no such verifier or setting, or an impossible value.
    """
    name, _, settings = text.partition(":")
    if name not in VERIFIERS:
        raise ConfigError(f"unknown verifier {name!r}; choose {', '.join(VERIFIERS)}")
    verifier = VERIFIERS[name]
    known = typing.get_type_hints(verifier)
    # A verifier within a verifier can be set in Python alone.
    known = {
        f.name: known[f.name]
        for f in dataclasses.fields(verifier)
        if not isinstance(f.default, Verifier)
    }
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if key not in known or not equals:
            offer = ", ".join(f"{k}=..." for k in known) or "none"
            raise ConfigError(f"{name} has no setting {setting!r}; it takes {offer}")
        values[key] = _read(name, key, value, known[key])
    try:
        return verifier(**values)
    except TypeError:
        needs = [
            f.name
            for f in dataclasses.fields(verifier)
            if f.default is dataclasses.MISSING and f.name not in values
        ]
        offer = ",".join(f"{k}=..." for k in needs)
        raise ConfigError(f"{name} needs {name}:{offer}") from None


def _read(name: str, key: str, value: str, kind: Any) -> Any:
    options = typing.get_args(kind)
    kinds = [x for x in options or (kind,) if x in (int, float)]
    if kinds:
        try:
            return kinds[0](value)
        except ValueError:
            raise ConfigError(f"{name}: {key}={value!r} is no number") from None
    if value not in options:
        raise ConfigError(f"{name}: {key}={value!r}; use {', '.join(options)}")
    return value


def verifier_spec(verifier: Verifier) -> str:
    """The verifier with its settings, as `parse_verifier` reads it."""
    name = next(
        (k for k, v in VERIFIERS.items() if type(verifier) is v),
        type(verifier).__name__,
    )
    words = [
        f"{f.name}={getattr(verifier, f.name)}"
        for f in dataclasses.fields(typing.cast(Any, verifier))
        if getattr(verifier, f.name) != f.default
        and getattr(verifier, f.name) is not None
    ]
    return f"{name}:{','.join(words)}" if words else name


def similar_tokens(config: Any, codebook: Array, k: int) -> Neighbors:
    """Nearest tokens of each token, of one depth where cells have several.

    Args:
      config: configuration of the tokenizer.
      codebook: entries of all its codes, [V, C].
      k: number of neighbors, see `neighbor_table`.

    Raises:
      ConfigError: there are not `k + 1` other codes.
    """
    if not isinstance(config, ResidualTokenizerConfig):
        return neighbor_table(codebook, k)
    size = config.networks.codebook_size
    tables = [
        neighbor_table(codebook[start : start + size], k)
        for start in range(0, config.codebook_size, size)
    ]
    return Neighbors(
        jnp.concatenate([x.ids + i * size for i, x in enumerate(tables)]),
        jnp.concatenate([x.distances for x in tables]),
    )


def verifier_params(verifier: Verifier, bundle: Bundle) -> dict[str, Any] | None:
    """Arrays that a verifier reads: neighbors of tokens, or their embeddings.

    The neighbor table is the tokenizer's own where it is wide enough, else built anew.
    """
    if isinstance(verifier, verify.Skipped):
        return verifier_params(verifier.rule, bundle)
    if isinstance(verifier, (verify.Lantern, verify.CoupledRelaxed)):
        tokenizer, table = bundle.tokenizer, bundle.tokenizer.neighbors
        if table is None or table.most < verifier.k:
            codebook = tokenizer.params["codebook"]
            table = similar_tokens(tokenizer.config, codebook, verifier.k)
        return {"neighbors": table}
    if isinstance(verifier, verify.Grouped):
        return {"embedding": embedding_of(bundle.prior.config, bundle.prior.params)}
    return None
