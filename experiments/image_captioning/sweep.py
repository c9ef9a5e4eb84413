"""`python -m experiments.image_captioning.sweep --workdir DIR --kind k`: see `common.sweep`."""

from experiments.common import sweep
from experiments.common.captioning.task import load
from experiments.image_captioning.config import PRESETS, Config
from experiments.image_captioning.images import Pictures
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = sweep.command_line(Config, PRESETS)
        config.hosts.start()
        sweep.main(load(config, Pictures(config.data.padded)), options)
