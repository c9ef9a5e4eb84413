"""Every test runs on 8 fake CPU devices, with strict promotion of dtypes and ranks."""

import contextlib
import gc
import importlib.metadata
import os
import platform
import re
import tempfile

# Tests compile much and compute little: without optimisations they take less than half the time.
FAST_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end the process: they lack the flag
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
if platform.machine() == "x86_64":  # code for fewer kinds of instructions is made sooner
    FAST_COMPILE += " --xla_cpu_max_isa=SSE4_2"
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":  # `make gpu-check` runs some of them on a GPU
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), FAST_COMPILE, EIGHT_DEVICES])
# Many compile the same programs. One folder for all processes of a test run: the first makes it, and the rest inherit.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="mcl_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # writing stack traces into programs takes time


def pytest_collection_finish():
    """Tracing makes many objects that live: looking for garbage among them and all modules takes an eighth of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def says(capsys):
    """says(pattern): a context manager around code that prints exactly one line with this pattern; yields [line]."""

    @contextlib.contextmanager
    def check(pattern):
        capsys.readouterr()
        lines = []
        yield lines
        lines += [line for line in capsys.readouterr().out.splitlines() if re.search(pattern, line)]
        assert len(lines) == 1, f"wanted one line with {pattern!r}, got {lines}"

    return check


@pytest.fixture
def key():
    return jax.random.key(1729)
