"""Normalises options from users and files: None (null in JSON) means the default, and NumPy scalars are numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def given(entries: Mapping[str, Any] | None, *, meaning: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the entries of a JSON object without those that are null, since null means "use the default".

    Args:
      entries: the object; None counts as an empty one.
      meaning: names for which null is a value of its own; these are kept.
    """
    return {name: value for name, value in (entries or {}).items() if value is not None or name in meaning}


def plain(value: Any) -> Any:
    """Converts NumPy and JAX values to plain Python: scalars to numbers, arrays to lists."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return type(value)(plain(one) for one in value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return value


def settle(options: Any) -> None:
    """Makes every argument of a frozen dataclass `plain`, and replaces None by the default. Call it in `__post_init__`.

    Raises:
      ValueError: if a field without a default is None.
    """
    for field in (field for field in dataclasses.fields(options) if field.init):
        value = plain(getattr(options, field.name))
        object.__setattr__(options, field.name, _default(options, field) if value is None else value)


def _default(options: Any, field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise ValueError(f"{type(options).__name__} needs a value for {field.name}, which has no default, got None")


def check_names(kind: type, entries: Mapping[str, Any]) -> None:
    """Raises a ValueError for entries that are no fields of a dataclass, and for fields that need one."""
    fields = dataclasses.fields(kind)
    known = {field.name for field in fields}
    if unknown := sorted(entries.keys() - known):
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - entries.keys()):
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}")


def check_integers(least: int, **values: Any) -> None:
    """Raises a ValueError that names the first value that is not an integer of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_numbers(**values: Any) -> None:
    """Raises a ValueError that names the first value that is no number; NaN and infinities are numbers."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{name} must be a number, got {value!r}")
