"""The command line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.common.groups import ObjectiveName
from experiments.plan.presets import PRESETS
from mcl_jax.models.decoder import Remat
from mcl_jax.models.narrowed import Narrow

PresetName = Literal[tuple(PRESETS)]
OF_PRESET = (
    "batch_size",
    "accumulate",
    "max_length",
    "max_new_tokens",
    "decode_batch",
    "num_hypotheses",
    "objective",
    "backward",
    "assign",
    "choose_dtype",
    "remat",
    "fsdp",
    "quantization",
    "dropout",
)  # options that override values of the preset


@dataclasses.dataclass(frozen=True)
class Options:
    """Says whether a run fits on chips that you do not have yet, and how long its steps take at least.

    It compiles the programs of a preset: the train step, the held-out evaluation, decoding and the tower. Each takes
    one to three minutes on two cores for a base of 7 billion parameters.
    """

    preset: PresetName
    """Preset of an experiment."""
    topology: str
    """Chips: v5e:2x4, v5e:4x4, v4:2x2x1, v4:2x2x2, v5p:2x2x1, v5p:2x2x2 or v6e:2x4.
    cpu:8 tries the planner on the CPU."""
    mesh: str | None = None
    """Sizes of the mesh, such as data=4,model=2.
    The default is the largest data axis that divides a micro-batch and with which the base takes at most half of a
    chip."""
    search: bool = False
    """Compile the train step for every mesh of the topology, and plan for the best one."""
    largest: int = 3
    """Number of further compilations to find the largest batch. With 0 it is not looked for."""
    programs: tuple[Literal["train", "evaluation", "decoding", "tower"], ...] = (
        "train",
        "evaluation",
        "decoding",
        "tower",
    )
    """Programs to compile."""
    chip_gib: float | None = None
    """Memory of a chip in GiB, instead of what the compiler allows."""
    base: Path | None = None
    """Another base: a config.json or the folder that holds it. The default is the published base of the preset."""
    json: Path | None = None
    """File for the plan."""
    batch_size: int | None = None
    """Number of examples per step, instead of the preset's."""
    accumulate: int | None = None
    """Number of micro-batches per batch."""
    max_length: int | None = None
    """Longest example in tokens, instead of the preset's."""
    max_new_tokens: int | None = None
    """Longest answer in tokens, instead of the preset's."""
    decode_batch: int | None = None
    """Number of sources that are answered at the same time."""
    num_hypotheses: int | None = None
    """Number K of hypotheses, instead of the preset's."""
    objective: ObjectiveName | None = None
    """Training objective, instead of the preset's."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """Hypotheses that the backward pass runs for."""
    assign: Literal["clean", "noisy"] | None = None
    """Scores by which the hypotheses share an example: without dropout or with it."""
    choose_dtype: Narrow | None = None
    """Dtype of the products that choose winners."""
    remat: Remat | None = None
    """What the backward pass computes again."""
    fsdp: bool = False
    """Shard the matrices of the base over data, too."""
    quantization: Literal["int8", "nf4"] | None = None
    """Store the kernels of the base in 8 or 4 bits."""
    dropout: float | None = None
    """Dropout probability of the adapters."""

    def of_preset(self) -> dict[str, Any]:
        """Returns the values that override those of the preset."""
        return {name: value for name in OF_PRESET if (value := getattr(self, name)) is not None}


def parse(args: Sequence[str] | None = None) -> Options:
    """Parses a command line."""
    flags = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(Annotated[Options, *flags], args=args, prog="python -m experiments.plan")
