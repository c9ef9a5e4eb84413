"""Pickles of plain values and of calls that the caller makes itself, read without Python's unpickler.

A pickle is a program for a stack machine. That of Python calls whatever the program names, reserves the sizes that it
states (a dozen bytes can ask for 32 GB), and hashes keys that take for ever. This one knows the opcodes that files of
weights consist of; its lists, tuples and dicts hold what the file holds, and it never grows beyond the file.
"""

import pickle
import pickletools
from collections.abc import Callable, Collection
from typing import Any, BinaryIO, NamedTuple

VALUES = [
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",
    "SHORT_BINSTRING",
]
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
MARK = object()


class Name(NamedTuple):
    """A function or class that a pickle names: "module name"."""

    text: str


class Machine:
    """Runs one pickle.

    Args:
      names: the names that a pickle may have, "module name"; any other is refused where it stands.
      call: makes the result of a `Name` and its arguments.
      persistent: makes the object of a persistent id.
    """

    def __init__(self, names: Collection[str], call: Callable[[Name, tuple], Any], persistent: Callable[[Any], Any]):
        self.names, self.call, self.persistent = names, call, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Reads a pickle; the stream is then at the byte after it.

        Args:
          stream: an object whose `read` never returns more than there is, nor reserves it, such as an `mmap`.
        Raises:
          pickle.UnpicklingError, ValueError, LookupError: if the bytes are no pickle, or one of other opcodes.
        """
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise pickle.UnpicklingError("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in VALUES:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name == "MARK":
            push(MARK)
        elif name in TUPLES:
            push(tuple(self._pop() for _ in range(TUPLES[name]))[::-1])
        elif name == "TUPLE":
            push(tuple(self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            self._append([self._pop()] if name == "APPEND" else self._since_mark())
        elif name in ("SETITEM", "SETITEMS"):
            self._set([self._pop(), self._pop()][::-1] if name == "SETITEM" else self._since_mark())
        elif name in PUTS:
            self.memo[argument] = self._top(object)
        elif name in GETS:
            push(self.memo[argument])
        elif name == "GLOBAL" and argument in self.names:
            push(Name(argument))
        elif name == "GLOBAL":
            shown = argument[:80].replace(" ", ".")
            raise pickle.UnpicklingError(f"it asks for {shown}, which a file of weights does not need")
        elif name == "REDUCE":
            arguments = self._pop()
            push(self.call(self._top(Name), arguments if isinstance(arguments, tuple) else ()))
            del self.stack[-2]
        elif name == "BUILD":
            self._pop()  # the attributes of an object: those of an OrderedDict say nothing about weights
        elif name == "BINPERSID":
            push(self.persistent(self._pop()))
        elif name != "PROTO":
            raise pickle.UnpicklingError(f"it has the opcode {name}, which a file of weights does not need")

    def _top(self, kind: type) -> Any:
        if not self.stack or self.stack[-1] is MARK or not isinstance(self.stack[-1], kind):
            raise pickle.UnpicklingError("an opcode lacks the value that it works on")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top(object)
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        """Pops the values above the last mark, and the mark."""
        values = []
        while self.stack and self.stack[-1] is not MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise pickle.UnpicklingError("an opcode lacks the mark that it works on")
        self.stack.pop()
        return values[::-1]

    def _append(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set(self, pairs: list[Any]) -> None:
        keys = pairs[::2]
        if len(pairs) % 2 or not all(isinstance(key, str) for key in keys):
            raise pickle.UnpicklingError("the keys of a dict must be texts")
        self._top(dict).update(zip(keys, pairs[1::2], strict=True))
