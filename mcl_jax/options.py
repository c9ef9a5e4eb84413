"""Options as people and files give them: None (null in JSON) is the default, and NumPy's scalars are numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def given(entries: Mapping[str, Any] | None, *, meaning: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entries of a JSON object that are not null, which says no more than an entry left out.

    Args:
      entries: of the object; none if it is null itself.
      meaning: names whose null says something else than their default, and stays.
    """
    return {name: value for name, value in (entries or {}).items() if value is not None or name in meaning}


def plain(value: Any) -> Any:
    """A value that can be written as JSON: Python's numbers for NumPy's and JAX's, lists for arrays."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return type(value)(plain(one) for one in value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return value


def settle(options: Any) -> None:
    """For `__post_init__` of a frozen dataclass: every field is `plain`, and its default where it is None.

    Raises:
      ValueError: for a None in a field without a default.
    """
    for field in dataclasses.fields(options):
        value = plain(getattr(options, field.name))
        object.__setattr__(options, field.name, _default(options, field) if value is None else value)


def _default(options: Any, field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise ValueError(f"{field.name} of {type(options).__name__} has no default and must be given, got None")


def check_integers(least: int, **values: Any) -> None:
    """Raises a ValueError that names the first value that is no integer, or below `least`."""
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
