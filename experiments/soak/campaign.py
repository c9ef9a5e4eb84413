"""Runs that are disturbed again and again until they end, and what each disturbance cost."""

import dataclasses
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.soak import files, kinds, toy
from experiments.soak.disk import Disk
from experiments.soak.kinds import DONE, KINDS, STOPPED, UNDISTURBED, Kind
from experiments.soak.process import Start
from mcl_jax.console import say

DAMAGES = {"truncated checkpoint": files.truncate, "flipped bit": files.flip, "unreadable checkpoint": files.block_part}
UNREADABLE = "unreadable file"
MOST_STARTS = 60  # of one run, which otherwise makes no progress
TAIL = 800  # characters of an output that are kept with a failure


@dataclasses.dataclass
class Event:
    """A disturbance.

    Attributes:
      kind: its name.
      detail: what happened to what.
      run: number of the run.
      status: exit status of the process that was disturbed, or of the next one if only files were.
      stopped: whether that process stopped with a clear error.
      lost_steps: number of steps that were taken and have to be taken again.
      resumed: step at which the run went on; None if it did not, or not yet.
      wrong: what was not as it must be.
      output: the end of what the process wrote, if something is wrong.
    """

    kind: str
    detail: str
    run: int
    status: int | None = None
    stopped: bool = False
    lost_steps: int = 0
    resumed: int | None = None
    wrong: list[str] = dataclasses.field(default_factory=list)
    output: str = ""


class Campaign:
    """Disturbs runs until there were enough disturbances.

    Args:
      launch: starts a process from a request, see `process.server`.
      folder: what `toy.prepare` wrote; an undisturbed run goes there, too.
      disk: where the disturbed runs are.
      steps: steps of each run.
      seed: seed of what is done, and when.
      keep: folder for runs that went wrong; None keeps none.
    """

    def __init__(
        self, launch: Callable[..., Start], folder: Path, disk: Disk, *, steps: int, seed: int, keep: Path | None
    ):
        self.launch, self.folder, self.disk, self.steps, self.keep = launch, folder, disk, steps, keep
        self.rng = random.Random(seed)
        self.kinds = [name for name in KINDS if disk.can_fill or name != "full disk"]
        self.events: list[Event] = []
        self.runs = {"ended": 0, "equal": 0, "given_up": 0, "starts": 0}

    def reference(self) -> None:
        """Trains without disturbance, and notes how long a start takes."""
        start = self._start(self.folder / "undisturbed")
        start.listen(lambda: bool(start.numbers("step")))
        self.start_seconds = time.monotonic() - start.began
        if start.end() != DONE:
            raise RuntimeError(f"the undisturbed run ended with status {start.status}: {start.said['err'][-TAIL:]}")
        self.wanted = toy.outcome(self.folder / "undisturbed")

    def disturb(self, disturbances: int) -> None:
        """Disturbs one run after the other, until there were so many disturbances."""
        number = 0
        while len(self.events) < disturbances:
            Disturbed(self, number, disturbances).go()
            number += 1
            say(
                f"run {number}: {len(self.events)} of {disturbances} disturbances, {self.runs['starts']} starts, "
                f"{self.runs['equal']} of {self.runs['ended']} runs equal, "
                f"{sum(bool(event.wrong) for event in self.events)} failures"
            )

    def least_used(self, names: list[str]) -> str:
        """Returns one of the kinds that came least often so far."""
        counts = {name: sum(event.kind == name for event in self.events) for name in names}
        return self.rng.choice([name for name in names if counts[name] == min(counts.values())])

    def _start(self, workdir: Path, **options: Any) -> Start:
        self.runs["starts"] += 1
        return self.launch(action="train", folder=str(self.folder), workdir=str(workdir), steps=self.steps, **options)


