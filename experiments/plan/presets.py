"""The presets that can be planned, each with the sizes of its published base and the inputs of its tower."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.audio_captioning import config as audio
from experiments.audio_captioning.audio import FRAMES
from experiments.common.config import Config
from experiments.image_captioning import config as image
from experiments.translation import config as translation
from mcl_jax.json_io import read_json_object
from mcl_jax.models import LlavaNext, PaliGemma, Qwen2Audio, SmolVLM
from mcl_jax.models.tiling import OneTile

BASES = Path(__file__).with_name("bases")
MOST_TILES = 4 * 4 + 1  # of a SmolVLM with the published processor, with the whole picture
LLAMA, LLAVA, QWEN = ("llama-2-7b", "llava-v1.6-vicuna-7b", "qwen2-audio-7b-instruct")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A preset of an experiment.

    Attributes:
      config: class of its configuration.
      values: its values, by option.
      base: name of a file in `bases`, the config.json of the published base.
    """

    config: type[Config]
    values: dict[str, Any]
    base: str


PRESETS = {
    "alma-7b-en-de": Preset(translation.Config, translation.ALMA, LLAMA),
    "textcaps-llava-7b": Preset(image.Config, image.TEXTCAPS, LLAVA),
    "textcaps-bilingual": Preset(image.Config, image.PRESETS.of["textcaps-bilingual"], LLAVA),
    "audiocaps-qwen2-7b": Preset(audio.Config, audio.AUDIOCAPS, QWEN),
    "clotho-qwen2-7b": Preset(audio.Config, audio.PRESETS.of["clotho-qwen2-7b"], QWEN),
}


def config_of(preset: Preset, **options: Any) -> Config:
    """Returns the configuration of a preset with other values for some options."""
    return preset.config.from_options(workdir=Path("plan"), **preset.values | options)


def base_of(preset: Preset, file: Path | None = None) -> dict[str, Any]:
    """Returns the config.json of the base.

    Args:
      preset: the preset.
      file: another base: its config.json, or the folder that holds it.
    Raises:
      ValueError: if the file is missing or wrong; names it.
    """
    if file is None:
        return json.loads((BASES / f"{preset.base}.json").read_text())
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"--base must be a config.json or a folder that holds one, got {file}")
    return read_json_object(file)


def tower_inputs(module: Any, config: Config, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the inputs of a tower for a batch; {} if the base takes text only."""
    if isinstance(module, Qwen2Audio):
        audio_config = module.config.audio_config
        window = min(math.ceil(config.data.seconds * FRAMES) + 2, audio_config.window)
        return {
            "mel": jax.ShapeDtypeStruct((size, audio_config.num_mel_bins, window), jnp.float32),
            "frames": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
    if isinstance(module, LlavaNext):
        tower = module.config.vision_config
        one_tile = OneTile(tower.image_size, tower.patch_size)
        tiling = one_tile if config.data.padded else module.config.tiling
        tiles = (size, tiling.most_tiles, tiling.image_size, tiling.image_size, 3)
        return {
            "pixel_values": jax.ShapeDtypeStruct(tiles, jnp.float32),
            "index": jax.ShapeDtypeStruct((size, tiling.most_tokens), jnp.int32),
        }
    if isinstance(module, SmolVLM):
        side = module.config.vision_config.image_size
        return {
            "pixel_values": jax.ShapeDtypeStruct((size, MOST_TILES, side, side, 3), jnp.float32),
            "tiles": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
    if isinstance(module, PaliGemma):
        side = module.config.vision_config.image_size
        return {"pixel_values": jax.ShapeDtypeStruct((size, side, side, 3), jnp.float32)}
    return {}
