"""Logging to Weights & Biases, with a module in place of wandb; `WANDB_MODE=offline` was tried with the real one."""

import sys
import types

import pytest

from mcl_jax.extras import MissingExtra
from mcl_jax.run import Run


class Fake(types.ModuleType):
    """Records what wandb is asked for."""

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.summary, self.offline, self.error = [], {}, True, None

    def Settings(self, **options):
        return options

    def init(self, **options):
        if self.error is not None:
            raise self.error
        self.calls.append(("init", options))
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given, **options: self.calls.append((name, *given, *options.items()))


@pytest.fixture
def wandb(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_logs_there_too_and_a_resumed_one_goes_on(wandb, tmp_path, capsys):
    workdir = tmp_path / "mine"
    with Run(workdir, {"rank": 2}, wandb="mcl") as run:
        run.log(3, {"eval_loss": 0.5, "win_rate": [0.25, 0.75], "note": "text"}, tag="mcl")
        run.log(4, {"eval_loss": 0.25}, tag="mcl")
    (_, options), *calls = wandb.calls
    assert options["project"] == "mcl" and options["name"] == "mine" and options["config"] == {"rank": 2}
    assert options["dir"] == str(workdir) and options["resume"] == "allow"
    assert calls == [
        ("define_metric", "mcl/step"),
        ("define_metric", "mcl/*", ("step_metric", "mcl/step")),
        ("log", {"mcl/eval_loss": 0.5, "mcl/win_rate/0": 0.25, "mcl/win_rate/1": 0.75, "mcl/step": 3}),
        ("log", {"mcl/eval_loss": 0.25, "mcl/step": 4}),
        ("finish", ("exit_code", 0)),
    ]
    assert "offline, in" in capsys.readouterr().out
    wandb.calls.clear()
    with Run(workdir, {"rank": 2}, wandb="mcl") as run:
        run.log(5, {"eval_loss": 0.125})
        run.finish({"methods": {"mcl": {"test_loss": 1.5, "modes": ["en"]}}, "steps": 5})
    assert wandb.calls[0][1]["id"] == options["id"] and ("define_metric", "*", ("step_metric", "step")) in wandb.calls
    assert wandb.summary == {"methods/mcl/test_loss": 1.5, "steps": 5}
    wandb.calls.clear()
    with Run(workdir, {"rank": 2}, wandb="mcl") as run:
        assert run.finished
    assert wandb.calls == []  # a finished run is only read


def test_an_error_ends_the_run_as_failed(wandb, tmp_path):
    with pytest.raises(ZeroDivisionError), Run(tmp_path, {}, wandb="mcl"):
        raise ZeroDivisionError
    assert wandb.calls[-1] == ("finish", ("exit_code", 1))


def test_without_an_account_it_says_what_to_do_and_leaves_the_directory_free(wandb, tmp_path):
    wandb.error = KeyError("no API key")
    with pytest.raises(RuntimeError, match=r"cannot start: 'no API key'. Run `wandb login`, or set WANDB_MODE=offline"):
        Run(tmp_path, {}, wandb="mcl").__enter__()
    assert not (tmp_path / "lock").exists()
    wandb.error = None
    with Run(tmp_path, {"other": "settings"}, wandb="mcl"):
        pass


def test_a_missing_module_is_named_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"logging to Weights & Biases needs .* pip install 'mcl_jax\[wandb\]'"):
        Run(tmp_path / "a", {}, wandb="mcl")
    assert not (tmp_path / "a").exists()
    with Run(tmp_path / "a", {}) as run:  # nothing is imported unless it is asked for
        run.log(1, {"loss": 1.0})
