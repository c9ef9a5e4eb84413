"""Traces of a few steps: which are traced, and that a training leaves one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcl_jax.profiling import Profiler


@pytest.fixture
def traces(monkeypatch):
    """What jax's profiler is asked for."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append(str(folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def run(profiler, sizes, traces):
    """Calls steps with batches of these sizes; returns the steps with which a trace begins and before which it ends."""
    began, ended = [], []
    for number, size in enumerate(sizes):
        before = list(traces)
        assert profiler(number, 7, {"x": np.zeros(size)}) == (7, {"loss": size})
        began += [number] * (len(traces) > len(before) and traces[len(before)] != "stop")
        ended += [number] * ("stop" in traces[len(before) :])
    profiler.end()
    return began, ended


STEP = lambda state, batch: (state, {"loss": len(batch["x"])})


@pytest.mark.parametrize(
    ("calls", "sizes", "began", "ended", "said"),
    [
        (3, [5] * 7, [2], [4], "The trace of steps 2, 3, 4 is in runs/profile"),
        (3, [5, 7, 5, 7, 7, 5, 3, 5], [4], [6], "steps 4, 5 is in"),  # a new shape ends it
        (3, [5] * 4, [2], [], "steps 2, 3 is in"),  # the end of the training too
        (3, [5, 5, 7], [], [], "No step was traced"),
        (0, [5] * 4, [], [], ""),
    ],
)
def test_steps_are_traced_once_their_shapes_are_known(calls, sizes, began, ended, said, traces, capsys):
    assert run(Profiler(STEP, calls, "runs/profile"), sizes, traces) == (began, ended)
    assert traces in ([], ["runs/profile", "stop"])
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed and bool(printed) == bool(said)


def test_a_trace_is_left_in_the_folder(tmp_path):
    step = jax.jit(lambda state, batch: (state + batch, {"loss": state}))
    profiler = Profiler(step, 2, tmp_path / "profile")
    for number in range(5):
        state, _ = profiler(number, jnp.zeros(3), jnp.ones(3))
    assert state.tolist() == [1, 1, 1]
    assert list((tmp_path / "profile").rglob("*.trace.json.gz")) and list((tmp_path / "profile").rglob("*.xplane.pb"))
