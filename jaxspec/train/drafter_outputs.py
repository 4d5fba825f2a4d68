"""Drafter outputs during training; one module for each kind of drafter."""

from collections.abc import Callable
from typing import Any

from jaxspec.drafters.common.training import DrafterOutputs, TeacherOutputs
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.training import dflash_outputs
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.training import eagle_outputs
from jaxspec.drafters.falcon.drafter import Falcon
from jaxspec.drafters.falcon.training import falcon_outputs
from jaxspec.drafters.kangaroo.drafter import Kangaroo
from jaxspec.drafters.kangaroo.training import kangaroo_outputs
from jaxspec.drafters.medusa.drafter import Medusa
from jaxspec.drafters.medusa.training import medusa_outputs
from jaxspec.drafters.ppd.drafter import PPD
from jaxspec.drafters.ppd.training import ppd_outputs
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Params

_OUTPUTS: dict[type, Callable[..., DrafterOutputs]] = {
    DFlash: dflash_outputs,
    Falcon: falcon_outputs,
    Eagle: eagle_outputs,
    Kangaroo: kangaroo_outputs,
    Medusa: medusa_outputs,
    PPD: ppd_outputs,
}


def training_outputs(
    drafter: Any, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Runs a drafter on teacher outputs, as it will run when drafting.

    Args:
      drafter: static functions of the drafter.
      drafter_params: its parameters, without those shared with the target.
      teacher: sequences with the target's logits and features.
      key: random key for the sampled positions; consumed.

    Raises:
      ConfigError: there is no training for this type of drafter.
    """
    if type(drafter) not in _OUTPUTS:
        known = ", ".join(kind.__name__ for kind in _OUTPUTS)
        raise ConfigError(
            f"{type(drafter).__name__} cannot be trained here; choose one of {known}"
        )
    return _OUTPUTS[type(drafter)](drafter, drafter_params, teacher, key)
