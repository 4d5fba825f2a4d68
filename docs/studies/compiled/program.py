"""Kernel counts of a compiled program, from its HLO text."""

import re
from dataclasses import dataclass

# Instructions that launch no kernel, and the ends of asynchronous ones.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
_ASYNC_END = re.compile(r"-(done|update)$")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][a-z\-]*)\(")


@dataclass(frozen=True)
class Loop:
    """One iteration of the largest loop of a program, or all of it.

    Attributes:
      kernels: Number of launched kernels.
      cycles: Cycles that the compiler estimates, without waiting for memory; 0 where
        it gives no estimate, as for custom kernels.
    """

    kernels: int
    cycles: int


def largest_loop(text: str) -> Loop:
    """Finds the loop with the most kernels; without loops, counts the whole program.

    Inner loops count once per iteration where the trip count is known, else once. Of
    the branches of a conditional, only the largest counts.

    Args:
      text: HLO text, from `compiled.as_text()`.
    """
    bodies, entry = _computations(text)
    loops = re.findall(r"\bbody=%?([\w.\-]+)", text)
    counts = [_count(bodies, loop) for loop in dict.fromkeys(loops)]
    return max(counts, key=lambda x: x.kernels, default=_count(bodies, entry))


def whole_program(text: str) -> Loop:
    """Counts a whole program; the arguments are those of `largest_loop`."""
    return _count(*_computations(text))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions of all computations by name, and the name of the main one."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if match := _HEAD.match(line):
            name = match[1]
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line.strip())
    return bodies, entry


def _count(bodies: dict[str, list[str]], name: str) -> Loop:
    """Counts kernels and cycles of one run of a computation.

    Args:
      bodies: Instructions of all computations by name.
      name: Name of the computation.
    """
    kernels = cycles = 0
    for line in bodies[name]:
        match = _INSTRUCTION.match(line)
        if not match or match[1] in _FREE or _ASYNC_END.search(match[1]):
            continue
        inner = re.search(r"\b(?:body|to_apply)=%?([\w.\-]+)", line)
        if match[1] in ("while", "call") and inner:
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            count, times = _count(bodies, inner[1]), int(trips[1]) if trips else 1
            kernels += times * count.kernels
            cycles += times * count.cycles
            continue
        if match[1] == "conditional":
            counts = [_count(bodies, branch) for branch in _branches(line)]
            largest = max(counts, key=lambda x: x.kernels, default=Loop(0, 0))
            kernels, cycles = kernels + largest.kernels, cycles + largest.cycles
        kernels += 1
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        cycles += int(estimate[1]) if estimate else 0
    return Loop(kernels, cycles)


def _branches(line: str) -> list[str]:
    """Names of the computations of a conditional instruction."""
    if many := re.search(r"branch_computations=\{([^}]*)\}", line):
        return re.findall(r"[\w.\-]+", many[1])
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
