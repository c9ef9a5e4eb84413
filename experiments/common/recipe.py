"""What `python -m mcl_jax.answer WORKDIR` needs to know of a run."""

from experiments.common.task import Task
from mcl_jax.answer import Recipe
from mcl_jax.run import Run


def save_recipe(run: Run, task: Task) -> None:
    """Writes answer.json for the hypotheses of the method mcl, or else for soft prompts, if the run trains either."""
    config = task.config
    method = next((name for name in ("mcl", "prompts") if name in config.methods), None)
    if method is None:
        return
    seen, model = task.perception, task.model(method)
    recipe = Recipe(
        base=task.base,
        lora=model.config if method == "mcl" else None,
        soft_prompt=model.length if method == "prompts" else None,
        kind="text" if seen is None else seen.processor.media,
        prompt=task.prompt.template,
        chat=task.prompt.chat,
        decoder=next(iter(config.decoders(method).values())),
        max_new_tokens=config.decoding.max_new_tokens,
        repetition_penalty=config.decoding.repetition_penalty,
        no_repeat_ngram_size=config.decoding.no_repeat_ngram_size,
        stop_strings=config.decoding.stop_strings,
        dtype=config.base.dtype,
        quantization=config.base.quantization,
        tag=method,
        best=config.training.keep == "best",
        **({} if seen is None else seen.limits),
    )
    recipe.save(run.workdir)
