"""A `LoraConfig` as an object of JSON, as files beside adapters hold it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mcl_jax import dtypes, options
from mcl_jax.lora.config import LoraConfig

DTYPES = ("dtype", "param_dtype")


def to_json(config: LoraConfig) -> dict[str, Any]:
    """Returns the fields of a config, with names in place of dtypes."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return fields | {name: None if fields[name] is None else dtypes.name_of(fields[name]) for name in DTYPES}


def from_json(entries: Any) -> LoraConfig:
    """Returns the config of an object of JSON; null means the default.

    Raises:
      ValueError: if `entries` is no object, or has an entry that is unknown or wrong.
    """
    if not isinstance(entries, Mapping):
        raise ValueError(f"lora must be an object, got {entries!r}")
    entries = _with_tuples(options.given(entries))
    options.check_names(LoraConfig, entries)
    named = {name: jnp.dtype(dtypes.name_of(entries[name])) for name in DTYPES if name in entries}
    return LoraConfig(**entries | named)


def _with_tuples(value: Any) -> Any:
    """Returns the value with tuples in place of lists."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value
