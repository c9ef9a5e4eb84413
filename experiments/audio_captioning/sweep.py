"""`python -m experiments.audio_captioning.sweep --workdir DIR --kind k`: see `common.sweep`."""

from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import PRESETS, Config
from experiments.common import sweep
from experiments.common.captioning.task import load
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = sweep.command_line(Config, PRESETS)
        config.hosts.start()
        sweep.main(load(config, Clips(config.data.seconds, config.data.time_mask, config.data.frequency_mask)), options)
