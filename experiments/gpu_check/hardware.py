"""The card, and the fastest matrix products and copies on it: the ceiling of every other figure."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.gpu_check.timing import Timed, seconds_of

QUERY = "name,driver_version,memory.total,utilization.gpu,clocks.sm,clocks.mem"


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields what is known so far."""
    device = jax.devices()[0]
    result = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        result["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    yield result
    result["bfloat16_tflops"] = {
        f"{m}x{k}x{n}": round(2 * m * k * n / product(m, k, n).median / 1e12, 1)
        for m, k, n in ([(64, 64, 64)] if quick else [(8192, 8192, 8192), (8192, 576, 1536), (4096, 4096, 11008)])
    }
    yield result
    size = 2**10 if quick else 2**31
    x = jax.random.normal(jax.random.key(0), size // 4)
    copy = seconds_of(jax.jit(jnp.copy), x)
    result["copy_gb_per_second"] = round(2 * x.nbytes / copy.median / 1e9)
    yield result


def product(m: int, k: int, n: int) -> Timed:
    """Times a bfloat16 product of [m, k] and [k, n] random numbers."""
    a, b = (jax.random.normal(jax.random.key(i), s, jnp.bfloat16) for i, s in enumerate([(m, k), (k, n)]))
    return seconds_of(jax.jit(jnp.matmul), a, b)
