"""A real training process, killed at any moment: the same command goes on, and ends as if nobody had disturbed it."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest


class Child:
    """`kill_child.py` in a process of its own; compiled functions are shared between children to save time."""

    def __init__(self, workdir, cache):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        arguments = [sys.executable, str(Path(__file__).with_name("kill_child.py")), str(workdir)]
        self.process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = []

    def wait_for(self, words):
        for line in self.process.stdout:
            self.said.append(line.strip())
            if line.strip() == words:
                return
        raise AssertionError(f"the child never said {words!r}: {self.said} {self.process.stderr.read()}")

    def end(self, signal_number=None):
        """The exit code, after a signal if one is given."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        rest, errors = self.process.communicate(timeout=60)
        self.said += rest.splitlines()
        assert "Error" not in errors, errors
        return self.process.returncode


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache):
    """(results, metric lines) of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    assert Child(workdir, cache).end() == 0
    return outcome(workdir)


def outcome(workdir):
    return json.loads((workdir / "results.json").read_text()), (workdir / "metrics.jsonl").read_text()


# Before the first checkpoint, in the middle of a write, just after one, and between two.
MOMENTS = [("step 2", 0.0), ("saving 8", 0.004), ("saving 16", 0.03), ("step 23", random.Random(0).random() / 20)]


def kill(workdir, cache, words, seconds):
    """Starts the run, or goes on with it, and kills it so many seconds after it said the words."""
    child = Child(workdir, cache)
    child.wait_for(words)
    signal.sigtimedwait([], seconds)
    assert child.end(signal.SIGKILL) == -signal.SIGKILL
    assert not (workdir / "results.json").exists()


def go_on(workdir, cache, straight):
    """Ends the run, which then is as if nobody had disturbed it; returns the step that it began at."""
    child = Child(workdir, cache)
    assert child.end() == 0
    assert child.said[-1] == "finished"
    assert outcome(workdir) == straight
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    return next(int(line.split()[1]) for line in child.said if line.startswith("resumed"))


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path, straight, cache):
    for moment in MOMENTS:
        kill(tmp_path, cache, *moment)
    assert go_on(tmp_path, cache, straight) > 0


def test_kill_9_then_sigterm_which_saves_the_current_step(tmp_path, straight, cache):
    """In the middle of a write, and at a step that has no other checkpoint; then the same command goes on."""
    kill(tmp_path, cache, *MOMENTS[1])
    child = Child(tmp_path, cache)
    child.wait_for("step 10")
    assert child.end(signal.SIGTERM) == 143
    stopped_at = max(int(line.split()[1]) for line in child.said if line.startswith("step "))
    assert 10 <= stopped_at < 30
    assert go_on(tmp_path, cache, straight) == stopped_at
