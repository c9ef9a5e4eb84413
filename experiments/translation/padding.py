"""`python -m experiments.translation.padding --workdir DIR`: how much of the training batches of a run is padding.

It takes the options of a run, trains nothing and writes nothing. --lengths and --pack lower the share.
"""

from experiments.common.config import Config
from experiments.translation.config import parse
from experiments.translation.task import load
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say
from mcl_jax.data import train_batches
from mcl_jax.data.schedule import TrainSchedule


def main(config: Config) -> None:
    """Prints the share of the first epoch, and the lengths of its batches, or how many rows they have."""
    task = load(config)
    encoded = task.encode(task.records("train")).encoded
    if config.training.examples == "answers":
        encoded = encoded.one_target_each()
    if config.training.pack:
        batches = train_batches(encoded, config.batches, epochs=1, pack=config.training.rows_multiple)
        texts = [batch["texts"] for batch in batches]
        share = 1 - sum((x > 0).sum() for x in texts) / sum(x.size for x in texts)
        rows = ", ".join(map(str, sorted({len(x) for x in texts})))
        shape = f"rows of {config.batches.lengths[-1]} positions in a batch of {config.batches.batch_size} examples"
        say(f"{share:.1%} of the positions are padding. Number of {shape}: {rows}.")
        return
    schedule = TrainSchedule(encoded.lengths(), config.batches)
    used = sorted({schedule[i].length for i in range(schedule.batches_per_epoch)})
    say(f"{schedule.padding:.1%} of the positions are padding, in batches of the lengths {', '.join(map(str, used))}.")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
