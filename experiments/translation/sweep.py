"""`python -m experiments.translation.sweep --workdir DIR --kind objectives`: see `language_model.sweep`."""

from experiments.language_model import sweep
from experiments.translation.config import Config
from experiments.translation.task import load

if __name__ == "__main__":
    try:
        config, options = sweep.command_line(Config, {})
        sweep.main(load(config), options)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
