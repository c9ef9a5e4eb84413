"""What answering with trained hypotheses needs besides their adapters: `answer.json` in the run directory."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from mcl_jax import dtypes, hosts, options
from mcl_jax.data.encoding import Prompt
from mcl_jax.generation import BeamSearch, Decoder, Defaults, DiverseBeamSearch, Greedy, Sampling, stopping
from mcl_jax.generation.limits import MAX_NEW_TOKENS, Limits
from mcl_jax.json_io import check_unicode, read_json_object, to_json, write_json
from mcl_jax.lora import LoraConfig, as_json
from mcl_jax.models.quantized import Quantization

FILE = "answer.json"
Kind = Literal["text", "pictures", "clips"]
DECODERS: dict[str, type] = {decoder.__name__: decoder for decoder in get_args(Decoder)}
# What the generation_config.json of the base decides if the recipe does not; here if neither does.
SETTLED = {
    "decoder": Greedy(),
    "max_new_tokens": MAX_NEW_TOKENS,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "stop_strings": (),
    "eos_token_id": (),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to answer with trained hypotheses: their base, their adapters' settings, the prompt and the decoder.

    Where `decoder`, `max_new_tokens`, `repetition_penalty`, `no_repeat_ngram_size`, `stop_strings` or `eos_token_id` is
    None, the generation_config.json of the base decides (`mcl_jax.generation.Defaults`), or else the defaults of
    `generate`.

    Args:
      base: path of the base, as `from_pretrained` takes it.
      lora: settings of the adapters in the checkpoints; None if the adapters are in PEFT folders, which have their own,
        or if there are soft prompts.
      kind: what the hypotheses answer: "text", "pictures" or "clips".
      prompt: form of the prompt. For text it contains "{source}" once; for pictures and clips it is a text with the
        placeholder of the base, which a chat may leave out (`Processor.chat`).
      chat: whether the prompt is the message of a user in the chat template of the base.
      decoder: how each hypothesis answers; a decoder of `mcl_jax.generation`.
      max_new_tokens, repetition_penalty, no_repeat_ngram_size, stop_strings: as in `decode`.
      eos_token_id: tokens that end an answer beside the tokenizer's end token.
      dtype: dtype of the weights of the base and of its computations, "float32" or "bfloat16".
      quantization: "int8" or "nf4", as in `from_pretrained`.
      seconds: length to which clips are cropped; None keeps them whole.
      window: mel frames that the encoder of a clip computes (100 per second); None means its whole window.
      padded: whether pictures are padded to squares (`LlavaNextProcessor.padded_to_squares`) and not tiled.
      tag: name of the training within the run, as in `fit`.
      best: whether to answer from the checkpoint with the lowest eval_loss (`keep_best` in `fit`), not from the last.
      soft_prompt: length of the soft prompts in the checkpoints; None if there are none.
    Raises:
      ValueError: if a value is wrong; names it.
    """

    base: Path | str
    lora: LoraConfig | None = None
    kind: Kind = "text"
    prompt: str = "{source}"
    decoder: Decoder | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop_strings: tuple[str, ...] | None = None
    eos_token_id: tuple[int, ...] | None = None
    chat: bool = False
    dtype: str = "float32"
    quantization: Quantization | None = None
    seconds: float | None = None
    window: int | None = None
    padded: bool = False
    tag: str = ""
    best: bool = False
    soft_prompt: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "base", Path(self.base).absolute())
        object.__setattr__(self, "dtype", dtypes.name_of(self.dtype))
        if self.soft_prompt is not None:
            options.check_integers(1, soft_prompt=self.soft_prompt)
            if self.lora is not None:
                raise ValueError("the adapters are low-rank or soft prompts, so lora or soft_prompt must be null")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.quantization not in (None, *get_args(Quantization)):
            raise ValueError(f"quantization must be int8, nf4 or null, got {self.quantization!r}")
        if self.decoder is not None and type(self.decoder) not in DECODERS.values():
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {self.decoder!r}")
        self._settle_limits()
        self._check_prompt()
        if self.padded and self.kind != "pictures":
            raise ValueError(f"padded needs the kind pictures, got {self.kind!r}")
        for name in ("seconds", "window"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"{name} must be a number above 0, got {value!r}")

    def _settle_limits(self) -> None:
        names = ("repetition_penalty", "no_repeat_ngram_size", "eos_token_id")
        limits = Limits(self.max_new_tokens, **{name: getattr(self, name) for name in names})
        if self.eos_token_id is not None:
            object.__setattr__(self, "eos_token_id", limits.eos_token_id)
        if self.stop_strings is not None:
            object.__setattr__(self, "stop_strings", stopping.checked(self.stop_strings))

    def _check_prompt(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be a text, got {self.prompt!r}")
        if self.kind == "text":
            Prompt(self.prompt)
        check_unicode(self.prompt, "prompt")

    def save(self, folder: Path | str) -> Path:
        """Writes answer.json into a run directory, or beside PEFT folders. Of several processes, the first does it.

        Args:
          folder: an existing folder.
        Returns:
          The path of the file.
        """
        path = Path(folder) / FILE
        hosts.on_first(lambda: write_json(path, self.to_json()), f"write {path}")
        return path

    def to_json(self) -> dict[str, Any]:
        """Returns the values of answer.json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.decoder is not None:
            values["decoder"] = {"name": type(self.decoder).__name__, **dataclasses.asdict(self.decoder)}
        if self.lora is not None:
            values["lora"] = as_json.to_json(self.lora)
        return to_json(values, "recipe")

    @classmethod
    def load(cls, folder: Path | str) -> "Recipe":
        """Reads answer.json.

        Raises:
          ValueError: if an entry is unknown, missing or wrong; names the file.
        """
        path = Path(folder) / FILE
        entries = options.given(read_json_object(path))
        try:
            options.check_names(cls, entries)
            made = {
                name: make(entries[name])
                for name, make in (("lora", as_json.from_json), ("decoder", _decoder))
                if name in entries
            }
            return cls(**entries | made)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def settled(self, defaults: Defaults) -> "Recipe":
        """Returns a recipe with the defaults of the base where this one has none."""
        values = SETTLED | {"decoder": defaults.decoder or SETTLED["decoder"]} | dict(defaults.options)
        return dataclasses.replace(self, **{name: values[name] for name in SETTLED if getattr(self, name) is None})

    def with_answers(self, number: int) -> "Recipe":
        """Returns a recipe with `number` answers per hypothesis: samples, or the best beams.

        Raises:
          ValueError: if the number is below 1.
        """
        options.check_integers(1, answers=number)
        decoder = self.decoder or SETTLED["decoder"]
        if isinstance(decoder, Sampling):
            return dataclasses.replace(self, decoder=dataclasses.replace(decoder, num_samples=number))
        if isinstance(decoder, Greedy):
            return self if number == 1 else dataclasses.replace(self, decoder=BeamSearch(number, num_return=number))
        groups = decoder.num_groups if isinstance(decoder, DiverseBeamSearch) else 1
        beams = max(decoder.num_beams, -(-number // groups) * groups)
        return dataclasses.replace(self, decoder=dataclasses.replace(decoder, num_beams=beams, num_return=number))

    def drawing(self, temperature: float | None = None, top_p: float | None = None) -> "Recipe":
        """Returns a recipe that draws its answers; temperature 0 takes the likeliest token at each step.

        A recipe that draws already keeps its other settings; one with beams draws as many answers as it had.

        Raises:
          ValueError: if a value is outside its range, or top_p is given with temperature 0.
        """
        if temperature == 0:
            if top_p is not None:
                raise ValueError(f"top_p must not be given with temperature 0, which draws nothing, got {top_p}")
            return dataclasses.replace(self, decoder=Greedy())
        number = getattr(self.decoder, "num_return", 1)
        start = self.decoder if isinstance(self.decoder, Sampling) else Sampling(number)
        changes = options.given({"temperature": temperature, "top_p": top_p})
        return dataclasses.replace(self, decoder=dataclasses.replace(start, **changes))


def _decoder(entries: Any) -> Decoder:
    name = entries.get("name") if isinstance(entries, dict) else entries
    if name not in DECODERS:
        raise ValueError(f"decoder must have the name of one of {', '.join(DECODERS)}, got {name!r}")
    given = options.given({key: value for key, value in entries.items() if key != "name"})
    options.check_names(DECODERS[name], given)
    return DECODERS[name](**given)
