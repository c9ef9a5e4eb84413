"""Which processes were started together, by the environment of SLURM and of TPU slices."""

import http.server
import textwrap
import threading

import jax
import pytest
from jobs import Job

from experiments.common.processes import Hosts
from mcl_jax import cluster, hosts

SLURM = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "3"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing of the machine that runs the tests counts."""
    for name in (*SLURM, "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)


@pytest.fixture
def environment(monkeypatch):
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.fixture
def chips(monkeypatch, environment):
    monkeypatch.setattr(cluster, "_has_chips", lambda: True)
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    environment(JAX_PLATFORMS="")


def test_a_process_that_was_started_alone():
    assert cluster.name() == "" and not cluster.has_node_for_itself()


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "a SLURM step of 3 processes"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, ""),
        ({"SLURM_STEP_NUM_NODES": "1"}, "a SLURM step of 3 processes"),
    ],
)
def test_a_slurm_step(environment, changes, name):
    environment(**SLURM | changes)
    assert cluster.name() == name
    assert cluster.has_node_for_itself() == (not changes)


def test_the_batch_script_of_a_slurm_job_is_no_step(environment):
    environment(SLURM_NTASKS="3", SLURM_PROCID="0")
    assert cluster.name() == ""


def test_a_number_of_tasks_that_is_none(environment):
    environment(**SLURM | {"SLURM_STEP_NUM_TASKS": "three"})
    with pytest.raises(ValueError, match=r"\$SLURM_STEP_NUM_TASKS must be an integer, got 'three'"):
        cluster.name()


def test_a_slice_that_the_environment_names(environment, chips):
    environment(TPU_WORKER_HOSTNAMES="a,b,c,d,e")
    assert cluster.name() == "a TPU slice of 5 hosts"
    environment(MEGASCALE_NUM_SLICES="2")
    assert cluster.name() == "a TPU slice of 10 hosts"
    environment(JAX_PLATFORMS="cpu")
    assert cluster.name() == ""


@pytest.fixture
def metadata(environment):
    """A metadata server, with a list of what it answers; an empty list is 404."""
    answers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = answers and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known and self.path.endswith("worker-network-endpoints") else 404)
            self.end_headers()
            self.wfile.write(answers[0].encode() if known else b"")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        environment(GCE_METADATA_IP=f"127.0.0.1:{server.server_port}")
        yield answers
        server.shutdown()


def test_a_slice_that_the_metadata_server_knows(environment, chips, metadata):
    assert cluster.name() == ""
    metadata.append("a:1:10.0.0.1,b:2:10.0.0.2,c:3:10.0.0.3")
    assert cluster.name() == "a TPU slice of 3 hosts"
    environment(TPU_SKIP_MDS_QUERY="1")
    assert cluster.name() == ""


def test_without_chips_nobody_is_asked(metadata):
    metadata.append("a,b")
    assert cluster.name() == ""


@pytest.fixture
def started(monkeypatch):
    """Calls of `hosts.start`."""
    calls = []
    monkeypatch.setattr(hosts, "start", lambda *given, **options: calls.append(given))
    return calls


def test_the_options_join_where_there_are_others(environment, started, capsys):
    Hosts().start()
    assert not started
    environment(**SLURM)
    Hosts(alone=True).start()
    assert not started
    Hosts().start()
    assert started == [(None, None, None)]
    assert "process 0 of a SLURM step of 3 processes" in capsys.readouterr().out


def test_all_gpus_of_a_node_belong_to_its_only_process(environment, monkeypatch):
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *_, **__: jax.config.update("jax_cuda_visible_devices", "0")
    )
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    found = []
    for nodes in ("1", "3"):
        environment(**SLURM | {"SLURM_STEP_NUM_NODES": nodes})
        hosts.start()
        found.append(jax.config.values["jax_cuda_visible_devices"])
    jax.config.update("jax_cuda_visible_devices", "all")
    assert found == ["0", "all"]


TRAIN = """
    import sys
    from experiments.common.processes import Hosts
    from mcl_jax import hosts
    from mcl_jax.run import Run

    Hosts().start()
    with hosts.no_farewell(), Run(sys.argv[1], {"seed": sys.argv[2]}) as run:
        run.finish({"processes": hosts.share()["process_count"]})
"""


@pytest.mark.slow
@pytest.mark.parametrize("seeds, statuses", [("00", [0, 0]), ("01", [1, 1])])
def test_a_step_of_real_processes(tmp_path, environment, seeds, statuses):
    """They join by themselves, and are refused if each was meant to run for itself."""
    environment(SLURM_JOB_ID="37", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2", SLURM_LOCALID="0")
    environment(SLURM_STEP_NUM_TASKS="2", JAX_COORDINATOR_PORT="0")

    def command(process, port):
        setup = f"import os; os.environ.update(SLURM_PROCID='{process}', JAX_COORDINATOR_PORT='{port}')"
        return ["-c", setup + textwrap.dedent(TRAIN), tmp_path / "run", seeds[process]]

    with Job(tmp_path / "run", command) as job:
        assert job.end() == statuses, job.all_said()
        if seeds == "00":
            assert '"processes": 2' in (tmp_path / "run" / "results.json").read_text()
        else:
            assert "must have the same settings, but theirs differ" in job.all_said()[0]
            assert not (tmp_path / "run" / "config.json").exists()
