"""Checkpoints: the whole state and never the base, bit for bit, on any number of devices. Kills: `test_kill.py`."""

import errno
import json
import logging
import re
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import kill_child
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mcl_jax as mcl
from mcl_jax import checkpoint, stored_state
from mcl_jax.checkpoint import BrokenCheckpoint, Checkpoints
from mcl_jax.loss_guard import LossGuard


def train(step, state, draw, until):
    while int(state.step) < until:
        state, _ = step(state, draw(int(state.step)))
    return state


def plain_leaves(tree):
    """Leaves, keys as their data."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]


def assert_same(first, second):
    """Bit for bit, all but the base."""
    first, second = (state.replace(params=None, rng=jax.random.key_data(state.rng)) for state in (first, second))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, a), b in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    """optax.adam raises a float to the power of its integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def training():
    """(step, state at 0, draw). Steps donate: start from `fresh`."""
    return kill_child.build()


def fresh(state):
    return jax.tree.map(jnp.copy, state)


def damage(path):
    """Flips one bit in the middle of the largest file below a path."""
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_round_trip_and_resume_equal_a_straight_run(tmp_path, training):
    step, state, draw = training
    state = train(step, fresh(state), draw, 5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, metrics={"eval_loss": jnp.float32(1.5)}, data={"epoch": 2}, config={"a": (1, 2)})
        checkpoints.wait()
        template = fresh(training[1])
        restored, data, metadata = checkpoints.restore(template)
    assert restored.params is template.params and data == {"epoch": 2}
    assert metadata == {"step": 5, "metrics": {"eval_loss": 1.5}, "config": {"a": [1, 2]}}
    assert_same(restored, state)
    assert_same(train(step, restored, draw, 9), train(step, state, draw, 9))


def test_arrays_are_files_and_a_database_of_them_is_read_too(tmp_path, training, monkeypatch):
    """A database costs memory at each save. It is what earlier versions wrote."""
    step, state, draw = training
    state = train(step, fresh(state), draw, 2)
    with Checkpoints(tmp_path / "files") as checkpoints:
        checkpoints.save(state, config={})
    assert not [*(tmp_path / "files").rglob("manifest.ocdbt")]
    handler = checkpoint.ocp.PyTreeCheckpointHandler
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "PyTreeCheckpointHandler", lambda use_ocdbt: handler(use_ocdbt=True))
        with Checkpoints(tmp_path / "database") as checkpoints:
            checkpoints.save(state, config={})
    assert [*(tmp_path / "database").rglob("manifest.ocdbt")]
    with Checkpoints(tmp_path / "database") as checkpoints:
        assert_same(checkpoints.restore(fresh(training[1]))[0], state)
        later = train(step, fresh(state), draw, 3)
        checkpoints.save(later, config={})
        checkpoints.wait()
        assert_same(checkpoints.restore(fresh(training[1]))[0], later)


def test_the_adapters_alone_need_no_template(tmp_path, training):
    step, state, draw = training
    first = train(step, fresh(state), draw, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first, metrics={"eval_loss": 1.0}, config={})
        second = train(step, fresh(first), draw, 2)
        checkpoints.save(second, metrics={"eval_loss": 2.0}, config={})
    with Checkpoints(tmp_path) as checkpoints:
        adapters = checkpoints.adapters()
        assert jax.tree.structure(adapters) == jax.tree.structure(second.adapters)
        jax.tree.map(np.testing.assert_array_equal, adapters, second.adapters)
        jax.tree.map(np.testing.assert_array_equal, checkpoints.adapters("best"), first.adapters)
        damage(tmp_path / "2" / "record")
        jax.tree.map(np.testing.assert_array_equal, checkpoints.adapters(), first.adapters)
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*, only of steps"):
            checkpoints.adapters(3)


def test_a_step_that_donates_right_after_save_leaves_the_checkpoint_alone(tmp_path, training):
    step, state, draw = training
    state = train(step, fresh(state), draw, 1)
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        kept = {}
        for until in range(2, 6):
            kept[int(state.step)] = jax.tree.map(lambda x: x if x is None else jnp.copy(x), state)
            checkpoints.save(state, config={})
            state = train(step, state, draw, until)
        for number, was in kept.items():
            assert_same(checkpoints.restore(training[1], number)[0], was)
    assert not any(np.shares_memory(stored_state.to_host(x), np.asarray(x)) for x in jax.tree.leaves(state.adapters))


