"""One of several processes that train together: `python hosts_child.py WORKDIR PORT PROCESSES PROCESS`.

It is the training of `kill_child.py`, with dropout, ties and adam, on a mesh of all devices of all processes. The
adapters are in results.json.
"""

import argparse
import functools
import time

import jax
import numpy as np
from kill_child import build

import mcl_jax as mcl
from mcl_jax import hosts
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.run import Run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("port", type=int)
    parser.add_argument("processes", type=int)
    parser.add_argument("process", type=int)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", type=int, default=1, help="size of the axis model")
    parser.add_argument("--timeout", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, for kills to land in")
    parser.add_argument("--broken", type=int, default=-1, help="process that fails at step 2")
    given = parser.parse_args()
    if given.processes > 1:
        hosts.start(f"127.0.0.1:{given.port}", given.processes, given.process, timeout=given.timeout)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, given.model), ("data", "model"))
    make_step = functools.partial(mcl.make_train_step, mesh=mesh)
    step, state, draw = build(make_step=make_step)
    part = hosts.share()
    rows = 16 // part.get("process_count", 1)
    begin = part.get("process_index", 0) * rows

    def batches(number):
        """This process's rows of the batch of a step."""
        return jax.tree.map(lambda x: np.asarray(x)[begin : begin + rows], draw(number))

    def paced(state, batch):
        state, metrics = step(state, batch)
        number = int(state.step)
        if number == 2 and given.broken == given.process:
            raise ValueError("made up")
        if given.pause:
            with open(f"{given.workdir}.{given.process}", "a") as steps:
                print("step", number, file=steps)
            time.sleep(given.pause)
        return state, metrics

    config = {"steps": given.steps}
    with Run(given.workdir, config) as run:
        if run.finished:
            run.say_finished()
            return
        options = dict(evaluate=lambda state: {"eval_loss": 0.0}, eval_every=4, checkpoint_seconds=2.0)
        state = mcl.fit(paced, state, batches, steps=given.steps, run=run, **options).state
        arrays = jax.tree.map(lambda x: np.asarray(x).tolist(), jax.device_get(state.adapters))
        run.finish({"adapters": arrays, "processes": jax.process_count()})
        print("finished")


if __name__ == "__main__":
    with errors_in_a_line():
        main()
