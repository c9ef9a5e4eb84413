"""One owner of a directory: other processes, other machines, dead owners."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mcl_jax import lock
from mcl_jax.lock import HOST, LENGTH, DirectoryInUse, DirectoryLock
from mcl_jax.run import Run

OWN = """
import os, sys, time
from pathlib import Path
from mcl_jax.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
{then}
print("mine", os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """owner(then) -> a process that owns tmp_path, after it did what `then` says."""
    processes = []

    def start(then=""):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", OWN.format(then=then), str(tmp_path)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline().startswith("mine")
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def quick():
    """quick(directory) -> a lock whose patience takes no time."""
    return lambda directory: DirectoryLock(directory, beat=0.02, patience=0.2)


def left_by(directory, host, **more):
    record = {"pid": 12, "host": host, "since": "yesterday", "beats": 3, **more}
    (directory / "lock").write_bytes(json.dumps(record).ljust(LENGTH).encode())


def test_a_second_process_is_refused_with_the_firsts_number_and_host(tmp_path, owner):
    first = owner()
    with pytest.raises(DirectoryInUse, match=rf"{tmp_path} is in use by process {first.pid} on {HOST}, since 20"):
        Run(tmp_path, {}).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]  # nothing was written, and nothing taken away


def test_a_lock_whose_owner_was_killed_is_taken_over(tmp_path, owner):
    first = owner()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == first.pid
    with Run(tmp_path, {}):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_forked_child_does_not_hold_the_lock_of_its_dead_parent(tmp_path, owner):
    first = owner("if os.fork() == 0:\n    os.close(1); time.sleep(30); os._exit(0)")
    first.kill()
    first.wait()
    DirectoryLock(tmp_path).acquire()


def test_a_forked_child_that_ends_leaves_the_lock_to_its_parent(tmp_path, owner):
    first = owner("child = os.fork()\nif child == 0:\n    lock.release(); os._exit(0)\nos.waitpid(child, 0)")
    with pytest.raises(DirectoryInUse, match=f"process {first.pid} on"):
        DirectoryLock(tmp_path).acquire()


def test_of_two_in_one_process_the_second_is_refused_until_the_first_ends(tmp_path):
    with Run(tmp_path, {}), pytest.raises(DirectoryInUse, match=f"process {os.getpid()} on"):
        Run(tmp_path, {}).__enter__()
    with Run(tmp_path, {}), Run(tmp_path / "another", {}):
        pass


def test_of_many_at_once_one_gets_it(tmp_path):
    won, barrier = [], threading.Barrier(7)

    def attempt():
        mine = DirectoryLock(tmp_path)
        barrier.wait()
        try:
            mine.acquire()
            won.append(mine)
        except DirectoryInUse:
            pass

    threads = [threading.Thread(target=attempt) for _ in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()
    DirectoryLock(tmp_path).acquire()


def test_after_an_error_at_the_start_nobody_owns_it(tmp_path):
    with Run(tmp_path, {"seed": 3}):
        pass
    with pytest.raises(ValueError, match="other settings"):
        Run(tmp_path, {"seed": 5}).__enter__()
    with Run(tmp_path, {"seed": 3}):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1, 2]", b'{"pid": 3}'])
def test_a_damaged_record_of_nobody_is_no_obstacle(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    lock_ = DirectoryLock(tmp_path)
    lock_.acquire()
    lock_.release()


def test_another_machine_that_is_silent_is_dead(tmp_path, quick, capsys):
    left_by(tmp_path, "elsewhere")
    mine = quick(tmp_path)
    mine.acquire()
    assert "last used by process 12 on elsewhere. Waiting 0 s" in capsys.readouterr().out
    assert mine._read()["host"] == HOST
    mine.release()


def test_another_machine_that_goes_on_is_alive(tmp_path, quick):
    left_by(tmp_path, "elsewhere")
    beat = threading.Timer(0.05, left_by, (tmp_path, "elsewhere"), {"beats": 4})
    beat.start()
    with pytest.raises(DirectoryInUse, match="process 12 on elsewhere, since yesterday"):
        quick(tmp_path).acquire()
    beat.join()


def test_where_the_file_system_has_no_locks_signs_of_life_decide(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda file: False)
    first = quick(tmp_path)
    first.acquire()
    with pytest.raises(DirectoryInUse, match=f"process {os.getpid()} on {HOST}"):
        quick(tmp_path).acquire()
    first._released.set()  # as if it had died: no more signs
    quick(tmp_path).acquire()


def test_only_the_first_process_of_a_job_locks(tmp_path, monkeypatch):
    with Run(tmp_path, {}):
        assert (tmp_path / "lock").exists()
    agreed = {"several": lambda: True, "first": lambda: False, "wait": lambda name: None}
    agreed |= {"any_of": lambda wish: wish, "same": lambda value: True}
    for name, answer in agreed.items():  # tests/test_hosts.py has real processes
        monkeypatch.setattr(f"mcl_jax.hosts.{name}", answer)
    with Run(tmp_path, {}):
        assert not (tmp_path / "lock").exists()


def test_a_finished_run_can_be_looked_at_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self.path))

    with Run(tmp_path, {}) as run:
        run.finish({"loss": 0.5})
    monkeypatch.setattr(DirectoryLock, "acquire", refuse)
    with Run(tmp_path, {}) as run:
        assert run.finished and run.results() == {"loss": 0.5}
        with Run(tmp_path, {}) as another:  # as many runs do with the base they share
            assert another.finished
    (tmp_path / "results.json").unlink()
    with pytest.raises(PermissionError):
        Run(tmp_path, {}).__enter__()
