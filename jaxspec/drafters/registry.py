"""Registry of the drafters that are trained and stored in checkpoints."""

from typing import Any

from jaxspec.config import (
    DFlashConfig,
    EagleConfig,
    FalconConfig,
    KangarooConfig,
    MedusaConfig,
    PPDConfig,
    TransformerConfig,
)
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.falcon.drafter import Falcon
from jaxspec.drafters.kangaroo.drafter import Kangaroo
from jaxspec.drafters.medusa.drafter import Medusa
from jaxspec.drafters.ppd.drafter import PPD

DRAFTERS: dict[str, Any] = {
    "dflash": DFlash,
    "eagle": Eagle,
    "medusa": Medusa,
    "ppd": PPD,
    "kangaroo": Kangaroo,
    "falcon": Falcon,
}
DrafterConfig = (
    DFlashConfig
    | EagleConfig
    | MedusaConfig
    | PPDConfig
    | KangarooConfig
    | FalconConfig
)
_KIND_OF = {
    DFlashConfig: "dflash",
    EagleConfig: "eagle",
    MedusaConfig: "medusa",
    PPDConfig: "ppd",
    KangarooConfig: "kangaroo",
    FalconConfig: "falcon",
}


def make_drafter(config: DrafterConfig, target: TransformerConfig) -> tuple[str, Any]:
    """Makes the drafter that a configuration describes.

    All drafters have `init_params(key)`, `with_target_params(own, target_params)`,
    `feature_layers`, `max_depth` (most drafted tokens on a path) and
    `check_tree(tree)`.

    Returns:
      The drafter's name in `DRAFTERS`, and the drafter.

    Raises:
      ConfigError: the configuration does not fit the target.
    """
    kind = _KIND_OF[type(config)]
    return kind, DRAFTERS[kind](config, target)
