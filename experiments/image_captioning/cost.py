"""`python -m experiments.image_captioning.cost --workdir DIR`: FLOPs of the tower and of a train step, by K."""

from experiments.common.captioning import cost
from experiments.common.captioning.task import load
from experiments.image_captioning.config import parse
from experiments.image_captioning.images import Pictures
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config = parse()
        cost.show(config, cost.costs(load(config, Pictures(config.data.padded), scan=False)))
