"""Exchange with Hugging Face: PEFT adapter folders, and folders of merged weights.

    adapters of one hypothesis here                PEFT, adapter_model.safetensors, below base_model.model
    model/layers/self_attn/q_proj/a  [L, in, r]    model.layers.{i}.self_attn.q_proj.lora_A.weight  [r, in]
    model/layers/self_attn/q_proj/b  [L, r, out]   model.layers.{i}.self_attn.q_proj.lora_B.weight  [out, r]

Layers of vision and audio models are written under their names in transformers from 4.52 on, and read under these or
the earlier names.

K hypotheses are K folders, `lora0` … `lora{K-1}`. Their ranks and scales may differ. In memory all have the largest
rank, with components that are zero, and one scale (see `mcl_jax.peft_adapter`); these components are not written.

The checkpoints that the paper's authors released have this layout, or hold all K in one `lora0` as weights of grouped
1x1 convolutions, lora_A [K·r, in, 1] and lora_B [K·out, r, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from mcl_jax import hypotheses, peft_adapter, peft_files, peft_placing, peft_prompts, peft_writing
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.lora import split_copies
from mcl_jax.models import families
from mcl_jax.models.names import abstract_params, in_layers
from mcl_jax.models.pretrained import save_pretrained
from mcl_jax.moe_files import load_moe, save_moe
from mcl_jax.peft_placing import TiedMatrixError
from mcl_jax.soft_prompts import SoftPrompts

__all__ = ["TiedMatrixError", "load_moe", "load_peft", "save_merged", "save_moe", "save_peft"]


def save_peft(
    folder: str | Path,
    model: Hypotheses | SoftPrompts,
    adapters: PyTree[Array],
    *,
    base: str = "",
    one_rank: bool = False,
) -> list[Path]:
    """Writes one PEFT adapter folder per hypothesis: `lora0` … `lora{K-1}`, also if they are soft prompts.

    All adapters with such names in `folder` are replaced; other files stay. A shared part becomes the first components
    of every adapter, whose rank is then the sum of both. Last components that are zero in some hypotheses and not in
    all are not written into their folders.

    Args:
      folder: where to create the adapter folders.
      model: hypotheses of a language model from `mcl_jax.models`, or soft prompts of one of text.
      adapters: adapters with leading axis K.
      base: name or path of the base model, for PEFT's `base_model_name_or_path`.
      one_rank: write one rank and one α for all layers of all hypotheses, for programs that do not read `rank_pattern`
        and `alpha_pattern`, as vLLM. Lower ranks are filled with zeros, and B is scaled where α/r differs.
    Returns:
      The folders.
    Raises:
      ValueError: if an adapted kernel does not have two axes, the soft prompts are not those of a model of text, or
        `folder` is itself an adapter.
    """
    if isinstance(model, SoftPrompts):
        return peft_files.save_set(Path(folder), peft_prompts.contents(model.module, adapters, base))
    family, abstract = families.of_module(model.module), _shapes_for(model.module, adapters)
    each = [hypotheses.select(adapters, k) for k in range(hypotheses.count(adapters))]
    written = [dict(peft_writing.layers_of(model.config, family, abstract, one)) for one in each]
    written = peft_writing.without_padding(model.config, written)
    copies = [peft_writing.copies_of(family, abstract, one) for one in each]
    if one_rank:
        written = peft_writing.with_one_rank(model.config, written)
    both = zip(written, copies, strict=True)
    saved = [peft_writing.contents(model.config, family, layers, trained, base) for layers, trained in both]
    return peft_files.save_set(Path(folder), saved)


def _shapes_for(module: Any, adapters: PyTree[Array]) -> PyTree[Any]:
    """Returns the shapes of the parameters if tables of embeddings may be adapted, or there are copies; else nothing.

    Tracing a model takes a while, and adapters of its layers do not need it.
    """
    outside = any(not in_layers(path) for path in flatten_dict(adapters))
    return abstract_params(module) if outside or split_copies(adapters)[1] else {}


def load_peft(
    path: str | Path | Sequence[str | Path], module: Any, *, shared_rank: int = 0
) -> tuple[Hypotheses | SoftPrompts, PyTree[Array]]:
    """Loads PEFT adapters: LoRA and its relatives, or soft prompts (PROMPT_TUNING).

    Args:
      path: one adapter folder; a folder of `lora0` … `lora{K-1}` that were saved together; or a sequence of adapter
        folders.
      module: the base, a language model from `mcl_jax.models`.
      shared_rank: number of first components that all adapters have in common, as `save_peft` writes a shared part;
        they are loaded as `LoraConfig.shared_rank`.
    Returns:
      The hypotheses, or soft prompts, and the adapters with leading axis K.
    Raises:
      ValueError: if a file is missing or broken, a setting is not supported, the adapters differ in layers, dropout or
        rank stabilisation, the folders belong to two sets, or a tensor is not finite, does not fit the module, or
        belongs to a frozen tower. The message names it.
      TiedMatrixError: if an adapter or copy of the output layer or of the embeddings alone meets a module that has one
        matrix for both.
    """
    one_set = isinstance(path, (str, Path))
    folders = peft_files.find(Path(path)) if one_set else [Path(one) for one in path]
    if not folders:
        raise ValueError("load_peft needs at least one adapter folder, got an empty list")
    soft = peft_prompts.are_in(folders[0])
    loaded = [] if soft else [one for folder in folders for one in peft_adapter.read(folder)]
    if one_set and folders != [Path(path)]:
        peft_files.check_one_set(folders)
    if soft:
        return peft_prompts.load(folders, module)
    peft_adapter.check_alike(loaded)
    model, adapters = peft_placing.stack(module, loaded)
    return peft_placing.parted(model, adapters, shared_rank) if shared_rank else (model, adapters)


def save_merged(
    folder: str | Path, model: Hypotheses, params: PyTree[Array], adapters: PyTree[Array], k: int, tokenizer: Any = None
) -> None:
    """Writes the base with hypothesis k merged in as a Hugging Face folder, which `from_pretrained` can load.

    Args:
      folder: where to write.
      model: hypotheses of a language model from `mcl_jax.models`.
      params: parameters of the base.
      adapters: adapters with leading axis K.
      k: the hypothesis to merge.
      tokenizer: tokenizer or processor to write beside the weights, if any.
    """
    save_pretrained(folder, model.module, model.merge(params, adapters, k), tokenizer)
