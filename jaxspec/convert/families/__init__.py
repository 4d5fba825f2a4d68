"""All model families; the first one that recognizes a source is used."""

from jaxspec.convert.families import (
    dflash,
    eagle,
    heads,
    janus,
    llama,
    llamagen,
    t5,
    vq,
)
from jaxspec.convert.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    # Drafters come first, because many of them have the model_type "llama".
    for module in (dflash, eagle, heads, llamagen, janus, llama, t5, vq)
    for family in module.FAMILIES
}
