"""The queue of experiments, with small programs in place of experiments."""

import json
import os
import signal
import threading
import time

import pytest

from experiments.queue.__main__ import Config, environment, main
from experiments.queue.jobs import Job, read_jobs

PROGRAM = """
import argparse, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--workdir", type=pathlib.Path)
parser.add_argument("--do", default="finish")
parser.add_argument("--word", default="")
given = parser.parse_args()
given.workdir.mkdir(parents=True, exist_ok=True)
starts = given.workdir / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
(given.workdir / "word").write_text(given.word + os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
if given.do == "fail":
    sys.exit("error: no such thing")
if given.do == "wait" and starts.read_text() == "x":
    def save(*_):
        (given.workdir / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (given.workdir / "ready").touch()
    while True:
        time.sleep(0.01)
if given.do == "meet":
    (given.workdir / "here").touch()
    other = given.workdir.parent / given.word / "here"
    while not other.exists():
        time.sleep(0.01)
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """queue(lines, **options) -> exit status, with a module `program` that jobs can run."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(*lines, **options):
        (tmp_path / "jobs.txt").write_text("".join(line + "\n" for line in lines))
        return main(Config(jobs=tmp_path / "jobs.txt", out=tmp_path / "out", **options))

    run.out = tmp_path / "out"
    run.starts = lambda name: len((run.out / name / "starts").read_text())
    run.found = lambda: json.loads((run.out / "queue.json").read_text())
    return run


def test_every_job_has_a_run_directory_its_options_and_one_cache(queue, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert queue("# two jobs", "", "a program --word 'two words '", "b program --word b") == 0
    compiled = str(queue.out / "compiled")
    words = [(queue.out / name / "word").read_text() for name in "ab"]
    assert words == ["two words " + compiled, "b" + compiled]
    assert {name: job["status"] for name, job in queue.found().items()} == {"a": "finished", "b": "finished"}


def test_what_is_finished_does_not_run_again(queue, capsys):
    lines = ["a program", "b program --do fail"]
    assert queue(*lines) == 1
    assert "b failed" in (said := capsys.readouterr().out) and "error: no such thing" in said
    assert queue(*lines, "c program") == 1
    assert [queue.starts(name) for name in "abc"] == [1, 2, 1]
    assert queue.found()["b"]["said"] == "error: no such thing"
    assert "2 finished, 1 failed, 0 stopped, 0 left" in capsys.readouterr().out


def test_jobs_run_side_by_side(queue):
    """Each waits for the other two."""
    lines = ["a program --do meet --word b", "b program --do meet --word c", "c program --do meet --word a"]
    assert queue(*lines, lanes=3, seconds=60.0) == 0


def test_when_the_time_is_over_runs_save_and_resume(queue, capsys):
    lines = ["a program --do wait", "b program"]
    end = threading.Thread(target=_signal_when, args=(queue.out / "a" / "ready",))
    end.start()
    assert queue(*lines) == 1
    end.join()
    assert (queue.out / "a" / "saved").exists() and queue.found()["a"]["status"] == "stopped"
    assert "0 finished, 0 failed, 1 stopped, 1 left" in capsys.readouterr().out
    assert queue(*lines) == 0
    assert queue.starts("a") == 2


def _signal_when(path):
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_seconds_end_the_queue(queue):
    assert queue("a program --do wait", "b program", seconds=3.0) == 1
    assert queue.found()["a"]["status"] in ("stopped", "failed")  # failed if it had not yet begun to listen
    assert not (queue.out / "b").exists()


def test_other_options_of_a_finished_job_are_refused(queue):
    queue("a program", "b program")
    with pytest.raises(ValueError, match="other options than when these jobs finished: a"):
        queue("a program --word other", "b program")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a", r"jobs.txt:1: a job needs NAME MODULE OPTIONS, got 'a'"),
        ("# c\na m\na m", r"jobs.txt:3: the name 'a' occurs twice"),
        ("../a m", r"jobs.txt:1: the name of a job is that of a folder, got '../a'"),
        ("a m --workdir x", r"jobs.txt:1: --workdir is OUT/a"),
        ("a m 'x", r"jobs.txt:1: No closing quotation"),
        ("# none", "has no jobs"),
    ],
)
def test_wrong_lines_are_refused(tmp_path, lines, message):
    (tmp_path / "jobs.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_jobs(tmp_path / "jobs.txt")


def test_a_line_is_read_back():
    assert Job("a", "m", ("--x", "two words")).line == "a m --x 'two words'"


def test_what_the_environment_has_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    assert environment(Config(jobs=tmp_path, out=tmp_path))["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


@pytest.mark.parametrize(("option", "value"), [("lanes", 0), ("seconds", 0.0)])
def test_refusals(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"--{option} must be"):
        Config(jobs=tmp_path, out=tmp_path, **{option: value})
