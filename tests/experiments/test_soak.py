"""`make soak`: what it does to files, what it asks of a process, and one short campaign."""

import json
import random
from types import SimpleNamespace

import pytest

from experiments.soak import __main__ as soak
from experiments.soak import campaign, files, kinds, long

CLEAN = {"out": "train 1/60", "err": "", "reports": ""}


def ended(status, nan=None, **said):
    """A process that ended so."""
    return SimpleNamespace(status=status, late=False, said=CLEAN | said, numbers=lambda word: [nan] if nan else [])


def test_what_is_asked_of_the_end_of_a_process():
    disk = kinds.KINDS["full disk"]
    full = "error: checkpoints: No space left on device; free some space\n"
    assert kinds.complaints(disk, ended(1, err=full)) == []
    assert kinds.complaints(disk, ended(0)) == []
    assert "ended with status -9" in " ".join(kinds.complaints(disk, ended(-9)))
    assert "does not say 'No space left" in " ".join(kinds.complaints(disk, ended(1, err="error: bad luck\n")))
    assert "traceback" in " ".join(kinds.complaints(disk, ended(1, err="Traceback (most recent call last)\n" + full)))
    assert "2" in kinds.complaints(disk, ended(1, err="warning\n" + full))[0]
    assert "standard error" in kinds.complaints(disk, ended(0, err="warning\n"))[0]
    nan = kinds.KINDS["NaN loss"]
    assert kinds.complaints(nan, ended(1, nan=7, err="error: the loss is nan at step 7\n")) == []
    assert "'step 8'" in kinds.complaints(nan, ended(1, nan=8, err="error: the loss is nan at step 7\n"))[0]


def test_damage_to_a_checkpoint(tmp_path):
    folder, rng = tmp_path / "checkpoints" / "8", random.Random(0)
    (folder / "state").mkdir(parents=True)
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    assert files.steps_on_disk(tmp_path) == [8] and files.steps_on_disk(tmp_path / "none") == []
    array = folder / "state" / "array"
    array.write_bytes(bytes(17))
    assert "byte" in files.flip(folder, rng) and sum(byte.bit_count() for byte in array.read_bytes()) == 1
    assert "cut from 17 to" in files.truncate(folder, rng) and array.stat().st_size < 17
    array.write_bytes(bytes(17))
    assert "replaced by" in files.block_part(folder, rng) and not array.is_file()


@pytest.mark.parametrize(("resumed", "named", "wrong"), [(8, 8, False), (8, 12, True), (12, 12, False), (12, 8, True)])
def test_the_last_good_checkpoint_is_not_one_whose_damage_was_found(tmp_path, resumed, named, wrong):
    """A NaN right after the newest checkpoint was damaged; a process may go on from it if it reads no damage."""
    files_of = SimpleNamespace(disk=SimpleNamespace(folder=tmp_path), rng=random.Random(0), events=[], keep=None)
    run = campaign.Disturbed(files_of, 1, 9)
    for step in (8, 12):
        files.checkpoint(run.workdir, step).mkdir(parents=True)
    run.damaged[12] = files.checkpoint(run.workdir, 12).stat().st_ino
    numbers = {"nan": [resumed], "resumed": [resumed], "step": []}
    error = f"error: the loss is nan at step {resumed}; the last good checkpoint is step {named}\n"
    start = SimpleNamespace(status=1, late=False, said=CLEAN | {"err": error}, numbers=numbers.__getitem__)
    event = campaign.Event("NaN loss", "", 1)
    run._judge(start, kinds.KINDS["NaN loss"], event, [])
    assert bool(event.wrong) == run.failed == wrong


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_blocked_file_comes_back(tmp_path, kind, seed):
    path = tmp_path / "records"
    if kind == "file":
        path.write_text("text")
    elif kind == "folder":
        (path / "inner").mkdir(parents=True)
    with files.blocked(path, random.Random(seed)) as said:
        assert "replaced by" in said and (not path.is_dir() if kind == "folder" else not path.is_file())
    assert path.exists() == (kind != "nothing") and not path.is_symlink()
    assert kind != "folder" or (path / "inner").is_dir()


def test_counts_by_kind():
    event = lambda kind, **fields: campaign.Event(kind, "", 0, **fields)
    events = [
        event("SIGKILL", status=-9, lost_steps=3, resumed=8),
        event("SIGKILL", status=-9, lost_steps=2, resumed=0),
        event("full disk", status=1, stopped=True, resumed=4),
        event("full disk", status=1, stopped=True, wrong=["no message"]),
    ]
    table = campaign.counts(events)
    assert table["SIGKILL"]["lost_steps"] == 5 and table["SIGKILL"]["most_lost"] == 3
    assert table["SIGKILL"]["resumed"] == table["SIGKILL"]["from_the_start"] == 1
    assert table["full disk"]["clear_stops"] == table["full disk"]["failures"] == 1


def test_a_long_run_whose_memory_and_times_grow_is_not_flat():
    lines = lambda memory, seconds: "".join(f"at {i} {seconds(i)} {memory(i)} {2 * memory(i)}\n" for i in range(1, 31))
    flat = long.summary("resumed 0\n" + lines(lambda i: 10**8, lambda i: i / 8))
    assert flat["memory_is_flat"] and flat["time_is_flat"] and flat["median_ms_of_the_last_fifth"] == 125
    grown = long.summary(lines(lambda i: 10**8 + 10**6 * i, lambda i: i * i / 8))
    assert not grown["memory_is_flat"] and not grown["time_is_flat"]


@pytest.mark.slow
def test_a_short_campaign(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    file = tmp_path / "found.json"
    assert soak.main(soak.parse(["--json", str(file), "--disturbances", "2", "--steps", "13"])) == 0
    found = json.loads(file.read_text())
    assert found["all"]["disturbances"] == 2 and found["all"]["failures"] == 0
    assert found["runs"]["equal"] == found["runs"]["ended"] >= 1
    assert "equal to an undisturbed one" in capsys.readouterr().out
