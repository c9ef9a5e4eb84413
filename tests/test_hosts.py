"""Two real processes with two fake devices each give the numbers of one process with four, and end together."""

import json
import re
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from jobs import Job

from mcl_jax import hosts, mesh

CHILD = Path(__file__).with_name("hosts_child.py")
STEPS = 12


def job(workdir, *options, processes=2):
    return Job(workdir, lambda process, port: [CHILD, workdir, port, processes, process, *options], processes)


def outcome(workdir):
    """Adapters by path, and the losses by step."""
    adapters = {}

    def collect(tree, path):
        for name, value in tree.items():
            collect(value, f"{path}/{name}") if isinstance(value, dict) else adapters.update({f"{path}/{name}": value})

    collect(json.loads((workdir / "results.json").read_text())["adapters"], "")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return adapters, {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}


def check_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """alone(model): the outcome of one process on the same mesh, since the mesh decides how sums are rounded."""
    known = {}

    def run(model=1):
        if model not in known:
            workdir = tmp_path_factory.mktemp("alone") / "run"
            with job(workdir, f"--model={model}", processes=1) as one:
                assert one.end() == [0], one.all_said()
            known[model] = outcome(workdir)
        return known[model]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", [1, 2])
def test_two_processes_give_the_numbers_of_one(tmp_path, alone, model):
    with job(tmp_path / "run", f"--model={model}") as two:
        assert two.end() == [0, 0], two.all_said()
        assert "finished" in two.said(0) and "finished" not in two.said(1)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["processes"] == 2
    check_same(outcome(tmp_path / "run"), alone(model))


@pytest.mark.slow
@pytest.mark.parametrize("process", [1, 0])
def test_a_job_that_is_stopped_and_killed_ends_as_if_it_had_not_been(tmp_path, alone, process):
    workdir = tmp_path / "run"
    with job(workdir, "--pause=0.3") as two:
        two.wait_for_step(3)
        two.processes[process].send_signal(signal.SIGTERM)
        assert two.end() == [143, 143], two.all_said()
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert 3 <= max(saved) < STEPS
    with job(workdir, "--pause=0.6") as two:
        two.wait_for_step(max(saved) + 1)
        two.processes[process].kill()
        statuses = two.end()
        assert statuses[process] == -signal.SIGKILL and statuses[1 - process] not in (0, 143), statuses
        assert re.search("another (process has ended|task died)", two.said(1 - process)), two.all_said()
    assert not (workdir / "results.json").exists()
    with job(workdir) as two:
        assert two.end() == [0, 0], two.all_said()
    check_same(outcome(workdir), alone())


@pytest.mark.slow
def test_an_error_in_one_ends_all_and_names_the_process(tmp_path):
    with job(tmp_path / "run", "--broken=1") as two:
        statuses = two.end()
        assert statuses[1] == 1 and statuses[0] not in (0, 143), statuses
        assert "process 1: error: made up" in two.said(1)


Device = namedtuple("Device", "process_index id")
Grid = namedtuple("Grid", "devices axis_names shape")


def grid(rows):
    devices = np.empty((len(rows), len(rows[0])), object)
    for place in np.ndindex(devices.shape):
        devices[place] = Device(rows[place[0]][place[1]], 0)
    return Grid(devices, ("data", "model"), dict(zip(("data", "model"), devices.shape, strict=True)))


@pytest.mark.parametrize("rows", [[[0]] * 3, [[0, 0], [1, 1], [2, 2]], [[0]] * 2 + [[1]] * 2])
def test_processes_with_blocks_of_the_data_axis(rows):
    assert mesh.processes_of(grid(rows)) == len({process for row in rows for process in row})


@pytest.mark.parametrize("rows", [[[0, 1]], [[0, 1], [0, 1]], [[0], [1], [0], [1]], [[0], [1], [1]], [[1], [0]]])
def test_a_mesh_that_processes_cannot_share_is_refused(rows):
    with pytest.raises(ValueError, match="needs a block of the axis 'data'"):
        mesh.processes_of(grid(rows))


def test_one_process_agrees_with_itself_at_every_step():
    rounds = hosts.Rounds()
    assert [rounds(step, step == 2, True) for step in range(4)] == [(step == 2, True) for step in range(4)]
    assert hosts.first() and hosts.same(3) and not hosts.any_of(False) and hosts.share() == {}
    assert hosts.on_first(lambda: 5, "count") == 5
