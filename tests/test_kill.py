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


def test_kill_9_at_any_moment_changes_nothing(tmp_path, straight, cache):
    chance = random.Random(0)
    # Before the first checkpoint, in the middle of a write, just after one, and between two.
    for words, seconds in [
        ("step 2", 0.0),
        ("saving 8", 0.004),
        ("saving 16", 0.03),
        ("step 23", chance.random() / 20),
    ]:
        child = Child(tmp_path, cache)
        child.wait_for(words)
        signal.sigtimedwait([], seconds)
        assert child.end(signal.SIGKILL) == -signal.SIGKILL
        assert not (tmp_path / "results.json").exists()
    child = Child(tmp_path, cache)
    assert child.end() == 0
    assert any(line.startswith("resumed") for line in child.said) and child.said[-1] == "finished"
    assert outcome(tmp_path) == straight
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_sigterm_saves_the_current_step_and_the_same_command_goes_on(tmp_path, straight, cache):
    child = Child(tmp_path, cache)
    child.wait_for("step 10")
    assert child.end(signal.SIGTERM) == 143
    stopped_at = max(int(line.split()[1]) for line in child.said if line.startswith("step "))
    assert 10 <= stopped_at < 30
    child = Child(tmp_path, cache)
    assert child.end() == 0
    assert f"resumed {stopped_at}" in child.said
    assert outcome(tmp_path) == straight
