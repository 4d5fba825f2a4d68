"""Published static trees, by name.

`naive_extend_57`, `mc_sim_7b_63_balanced`, `reverse_balanced_25`: LANTERN (arXiv
2410.03355). `mc_sim_7b_63`: EAGLE-1 (arXiv 2401.15077). `medusa_2_7b_63`: Medusa-2
(arXiv 2401.10774). Each word is one node, as the ranks on the path from the root to it.
"""

import re

from jaxspec.errors import ConfigError

_PATHS = {
    "naive_extend_57": """
        0 1 2 3 4
        00 01 02 03 10 11 12 20 21 22 30 31 40
        000 001 002 003 010 011 012 020 021 022 030 031 100 101 110 200
        0000 0001 0002 0003 0010 0011 0012 0020 0021 0030 0100 0101 0110 0200
        00000 00001 00002 00010 00011 00100 00101 00110 00200""",
    "mc_sim_7b_63": """
        0 1 2 3
        00 01 02 10 11 20 21 30
        000 001 002 010 011 020 021 100
        0000 0001 0002
        00000 00001""",
    "mc_sim_7b_63_balanced": """
        0 1 2
        00 01 02 10 11 12 20 21
        000 001 002 010 011 100 101 110 111
        0000 0001 0002
        00000 00001""",
    "reverse_balanced_25": """
        0 1 2
        00 01 10 20
        000 001 002 010 011 100
        0000 0001 0002 0010 0011
        00000 00001 00002 00003 00010 00011 00012""",
    "medusa_2_7b_63": """
        0 1 2 3 4 5 6 7 8 9
        00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 20 21 30 31 40 50 60 70
        000 001 002 003 004 005 006 007 008 010 011 012 013 020 021 030 040 050
        100 101 102 110 200
        0000 0001 0002 0003 0010 0020 0100""",
}
# Length of "chain" in LANTERN's release.
_CHAIN = 5

NAMES = (*_PATHS, "chain")


def rank_paths(name: str) -> list[list[int]]:
    """Paths of ranks of the nodes of a named tree, see `Tree.named`.

    Raises:
      ConfigError: there is no such tree.
    """
    if name in _PATHS:
        return [list(map(int, word)) for word in _PATHS[name].split()]
    if name == "root":
        return []
    if match := re.fullmatch(r"chain(?:-(\d+))?", name):
        length = match[1] or str(_CHAIN)
        if len(length) > 4:
            raise ConfigError(f"a chain of {length} tokens is longer than any output")
        if not int(length):
            raise ConfigError("a chain needs at least 1 drafted token, not 0")
        return [[0] * int(length)]
    if re.fullmatch(r"\d+(,\d+)*", name):
        return [list(map(int, word)) for word in name.split(",")]
    raise ConfigError(
        f"unknown tree {name!r}; choose {', '.join(_PATHS)}, chain-LENGTH, root, or "
        "paths of ranks such as 0,1,00,01"
    )
