"""The decoders of a run: their options, what each makes, and what it spends."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax import hosts, options
from mcl_jax.generation import BeamSearch, Decoder, Defaults, DiverseBeamSearch, Greedy, Sampling, stopping

DecoderName = Literal["greedy", "beam", "diverse", "sampling", "ancestral", "top_k", "typical", "tta"]
SAMPLING = ("sampling", "ancestral", "top_k", "typical")


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """Gives n answers, one to each of n augmented pictures or clips; see `Perception.augmented`."""

    decoder: Decoder
    n: int


@dataclasses.dataclass(frozen=True)
class ExpertsAlone:
    """Each expert of a mixture makes an answer with this decoder; see `mcl.moe.experts_alone`."""

    decoder: Decoder
    n: int


@dataclasses.dataclass(frozen=True)
class Listed:
    """Writes n answers as one list of n times as many tokens; see `common.lists`."""

    decoder: "Decoder | TestTimeAugmentation"
    n: int


AnyDecoder = Decoder | TestTimeAugmentation | ExpertsAlone | Listed


def budget(decoder: AnyDecoder) -> tuple[int, int]:
    """Returns what one hypothesis spends on a source: rows that it decodes side by side, and answers that it makes.

    A row of a list of n answers is n times as long as that of an answer, and counts as n rows.
    """
    match decoder:
        case Listed(inner, n):
            return n * budget(inner)[0], n
        case TestTimeAugmentation(inner, n) | ExpertsAlone(inner, n):
            rows, answers = budget(inner)
            return n * rows, n * answers
        case Greedy():
            return 1, 1
        case Sampling():
            return decoder.num_samples, decoder.num_samples
        case _:
            return decoder.num_beams, decoder.num_return


@dataclasses.dataclass(frozen=True)
class Decoding(Options):
    """How the methods answer."""

    max_new_tokens: int = field(default=80, metadata=COUNT | VOLATILE)
    """Longest answer in tokens."""
    decode_batch: int = field(default=8, metadata=COUNT | VOLATILE)
    """Number of sources that are answered at the same time. Fewer need less memory."""
    num_beams: int | None = field(default=None, metadata=VOLATILE)
    """Number of beams of a method with one hypothesis, a multiple of K. The default is 2 K.
    Each of K hypotheses has 1/K of them."""
    repetition_penalty: float | None = field(default=None, metadata=VOLATILE)
    """A value above 1 makes tokens of the prompt and of the answer so far less likely, in every decoder.
    The default is that of generation_config.json in the folder of the base, or 1."""
    no_repeat_ngram_size: int | None = field(default=None, metadata=VOLATILE)
    """Let no sequence of so many tokens occur twice in prompt and answer, in every decoder; 0 allows all.
    The default is that of generation_config.json in the folder of the base, or 0."""
    stop_strings: tuple[str, ...] | None = field(default=None, metadata=VOLATILE)
    """Texts that end an answer and are left out of it, beside the end token.
    The default are those of generation_config.json in the folder of the base, or none."""
    mle_decoders: tuple[DecoderName, ...] = field(
        default=("beam", "diverse", "sampling"), metadata=VOLATILE | NO_INFLUENCE
    )
    """Decoders with which a method with one hypothesis makes K answers. The default of the captioning experiments has
    greedy as well.
    greedy: one answer, of the likeliest token at each step.
    beam, diverse: beam search and diverse beam search, with the same number of beams in all as the K hypotheses.
    sampling: samples with top-p 0.95.
    ancestral: samples from the whole distribution.
    top_k: samples from the 50 likeliest tokens.
    typical: samples from the typical set, 0.95.
    tta: answers to K augmented pictures or clips, with 1/K of the beams for each."""
    mcl_decoders: tuple[DecoderName, ...] = field(default=("beam",), metadata=VOLATILE | NO_INFLUENCE)
    """Decoders with which each of K hypotheses makes one answer, with 1/K of what a method with one hypothesis has.
    diverse: the best of its beams, each of which is a group.
    tta: an augmented picture or clip, the same for all hypotheses."""
    diversity_penalty: tuple[float, ...] = field(default=(0.8,), metadata=VOLATILE)
    """Penalties λ of diverse beam search; several give a result for each, such as mle_r/diverse-0.5."""
    sampling_temperatures: tuple[float, ...] = field(default=(1.0,), metadata=VOLATILE)
    """Temperatures of the decoders that sample; several give a result for each, such as mle_r/sampling-0.7."""

    def check(self) -> None:
        super().check()
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise ValueError(f"--repetition-penalty must be above 0, got {self.repetition_penalty}")
        if (self.no_repeat_ngram_size or 0) < 0:
            raise ValueError(f"--no-repeat-ngram-size must be at least 0, got {self.no_repeat_ngram_size}")
        stopping.checked(self.stop_strings)
        if not self.diversity_penalty or len(set(self.diversity_penalty)) < len(self.diversity_penalty):
            raise ValueError(f"--diversity-penalty needs at least one λ, each once, got {self.diversity_penalty}")
        of = self.sampling_temperatures
        if not of or min(of) <= 0 or len(set(of)) < len(of):
            raise ValueError(f"--sampling-temperatures needs at least one temperature above 0, each once, got {of}")

    def limits(self, base: Path) -> dict[str, object]:
        """Returns the arguments of `decode` besides the decoder; what is not given comes from the folder of the base.

        The first process prints what is taken from there. `eos_token_id` is only there if the folder has some.
        """
        names = ("max_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "stop_strings")
        explicit = options.given({name: getattr(self, name) for name in names})
        defaults = Defaults.read(base)
        if hosts.first():
            defaults.say({*explicit, "decoder"})
        return dict(defaults.options) | explicit

    def beams(self, num_hypotheses: int) -> int:
        """Returns the number of beams of every method in all."""
        return 2 * num_hypotheses if self.num_beams is None else self.num_beams

    def decoders(self, names: Sequence[DecoderName], num_hypotheses: int, share: int) -> "dict[str, AnyDecoder]":
        """Returns decoders by name; diverse-0.5 or sampling-0.7 and the like if there are several such values.

        Args:
          names: names of decoders.
          num_hypotheses: K, the number of answers that a method makes in all.
          share: number of hypotheses that share beams and answers: 1, or K for the decoders of mcl.
        """
        made = {}
        for name in names:
            values = self._values(name)
            for value in values:
                key = f"{name}-{value:g}" if len(values) > 1 else name
                made[key] = self.decoder(name, num_hypotheses, share=share, value=value)
        return made

    def _values(self, name: DecoderName) -> tuple[float | None, ...]:
        """Returns the penalties or temperatures of a decoder; (None,) if it has neither."""
        if name == "diverse":
            return self.diversity_penalty
        return self.sampling_temperatures if name in SAMPLING else (None,)

    def decoder(
        self, name: DecoderName, num_hypotheses: int, *, share: int = 1, value: float | None = None
    ) -> "AnyDecoder":
        """Returns the decoder with this name, with which one of `share` hypotheses makes K / share answers.

        Args:
          name: the name.
          num_hypotheses: K.
          share: see `decoders`.
          value: λ of diverse beam search or temperature of sampling; the first of those given if None.
        """
        n, beams = num_hypotheses // share, self.beams(num_hypotheses) // share
        value = self._values(name)[0] if value is None else value
        match name:
            case "greedy":
                return Greedy()
            case "beam":
                return BeamSearch(num_beams=beams, num_return=n)
            case "diverse":
                groups = num_hypotheses if share == 1 else beams
                return DiverseBeamSearch(num_beams=beams, num_groups=groups, num_return=n, diversity_penalty=value)
            case "sampling":
                return Sampling(num_samples=n, temperature=value, top_p=0.95)
            case "ancestral":
                return Sampling(num_samples=n, temperature=value)
            case "top_k":
                return Sampling(num_samples=n, temperature=value, top_k=50)
            case "typical":
                return Sampling(num_samples=n, temperature=value, typical_p=0.95)
            case "tta":
                return TestTimeAugmentation(BeamSearch(num_beams=self.beams(num_hypotheses) // num_hypotheses), n)
            case _:
                raise ValueError(f"Decoding.decoder needs a case for {name!r}")
