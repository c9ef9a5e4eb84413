"""Options of what is evaluated, and with which models of metrics."""

import dataclasses
import math
from dataclasses import field
from pathlib import Path

from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax.metrics.bert_folder import FILES


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """Evaluation during and after the training."""

    eval_every: float = field(default=20, metadata=NO_INFLUENCE)
    """Number of steps between two evaluations during training. A value below 1 is a fraction of all steps."""
    eval_items: int | None = field(default=24, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Number of validation sources to evaluate during training, each with all its answers; None is all of them."""
    test_items: int | None = field(default=100, metadata=COUNT | VOLATILE)
    """Number of test sources for the final loss and win matrix, each with all its answers; None is all of them."""
    decode_items: int | None = field(default=40, metadata=COUNT | VOLATILE)
    """Number of test sources that the methods answer; None is all of them."""
    selector_items: int = field(default=0, metadata=VOLATILE | NO_INFLUENCE)
    """Number of training sources, and at most as many validation sources, from which mcl learns to tell from the prompt
    which hypothesis will win. Each of their answers costs a forward pass under every hypothesis, and where the prompt
    tells something, it takes a thousand sources to learn it. 0 trains no selector."""
    encoder: Path | None = field(default=None, metadata=VOLATILE)
    """Folder of the sentence encoder of the metrics, such as a multilingual one. The default is the installed MiniLM,
    which knows English."""
    bert: Path | None = field(default=None, metadata=VOLATILE)
    """Folder of a BERT, such as bert-base-multilingual-cased, for BERTScore."""
    fluency: Path | None = field(default=None, metadata=VOLATILE)
    """Folder of FENSE's detector of errors, as safetensors; see `mcl_jax.metrics.ErrorDetector.load`."""
    merge_costs: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Also measure how much the test loss rises if two hypotheses of mcl are merged, for every pair of at most 5."""

    def check(self) -> None:
        super().check()
        if self.selector_items < 0:
            raise ValueError(f"--selector-items must be at least 0, got {self.selector_items}")
        if self.eval_every <= 0 or (self.eval_every > 1 and self.eval_every % 1):
            raise ValueError(f"--eval-every must be a number of steps or a fraction below 1, got {self.eval_every}")
        for name in ("encoder", "bert", "fluency"):
            folder = getattr(self, name)
            if folder and (missing := [file for file in FILES if not (folder / file).is_file()]):
                raise ValueError(f"--{name} must be a folder with {FILES}, but {folder} lacks {missing}")

    def every(self, steps: int) -> int:
        """Returns the number of steps between two evaluations of a training of `steps` steps."""
        return math.ceil(self.eval_every * steps) if self.eval_every < 1 else int(self.eval_every)

    @property
    def folders(self) -> dict[str, Path | None]:
        """The folders of the models that metrics need, by the names that `metrics.Settings` has for them."""
        return {"encoder": self.encoder, "bert": self.bert, "fluency": self.fluency}
