"""Sets of weights in one file, such as a model, its moving average, a discriminator.

Trainers save a dict of state dicts. Each that holds tensors is a set of weights, named
by its key. Averages inside a state dict, with a prefix ("model_ema."), are sets, too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.source import Stored, printable
from jaxspec.errors import DataError

Sets = dict[str, dict[str, Stored]]
# Keys under which trainers save the model itself, in the order of LlamaGen's loader; ""
# is a state dict that is not nested in another dict.
PLAIN = ("model", "module", "state_dict", "model_state_dict", "")
# Scalars that averaging saves beside the averages.
COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")
AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")


def weight_sets(value: Any, file: Path) -> tuple[Sets, list[str]]:
    """Finds the sets of weights in the contents of a file.

    Args:
      value: contents of the file, with tensors as `Stored`.
      file: path of the file, for messages.

    Returns:
      The sets by name, and the names of entries that belong to none.

    Raises:
      DataError: there is no set, or a key is not a valid tensor name.
    """
    items = value if isinstance(value, dict) else {}
    bare = _tensors(items)
    state_dicts = {
        str(key): tensors
        for key, entry in items.items()
        if (tensors := _tensors(entry))
    }
    # A few bare tensors beside state dicts belong to the trainer (a step counter).
    if bare and not state_dicts.keys() & set(PLAIN):
        if len(bare) >= max(map(len, state_dicts.values()), default=0):
            state_dicts = {"": bare, **state_dicts}
    if not state_dicts:
        raise DataError(
            f"'{file}' holds no state dict: neither tensors by name nor a dict of them "
            f"under {', '.join(filter(None, PLAIN))} or another name"
        )
    used = {*state_dicts, *(bare if "" in state_dicts else ())}
    left_out = [f"[{printable(str(key))}]" for key in items if key not in used]
    sets: Sets = {}
    for name, tensors in state_dicts.items():
        for key in tensors:
            if not isinstance(key, str) or printable(key) != key:
                text = printable(str(key))
                raise DataError(f"'{file}': {text} is no name of a tensor")
        entry = items.get(name) if name else None
        left_out += [printable(str(key)) for key in entry or () if key not in tensors]
        for part_name, part in _split_averages(tensors).items():
            counters = [k for k in COUNTERS if k in part and part[k].size == 1]
            if len(counters) < len(part):
                left_out += [k for k in counters if part.pop(k)]
            sets.setdefault(part_name or printable(name), part)
    return sets, left_out


def _tensors(entry: Any) -> dict[str, Stored]:
    entry = entry if isinstance(entry, dict) else {}
    return {name: x for name, x in entry.items() if isinstance(x, Stored)}


def select_weights(
    sets: Mapping[str, Any], source: str, order: Sequence[str], choice: str | None
) -> str:
    """Returns the name of the set to use.

    Args:
      sets: sets of weights by name.
      source: name of the source, for messages.
      order: names of sets in order of preference, if the user chose none.
      choice: name of the set that the user chose.

    Raises:
      DataError: there is no such set, or the choice is ambiguous.
    """
    available = ", ".join(display_name(name) for name in sets)
    if choice is not None:
        if choice in sets:
            return choice
        raise DataError(
            f"'{source}' has no weights named {printable(choice)!r}; it has {available}"
        )
    for name in order:
        if name in sets:
            return name
    if len(sets) > 1:
        raise DataError(
            f"'{source}' holds several sets of weights, {available}; choose one with "
            "--weights NAME"
        )
    return next(iter(sets))


def display_name(name: str) -> str:
    """Returns the name of a set for messages."""
    return name or "(no name)"


def _split_averages(tensors: dict[str, Stored]) -> Sets:
    """Splits a state dict into averages, by prefix, and the rest, named ""."""
    rest = dict(tensors)
    averages: Sets = {}
    for prefix in AVERAGES:
        average = {k: rest.pop(k) for k in list(rest) if k.startswith(prefix + ".")}
        if average:
            averages[prefix] = {
                k.removeprefix(prefix + "."): v for k, v in average.items()
            }
    # Lightning removes dots from the names of averages, and omits buffers.
    dotted = {name.replace(".", ""): name for name in rest}
    for prefix, average in averages.items():
        if any("." not in k and k in dotted and k != dotted[k] for k in average):
            renamed = {dotted.get(k, k): v for k, v in average.items()}
            averages[prefix] = {**rest, **renamed}
    return {"": rest, **averages} if rest else averages