def test_states_of_other_types(tmp_path):
    """bfloat16 adapters, a typed key and Python numbers in the optimizer, an empty objective state, no metrics."""
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(4)), optax.inject_hyperparams(optax.sgd)(0.1))
    adapters = {"a": jnp.full((3, 5), 0.1, jnp.bfloat16), "b": (jnp.ones((3, 2)), jnp.ones((3,)))}
    state = mcl.TrainState.create(params={}, adapters=adapters, optimizer=optimizer, rng=jax.random.key(5, impl="rbg"))
    saved = state.replace(objective_state=(), step=jnp.int32(7))
    with Checkpoints(tmp_path, async_=False) as checkpoints:
        checkpoints.save(saved, config={})
        for template in (state, jax.eval_shape(lambda: saved)):
            restored, data, _ = checkpoints.restore(template)
            assert data is None and restored.objective_state == () and restored.adapters["a"].dtype == jnp.bfloat16
            assert all(map(np.array_equal, plain_leaves(restored), plain_leaves(saved)))
            assert jax.random.key_impl(restored.rng) == jax.random.key_impl(saved.rng)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices; make gpu-check runs this file on one")
def test_restores_on_another_number_of_devices_and_back(tmp_path, training):
    step, state, draw = training
    everywhere = kill_child.build(make_step=mcl.parallel.pmap_step)[0]
    on = lambda tree: {len(leaf.sharding.device_set) for leaf in jax.tree.leaves((tree.adapters, tree.opt_state))}
    with Checkpoints(tmp_path) as checkpoints:
        one = train(step, fresh(state), draw, 2)
        checkpoints.save(one, config={})
        eight = checkpoints.restore(mcl.parallel.replicate(state))[0]
        assert_same(eight, one)
        assert on(eight) == {8}
        eight = train(everywhere, eight, draw, 4)
        checkpoints.save(eight, config={})
        again = checkpoints.restore(state)[0]
        assert_same(again, eight)
        assert on(again) == {1}
    mixed, straight = train(step, again, draw, 5), train(step, one, draw, 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mixed.adapters, straight.adapters)


def test_restores_into_the_sharding_of_the_template(tmp_path):
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("k",)), PartitionSpec("k"))
    state = mcl.TrainState.create(
        params={}, adapters={"a": jnp.arange(16.0).reshape(8, 2)}, optimizer=optax.sgd(0.1), rng=jax.random.key(0)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config={})
        template = state.replace(adapters={"a": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=sharding)})
        restored = checkpoints.restore(template)[0]
        assert restored.adapters["a"].sharding == sharding
        assert not restored.rng.committed  # the template's was not
        assert_same(restored, state)


def test_keeps_the_last_and_the_best(tmp_path, training):
    state = training[1]
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None
        for number, loss in enumerate([3.0, 1.0, 2.0, float("nan"), None, 4.0], 1):
            metrics = None if loss is None else {"eval_loss": loss}
            checkpoints.save(state.replace(step=jnp.int32(number)), metrics=metrics, config={})
        checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]
    with Checkpoints(tmp_path, keep_last=1, keep_best=2) as checkpoints:  # remembers the metrics
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 6)
        assert checkpoints.restore(state, "best")[2]["metrics"] == {"eval_loss": 1.0}
        checkpoints.save(state.replace(step=jnp.int32(7)), config={})
        checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "6", "7"]
    with Checkpoints(tmp_path, best_mode="max") as checkpoints:
        assert checkpoints.best_step() == 6


def test_the_base_is_not_on_disk(tmp_path, training):
    state = training[1]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config={})
    shape = state.params["hidden"]["kernel"].shape
    stored = json.loads((tmp_path / "0" / "record" / "metadata").read_text())["record"]["leaves"]
    assert len(stored) > 5 and all(tuple(leaf["shape"][-2:]) != shape for leaf in stored.values())
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written < sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) / 2


def test_a_state_that_does_not_fit_names_paths_and_shapes(tmp_path, training):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(training[1], config={})
        for options, path, has, needs in [
            ({"num_hypotheses": 5}, "adapters/head/a", "float32[3, 257, 2]", "float32[5, 257, 2]"),
            ({"rank": 4}, "adapters/hidden/b", "float32[3, 2, 257]", "float32[3, 4, 257]"),
            ({"optimizer": optax.sgd(0.1)}, "opt_state/0/count", "int32[]", "nothing"),
        ]:
            expected = re.escape(f"{path}: the checkpoint has {has}, the state needs {needs}")
            with pytest.raises(ValueError, match=expected):
                checkpoints.restore(jax.eval_shape(lambda o=options: kill_child.build(**o)[1]))
        assert checkpoints.latest_step() == 0  # nothing of this made it a broken one


