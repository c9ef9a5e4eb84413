"""`python -m experiments.translation.budget --workdir DIR`: see `common.budget`."""

from experiments.common import budget
from experiments.translation.__main__ import COLUMNS
from experiments.translation.config import Config
from experiments.translation.scores import scores
from experiments.translation.task import load
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = budget.command_line(Config, {})
        config.hosts.start()
        budget.main(load(config), options, scores, COLUMNS)
