"""`python -m experiments.image_captioning.cost --workdir DIR`: FLOPs of the tower and of a step against K."""

from experiments.captioning import cost
from experiments.captioning.task import load
from experiments.image_captioning.config import parse
from experiments.image_captioning.pictures import Pictures

if __name__ == "__main__":
    try:
        config = parse()
        cost.show(config, cost.costs(load(config, Pictures(), scan=False)))
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
