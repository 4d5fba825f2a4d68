"""An interpreter for the few pickle instructions that describe tensors.

A pickle is a program, and the standard one runs it. This one knows plain containers,
numbers and texts; what a global name or a persistent reference stands for is for the
caller to say. Nothing that came out of the file is hashed, compared or printed, unless
it is a text or a number, so that nothing in it can be made to grow or to run.
"""

import pickletools
from collections.abc import Callable
from typing import Any, cast

# Longest row of nested tuples, lists and dicts: torch needs three or four.
MOST_DEPTH = 50
# Seeds of random generators have 64 bits.
MOST_INT = 1 << 64


class PickleError(ValueError):
    """The program does something that no description of tensors needs."""


class Function:
    """What a known global name stands for."""

    def __init__(self, run: Callable[..., Any]):
        """`run` is given the arguments as they are in the file."""
        self.run = run


class Inert:
    """Stands for whatever came of a name that is not known; nothing acts on it."""


INERT = Inert()
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT",
    "FLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Interpreter:
    """Runs one program."""

    def __init__(
        self,
        find: Callable[[str, str], Any],
        refer: Callable[[Any], Any],
    ):
        """Takes what gives names and references their meaning.

        Args:
          find: `(module, name)` to a `Function`, a value, or `INERT`.
          refer: a persistent reference to a value.
        """
        self._find, self._refer = find, refer
        self._stack: list[Any] = []
        self._depth: dict[int, int] = {}  # of containers, by identity
        self._alive: list[Any] = []  # so that no identity is used twice

    def run(self, program: bytes) -> Any:
        """The value that the program leaves.

        Raises:
          PickleError: says what it does that it should not.
        """
        memo: dict[int, Any] = {}
        push, pop = self._stack.append, self._pop
        try:
            for opcode, given, _ in pickletools.genops(program):
                name, argument = opcode.name, cast(Any, given)
                if name in ("PROTO", "FRAME"):
                    continue
                if name in _LITERALS:
                    push(self._literal(argument))
                elif name in _CONSTANTS:
                    push(_CONSTANTS[name])
                elif name == "MARK":
                    push(_MARK)
                elif name.endswith("PUT") or name == "MEMOIZE":
                    memo[len(memo) if argument is None else argument] = self._top()
                elif name.endswith("GET"):
                    push(memo[argument])
                elif name == "EMPTY_DICT":
                    push({})
                elif name == "EMPTY_LIST":
                    push([])
                elif name == "EMPTY_TUPLE":
                    push(())
                elif name in _TUPLES:
                    parts = [pop() for _ in range(_TUPLES[name])]
                    push(self._contained(tuple(reversed(parts)), parts))
                elif name == "TUPLE":
                    parts = self._marked()
                    push(self._contained(tuple(parts), parts))
                elif name == "DICT":
                    made: dict[Any, Any] = {}
                    self._set(made, self._marked())
                    push(made)
                elif name == "LIST":
                    parts = self._marked()
                    push(self._contained(list(parts), parts))
                elif name in ("SETITEM", "SETITEMS"):
                    parts = self._marked() if name == "SETITEMS" else self._two()
                    self._set(self._top(), parts)
                elif name in ("APPEND", "APPENDS"):
                    parts = self._marked() if name == "APPENDS" else [pop()]
                    self._add(self._top(), parts)
                elif name == "GLOBAL":
                    module, _, whole = argument.partition(" ")
                    push(self._find(module, whole))
                elif name == "STACK_GLOBAL":
                    whole, module = pop(), pop()
                    if not (isinstance(module, str) and isinstance(whole, str)):
                        raise PickleError("its pickle asks for a name that is no text")
                    push(self._find(module, whole))
                elif name in ("REDUCE", "NEWOBJ"):
                    arguments, function = pop(), pop()
                    push(self._call(function, arguments))
                elif name == "BUILD":  # state of an object: metadata of a dict, no more
                    pop()
                    if not isinstance(self._top(), dict | Inert):
                        raise PickleError("its pickle changes what it was given")
                elif name == "BINPERSID":
                    push(self._refer(pop()))
                elif name == "POP":
                    pop()
                elif name == "STOP":
                    return pop()
                else:
                    raise PickleError(f"its pickle uses {name}")
        except PickleError:
            raise
        except Exception as error:  # a stack that is empty, a text that is cut off
            reason = type(error).__name__
            raise PickleError(f"its pickle makes no sense ({reason})") from None
        raise PickleError("its pickle does not end")

    def _top(self) -> Any:
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise PickleError("its pickle makes no sense (a mark)")
        return value

    def _two(self) -> list[Any]:
        value, key = self._pop(), self._pop()
        return [key, value]

    def _marked(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                parts = self._stack[i + 1 :]
                del self._stack[i:]
                return parts
        raise PickleError("its pickle makes no sense (no mark)")

    def _literal(self, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= MOST_INT:
            raise PickleError("its pickle has a number beyond all sizes")
        return value

    def _contained(self, made: Any, parts: list[Any]) -> Any:
        """A container, unless it is nested too deeply."""
        depth = 1 + max((self._depth.get(id(part), 0) for part in parts), default=0)
        if depth > MOST_DEPTH:
            raise PickleError("its pickle nests containers too deeply")
        self._depth[id(made)] = max(depth, self._depth.get(id(made), 0))
        self._alive.append(made)
        return made

    def _set(self, target: Any, parts: list[Any]) -> None:
        if target is INERT:
            return
        if not isinstance(target, dict) or len(parts) % 2:
            raise PickleError("its pickle puts items where none can be")
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if not isinstance(key, str | int):
                raise PickleError("its pickle has a key that is no text or number")
            target[key] = value
        self._contained(target, parts)

    def _add(self, target: Any, parts: list[Any]) -> None:
        if target is INERT:
            return
        if not isinstance(target, list):
            raise PickleError("its pickle appends to what is no list")
        target.extend(parts)
        self._contained(target, parts)

    def _call(self, function: Any, arguments: Any) -> Any:
        if function is INERT:
            return INERT
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise PickleError("its pickle calls what is no function")
        return function.run(*arguments)
