"""Inputs: bytes that are random or nearly right, and values of JSON that are random or nearly right."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

# Numbers that break sizes, counts and offsets.
NUMBERS = [0, 1, 2, 7, 127, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]
DEEP = 3000  # brackets within brackets


@st.composite
def mutated(draw: Any, seeds: Sequence[bytes], head: int = 4096) -> bytes:
    """One of the files with up to four changes, most of them in its first `head` bytes; or random bytes."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=64))
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 2, 3, 4]))):
        content = _changed(draw, content, head)
    return content


def _changed(draw: Any, content: bytes, head: int) -> bytes:
    size = len(content)
    end = draw(st.sampled_from([min(size, 128), min(size, head), min(size, head), size]))
    at = draw(st.integers(0, end))
    match draw(st.sampled_from(["flip", "flip", "number", "number", "cut", "drop", "put", "twice", "digits"])):
        case "flip":
            return content[:at] + draw(st.binary(min_size=1, max_size=1)) + content[at + 1 :]
        case "number":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS)) % 256**width
            number = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
            return content[:at] + number + content[at + width :]
        case "cut":
            return content[:at]
        case "drop":
            return content[:at] + content[at + draw(st.integers(1, 16)) :]
        case "put":
            return content[:at] + draw(st.binary(max_size=16)) + content[at:]
        case "twice":
            return content[:at] + content[max(0, at - draw(st.integers(1, 200))) : at] + content[at:]
        case _:
            digits = draw(
                st.sampled_from([b"0", b"-1", b"9999999999999999999999", b"1e999", b"NaN", b"null", b'"', b"["])
            )
            return content[:at] + digits + content[at + len(digits) :]


def texts() -> st.SearchStrategy[str]:
    """Texts with any character, lone surrogates among them."""
    return st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["", " ", "\0", "\ud83d", "../x", "/etc/passwd", "a/../../b", "..", ".", "x" * 5000, "\u2028", "é"]
        ),
    )


def numbers() -> st.SearchStrategy[Any]:
    """Integers and floats of any size."""
    edge = st.sampled_from(
        [-1, -(2**63), 2**63, 2**64, 10**30, 10**400, 1e308, 5e-324, float("inf"), float("nan"), -0.0]
    )
    return st.one_of(st.integers(-3, 40), edge, st.floats(), st.sampled_from(NUMBERS))


def values() -> st.SearchStrategy[Any]:
    """Values of JSON."""
    leaves = st.one_of(st.none(), st.booleans(), numbers(), texts())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts(), inner, max_size=3)),
        max_leaves=6,
    )


@st.composite
def nearly(draw: Any, seeds: Sequence[Mapping[str, Any]], others: Sequence[str] = ()) -> dict[str, Any]:
    """One of the objects with up to three entries changed, at any depth, removed or added (also one of `others`)."""
    made = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(0, 3))):
        place = made
        while (inner := [v for v in place.values() if isinstance(v, dict) and v]) and draw(st.booleans()):
            place = draw(st.sampled_from(inner))
        names = st.sampled_from([*place, *others]) if place or others else texts()
        name = draw(st.one_of(names, names, names, texts()))
        if draw(st.integers(0, 3)) == 0:
            place.pop(name, None)
        else:
            place[name] = draw(values())
    return made


def as_json(value: Any) -> bytes:
    """The bytes of a file; lone surrogates become escapes, as JSON allows."""
    return json.dumps(value).encode()


@st.composite
def json_files(draw: Any, seeds: Sequence[Mapping[str, Any]], others: Sequence[str] = ()) -> bytes:
    """A JSON file: an object that is nearly right, its bytes mutated, any value, or very deep brackets."""
    match draw(st.integers(0, 9)):
        case 0:
            return as_json(draw(values()))
        case 1:
            depth = draw(st.one_of(st.integers(100, 1200), st.just(DEEP)))
            key = json.dumps(draw(st.sampled_from([*(name for seed in seeds for name in seed), "x"]))).encode()
            left, right = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b'{"a":[', b"]}")]))
            return b"{" + key + b":" + left * depth + b"1" + right * depth + b"}"
        case 2 | 3:
            return draw(mutated([as_json(draw(st.sampled_from(seeds)))], 10**6))
        case _:
            return as_json(draw(nearly(seeds, others)))
