"""`python -m experiments.image_captioning --workdir DIR`: K captions of a picture."""

from experiments.common.captioning.main import run
from experiments.image_captioning.config import parse
from experiments.image_captioning.images import Pictures

if __name__ == "__main__":
    run(parse, lambda config: Pictures())
