"""The method prompts: K soft prompts, and how many vectors have as many parameters as the adapters of mcl."""

import dataclasses
from dataclasses import field

from experiments.common.options import COUNT, Options

LONGEST = 100  # vectors, unless --prompt-length asks for more: each costs a token in every pass


@dataclasses.dataclass(frozen=True)
class Prompts(Options):
    """The soft prompts of the method prompts."""

    prompt_length: int | None = field(default=None, metadata=COUNT)
    """Number of vectors in each soft prompt. The default is the number that has as many parameters as the adapters of
    one hypothesis of mcl, but at most 100. Results have the `trained_parameters` of each method."""
    prompt_rate: float = 1e-2
    """Highest learning rate of the soft prompts, in place of --learning-rate."""

    def check(self) -> None:
        super().check()
        if not self.prompt_rate > 0:
            raise ValueError(f"--prompt-rate must be positive, got {self.prompt_rate}")

    def length(self, adapter_parameters: float, width: int) -> int:
        """Returns the number of vectors in each soft prompt.

        Args:
          adapter_parameters: number of parameters of one hypothesis of mcl.
          width: number of parameters of a vector.
        """
        return self.prompt_length or min(max(round(adapter_parameters / width), 1), LONGEST)
