"""`python -m experiments.translation.sweep --workdir DIR --kind objectives`: see `common.sweep`."""

from experiments.common import sweep
from experiments.translation.config import PRESETS, Config
from experiments.translation.task import load
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = sweep.command_line(Config, PRESETS)
        config.hosts.start()
        sweep.main(load(config), options)
