"""`python -m experiments.audio_captioning.budget --workdir DIR`: see `common.budget`."""

from functools import partial

from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import PRESETS, Config
from experiments.common import budget
from experiments.common.captioning.scores import COLUMNS, scores, training_captions
from experiments.common.captioning.task import load
from mcl_jax.command_line import errors_in_a_line

if __name__ == "__main__":
    with errors_in_a_line():
        config, options = budget.command_line(Config, PRESETS)
        config.hosts.start()
        task = load(config, Clips(config.data.seconds, config.data.time_mask, config.data.frequency_mask))
        train = task.records("train")
        given = {"split": task.records("test"), "train": train, "known": training_captions(train)}
        budget.main(task, options, partial(scores, **given, **config.evaluation.folders), COLUMNS)
