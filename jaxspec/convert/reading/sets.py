"""Sets of weights in one file: a model, its moving average, a discriminator.

A trainer saves a dict of state dicts. Each that holds tensors is a set, named by its
key. Averages that stand inside a state dict behind a prefix ("model_ema.") are sets as
well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.stored import Stored, printable
from jaxspec.errors import DataError

Sets = dict[str, dict[str, Stored]]
# Names under which trainers keep the model itself, in the order of LlamaGen's loader;
# "" is a state dict that is not inside another.
PLAIN = ("model", "module", "state_dict", "model_state_dict", "")
# Single numbers that averaging keeps beside the averages.
COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")
AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")


def weight_sets(value: Any, file: Path) -> tuple[Sets, list[str]]:
    """The sets in what a file holds, and the names of what is in none.

    Args:
      value: of the file; tensors in it are `Stored`.
      file: for messages.

    Raises:
      DataError: there is none, or a tensor's name cannot be one.
    """
    items = value if isinstance(value, dict) else {}
    bare = _tensors(items)
    held = {str(key): mine for key, entry in items.items() if (mine := _tensors(entry))}
    # Beside state dicts, a few bare tensors are a trainer's (a count of steps).
    if bare and not held.keys() & set(PLAIN):
        if len(bare) >= max(map(len, held.values()), default=0):
            held = {"": bare, **held}
    if not held:
        raise DataError(
            f"'{file}' holds no state dict: neither tensors by name nor a dict of them "
            f"under {', '.join(filter(None, PLAIN))} or another name"
        )
    used = {*held, *(bare if "" in held else ())}
    left_out = [f"[{printable(str(key))}]" for key in items if key not in used]
    found: Sets = {}
    for name, tensors in held.items():
        for key in tensors:
            if not isinstance(key, str) or printable(key) != key:
                shown = printable(str(key))
                raise DataError(f"'{file}': {shown} is no name of a tensor")
        inside = items.get(name) if name else None
        left_out += [printable(str(key)) for key in inside or () if key not in tensors]
        for part, some in _parted(tensors).items():
            counters = [k for k in COUNTERS if k in some and some[k].size == 1]
            if len(counters) < len(some):
                left_out += [k for k in counters if some.pop(k)]
            found.setdefault(part or printable(name), some)
    return found, left_out


def _tensors(entry: Any) -> dict[str, Stored]:
    entry = entry if isinstance(entry, dict) else {}
    return {name: x for name, x in entry.items() if isinstance(x, Stored)}


def chosen(
    sets: Mapping[str, Any], name: str, order: Sequence[str], wanted: str | None
) -> str:
    """The name of the set to take.

    Args:
      sets: by name.
      name: of the source, for messages.
      order: names that are taken by themselves, the first that is there.
      wanted: the user's choice.

    Raises:
      DataError: there is no such set, or nothing decides among several.
    """
    there = ", ".join(shown(s) for s in sets)
    if wanted is not None:
        if wanted in sets:
            return wanted
        raise DataError(
            f"'{name}' has no weights named {printable(wanted)!r}; it has {there}"
        )
    for one in order:
        if one in sets:
            return one
    if len(sets) > 1:
        raise DataError(
            f"'{name}' holds several sets of weights, {there}; choose one with "
            "--weights NAME"
        )
    return next(iter(sets))


def shown(name: str) -> str:
    """The name of a set, for messages."""
    return name or "(no name)"


def _parted(tensors: dict[str, Stored]) -> Sets:
    """Averages that stand behind a prefix apart from the rest, whose name is ""."""
    rest = dict(tensors)
    parts: Sets = {}
    for prefix in AVERAGES:
        mine = {k: rest.pop(k) for k in list(rest) if k.startswith(prefix + ".")}
        if mine:
            parts[prefix] = {k.removeprefix(prefix + "."): v for k, v in mine.items()}
    # Lightning's averages have names without dots, and no buffers.
    flat = {name.replace(".", ""): name for name in rest}
    for prefix, mine in parts.items():
        if any("." not in k and k in flat and k != flat[k] for k in mine):
            named = {flat.get(k, k): v for k, v in mine.items()}
            parts[prefix] = {**rest, **named}
    return {"": rest, **parts} if rest else parts
