"""`python -m experiments.audio_captioning.cost --workdir DIR`: FLOPs of the tower and of a train step, by K."""

from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import parse
from experiments.common.captioning import cost
from experiments.common.captioning.task import load
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config = parse()
        cost.show(
            config,
            cost.costs(
                load(config, Clips(config.data.seconds, config.data.time_mask, config.data.frequency_mask), scan=False)
            ),
        )
