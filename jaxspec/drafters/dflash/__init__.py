"""DFlash (arXiv 2602.06036), DSpark and JetSpec: block diffusion on target features."""

from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.dflash.training import dflash_outputs
from jaxspec.drafters.kind import DrafterKind

KIND = DrafterKind("dflash", DFlashConfig, DFlash, dflash_outputs)

__all__ = ["KIND", "DFlash", "DFlashConfig"]
