"""`python -m experiments.audio_captioning --workdir DIR`: K captions of a clip."""

from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import parse
from experiments.common.captioning.main import run

if __name__ == "__main__":
    run(parse, lambda config: Clips(config.seconds))
