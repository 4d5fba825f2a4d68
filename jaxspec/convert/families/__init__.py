"""All families that can be converted; the first that recognizes a source wins."""

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
    # Drafters first: the config of many says "llama".
    for module in (dflash, eagle, heads, llamagen, janus, llama, t5, vq)
    for family in module.FAMILIES
}
