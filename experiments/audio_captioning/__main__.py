"""`python -m experiments.audio_captioning --workdir DIR`: K captions of a clip."""

from experiments.audio_captioning.clips import Clips
from experiments.audio_captioning.config import parse
from experiments.captioning.main import run

if __name__ == "__main__":
    run(parse, lambda config: Clips(config.seconds))
