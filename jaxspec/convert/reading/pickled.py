"""Interpreter for the subset of pickle instructions that describe tensors.

A pickle is a program, and Python's `pickle` runs whatever it contains. This interpreter
supports plain containers, numbers and strings; the caller resolves global names and
persistent references. Values from the file are never hashed, compared or printed unless
they are strings or numbers, so that a file can neither run code nor exhaust memory.
"""

import pickletools
from collections.abc import Callable
from typing import Any, cast

# Nesting of tuples, lists and dicts; torch needs three or four levels.
MAX_DEPTH = 50
# Integers up to 64 bits, which seeds of random generators have.
MAX_INT = 1 << 64


class PickleError(ValueError):
    """Error for a program that does more than describe tensors."""


class Function:
    """A supported function."""

    def __init__(self, run: Callable[..., Any]):
        """Wraps `run`, which receives the arguments from the file."""
        self.run = run


class Inert:
    """Placeholder for an unknown function or its result; all operations ignore it."""


INERT = Inert()
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT",
    "FLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Instructions by what they do: nothing, make a container, fill one, or call a function.
_IGNORED = {"PROTO", "FRAME"}
_CONTAINERS = {
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "LIST", "DICT", *_TUPLES,
}  # fmt: skip
_CHANGES = {"SETITEM", "SETITEMS", "APPEND", "APPENDS"}
_CALLS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"}


class Interpreter:
    """Interpreter of one program."""

    def __init__(
        self,
        find_global: Callable[[str, str], Any],
        find_storage: Callable[[Any], Any],
    ):
        """Takes the functions that resolve names and references.

        Args:
          find_global: function of `(module, name)` that returns a `Function`, a value,
            or `INERT`.
          find_storage: function of a persistent reference that returns its value.
        """
        self._find_global, self._find_storage = find_global, find_storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._depth: dict[int, int] = {}  # of containers, by identity
        self._alive: list[Any] = []  # keeps identities unique

    def run(self, program: bytes) -> Any:
        """Runs the program and returns its value.

        Raises:
          PickleError: the program is invalid, or does more than describe tensors.
        """
        self._memo = {}
        try:
            for opcode, value, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    return self._pop()
                self._run_instruction(opcode.name, cast(Any, value))
        except PickleError:
            raise
        except Exception as error:  # such as an empty stack, or a truncated string
            reason = type(error).__name__
            raise PickleError(f"its pickle is invalid ({reason})") from None
        raise PickleError("its pickle does not end")

    def _run_instruction(self, name: str, argument: Any) -> None:
        """Runs one instruction.

        Args:
          name: name of its opcode in `pickletools`.
          argument: argument from the program, None if the opcode has none.

        Raises:
          PickleError: the instruction is not supported.
        """
        memo = self._memo
        if name in _IGNORED:
            return
        if name in _LITERALS:
            self._stack.append(self._literal(argument))
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name == "POP":
            self._pop()
        elif name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = self._top()
        elif name.endswith("GET"):
            self._stack.append(memo[argument])
        elif name in _CONTAINERS:
            self._make_container(name)
        elif name in _CHANGES:
            self._change_container(name)
        elif name in _CALLS:
            self._resolve(name, argument)
        else:
            raise PickleError(f"its pickle uses {name}")

    def _make_container(self, name: str) -> None:
        """Pushes a dict, list or tuple, empty or of values on the stack."""
        push = self._stack.append
        if name == "EMPTY_DICT":
            push({})
        elif name == "EMPTY_LIST":
            push([])
        elif name == "EMPTY_TUPLE":
            push(())
        elif name in _TUPLES:
            parts = [self._pop() for _ in range(_TUPLES[name])]
            push(self._record_depth(tuple(reversed(parts)), parts))
        elif name == "TUPLE":
            parts = self._pop_to_mark()
            push(self._record_depth(tuple(parts), parts))
        elif name == "LIST":
            parts = self._pop_to_mark()
            push(self._record_depth(list(parts), parts))
        elif name == "DICT":
            result: dict[Any, Any] = {}
            self._set_items(result, self._pop_to_mark())
            push(result)

    def _change_container(self, name: str) -> None:
        """Adds values on the stack to the dict or list below them."""
        if name == "SETITEM":
            parts = self._pop_pair()
        elif name == "APPEND":
            parts = [self._pop()]
        else:
            parts = self._pop_to_mark()
        change = self._set_items if name.startswith("SETITEM") else self._extend
        change(self._top(), parts)

    def _resolve(self, name: str, argument: Any) -> None:
        """Resolves a name or reference, calls a function, or sets an object's state."""
        push = self._stack.append
        if name == "GLOBAL":
            module, _, qualified_name = argument.partition(" ")
            push(self._find_global(module, qualified_name))
        elif name == "STACK_GLOBAL":
            qualified_name, module = self._pop(), self._pop()
            if not all(isinstance(part, str) for part in (module, qualified_name)):
                raise PickleError("its pickle has a name that is no string")
            push(self._find_global(module, qualified_name))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self._pop(), self._pop()
            push(self._call(function, arguments))
        elif name == "BUILD":  # sets an object's state, such as metadata of a dict
            self._pop()
            if not isinstance(self._top(), dict | Inert):
                raise PickleError(
                    "its pickle changes the state of a tensor or a function"
                )
        elif name == "BINPERSID":
            push(self._find_storage(self._pop()))

    def _top(self) -> Any:
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise PickleError("its pickle is invalid (unexpected mark)")
        return value

    def _pop_pair(self) -> list[Any]:
        value, key = self._pop(), self._pop()
        return [key, value]

    def _pop_to_mark(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                parts = self._stack[i + 1 :]
                del self._stack[i:]
                return parts
        raise PickleError("its pickle is invalid (no mark)")

    def _literal(self, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= MAX_INT:
            raise PickleError("its pickle has a number of more than 64 bits")
        return value

    def _record_depth(self, container: Any, parts: list[Any]) -> Any:
        """Returns the container after checking its nesting depth."""
        depth = 1 + max((self._depth.get(id(part), 0) for part in parts), default=0)
        if depth > MAX_DEPTH:
            raise PickleError("its pickle nests containers too deeply")
        self._depth[id(container)] = max(depth, self._depth.get(id(container), 0))
        self._alive.append(container)
        return container

    def _set_items(self, target: Any, parts: list[Any]) -> None:
        if target is INERT:
            return
        if not isinstance(target, dict) or len(parts) % 2:
            raise PickleError("its pickle sets items of a value that is no dict")
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if not isinstance(key, str | int):
                raise PickleError("its pickle has a key that is no string or number")
            target[key] = value
        self._record_depth(target, parts)

    def _extend(self, target: Any, parts: list[Any]) -> None:
        if target is INERT:
            return
        if not isinstance(target, list):
            raise PickleError("its pickle appends to a value that is no list")
        target.extend(parts)
        self._record_depth(target, parts)

    def _call(self, function: Any, arguments: Any) -> Any:
        if function is INERT:
            return INERT
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise PickleError("its pickle calls a value that is no function")
        return function.run(*arguments)
