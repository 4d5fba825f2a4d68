"""Settings of a generation: given by the caller, or recorded with the checkpoint."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig

# Entry of a prior's metadata, and the settings that it may have.
RECORD = "generation"
_SAMPLING = ("temperature", "top_k", "top_p", "cfg_scale", "stop_tokens")
RECORDED = (*_SAMPLING, "steps", "head_steps", "solver", "policy", "schedule")
# Tokens of a text, if no number is given.
TEXT_TOKENS = 256
# Sequences of a batch. Also on a CPU, whose products of 16 rows, two for each image,
# cost less than 8 times those of two.
DEFAULT_BATCH = 8


def recorded_settings(bundle: Bundle) -> dict[str, Any]:
    """Sampling settings that a bundle's prior is published with.

    They are the object "generation" of the metadata in `prior/config.json`; its other
    entries are ignored. Texts to continue have no unconditional branch, so for a model
    of text the CFG scale is left out.

    Raises:
      CheckpointError: a value is impossible.
    """
    record = bundle.prior.metadata.get(RECORD, {})
    try:
        if not isinstance(record, Mapping):
            raise ConfigError(f"{str(record)[:40]!r} is no object")
        found = {name: record[name] for name in RECORDED if name in record}
        GenerationConfig(**found)
    except ConfigError as error:
        raise CheckpointError(
            f"bundle '{bundle.name}': \"{RECORD}\" in prior/config.json cannot be used "
            f"({error}); correct or remove it"
        ) from None
    if bundle.prior.config.condition == "none":
        found.pop("cfg_scale", None)
    return found


def resolve_config(bundle: Bundle, given: Mapping[str, Any]) -> GenerationConfig:
    """Settings of a generation.

    A setting that is absent or None is the checkpoint's, see `recorded_settings`; else
    the default of `GenerationConfig`, in batches of `DEFAULT_BATCH`; for a model of
    text, without guidance and with at most `TEXT_TOKENS` tokens.

    Args:
      bundle: models.
      given: fields of `GenerationConfig` by name.

    Raises:
      ConfigError: a setting is unknown or impossible.
      CheckpointError: a recorded setting is impossible.
    """
    known = {field.name for field in fields(GenerationConfig)}
    if unknown := sorted(set(given) - known):
        raise ConfigError(
            f"unknown setting {unknown[0]!r}; choose {', '.join(sorted(known))}"
        )
    settings: dict[str, Any] = {"batch_size": DEFAULT_BATCH}
    if bundle.prior.config.condition == "none":
        settings |= {"cfg_scale": 1.0, "max_new_tokens": TEXT_TOKENS}
    settings |= recorded_settings(bundle)
    settings |= {name: value for name, value in given.items() if value is not None}
    return GenerationConfig(**settings)
