"""The layers that calls of a module pass through, and whether the patterns of a config match them."""

import dataclasses
import difflib

from mcl_jax.lora.config import LoraConfig, layer_of, matches
from mcl_jax.lora.linear import LinearSpec

STACKED_HINT = " Layers that nn.scan stacks share one path; give that path a sequence with one value per layer."


@dataclasses.dataclass
class Adapted:
    """The modules that calls have passed through.

    Attributes:
      adaptable: names of the layers that can be adapted, for errors.
      linear: type of each linear layer, by path.
      other: type of every other module, by path.
      targets: contraction of each adapted layer, by path.
      lifted: paths of the adapted layers inside a lifted transformation, such as `nn.scan` or `nn.map_variables`.
    """

    adaptable: str
    linear: dict[str, str] = dataclasses.field(default_factory=dict)
    other: dict[str, str] = dataclasses.field(default_factory=dict)
    targets: dict[str, LinearSpec] = dataclasses.field(default_factory=dict)
    lifted: set[str] = dataclasses.field(default_factory=set)

    def check(self, config: LoraConfig) -> None:
        """Checks that every pattern of `config` matches a linear layer that was called.

        Raises:
          ValueError: if a pattern matches none, which lists the nearest module paths, or one of `config.layers` has no
            target.
        """
        self._check_layers(config)
        for field, patterns in [
            ("targets", config.patterns),
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
        ]:
            known = self.linear if field == "targets" else self.targets
            for pattern in patterns:
                matching = [path for path in known if matches(pattern, path)]
                if not matching:
                    hint = self._hint(pattern) + ("" if field == "targets" else STACKED_HINT)
                    raise ValueError(f"LoraConfig.{field}: {pattern!r} matches no linear layer. {hint}")
                chosen = [path for path in matching if config.adapts(path)]
                if chosen and not any(path in self.targets for path in chosen):
                    raise ValueError(
                        f"LoraConfig.{field}: {pattern!r} matches {', '.join(chosen[:3])}, which the example call of "
                        "the module does not call"
                    )

    def _check_layers(self, config: LoraConfig) -> None:
        found = {layer_of(path) for path in self.linear if any(matches(p, path) for p in config.patterns)}
        if missing := sorted({*(config.layers or ())} - found):
            numbers = sorted(found - {None})
            unnumbered = (
                "no target lies in a layer with a number; load the base with scan=False if it stacks its layers"
            )
            known = f"the targets lie in the layers {numbers}" if numbers else unnumbered
            raise ValueError(f"LoraConfig.layers: {missing} have no targets; {known}")

    def _hint(self, pattern: str) -> str:
        not_linear = [f"{path} is a {kind}" for path, kind in self.other.items() if matches(pattern, path)]
        by_name = {path.rsplit("/", 1)[-1]: path for path in self.linear}
        names = difflib.get_close_matches(pattern.rsplit("/", 1)[-1], by_name, n=5, cutoff=0.4)
        nearest = [by_name[name] for name in names] or list(self.linear)[:20]
        hint = f"The nearest of {len(self.linear)} linear layers: {', '.join(nearest) or 'none'}."
        return (f"{'; '.join(not_linear[:3])}; only {self.adaptable} can be adapted. " if not_linear else "") + hint
