"""Defaults of decoding that a model folder brings: `generation_config.json`, with the meaning of Hugging Face.

defaults = Defaults.read(folder)
tokens = mcl.generate(model, params, adapters, prompts, defaults.decoder, **defaults.options)
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mcl_jax.console import say
from mcl_jax.generation.beams import BeamSearch
from mcl_jax.generation.decoders import Decoder, Sampling
from mcl_jax.generation.limits import Limits
from mcl_jax.generation.stopping import checked
from mcl_jax.json_io import read_json_object

FILE = "generation_config.json"
OPTIONS = ("eos_token_id", "repetition_penalty", "no_repeat_ngram_size", "max_new_tokens", "stop_strings")
SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "min_p")
BEAMS = ("num_beams", "length_penalty", "early_stopping")
# Values that change nothing.
NEUTRAL = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "no_repeat_ngram_size": 0,
}
TOP_K = 50  # Hugging Face's, where a file that asks for samples does not say another
# Entries that do not change the tokens of an answer here, or that the prompt decides.
SILENT = ("pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version", "use_cache")


@dataclasses.dataclass(frozen=True)
class Defaults:
    """The decoding options that a generation_config.json gives.

    Taken are eos_token_id, repetition_penalty, no_repeat_ngram_size, max_new_tokens and stop_strings; temperature,
    top_k, top_p, typical_p and min_p if do_sample is true; and else num_beams, length_penalty and early_stopping.
    max_length is not taken: it counts the prompt, and is the longest that the model can read in most files.

    Attributes:
      path: the file; None if there is none.
      options: arguments of `decode`.
      decoder: samples or beams, if the file asks for them; else None.
      unused: names of other entries that would change answers in Hugging Face.
    """

    path: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decoder: Decoder | None = None
    unused: tuple[str, ...] = ()

    @classmethod
    def read(cls, base: Path | str) -> "Defaults":
        """Reads the file of a model folder. A folder without one, or a GGUF file, has no defaults.

        Raises:
          ValueError: if the file is no JSON object, or an entry has a wrong value; names the file.
        """
        path = Path(base) / FILE
        if not path.is_file():
            return cls()
        entries = {name: value for name, value in read_json_object(path).items() if not _is_neutral(name, value)}
        taken = {name: entries[name] for name in OPTIONS if name in entries}
        names, make = (SAMPLING, _sampling) if entries.get("do_sample") else (BEAMS, _beams)
        try:
            decoder = make({name: entries[name] for name in names if name in entries})
            limits = Limits(**{name: value for name, value in taken.items() if name != "stop_strings"})
            settled = {name: getattr(limits, name) for name in taken if name != "stop_strings"}
            stops = {"stop_strings": checked(taken["stop_strings"])} if "stop_strings" in taken else {}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        known = {*taken, "do_sample", *(names if decoder else ()), *SILENT}
        unused = [name for name in entries if name not in known and not name.startswith("_")]
        return cls(path, settled | stops, decoder, tuple(sorted(unused)))

    def say(self, given: Collection[str] = ()) -> None:
        """Prints on the console what is taken from the file, and what is not used; nothing without a file.

        Args:
          given: options of `decode`, "decoder", or fields of the decoder, that are given explicitly and so not taken.
        """
        taken = [f"{name}={_shown(value)}" for name, value in self.options.items() if name not in given]
        if self.decoder is not None and "decoder" not in given:
            taken.append(_described(self.decoder, given))
        if taken:
            say(f"Taken from {self.path}: {', '.join(taken)}.")
        if self.unused:
            say(f"Not used from {self.path}: {', '.join(self.unused)}.")


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or (name in NEUTRAL and value == NEUTRAL[name])


def _sampling(entries: Mapping[str, Any]) -> Decoder:
    return Sampling(**{"top_k": TOP_K} | entries)


def _beams(entries: Mapping[str, Any]) -> Decoder | None:
    return BeamSearch(**entries) if "num_beams" in entries else None


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _described(decoder: Decoder, given: Collection[str]) -> str:
    """Returns a decoder with the fields that are not at their defaults and not given."""
    values = {field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder)}
    fields = [field for field in dataclasses.fields(decoder) if field.name not in given]
    changed = (f"{field.name}={values[field.name]}" for field in fields if values[field.name] != field.default)
    return f"{type(decoder).__name__}({', '.join(changed)})"