def test_no_such_checkpoint(tmp_path, training):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"):
            checkpoints.restore(training[1])
        checkpoints.save(training[1], config={})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*, only of steps \[0\]"):
            checkpoints.restore(training[1], 3)
        with pytest.raises(FileNotFoundError, match=r"metrics\['eval_loss'\]"):
            checkpoints.restore(training[1], "best")


@pytest.mark.parametrize("part", ["state", "record", "all"])
def test_a_broken_latest_falls_back_to_the_one_before(tmp_path, training, part, capsys):
    step, state, draw = training
    first = train(step, fresh(state), draw, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first, config={})
        second = train(step, fresh(first), draw, 2)
        checkpoints.save(second, config={})
    if part == "all":
        for path in (tmp_path / "2").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    else:
        damage(tmp_path / "2" / part)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(BrokenCheckpoint, match=r"checkpoint 2 in .* is broken"):
            checkpoints.restore(state, 2)
        capsys.readouterr()
        restored = checkpoints.restore(state)[0]
        (line,) = capsys.readouterr().out.splitlines()
        assert re.match(r"Warning: checkpoint 2 in .* is broken .*; falling back to the checkpoint before it\.", line)
        assert_same(restored, first)
        assert checkpoints.latest_step() == 1
        assert (tmp_path / "2").exists()  # reading changes nothing
        checkpoints.save(train(step, restored, draw, 2), config={})
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(state)[0], second)
    assert (tmp_path / "2.broken").exists()


def test_half_written_steps_do_not_count_and_are_cleared_by_the_next_save(tmp_path, training):
    half = tmp_path / "2.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path) as checkpoints:
        half.mkdir()
        assert checkpoints.latest_step() is None
        checkpoints.save(training[1].replace(step=jnp.int32(3)), config={})
    assert not half.exists() and (tmp_path / "3").exists()


def test_leftovers_that_are_still_being_written_are_cleared_in_the_end(tmp_path, training, monkeypatch):
    """A failed save goes on writing in the background for a moment, so that a directory is not empty when removed."""
    half, real, attempts = tmp_path / "2.orbax-checkpoint-tmp", shutil.rmtree, []

    def busy(path, ignore_errors=False, **options):
        attempts.append(path)
        if len(attempts) > 2:
            return real(path, ignore_errors=ignore_errors, **options)
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    half.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", busy)
            checkpoints.save(training[1].replace(step=jnp.int32(3)), config={})
        checkpoints.wait()
    assert len(attempts) == 3 and not half.exists() and (tmp_path / "3").exists()


def test_not_finite_adapters_are_refused_and_the_last_good_stays(tmp_path, training):
    step, state, draw = training
    state = train(step, fresh(state), draw, 1)
    bad = lambda path, x: x.at[0].set(jnp.nan) if "head" in jax.tree_util.keystr(path) else x
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config={})
        broken = state.replace(adapters=jax.tree.map_with_path(bad, state.adapters), step=jnp.int32(2))
        with pytest.raises(
            ValueError, match=r"step 2 is not saved: adapters/head/a has 514 of 1542 .*hypotheses \[0\]"
        ):
            checkpoints.save(broken, config={})
        spoiled = jax.tree.map(lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x, state.opt_state)
        with pytest.raises(ValueError, match=r"step 2 is not saved: opt_state/.* not finite"):
            checkpoints.save(state.replace(opt_state=spoiled, step=jnp.int32(2)), config={})
        guard = LossGuard()
        guard.add(2, step(fresh(broken), draw(2))[1])
        diverged = r"the loss is nan at step 2 because .* hypothesis 0 .* is nan; the last good checkpoint is step 1"
        with pytest.raises(FloatingPointError, match=diverged):
            guard.check(checkpoints.latest_step())
        assert_same(checkpoints.restore(training[1])[0], state)


def test_another_runs_steps_are_not_overwritten(tmp_path, training):
    at = lambda step: training[1].replace(step=jnp.int32(step))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(4), config={})
        checkpoints.save(at(4), config={})  # once more is no error
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            with pytest.raises(ValueError, match=rf"cannot save step {step}: .* already has step 4"):
                checkpoints.save(at(step), config={})


