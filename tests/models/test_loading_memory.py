"""Loading holds the model once, and a tensor or two: measured in a process of its own."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mcl_jax.models import save_pretrained
from mcl_jax.models.llama import Llama, LlamaConfig

CHILD = """
import json, sys, threading, time
import jax, jax.numpy as jnp
from mcl_jax.models import from_pretrained

def held():  # bytes that are not a mapped file
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], held())
        time.sleep(0.001)

(jnp.zeros(3) + 1).block_until_ready()
done, before, peak = threading.Event(), held(), [0]
thread = threading.Thread(target=watch)
thread.start()
_, params, _ = from_pretrained(sys.argv[1], dtype=jnp.dtype(sys.argv[2]), param_dtype=jnp.dtype(sys.argv[2]))
jax.block_until_ready(params)
done.set()
thread.join()
print(json.dumps([peak[0] - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params))]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_near_the_models_size(tmp_path, dtype):
    config = LlamaConfig(
        vocab_size=4001,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    shapes = jax.eval_shape(Llama(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    save_pretrained(tmp_path, Llama(config), jax.tree.map(lambda x: jnp.full(x.shape, 0.5), shapes))
    command = [sys.executable, "-c", CHILD, str(tmp_path), dtype]
    peak, size = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert size > 60e6
    # a stacked leaf on its way to the device (a fifth of this model, where it is of a large one's too), and the tensor
    # that is being read; holding every tensor before placing it would be twice the size
    assert peak < 1.6 * size, f"{peak / 2**20:.0f} MiB at most for a model of {size / 2**20:.0f} MiB"
    print(f"{dtype}: {peak / 2**20:.0f} MiB at most for a model of {size / 2**20:.0f} MiB")
