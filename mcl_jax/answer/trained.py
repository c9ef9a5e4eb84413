"""Trained hypotheses on disk: the directory of a finished run, or PEFT folders. Finding them reads no weights."""

import dataclasses
from pathlib import Path
from typing import Any

from mcl_jax import hypotheses, interop, options, peft_files, selector
from mcl_jax.answer import recipe as recipes
from mcl_jax.answer.recipe import Recipe
from mcl_jax.checkpoint import Checkpoints
from mcl_jax.generation import Defaults
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.json_io import read_json_object
from mcl_jax.models import pretrained
from mcl_jax.selector import Selector
from mcl_jax.soft_prompts import SoftPrompts

DRAWING = ("temperature", "top_p")


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained hypotheses and how to answer with them.

    Attributes:
      folder: directory of a run, or a folder of PEFT adapters.
      recipe: how to answer.
      adapters: adapters of the run with leading axis K, as NumPy arrays; None for PEFT folders, whose adapters are read
        once the base is there.
      selector: tells from a question which hypothesis will answer it best; None if the folder has no
        selector.safetensors.
    """

    folder: Path
    recipe: Recipe
    adapters: Any = None
    selector: Selector | None = None

    @classmethod
    def find(cls, folder: Path | str, **changes: Any) -> "Trained":
        """Finds the hypotheses of a folder, and checks that their base is there. Reads no weights of the base.

        Args:
          folder: directory of a finished run that has an answer.json, or PEFT adapters: one folder, or a folder of
            lora0, lora1, …; an answer.json and a selector beside these are read, too.
          **changes: values in place of those of the recipe, by field; None keeps a value. `answers` is the number of
            answers per hypothesis; `temperature` and `top_p` are those of `Recipe.drawing`.
        Raises:
          ValueError: if the folder is neither, the run is not finished or has no answer.json, the base is missing or
            takes other inputs than those that the run answers, or the selector is broken or has another K.
          BrokenCheckpoint: if the checkpoint cannot be read.
        """
        folder, changes = Path(folder), options.given(changes)
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "does not exist"
            raise ValueError(f"{folder} must be a run directory or a folder of PEFT adapters, but it {found}")
        if peft_files.found_in(folder):
            recipe = _checked(_recipe_of_peft(folder, changes), changes)
            return cls(folder, recipe, selector=_selector(folder, len(peft_files.find(folder))))
        _check_run(folder)
        recipe = _checked(Recipe.load(folder), changes)
        adapters = _adapters(folder, recipe)
        return cls(folder, recipe, adapters, _selector(folder, hypotheses.count(adapters)))

    def hypotheses(self, module: Any) -> tuple[Hypotheses | SoftPrompts, Any]:
        """Returns the hypotheses over the base, and the adapters with leading axis K.

        Raises:
          ValueError: if PEFT adapters are broken, or do not fit the base.
        """
        if self.adapters is None:
            return interop.load_peft(self.folder, module)
        if self.recipe.soft_prompt is not None:
            return SoftPrompts(module, self.recipe.soft_prompt), self.adapters
        return Hypotheses(module, self.recipe.lora), self.adapters


def _check_run(folder: Path) -> None:
    """Raises a ValueError unless the folder is that of a finished run with an answer.json."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is neither a run directory, which has a config.json, nor a folder of PEFT adapters, which has "
            "adapter_config.json or the folders lora0, lora1, …"
        )
    if not (folder / "results.json").is_file():
        raise ValueError(f"the run in {folder} is not finished; run its command again, which resumes it")
    if not (folder / recipes.FILE).is_file():
        raise ValueError(
            f"the run in {folder} has no {recipes.FILE}, which says how to answer; experiments write it for the method "
            "mcl, and mcl_jax.answer.Recipe.save writes it for other runs"
        )


def _adapters(folder: Path, recipe: Recipe) -> Any:
    """Reads the adapters of the checkpoint that the recipe names."""
    if recipe.lora is None and recipe.soft_prompt is None:
        raise ValueError(
            f"{folder / recipes.FILE} must have lora, the settings of the adapters in the checkpoints, or soft_prompt"
        )
    checkpoints = folder / "checkpoints" / recipe.tag
    if not checkpoints.is_dir():
        raise ValueError(f"there are no checkpoints in {checkpoints}, from which the run would answer")
    with Checkpoints(checkpoints, async_=False) as saved:
        adapters = saved.adapters("best" if recipe.best else None)
    hypotheses.count(adapters)  # refuses what is not stacked
    return adapters


def _selector(folder: Path, num_hypotheses: int) -> Selector | None:
    """Reads the selector of a folder, if it has one."""
    if not (path := folder / selector.FILE).is_file():
        return None
    found = Selector.load(folder)
    if found.num_hypotheses != num_hypotheses:
        raise ValueError(f"{path} must choose among {num_hypotheses} hypotheses, got {found.num_hypotheses}")
    return found


def _recipe_of_peft(folder: Path, changes: dict[str, Any]) -> Recipe:
    """Returns the recipe beside PEFT folders, or one for the base that the adapters or --base name."""
    if (folder / recipes.FILE).is_file():
        return Recipe.load(folder)
    base = changes.get("base") or read_json_object(peft_files.find(folder)[0] / peft_files.CONFIG).get(
        "base_model_name_or_path"
    )
    if not base:
        raise ValueError(f"the adapters in {folder} do not name their base; give it with --base")
    _check_base(Path(base))
    kind = pretrained.media_of(base) or "text"
    if kind != "text" and "prompt" not in changes:
        raise ValueError(
            f"the adapters in {folder} answer {kind}; give the prompt, with its placeholder, with --prompt"
        )
    return Recipe(base, kind=kind, prompt=changes.get("prompt", "{source}"))


def _checked(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """Returns the changed recipe with the defaults of its base, and prints which of these it takes.

    Raises:
      ValueError: if the base is missing or takes something else, or its generation_config.json is wrong.
    """
    answers, sampling = changes.get("answers"), {name: changes[name] for name in DRAWING if name in changes}
    others = {name: changes[name] for name in changes.keys() - {"answers", *DRAWING}}
    recipe = dataclasses.replace(recipe, **others)
    _check_base(recipe.base)
    if (kind := pretrained.media_of(recipe.base) or "text") != recipe.kind:
        raise ValueError(f"the base {recipe.base} takes {kind}, but the hypotheses answer {recipe.kind}")
    defaults = Defaults.read(recipe.base)
    given = [name for name in recipes.SETTLED if getattr(recipe, name) is not None]
    defaults.say([*given, *sampling, *(["decoder"] if sampling.get("temperature") == 0 else [])])
    recipe = recipe.settled(defaults)
    if sampling:
        recipe = recipe.drawing(**sampling)
    return recipe if answers is None else recipe.with_answers(answers)


def _check_base(base: Path) -> None:
    if not base.exists():
        raise ValueError(f"there is no base at {base}; give its present place with --base")
