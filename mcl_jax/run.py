"""The run directory: everything that a run leaves behind, and everything needed to resume it with the same command.

    DIR/config.json     resolved configuration, written first
    DIR/metrics.jsonl   one line per log step: {"run": tag, "step": step, ...}
    DIR/tensorboard/    the same as TensorBoard events, a folder for each tag; only if tensorboardX is installed
    DIR/wandb/          what Weights & Biases keeps, if the run is logged there too, see `mcl_jax.weights_and_biases`
    DIR/profile/        traces of jax.profiler, a folder for each tag, if some were asked for, see `mcl_jax.profiling`
    DIR/checkpoints/    see `mcl_jax.checkpoint`
    DIR/figures/
    DIR/answer.json     how to answer with the trained hypotheses, if the run says so, see `mcl_jax.answer`
    DIR/selector.safetensors    which hypothesis to ask, told from the prompt, see `mcl_jax.selector`; not in every run
    DIR/results.json    final numbers; exists if and only if the run is finished, and figures are drawn from it
    DIR/lock            exists while a process owns DIR, see `mcl_jax.lock`

A training loop looks like this:

    with Run(workdir, config) as run, Checkpoints(run.checkpoint_dir()) as checkpoints:
        if run.finished: ...                                     # say so and return
        state, data, _ = checkpoints.restore(state)              # if checkpoints.latest_step() is not None
        run.rewind("", int(state.step))                          # drop what was logged after the checkpoint
        for step in ...:
            state, metrics = train_step(state, batch)
            run.log(int(state.step), metrics)
            if run.stop_requested: checkpoints.save(state, ...); run.stop()
        run.finish({...})
"""

import json
import re
import signal
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mcl_jax import hosts, json_lines, weights_and_biases
from mcl_jax.console import Progress, say
from mcl_jax.events import Events
from mcl_jax.extras import MissingExtra
from mcl_jax.hosts import STOPPED
from mcl_jax.json_io import read_json, read_json_object, to_json, write_json, write_text
from mcl_jax.lock import DirectoryLock
from mcl_jax.weights_and_biases import WandbRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TAG = re.compile(r"[\w.=+-]+(/[\w.=+-]+)*|")


