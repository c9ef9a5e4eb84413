"""`python -m experiments.image_captioning --workdir DIR`: K captions of a picture."""

from experiments.captioning.main import run
from experiments.image_captioning.config import parse
from experiments.image_captioning.pictures import Pictures

if __name__ == "__main__":
    run(parse, lambda config: Pictures())
