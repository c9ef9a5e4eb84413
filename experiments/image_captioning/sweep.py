"""`python -m experiments.image_captioning.sweep --workdir DIR --kind k`: see `language_model.sweep`."""

from experiments.captioning.task import load
from experiments.image_captioning.config import STAMPS, Config
from experiments.image_captioning.pictures import Pictures
from experiments.language_model import sweep
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = sweep.command_line(Config, STAMPS)
        sweep.main(load(config, Pictures()), options)
