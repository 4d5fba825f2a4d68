"""Registry of the drafters that are trained and stored in checkpoints."""

import importlib
from typing import Any

from jaxspec.config import TransformerConfig
from jaxspec.drafters import TRAINED
from jaxspec.drafters.kind import DrafterKind
from jaxspec.errors import ConfigError

DRAFTERS: dict[str, DrafterKind] = {
    name: importlib.import_module(f"jaxspec.drafters.{name}").KIND for name in TRAINED
}


def kind_of(config: Any) -> DrafterKind:
    """Kind of drafter that a configuration describes.

    Raises:
      ConfigError: the configuration is of no drafter that can be trained.
    """
    for kind in DRAFTERS.values():
        if type(config) is kind.config:
            return kind
    known = ", ".join(kind.config.__name__ for kind in DRAFTERS.values())
    raise ConfigError(f"{type(config).__name__} is no drafter's; choose {known}")


def make_drafter(config: Any, target: TransformerConfig) -> Any:
    """Makes the drafter that a configuration describes, a `TrainedDrafter`.

    Raises:
      ConfigError: the configuration does not fit the target.
    """
    return kind_of(config).drafter(config, target)
