"""`python -m experiments.audio_captioning.sweep --workdir DIR --kind k`: see `language_model.sweep`."""

from experiments.audio_captioning.clips import Clips
from experiments.audio_captioning.config import STAMPS, Config
from experiments.captioning.task import load
from experiments.language_model import sweep

if __name__ == "__main__":
    try:
        config, options = sweep.command_line(Config, STAMPS)
        sweep.main(load(config, Clips(config.seconds)), options)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
