"""All model families; the first one that recognizes a source is used."""

from jaxspec.convert.families import (
    dflash,
    eagle,
    flextok,
    hydra,
    janus,
    kl,
    llama,
    llamagen,
    mar,
    masked_diffusion,
    maskgit_vq,
    medusa,
    t5,
    titok,
    var,
    var_vq,
    vq,
)
from jaxspec.convert.family import Family

# Drafters come first, because many of them have the model_type "llama".
MODULES = (
    dflash, eagle, medusa, hydra, llamagen, janus, llama, masked_diffusion, t5, var,
    var_vq, mar, flextok, kl, titok, maskgit_vq, vq
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    family.name: family for module in MODULES for family in module.FAMILIES
}
