"""`python -m experiments.image_captioning.sweep --workdir DIR --kind k`: see `language_model.sweep`."""

from experiments.captioning.task import load
from experiments.image_captioning.config import STAMPS, Config
from experiments.image_captioning.pictures import Pictures
from experiments.language_model import sweep

if __name__ == "__main__":
    try:
        config, options = sweep.command_line(Config, STAMPS)
        sweep.main(load(config, Pictures()), options)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
