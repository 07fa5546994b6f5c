"""The tensors of a model as CTranslate2 stores it, `model.bin` of version 6, read with numpy alone."""

import struct

import numpy as np
from numpy.typing import NDArray

VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_tensors(data: bytes) -> dict[str, NDArray]:
    """The tensors by name.

    Args:
        data: content of the file.

    Raises:
        ValueError: another version, or a file that ends too early.
    """
    reader = _Reader(data)
    try:
        version = reader.number("I")
        if version != VERSION:
            raise ValueError(f"the file has version {version} of the format; only {VERSION} is read")
        # Name and revision of the kind of model.
        reader.text()
        reader.number("I")
        return dict(reader.tensor() for _ in range(reader.number("I")))
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"the file is no model of CTranslate2, or is cut ({error})") from error


class _Reader:
    """Numbers, texts and tensors, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.place)
        self.place += struct.calcsize(f"<{kind}")
        return int(value)

    def text(self) -> str:
        size = self.number("H")
        text = self.data[self.place : self.place + size - 1].decode()
        self.place += size
        return text

    def tensor(self) -> tuple[str, NDArray]:
        name = self.text()
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        dtype = np.dtype(DTYPES[self.number("B")])
        size = self.number("I")
        if len(self.data) - self.place < size:
            raise struct.error(f"{name} ends too early")
        values = np.frombuffer(self.data, dtype, count=size // dtype.itemsize, offset=self.place)
        self.place += size
        return name, values.reshape(shape)
