"""All families that can be converted; the first that recognises a source wins."""

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
    for module in (llamagen, janus, llama, dflash, eagle, heads, t5, vq)
    for family in module.FAMILIES
}
