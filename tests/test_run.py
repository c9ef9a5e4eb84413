"""The run directory: configuration, metrics, signals, results."""

import dataclasses
import io
import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from mcl_jax import console
from mcl_jax.loss_guard import LossGuard, check_finite
from mcl_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Adam:
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 100
    devices: int = 1
    adam: Adam = Adam()


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_config_is_written_and_reopens(tmp_path):
    with Run(tmp_path / "a" / "b", Config()) as run:
        pass
    expected = {"steps": 100, "devices": 1, "adam": {"rate": 1e-3, "betas": [0.9, 0.999]}}
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text()) == expected == run.config
    with Run(tmp_path / "a" / "b", expected):  # a dict, or a dataclass
        pass


def test_other_config_is_refused_naming_fields_and_values(tmp_path):
    with Run(tmp_path, Config()):
        pass
    other = Config(steps=7, devices=8, adam=Adam(rate=0.5))
    with pytest.raises(
        ValueError, match=r"(?s)other settings.*adam\.rate: 0\.001 in the file, 0\.5 now.*steps: 100 in the file, 7 now"
    ) as e:
        Run(tmp_path, other, volatile=("devices",)).__enter__()
    assert "devices" not in str(e.value) and "betas" not in str(e.value)
    with pytest.raises(ValueError, match="seed: nothing in the file, 3 now"):
        Run(tmp_path, dataclasses.asdict(Config()) | {"seed": 3}).__enter__()


def test_config_json_has_what_the_results_are_of(tmp_path):
    devices = lambda: json.loads((tmp_path / "config.json").read_text())["devices"]
    with Run(tmp_path, Config()):
        assert devices() == 1
    with Run(tmp_path, Config(devices=8), volatile=("devices",)) as run:
        assert devices() == 8
        run.finish({})
    with Run(tmp_path, Config(devices=2), volatile=("devices",)):
        assert devices() == 8


def test_after_an_error_at_the_start_the_config_may_be_another(tmp_path):
    with pytest.raises(ValueError, match="no such data"), Run(tmp_path, Config()):
        raise ValueError("no such data")
    with pytest.raises(ValueError, match="no more memory"), Run(tmp_path, Config(steps=7)) as run:
        run.log(1, {"loss": 2.0})
        raise ValueError("no more memory")
    with pytest.raises(ValueError, match="other settings"):
        Run(tmp_path, Config()).__enter__()


def test_config_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"config\.f must be JSON-able .* got function"):
        Run(tmp_path, {"f": read_lines})


