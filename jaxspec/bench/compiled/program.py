"""What a compiled program does in its loop, read from the compiler's own text."""

import re
from dataclasses import dataclass

# What launches nothing; the second half of what runs beside other things.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
_HALVES = re.compile(r"-(done|update)$")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][a-z\-]*)\(")


@dataclass(frozen=True)
class Loop:
    """One turn of the largest loop of a program.

    Attributes:
      kernels: that are launched.
      cycles: that the compiler expects beside waiting for memory; 0 where it does not
        say, as for kernels that are not its own.
    """

    kernels: int
    cycles: int


def largest_loop(text: str) -> Loop:
    """Reads `compiled.as_text()`; a program without a loop is one turn.

    Loops inside count as often as they run, where the compiler knows, and of branches
    the largest.
    """
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := _HEAD.match(line):
            name = found[1]
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line.strip())
    loops = re.findall(r"\bbody=%?([\w.\-]+)", text)
    found = [_turn(bodies, loop) for loop in dict.fromkeys(loops)]
    return max(found, key=lambda x: x.kernels, default=_turn(bodies, entry))


def _turn(bodies: dict[str, list[str]], name: str) -> Loop:
    kernels = cycles = 0
    for line in bodies[name]:
        found = _INSTRUCTION.match(line)
        if not found or found[1] in _FREE or _HALVES.search(found[1]):
            continue
        inside = re.search(r"\b(?:body|to_apply)=%?([\w.\-]+)", line)
        if found[1] in ("while", "call") and inside:
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            one, times = _turn(bodies, inside[1]), int(turns[1]) if turns else 1
            kernels += times * one.kernels
            cycles += times * one.cycles
            continue
        if found[1] == "conditional":
            turns = [_turn(bodies, branch) for branch in _branches(line)]
            most = max(turns, key=lambda x: x.kernels, default=Loop(0, 0))
            kernels, cycles = kernels + most.kernels, cycles + most.cycles
        kernels += 1
        expected = re.search(r'"estimated_cycles":"(\d+)"', line)
        cycles += int(expected[1]) if expected else 0
    return Loop(kernels, cycles)


def _branches(line: str) -> list[str]:
    if many := re.search(r"branch_computations=\{([^}]*)\}", line):
        return re.findall(r"[\w.\-]+", many[1])
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
