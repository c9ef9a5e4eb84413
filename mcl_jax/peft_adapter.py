"""One PEFT adapter as its folder holds it: settings, and the matrices of each layer under its Hugging Face name.

    base_model.model.{layer}.lora_A.weight, lora_B.weight              A [r, in], B [out, r]
    base_model.model.{layer}.lora_embedding_A, lora_embedding_B        the same of a table of embeddings, [r, V], [D, r]
    base_model.model.{layer}.lora_magnitude_vector                     m [out] of DoRA
    base_model.model.{module}.weight                                   a trained copy, of a module in modules_to_save
    base_model.model.{layer}.base_layer.weight                         the weights beneath an adapter: a copy, too

The adapters of several folders may have different ranks and scales. Side by side, layer by layer, they get the largest
rank, by components that are zero, and the scale of the adapter that has it: B is multiplied by the quotient of the two
scales. So s_k B_k A_k stays the same for every k.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax import peft_files

PREFIX = "base_model.model."
FACTORS = (
    r"(?P<layer>.+)\.lora_(?P<part>[AB])(\.\w+)?\.weight",
    r"(?P<layer>.+)\.lora_embedding_(?P<part>[AB])(\.\w+)?",
    r"(?P<layer>.+)\.lora_(?P<part>magnitude)_vector(\.\w+)?(\.weight)?",
)
COPY = r"(?P<module>.+?)(?P<beneath>\.base_layer)?\.(?P<leaf>weight|bias)"
# Settings that K adapters have in common, with PEFT's defaults.
SAME = {"lora_dropout": 0.0, "use_rslora": False, "use_dora": False}
Layer = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter of one hypothesis.

    Attributes:
      folder: the folder.
      settings: checked entries of its adapter_config.json.
      layers: {name of a layer: {"a": A [in, r], "b": B [r, out]}}, with {"magnitude": m [out]} for DoRA.
      copies: {name of a weight or bias: its trained copy}, as stored.
      detached: names of the modules in `modules_to_save`, whose copies have nothing to do with tied weights.
    """

    folder: Path
    settings: Mapping[str, Any]
    layers: Mapping[str, Layer]
    copies: Mapping[str, np.ndarray]
    detached: frozenset[str]

    def setting(self, name: str) -> Any:
        """Returns one of the settings in `SAME`."""
        return self.settings.get(name, SAME[name])

    def rank_of(self, layer: str) -> int:
        """Returns r of a layer."""
        return peft_files.rank_of(self.settings, layer)

    def alpha_of(self, layer: str) -> float:
        """Returns α of a layer."""
        return peft_files.alpha_of(self.settings, layer)

    def scale_of(self, layer: str) -> float:
        """Returns the factor of B A: α/r, or α/√r if it is rank-stabilised."""
        rank = self.rank_of(layer)
        return self.alpha_of(layer) / (rank**0.5 if self.setting("use_rslora") else rank)


def read(folder: Path) -> list[Adapter]:
    """Reads the adapters of one folder: one, or K of them in grouped convolutions.

    Raises:
      ValueError: if the folder is incomplete, a setting is not supported, or a tensor does not belong to an adapter,
        lacks its other half, or has another shape than the settings say; names it.
    """
    settings, tensors = peft_files.read(folder)
    file, layers, copies, detached = folder / peft_files.WEIGHTS, {}, {}, set()
    for name, tensor in tensors.items():
        if (found := _copy_in(name, settings)) is not None:
            peft_files.check_numbers(f"{file}: {name}", tensor)
            copies[f"{found['module']}.{found['leaf']}"] = tensor
            detached |= set() if found["beneath"] else {found["module"]}
            continue
        layer, part = _part_in(name, file)
        if part.lower() in layers.setdefault(layer, {}):
            raise ValueError(f"{file} must hold one adapter, but it has lora_{part} of {layer} twice")
        layers[layer][part.lower()] = tensor
    for module in settings.get("modules_to_save", []):
        if not any(_ends_with(name, module) for name in detached):
            raise ValueError(f"{file} must hold a copy of {module}, as modules_to_save says, but holds none")
    if halves := sorted(name for name, ab in layers.items() if not ab.keys() >= {"a", "b"}):
        raise ValueError(f"{file} must hold lora_A and lora_B of each layer, got only one of them for {halves[:8]}")
    if not layers:
        raise ValueError(f"{file} holds no adapters")
    peft_files.check_tensors(settings, layers, file)
    return [Adapter(folder, settings, one, copies, frozenset(detached)) for one in _ungrouped(layers, settings["r"])]