class Run:
    """A run directory, new or reopened. Use it as a context manager, which handles signals and closes the files.

    One process owns DIR from `with` on until the run is finished. Of several processes of one job it is the first. It
    alone writes to DIR, but all must see DIR. If an error occurs while DIR holds nothing but config.json, that file is
    removed, so that the next command may use other settings.

    Args:
      workdir: DIR.
      config: dataclass or mapping of all settings that decide the result.
      volatile: names of settings that may change when the run resumes, such as "devices"; "a.b" names a nested one.
        config.json then takes the new values, except in a finished run.
      wandb: project in Weights & Biases that gets the log and the results too.
    Raises:
      ValueError: if DIR belongs to a run with other settings (names them and both values), is a file, or is not
        seen by all of several processes.
      DirectoryInUse: if another process owns DIR; names its process id and host.
      MissingExtra, RuntimeError: if Weights & Biases is asked for and not installed, or cannot start.
    """

    def __init__(self, workdir: Path | str, config: Any, *, volatile: Sequence[str] = (), wandb: str | None = None):
        if wandb:
            weights_and_biases.imported()
        self.workdir = Path(workdir).absolute()
        self.config = to_json(config, "config")
        self._volatile = tuple(volatile)
        self._writers: dict[str, Events] = {}
        self._writes_events = True
        self._project, self._wandb = wandb, None
        self._purge: dict[str, int] = {}
        self._old_handlers: dict[int, Any] = {}
        self._signal: int | None = None

    def __enter__(self) -> "Run":
        if self.workdir.exists() and not self.workdir.is_dir():
            raise ValueError(f"a run needs a directory, but {self.workdir} is a file; choose another workdir")
        self._lock = DirectoryLock(self.workdir)
        self._check_same_settings()
        try:
            hosts.on_first(self._open, f"open {self.workdir}")
            self._check_seen()
            if self._project and hosts.first() and not self.finished:
                self._start_wandb()
        except BaseException:
            self._lock.release()
            raise
        if threading.current_thread() is threading.main_thread():
            self._old_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        try:
            for writer in self._writers.values():
                writer.close()
        except OSError:
            if exception[0] is None:  # otherwise the first error matters more
                raise
        finally:
            self._writers.clear()
            if self._wandb is not None:
                self._wandb.close(failed=exception[0] is not None)
            self._lock.release()
        if exception[0] is not None:
            self._forget_settings()

    def _start_wandb(self) -> None:
        try:
            self._wandb = WandbRun(self.workdir, self._project, self.config)
        except BaseException:
            self._forget_settings("lock")
            raise

    def _forget_settings(self, *others: str) -> None:
        """Removes config.json if DIR holds nothing but that, `others` and the files of wandb."""
        if hosts.first() and {path.name for path in self.workdir.iterdir()} <= {"config.json", "wandb", *others}:
            self._config_path.unlink(missing_ok=True)

    def checkpoint_dir(self, tag: str = "") -> Path:
        """Returns the folder of the checkpoints of the training with this tag."""
        return self.workdir / "checkpoints" / _checked(tag)

    def profile_dir(self, tag: str = "") -> Path:
        """Returns the folder of the traces of the training with this tag."""
        return self.workdir / "profile" / _checked(tag)

    def figure_path(self, name: str) -> Path:
        """Returns DIR/figures/name and creates its folder."""
        path = self.workdir / "figures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # ---- metrics ----

    def log(self, step: int, values: Mapping[str, Any], *, tag: str = "", prefix: str = "") -> None:
        """Adds a line to metrics.jsonl, TensorBoard events if tensorboardX is installed, and points to wandb if asked.

        Args:
          step: number of steps done; must not decrease, see `rewind`.
          values: numbers; vectors (a list in the line, one curve per element); texts (in the line only).
          tag: name of the training, such as "seed1235/mcl", if DIR holds several.
          prefix: put before each name, as in "eval/loss".
        Raises:
          ValueError: if the step is lower than the last one logged, or a value is named "run" or "step".
        """
        if not hosts.first():
            return
        last = self._last_step.get(_checked(tag))
        if last is not None and step < last:
            raise ValueError(
                f"log: step {step} of {tag!r} is lower than step {last}, which is already logged; call "
                f"rewind({tag!r}, step) first"
            )
        named = {f"{prefix}/{name}" if prefix else name: value for name, value in values.items()}
        if taken := {"run", "step"} & named.keys():
            raise ValueError(f"log: values must not be named {sorted(taken)}; every line has these names already")
        line = {"run": tag, "step": int(step), **to_json(jax.device_get(named), "metrics", non_finite="null")}
        json_lines.append(self._metrics_path, line)
        self._last_step[tag] = int(step)
        curves: dict[str, float] = {}
        for name, value in line.items():
            numbers = {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            curves |= {curve: number for curve, number in numbers.items() if isinstance(number, (int, float))}
        del curves["step"]
        self._add_events(tag, int(step), curves)
        if self._wandb is not None:
            self._wandb.add(tag, int(step), curves)

    def rewind(self, tag: str = "", step: int | None = None) -> None:
        """Deletes the log lines of a tag after a step.

        Args:
          tag: name of the training.
          step: the step of the restored checkpoint; None deletes all lines of the tag.
        """
        if not hosts.first():
            return

        def keep(line: Mapping[str, Any]) -> bool:
            return line["run"] != tag or (step is not None and line["step"] <= step)

        lines = [line for line in json_lines.read(self._metrics_path) if keep(json.loads(line))]
        write_text(self._metrics_path, "".join(line + "\n" for line in lines))
        self._last_step = {line["run"]: line["step"] for line in map(json.loads, lines)}
        if writer := self._writers.pop(_checked(tag), None):
            writer.close()
        self._purge[tag] = 0 if step is None else step + 1

    def lines(self, tag: str | None = None) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl: those of one tag, or all of them if `tag` is None.

        Of several processes, only the first has lines.
        """
        if not hosts.first():
            return []
        lines = map(json.loads, json_lines.read(self._metrics_path))
        return [line for line in lines if tag is None or line["run"] == tag]

    def progress(self, total: int, completed: int = 0, description: str = "train", **options: Any) -> Progress:
        """Makes a progress bar, see `mcl_jax.console.Progress`."""
        return Progress(total, completed, description, **options)

    # ---- the end ----

    @property
    def finished(self) -> bool:
        """Whether results.json exists."""
        return (self.workdir / "results.json").exists()

    def results(self) -> dict[str, Any]:
        """Returns the results that `finish` wrote.

        Raises:
          FileNotFoundError: if the run is not finished.
          ValueError: if the file holds something else than a JSON object now; names it.
        """
        if not self.finished:
            raise FileNotFoundError(f"{self.workdir} has no results.json; run the same command again")
        return read_json_object(self.workdir / "results.json")

    def say_finished(self) -> None:
        """Prints that the run is finished already, for a user who ran the same command again."""
        say(f"The run in {self.workdir} is finished. Read its results.json, or choose another workdir for a new run.")

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes results.json in one step. Draw figures after it: they can always be made again.

        Args:
          results: final numbers, anything that JSON can hold.
        Raises:
          ValueError: if a number is NaN or infinite; names its key. Nothing is written then.
        """
        converted = to_json(results, "results")
        for writer in self._writers.values():
            writer.flush()
        path = self.workdir / "results.json"
        hosts.on_first(lambda: write_json(path, converted), f"write {path}")
        if self._wandb is not None:
            self._wandb.summarise(converted)

    @property
    def stop_requested(self) -> bool:
        """Whether this process received SIGTERM or SIGINT; see `hosts.any_of`. A second signal interrupts at once."""
        return self._signal is not None

    def stop(self) -> None:
        """Ends the process with exit status 143. Call it after everything is saved."""
        raise SystemExit(STOPPED)

    @property
    def _config_path(self) -> Path:
        return self.workdir / "config.json"

    @property
    def _metrics_path(self) -> Path:
        return self.workdir / "metrics.jsonl"

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number

    def _open(self) -> None:
        """Locks DIR and reads it. A finished run is not locked: anyone may read it, even on a read-only disk."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        if not self.finished:
            self._lock.acquire()
        self._settle_config()
        self._last_step = _last_steps(self._metrics_path)

    def _check_same_settings(self) -> None:
        """Raises a ValueError if the settings of several processes differ."""
        settings = {name: value for name, value in _fields(self.config).items() if not self._may_change(name)}
        if not hosts.same(zlib.crc32(json.dumps(settings, sort_keys=True).encode()) >> 1):
            raise ValueError(
                "processes that train together must have the same settings, but theirs differ; start the same command "
                "in each, or keep the tasks of a SLURM step apart (--alone in the experiments)"
            )

    def _check_seen(self) -> None:
        """Raises a ValueError if some of several processes do not see the files of the first."""
        if not hosts.several():
            return
        missing, agreed = hosts.any_of(not self._config_path.exists()), hosts.same(self.finished)
        if missing or not agreed:
            raise ValueError(
                f"all processes must see the same {self.workdir}; choose a workdir on a file system that they share"
            )

    def _add_events(self, tag: str, step: int, curves: Mapping[str, float]) -> None:
        """Says once if there can be none."""
        if not self._writes_events:
            return
        try:
            if tag not in self._writers:
                self._writers[tag] = Events(self.workdir / "tensorboard" / tag, self._purge.pop(tag, None))
        except MissingExtra as missing:
            self._writes_events = False
            say(f"{missing}. The run goes on and writes everything else.")
        else:
            self._writers[tag].add(step, curves)

    def _may_change(self, name: str) -> bool:
        """Whether a field of the configuration may differ when a run goes on, or between processes."""
        return any(name == v or name.startswith(v + ".") for v in self._volatile)

    def _settle_config(self) -> None:
        path = self._config_path
        if not path.exists():
            write_json(path, self.config)
            return
        stored, asked = _fields(read_json(path)), _fields(self.config)

        def show(fields: Mapping[str, Any], name: str) -> str:
            return json.dumps(fields[name], ensure_ascii=False) if name in fields else "nothing"

        lines = [
            f"\n  {name}: {show(stored, name)} in the file, {show(asked, name)} now"
            for name in sorted(stored | asked)
            if not self._may_change(name) and show(stored, name) != show(asked, name)
        ]
        if lines:
            raise ValueError(
                f"{path} was written by a run with other settings; use a new workdir, or the settings in the file:"
                f"{''.join(lines)}"
            )
        if stored != asked and not self.finished:
            write_json(path, self.config)


def _last_steps(path: Path) -> dict[str, int]:
    """The last step of each tag in metrics.jsonl.

    Raises:
      ValueError: for a line without its run and step; names the line.
    """
    steps = {}
    for number, line in enumerate(map(json.loads, json_lines.read(path)), 1):
        run, step = line.get("run"), line.get("step")
        if not isinstance(run, str) or type(step) is not int:
            raise ValueError(f'line {number} of {path} must have "run" (a text) and "step" (an integer), got {line}')
        steps[run] = step
    return steps


def _checked(tag: str) -> str:
    if not TAG.fullmatch(tag) or ".." in tag.split("/"):
        raise ValueError(f'a tag must be words joined by "/", such as "seed1235/mcl", got {tag!r}')
    return tag


def _fields(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values by dotted name; an empty mapping counts as a value."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    inner = [_fields(value, f"{prefix}.{key}" if prefix else key) for key, value in tree.items()]
    return {name: value for fields in inner for name, value in fields.items()}