def test_log_writes_lines_and_events(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log(1, {"loss": jnp.asarray(1.5), "win_rate": jnp.asarray([0.25, 0.75])}, tag="seed1/mcl", prefix="train")
        assert read_lines(tmp_path) == [
            {"run": "seed1/mcl", "step": 1, "train/loss": 1.5, "train/win_rate": [0.25, 0.75]}
        ]  # at once, not when the run ends
        run.log(1, {"loss": float("nan")})
        assert run.lines("")[0]["loss"] is None
        with pytest.raises(ValueError, match=r"must not be named \['step'\]"):
            run.log(2, {"step": 3})
        with pytest.raises(ValueError, match=r"a tag must be words.*'\.\./x'"):
            run.log(2, {}, tag="../x")
    events = list((tmp_path / "tensorboard" / "seed1" / "mcl").glob("events.*"))
    data = b"".join(path.read_bytes() for path in events)
    assert b"train/loss" in data and b"train/win_rate/1" in data


def test_rewind_is_of_one_tag_only(tmp_path):
    with Run(tmp_path, {}) as run:
        for step in range(6):
            run.log(step, {"loss": step}, tag="a")
            run.log(step, {"loss": step}, tag="b")
        with pytest.raises(
            ValueError, match=r"step 3 of 'a' is lower than step 5, which is already logged; call rewind"
        ):
            run.log(3, {}, tag="a")
    with Run(tmp_path, {}) as run:
        with pytest.raises(ValueError, match="rewind"):  # also after a restart
            run.log(3, {}, tag="a")
        run.rewind("a", 2)
        run.log(3, {"loss": 33}, tag="a")
        assert [line["loss"] for line in run.lines("a")] == [0, 1, 2, 33]
        assert [line["loss"] for line in run.lines("b")] == [0, 1, 2, 3, 4, 5]
        run.rewind("b")
        assert run.lines("b") == []


def test_torn_last_line_is_repaired(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log(1, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"run": "", "step": 2, "lo')
    with Run(tmp_path, {}) as run:
        run.log(2, {"loss": 2.0})
    assert [line["loss"] for line in read_lines(tmp_path)] == [1.0, 2.0]


def test_damage_elsewhere_is_reported(tmp_path):
    with Run(tmp_path, {}):
        pass
    (tmp_path / "metrics.jsonl").write_text('{"run": "", "st\n{"run": "", "step": 2}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl is not JSON"):
        Run(tmp_path, {}).__enter__()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        Run(tmp_path, {}).__enter__()


@pytest.mark.parametrize("line", ['{"step": 2}', '{"run": "a"}', '{"run": 3, "step": 2}', '{"run": "a", "step": "2"}'])
def test_a_line_that_does_not_say_what_it_is_of_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"run": "a", "step": 1}\n' + line + "\n")
    for _ in range(2):  # the first leaves no lock behind
        with pytest.raises(ValueError, match=r'line 2 of .*metrics\.jsonl must have "run" .* and "step"'):
            Run(tmp_path, {}).__enter__()


def test_results_that_are_no_object_are_named(tmp_path):
    with Run(tmp_path, {}) as run:
        run.finish({"a": 1})
        (tmp_path / "results.json").write_text("[1]")
        with pytest.raises(ValueError, match=r"results\.json must hold a JSON object, got list"):
            run.results()


def test_finish(tmp_path):
    with Run(tmp_path, {}) as run:
        assert not run.finished
        with pytest.raises(FileNotFoundError, match="has no results.json; run the same command again"):
            run.results()
        with pytest.raises(ValueError, match=r"results\.mcl\.loss\.1 must be a finite number, got nan"):
            run.finish({"mcl": {"loss": np.array([1.0, np.nan])}})
        assert not run.finished
        results = {"loss": jnp.float32(0.5), "rates": np.array([1, 2]), "half": jnp.bfloat16(0.25), "path": tmp_path}
        run.finish(results)
        assert run.finished and not list(tmp_path.glob("*.tmp"))
    with Run(tmp_path, {}) as run:
        assert run.results() == {"loss": 0.5, "rates": [1, 2], "half": 0.25, "path": str(tmp_path)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_to_stop_and_handlers_come_back(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_, Run(tmp_path, {}) as run:
        assert not run.stop_requested
        os.kill(os.getpid(), number)
        assert run.stop_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        run.stop()
    assert exit_.value.code == 143
    assert signal.getsignal(number) is before


def test_folders(tmp_path):
    with Run(tmp_path, {}) as run:
        assert run.checkpoint_dir("seed1/mcl") == tmp_path / "checkpoints" / "seed1" / "mcl"
        run.figure_path("win rates/a.png").write_bytes(b"")


def test_nan_loss_names_the_first_step_and_the_last_good_checkpoint():
    guard = LossGuard()
    for step, loss in enumerate([1.0, 2.0, np.inf, np.nan], 11):
        guard.add(step, {"loss": jnp.asarray(loss)})
    with pytest.raises(FloatingPointError, match=r"loss is inf at step 13; the last good checkpoint is step 10"):
        guard.check(last_good=10)
    guard.check()  # forgot
    with pytest.raises(FloatingPointError, match="nan at step 4; there is no checkpoint yet"):
        check_finite([3, 4], [{"loss": 0.0}, {"loss": jnp.asarray(jnp.nan, jnp.bfloat16)}])


@pytest.mark.parametrize(
    ("log_likelihood", "named"),
    [
        ([-1.0, np.nan, -2.0], r"because the log-likelihood of hypothesis 1 \(of K=3\) is nan; "),
        ([np.inf, -1.0, -2.0], r"because the log-likelihood of hypothesis 0 \(of K=3\) is inf; "),
        ([np.nan, -1.0, -np.inf], r"because the log-likelihood of hypotheses 0, 2 \(of K=3\) is nan; "),
        ([-1.0, -1.0, -2.0], r"the loss is nan at step 7; "),
    ],
)
def test_nan_loss_names_the_hypotheses_that_diverged(log_likelihood, named):
    guard = LossGuard()
    guard.add(7, {"loss": jnp.asarray(np.nan), "log_likelihood": jnp.asarray(log_likelihood), "win_rate": None})
    with pytest.raises(FloatingPointError, match=named):
        guard.check()


def test_nan_loss_names_the_earlier_step_whose_gradient_was_not_finite():
    guard = LossGuard()
    guard.add(6, {"loss": 1.0, "gradient_norm": 2.0})
    guard.add(7, {"loss": 1.0, "gradient_norm": np.nan})
    guard.check()
    assert guard.bad_gradient == 7
    guard.add(8, {"loss": np.nan, "gradient_norm": np.nan})
    with pytest.raises(FloatingPointError, match="loss is nan at step 8, after a gradient .* not finite at step 7; "):
        guard.check()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(tmp_path, terminal):
    out = io.StringIO()
    shown = rich.console.Console(file=out, force_terminal=terminal, width=200)
    with Run(tmp_path, {}) as run, run.progress(10, 4, "seed1/mcl", console=shown, interval=0.0) as progress:
        assert progress.seconds_left() is None
        progress.update(5, loss=jnp.asarray(1.25), win_rate=jnp.asarray([0.25, 0.75]))
        assert progress.seconds_left() >= 0.0
        progress.update(6)
    text = out.getvalue()
    assert "seed1/mcl" in text and "loss 1.25  win_rate [0.25 0.75]" in text
    if not terminal:
        assert "\x1b" not in text and text.count("\n") == 3 and "5/10" in text and "s left" in text


def test_progress_prints_seldom_where_nobody_watches():
    out = io.StringIO()
    with console.Progress(1000, console=rich.console.Console(file=out), interval=60.0) as progress:
        for step in range(1000):
            progress.update(step + 1)
    assert out.getvalue().count("\n") == 1  # the last one


def test_table():
    out = io.StringIO()
    console.table(
        "Results",
        ["run", "loss"],
        [["mcl", jnp.asarray(0.123456)], ["mle", None]],
        console=rich.console.Console(file=out),
    )
    assert "0.1235" in out.getvalue() and "n/a" in out.getvalue()
    narrow = rich.console.Console(file=(out := io.StringIO()), width=24, force_terminal=True)
    console.table("", ["run", "loss"], [["one", 1.0], ["a" * 20 + "z", 2.0]], console=narrow)
    assert "z" in out.getvalue() and "…" not in out.getvalue()
    with pytest.raises(ValueError, match="2 values"):
        console.table("Results", ["run", "loss"], [["mcl"]])