def _copy_in(name: str, settings: Mapping[str, Any]) -> re.Match | None:
    """Returns the parts of the name of a trained copy; None for that of another tensor."""
    match = re.fullmatch(COPY, name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if match is None or match["beneath"]:
        return match
    return match if any(_ends_with(match["module"], one) for one in settings.get("modules_to_save", [])) else None


def _part_in(name: str, file: Path) -> tuple[str, str]:
    """Returns the layer of a matrix, and which of its matrices it is: "A", "B" or "magnitude"."""
    for pattern in FACTORS:
        if match := re.fullmatch(re.escape(PREFIX) + pattern, name):
            return match["layer"], match["part"]
    raise ValueError(f"{file}: {name!r} is not a weight of a LoRA layer")


def _ends_with(name: str, module: str) -> bool:
    """Whether the last names in a path are those of a module, as PEFT reads `modules_to_save`."""
    return f".{name}".endswith(f".{module}")


def _ungrouped(layers: Mapping[str, Layer], rank: int) -> list[dict[str, Layer]]:
    grouped = {name for name, ab in layers.items() if ab["a"].ndim == 3}
    K = {layers[name]["a"].shape[0] // rank for name in grouped} or {1}
    if len(K) > 1 or (grouped and len(grouped) < len(layers)):
        raise ValueError(f"grouped adapters need the same K in all layers, got {sorted(K)}")

    def hypothesis(tensor: np.ndarray, k: int) -> np.ndarray:
        return np.split(tensor[..., 0] if tensor.ndim == 3 else tensor, max(K))[k].T

    return [
        {name: {ab: hypothesis(tensor, k) for ab, tensor in halves.items()} for name, halves in layers.items()}
        for k in range(max(K))
    ]


def check_alike(adapters: Sequence[Adapter]) -> None:
    """Raises a ValueError if adapters differ in a setting that all hypotheses share, or in their layers."""
    first = adapters[0]
    for k, one in enumerate(adapters):
        for name in SAME:
            if one.setting(name) != first.setting(name):
                raise ValueError(
                    f"all adapters must have the same settings, but {one.folder} has {name} = {one.setting(name)}, "
                    f"{first.folder} has {first.setting(name)}"
                )
        for what, names, of_first in (
            ("adapt the same layers", one.layers, first.layers),
            ("have copies of the same modules", one.copies, first.copies),
        ):
            if differing := sorted(names.keys() ^ of_first.keys()):
                raise ValueError(f"all hypotheses must {what}; hypotheses {k} and 0 differ in {differing[:8]}")


def side_by_side(adapters: Sequence[Adapter], layer: str) -> tuple[int, float, list[Layer]]:
    """Returns one rank and one α for all adapters of a layer, and their matrices, padded and scaled to fit these."""
    widest = max(adapters, key=lambda one: one.rank_of(layer))
    rank, alpha, scale = widest.rank_of(layer), widest.alpha_of(layer), widest.scale_of(layer)
    if scale == 0.0:  # the others may have another one
        alpha, scale = float(rank), rank**0.5 if widest.setting("use_rslora") else 1.0
    factors = [one.scale_of(layer) / scale for one in adapters]
    return rank, alpha, [of_rank(scaled(one.layers[layer], f), rank) for one, f in zip(adapters, factors, strict=True)]


def scaled(layer: Layer, factor: float) -> Layer:
    """Multiplies B A of one layer, by way of B; in double precision, so that it is rounded once."""
    b = layer["b"]
    return layer if factor == 1.0 else {**layer, "b": (b.astype(np.float64) * factor).astype(np.float32)}


def of_rank(layer: Layer, rank: int) -> Layer:
    """Pads A and B of one layer with zeros up to this rank, or cuts off components that are zero; B A stays."""
    missing = (0, max(0, rank - layer["b"].shape[0]))
    a, b = np.pad(layer["a"], ((0, 0), missing)), np.pad(layer["b"], (missing, (0, 0)))
    return {**layer, "a": a[:, :rank], "b": b[:rank]}


def used_rank(layer: Layer) -> int:
    """Returns the number of components up to the last one that is not zero in both A and B; at least 1."""
    used = layer["a"].any(0) | layer["b"].any(1)
    return 1 + int(np.flatnonzero(used).max(initial=0))