def test_bad_arguments(tmp_path, training):
    with pytest.raises(ValueError, match="keep_last must be at least 1 .* got 0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="best_mode"):
        Checkpoints(tmp_path, best_mode="least")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match=r"data\.it must be JSON-able"):
        checkpoints.save(training[1], data={"it": iter([])}, config={})


# ------------------------------------------------------------------------------------------------------- A full disk


def test_a_checkpoint_without_room_is_refused_before_anything_is_written(tmp_path, training, monkeypatch, capfd):
    state = training[1].replace(step=jnp.int32(3))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config={})
        checkpoints.wait()
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5000))
        with pytest.raises(
            OSError, match=r"No space left on device: it needs \d+ bytes, but only 5000 .*last .* is step 3"
        ):
            checkpoints.save(state.replace(step=jnp.int32(5)), config={})
        assert [path.name for path in tmp_path.iterdir()] == ["3"] and checkpoints.latest_step() == 3
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("how", ["link", "file"])
def test_checkpoints_that_are_no_directory_are_not_taken_for_none(tmp_path, how):
    folder = tmp_path / "checkpoints"
    folder.symlink_to(tmp_path / "unmounted") if how == "link" else folder.write_text("")
    with pytest.raises(NotADirectoryError) as e:
        Checkpoints(folder)
    assert e.value.filename == str(folder)


def test_what_the_system_says_is_found_in_a_long_error(tmp_path, monkeypatch):
    """TensorStore names the array, the database and the file first."""
    error = ValueError("OUT_OF_RANGE: Error writing " + 300 * "x" + ": File too large [source locations='a.cc']")
    with (
        Checkpoints(tmp_path) as checkpoints,
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"written \(File too large\); there is no") as e,
    ):
        patch.setattr(checkpoints._manager, "wait_until_finished", Mock(side_effect=error))
        checkpoints.wait()
    assert e.value.errno == errno.EFBIG


def test_orbax_prints_neither_the_arrays_that_a_failed_save_left_behind_nor_its_warnings():
    error = Mock(exc_value=RuntimeError("Event loop is closed"))
    others = []
    checkpoint._without_closed_loops(others.append)(error)
    assert not others
    checkpoint._without_closed_loops(others.append)(other := Mock(exc_value=RuntimeError("another")))
    assert others == [other]
    record = lambda path, level: logging.LogRecord("absl", level, path, 1, "waiting", (), None)
    silent = [
        record("orbax/a.py", logging.WARNING),
        record("b.py", logging.WARNING),
        record("orbax/a.py", logging.ERROR),
    ]
    assert [checkpoint._told_otherwise(each) for each in silent] == [True, False, False]
    given_up = "Task exception was never retrieved\nfuture: <Task coro=<write() at orbax/a.py:114>>"
    texts = [given_up, given_up.replace("orbax", "other"), "orbax: Executing took 0.1 seconds"]
    tasks = [logging.LogRecord("asyncio", logging.ERROR, "b.py", 1, text, (), None) for text in texts]
    assert [checkpoint._never_retrieved(each) for each in tasks] == [True, False, False]


@pytest.mark.parametrize("async_", [True, False])
def test_an_error_while_writing_is_one_error_with_the_last_good_step(tmp_path, training, monkeypatch, async_, caplog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    state = training[1].replace(step=jnp.int32(3))
    with Checkpoints(tmp_path, async_=async_) as checkpoints:
        checkpoints.save(state, config={})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr("orbax.checkpoint.JsonCheckpointHandler._save_fn", full)
            with pytest.raises(
                OSError, match=r"written \(No space left on device\); the last good checkpoint is step 3"
            ) as e:
                checkpoints.save(state.replace(step=jnp.int32(5)), config={})
                checkpoints.wait()
        assert e.value.errno == errno.ENOSPC and e.value.filename == str(tmp_path)
        assert checkpoints.latest_step() == 3
        checkpoints.save(state.replace(step=jnp.int32(6)), config={})  # the same object, as a loop that goes on
        checkpoints.wait()
        assert {path.name for path in tmp_path.iterdir()} == {"3", "6"}
    assert not [record for record in caplog.records if record.exc_info]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.adapters(6).keys() == state.adapters.keys()
        checkpoints.save(state.replace(step=jnp.int32(7)), config={})
