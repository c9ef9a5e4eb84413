"""What tests of several experiments need."""

from collections import Counter

import jax
import pytest

from experiments.common.perception import Perception


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        yield


@pytest.fixture
def no_packages(monkeypatch):
    """As on a machine without weights and jars, whose loading takes seconds."""
    monkeypatch.setattr("mcl_jax.metrics.embedding.PACKAGE", "no-such-package-of-weights")
    monkeypatch.setattr("mcl_jax.metrics.java.PACKAGE", "no_such_package_of_jars")


@pytest.fixture
def encoded(monkeypatch):
    """How often the tower was given each record, by id."""
    found, tower_inputs = Counter(), Perception.tower_inputs

    def counted(perception, records):
        found.update(record.id for record in records if record is not None)
        return tower_inputs(perception, records)

    monkeypatch.setattr(Perception, "tower_inputs", counted)
    return found
