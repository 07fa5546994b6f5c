"""Arrays that numpy stored as Python objects, read without running what is stored.

`numpy.load` reads such a file only by letting it construct any object. Here the instructions are followed by a reader
that knows numbers, texts, lists, dictionaries and numeric arrays, and refuses everything else.
"""

import io
import pickletools
from typing import Any

import numpy as np

MARK = object()
# How numpy stores an array: an empty one is made by the first, its dtype by the third, its bytes, as Latin-1 text, by
# the last; then it is given its state.
GLOBALS = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "_codecs encode")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = ("BININT", "BININT1", "BININT2", "BINUNICODE", "BINFLOAT")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_object_array(data: bytes) -> Any:
    """What a file `.npy` of dtype object and shape () holds.

    Args:
        data: the content of the file.

    Returns:
        The stored value: numbers, texts, lists, dictionaries and numeric arrays, nested in one another.

    Raises:
        ValueError: it holds anything else.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"the file has version {version} of the format npy; only (1, 0) is read.")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if shape != () or not dtype.hasobject:
        raise ValueError(
            f"the file holds an array {shape} of {dtype}; give one of dtype object and shape ()."
        )
    (value,) = _follow(stream.read()).finish()
    return value


class _Array:
    """An array that is being read."""

    value: Any = None

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, stored = state
        if isinstance(stored, list):
            # An array of objects: here always the value itself.
            self.value = stored
            return
        values = np.frombuffer(stored, dtype=kind.value)
        self.value = values.reshape(shape, order="F" if by_columns else "C")

    def finish(self) -> Any:
        return [_finish(each) for each in self.value] if isinstance(self.value, list) else self.value


class _Dtype:
    """The dtype of an array that is being read."""

    def __init__(self, name: str) -> None:
        if name != "O8" and np.dtype(name).kind not in "biuf":
            raise ValueError(f"the file holds an array of {name!r}; only numbers are read.")
        self.value: Any = object if name == "O8" else np.dtype(name)

    def set_state(self, state: tuple[Any, ...]) -> None:
        if self.value is not object and state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _call(function: str, arguments: tuple[Any, ...]) -> Any:
    if function == "_codecs encode" and arguments[1] == "latin1":
        return arguments[0].encode("latin1")
    if function == "numpy dtype":
        return _Dtype(arguments[0])
    if function == "numpy.core.multiarray _reconstruct" and arguments[0] == "numpy ndarray":
        return _Array()
    raise ValueError(f"the file calls {function!r} in a way that storing an array does not.")


def _follow(instructions: bytes) -> _Array:
    stack: list[Any] = []
    remembered: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = max(index for index, value in enumerate(stack) if value is MARK)
        values = stack[place + 1 :]
        del stack[place:]
        return values

    for instruction, argument, _ in pickletools.genops(instructions):
        name = instruction.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "GLOBAL" and argument in GLOBALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            remembered[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(remembered[argument])
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            stack.append(MARK)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in TUPLES:
            values = stack[-TUPLES[name] :]
            del stack[-TUPLES[name] :]
            stack.append(tuple(values))
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = since_mark()
            stack[-1].extend(values)
        elif name == "SETITEMS":
            values = since_mark()
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].set_state(state)
        elif name not in ("PROTO", "STOP"):
            raise ValueError(
                f"the file holds {name} {argument!r}; only numbers, texts and numeric arrays are read."
            )
    return stack[0]


def _finish(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.finish()
    if isinstance(value, list):
        return [_finish(each) for each in value]
    if isinstance(value, dict):
        return {key: _finish(each) for key, each in value.items()}
    return value
