"""Files of torch's old format, written here byte by byte: what is read, and that nothing else in them is."""

import os
import pickle

import numpy as np
import pytest
from tower_files import MAKE_TENSOR, file_bytes, tensor_opcodes

from mcl_jax.models.torch_file import TorchFile

A, B = np.arange(35, dtype="<f4") / 7, np.array([3], "<i8")
TENSORS = {
    "whole": tensor_opcodes("11", (5, 7), (7, 1)),
    "transposed.column": tensor_opcodes("11", (7, 3), (1, 7), offset=14, count=35),
    "counter": tensor_opcodes("12", (), (), kind=b"Long"),
}
STORAGES = {"12": B, "11": A}


@pytest.fixture
def read(tmp_path):
    def read(content):
        file = tmp_path / "weights.pth"
        file.write_bytes(content)
        return TorchFile(file)

    return read


def test_views_of_storages(read):
    source = read(file_bytes(TENSORS, STORAGES))
    assert source.shapes == {"whole": (5, 7), "transposed.column": (7, 3), "counter": ()}
    assert source.dtypes == {"whole": "F32", "transposed.column": "F32", "counter": "I64"}
    np.testing.assert_array_equal(source.read("whole"), A.reshape(5, 7))
    np.testing.assert_array_equal(source.read("transposed.column"), A.reshape(5, 7)[2:].T)
    assert source.read("counter") == 3


def test_no_code_of_a_file_runs(read, tmp_path):
    """Neither a function nor a class, wherever it stands, and not through the four names that are known."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for body in (pickle.dumps(Evil(), 2), pickle.dumps({"w": Evil()}, 2), pickle.dumps({"w": np.ones(3)}, 2)):
        with pytest.raises(ValueError, match=r"weights\.pth .*it asks for (posix|nt|numpy)[\w.]*, which a file of wei"):
            read(file_bytes({}, {}, body=body))
    for opcodes in (b"ctorch\nFloatStorage\n)R", MAKE_TENSOR + b"(K\x01K\x02K\x03tR", b"cbuiltins\neval\n"):
        with pytest.raises(ValueError, match=r"weights\.pth is damaged or not a torch file of weights"):
            read(file_bytes({"w": opcodes}, {}))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or not a torch file of weights: it is empty"),
        (b"PK\x03\x04 and so on", "is a zip archive.* convert it to safetensors"),
        (b"\x89PNG\r\n", "is damaged or not a torch file"),
        (file_bytes(TENSORS, STORAGES, magic=5), r"must begin with the numbers of a torch file, got \[5, 1001\]"),
        (file_bytes(TENSORS, STORAGES)[:-1], r"is truncated: it must have at least \d+ bytes, got \d+"),
        (file_bytes(TENSORS, STORAGES)[:200], "is damaged or not a torch file"),
        (file_bytes(TENSORS, STORAGES, order=["11"]), "its list of storages is not that of its tensors"),
        (file_bytes(TENSORS, STORAGES, order=[["11"], "12"]), "its list of storages is not that of its tensors"),
        (
            file_bytes(TENSORS | {"w": tensor_opcodes("11", (99,), (1,))}, STORAGES),
            "its list of storages is not that of its tensors",
        ),
        (file_bytes(TENSORS, {"12": B, "11": A[:-1]}), "a storage must have 35 numbers, got 34"),
        (file_bytes({"w": tensor_opcodes("1", (5, 7), (7, 2), count=35)}, {"1": A}), "w reads beyond its 35 numbers"),
        (file_bytes({"w": tensor_opcodes("1", (5,), (-1,), offset=4)}, {"1": A[:5]}), "of at least 0"),
        (file_bytes({}, {}, body=pickle.dumps([1, 2], 2)), "must hold tensors by name, got list"),
        (file_bytes({}, {}, body=pickle.dumps({"epoch": 3}, 2)), "must hold tensors by name, got {'epoch': int}"),
    ],
)
def test_foreign_and_damaged_files_are_named(content, message, read):
    with pytest.raises(ValueError, match=rf"weights\.pth .*{message}"):
        read(content)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"there is no weight file .*weights\.pth"):
        TorchFile(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (tensor_opcodes("1", (2**40,), (0,), count=35), "at most the 35 numbers of its storage"),
        (tensor_opcodes("1", (2**40, 0), (1, 1), count=35), "at most the 35 numbers of its storage"),
        (tensor_opcodes("1", (7, 7), (1, 1), count=35), "at most the 35 numbers of its storage"),
        (tensor_opcodes("1", (1,) * 40, (1,) * 40, count=35), "at most the 35 numbers of its storage"),
        (tensor_opcodes("1", (7,), (10**5000,), count=35), "below 2\\^48"),
        (b"r\xff\xff\xff\x7f0", "the opcode POP"),  # Python's unpickler reserves 32 GB for it
        (b"X\xff\xff\xff\xff", "expected 4294967295 bytes"),
        (b"2", "the opcode DUP"),
    ],
)
def test_a_file_reserves_no_more_than_it_holds(opcodes, message, read):
    with pytest.raises(ValueError, match=rf"weights\.pth .*({message})"):
        read(file_bytes({"w": opcodes}, {"1": A}))


def test_values_that_share_their_parts_take_no_time(read):
    """2^60 brackets, if one wrote or hashed them."""
    nested = b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(60))
    key = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    for magic in (nested, b"}" + key + b"K\x01s"):
        with pytest.raises(ValueError, match=r"weights\.pth (must begin with the numbers of a|is damaged or not)"):
            read(b"\x80\x02" + magic + b"." + file_bytes({}, {}))
    with pytest.raises(ValueError, match="its list of storages is not that of its tensors"):
        read(file_bytes({}, {}, order=[]).replace(pickle.dumps([], 2), b"\x80\x02" + nested + b"."))