class Disturbed:
    """One run, disturbed at each start until it ends or there were enough disturbances.

    Args:
      campaign: what it belongs to.
      number: its number.
      disturbances: number of disturbances in all.
    """

    def __init__(self, campaign: Campaign, number: int, disturbances: int):
        self.campaign, self.number, self.most, self.rng = campaign, number, disturbances, campaign.rng
        self.workdir = campaign.disk.folder / f"run{number}"
        self.damaged: dict[int, int] = {}  # inode of each damaged checkpoint, by step
        self.pending: list[Event] = []  # disturbances after which the run has not yet gone on
        self.failed = False

    def go(self) -> None:
        """Starts the run until it ends."""
        ended = False
        for _ in range(MOST_STARTS):
            if ended := self._attempt() == DONE:
                break
            if self.failed:
                break
        runs = self.campaign.runs
        runs["ended" if ended else "given_up"] += 1
        if ended:
            self._compare()
        if self.failed and self.campaign.keep:
            shutil.copytree(self.workdir, self.campaign.keep / self.workdir.name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(self.workdir, ignore_errors=True)

    def _attempt(self) -> int:
        """Damages files or not, starts a process, disturbs it or not; returns its status."""
        enough = len(self.campaign.events) >= self.most
        choice = None if enough else self._choose_damage()
        if choice == UNREADABLE:
            return self._start_blocked()
        damage = [] if choice is None else [self._damage(choice)]
        if enough or len(self.campaign.events) + len(damage) >= self.most:
            return self._watch(UNDISTURBED, None, damage)
        name = self.campaign.least_used(self.campaign.kinds)
        return self._watch(KINDS[name], Event(name, "", self.number), damage)

    def _choose_damage(self) -> str | None:
        """Returns what happens to files before this start, in two of five starts of a run that has two checkpoints."""
        sound = [step for step in files.steps_on_disk(self.workdir) if not self._is_damaged(step)]
        newest_is_sound = sound and sound[-1] == files.steps_on_disk(self.workdir)[-1]
        if len(sound) < 2 or not newest_is_sound or self.rng.random() > 0.4:
            return None
        return self.campaign.least_used([*DAMAGES, UNREADABLE])

    def _damage(self, name: str) -> Event:
        """Damages the newest checkpoint."""
        newest = files.steps_on_disk(self.workdir)[-1]
        folder = files.checkpoint(self.workdir, newest)
        event = Event(name, DAMAGES[name](folder, self.rng), self.number)
        self.damaged[newest] = folder.stat().st_ino
        return self._add(event)

    def _is_damaged(self, step: int) -> bool:
        """Whether a checkpoint on disk is one that was damaged, and no newer one of that step."""
        folder = files.checkpoint(self.workdir, step)
        return folder.exists() and self.damaged.get(step) == folder.stat().st_ino

    def _start_blocked(self) -> int:
        """Starts a process while a file that it needs cannot be read."""
        name = self.rng.choice(files.NEEDED)
        shared = (self.campaign.folder / name).exists()
        path = (self.campaign.folder if shared else self.workdir) / name
        with files.blocked(path, self.rng) as detail:
            event = self._add(Event(UNREADABLE, detail, self.number))
            start = self.campaign._start(self.workdir)
            start.end()
        wanted = Kind(None, (STOPPED,), (path.name,))
        return self._judge(start, wanted, event, [])

    def _watch(self, kind: Kind, event: Event | None, damage: list[Event]) -> int:
        """Starts a process, disturbs it at a random moment, and waits for its end."""
        before = files.steps_on_disk(self.workdir)
        options = {} if event is None else kind.request(self.rng)
        moment = kinds.draw_moment(self.rng, self.campaign.start_seconds)
        start = self.campaign._start(self.workdir, **options)
        if kind.act is not None:
            if moment.wait(start):
                kind.act(start, self.campaign.disk, self.rng)
            else:
                kind, event = UNDISTURBED, None  # it came to its end before
        start.end()
        self.campaign.disk.free()
        if options and not start.numbers("nan"):
            kind, event = UNDISTURBED, None
        if event is not None:
            event.detail = str(options or dataclasses.asdict(moment))
            self._add(event)
        self._check_resume(start, before, damage)
        return self._judge(start, kind, event, damage)

    def _check_resume(self, start: Start, before: list[int], damage: list[Event]) -> None:
        """Checks that a process went on from the newest sound checkpoint, and named the others."""
        resumed = next(iter(start.numbers("resumed")), None)
        if resumed is None:
            return
        newest = before[-1] if before else 0
        skipped = [step for step in before if step > resumed]
        wrong = [f"it did not go on from step {step}, which was sound" for step in skipped if step not in self.damaged]
        out = " ".join(start.said["out"].split())
        wrong += [f"it did not name step {step}" for step in skipped if f"Warning: checkpoint {step} in" not in out]
        for event in damage:
            event.lost_steps = newest - resumed
        if wrong:
            self._fail((damage or self.pending or [self._add(Event("resume", "", self.number))])[-1], wrong, start)
        for event in [*self.pending, *damage]:
            event.resumed = resumed
        self.pending.clear()

    def _judge(self, start: Start, kind: Kind, event: Event | None, damage: list[Event]) -> int:
        """Notes how a process ended; returns its status."""
        wrong = kinds.complaints(kind, start)
        # A checkpoint that was damaged is good if the damage did not keep the process from going on from it.
        resumed = start.numbers("resumed")
        after = [step for step in files.steps_on_disk(self.workdir) if not self._is_damaged(step) or step in resumed]
        taken = start.numbers("step")
        if kind.says == KINDS["NaN loss"].says and start.status == STOPPED:
            kept = f"the last good checkpoint is step {after[-1]}" if after else "there is no checkpoint yet"
            wrong += [f"it did not say that {kept}"] if kept not in start.said["err"] else []
        for each in [*damage, *([event] if event else [])]:
            each.status = start.status
        if event is not None:
            event.stopped = start.status == STOPPED
            event.lost_steps = max(0, taken[-1] - (after[-1] if after else 0)) if taken and start.status else 0
            self.pending += [event]
        self.pending += [each for each in damage if each.resumed is None]
        if wrong:
            self._fail(event or self._add(Event("undisturbed start", "", self.number)), wrong, start)
        return start.status

    def _compare(self) -> None:
        """Compares the end of the run with that of an undisturbed one."""
        found, wanted = toy.outcome(self.workdir), self.campaign.wanted
        if found == wanted:
            self.campaign.runs["equal"] += 1
            return
        differ = [name for name in wanted if found[name] != wanted[name]]
        self._fail(self._add(Event("end", f"differs in {differ}", self.number)), ["the run ended differently"])

    def _add(self, event: Event) -> Event:
        self.campaign.events.append(event)
        return event

    def _fail(self, event: Event, wrong: list[str], start: Start | None = None) -> None:
        self.failed = True
        event.wrong += wrong
        if start is not None:
            out, err = start.said["out"], start.said["err"]
            event.output = (
                f"{out[-TAIL:]}\n{err[:TAIL]}\n...\n{err[-TAIL:]}" if len(err) > 2 * TAIL else f"{out[-TAIL:]}\n{err}"
            )
        say(f"FAILED in run {self.number}, {event.kind} ({event.detail}): {'; '.join(wrong)}\n{event.output}")


def counts(events: list[Event]) -> dict[str, dict[str, int]]:
    """Counts the disturbances and their outcomes by kind."""
    table = {}
    for name in dict.fromkeys(event.kind for event in events):
        some = [event for event in events if event.kind == name]
        table[name] = {
            "disturbances": len(some),
            "resumed": sum(bool(event.resumed) for event in some),
            "from_the_start": sum(event.resumed == 0 for event in some),
            "lost_steps": sum(event.lost_steps for event in some),
            "most_lost": max(event.lost_steps for event in some),
            "clear_stops": sum(event.stopped and not event.wrong for event in some),
            "unharmed": sum(event.status == DONE for event in some),
            "failures": sum(bool(event.wrong) for event in some),
        }
    return table
