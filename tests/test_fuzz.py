"""The fuzzer itself: what counts as a fault; a handful of inputs for two readers. `make fuzz` draws 10,000."""

import pytest

pytest.importorskip("hypothesis")

from hypothesis import strategies as st

from tests.fuzz import text_files
from tests.fuzz.targets import Target, reads, run


def _fail(error):
    raise error


def _out_of_memory():
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("a.bin is damaged") from error


@pytest.mark.parametrize(
    ("read", "outcome", "message"),
    [
        (lambda: 7, "read", ""),
        (lambda: _fail(ValueError("a.bin is damaged")), "refused", ""),
        (lambda: _fail(FileNotFoundError(2, "No such file", "a.bin")), "refused", ""),
        (lambda: _fail(ValueError("it is damaged")), "fault", "must name one of ('a.bin',)"),
        (lambda: _fail(KeyError("a.bin")), "fault", "KeyError"),
        (lambda: _fail(RecursionError("a.bin")), "fault", "RecursionError"),
        (_out_of_memory, "fault", "memory ran out"),
    ],
)
def test_what_counts_as_a_fault(tmp_path, read, outcome, message):
    target = Target("a", lambda: st.just(b"x"), lambda folder, _: reads(read, "a.bin")[0])
    result = run(target, 1, 0, tmp_path)
    assert result["inputs"] == result[outcome] == 1 and len(result["faults"]) == (outcome == "fault")
    assert all(message in fault["error"] for fault in result["faults"])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"x"] * len(result["faults"])


def test_a_handful(tmp_path):
    result = run(text_files.TARGETS[1], 5, 3, tmp_path)
    assert result["inputs"] == result.get("read", 0) + result["refused"] == 5 and not result["faults"]
