"""`python -m experiments.translation.budget --workdir DIR`: see `common.budget`."""

from functools import partial

from experiments.common import budget
from experiments.translation.__main__ import COLUMNS
from experiments.translation.config import PRESETS, Config
from experiments.translation.scores import scores, training_targets
from experiments.translation.task import load
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = budget.command_line(Config, PRESETS)
        config.hosts.start()
        task = load(config)
        known = training_targets(task.records("train"))
        budget.main(task, options, partial(scores, known=known, **config.evaluation.folders), COLUMNS)
