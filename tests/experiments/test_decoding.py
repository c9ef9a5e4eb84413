"""Answers of an experiment: stop strings, and what the folder of the base decides, reach the decoder."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from toy_language import Pieces, bigram_hypotheses

from experiments.common.decoding import answer
from experiments.common.task import Task
from experiments.translation.config import Config
from mcl_jax import data
from mcl_jax.generation import Sampling


class NoProgress(contextlib.nullcontext):
    def update(self, *of):
        pass


@pytest.mark.slow
def test_answers_end_at_stop_strings_and_end_tokens(tmp_path, monkeypatch):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 6, "no_repeat_ngram_size": 2}))
    model, params, adapters = bigram_hypotheses()
    monkeypatch.setattr(Task, "model", lambda self, method: model)
    config = Config.from_options(workdir=tmp_path, num_hypotheses=3, max_new_tokens=11, stop_strings=("d", "ab"))
    task = Task(config, model.module, params, Pieces(), None, data.Prompt("{source}f"), tmp_path)
    records = tuple(data.Record(name, name, (data.Target("e"),)) for name in ("b", "ga", "c", "j", "h"))
    run = SimpleNamespace(stop_requested=False, progress=lambda *of: NoProgress(NoProgress()))
    state = SimpleNamespace(params=params, adapters=adapters)
    found = answer(task, run, "mcl", state, records, Sampling(2, temperature=2.0))
    assert len(found.texts) == 5 and {len(texts) for texts in found.texts} == {6}
    assert not any("d" in text or "ab" in text for texts in found.texts for text in texts)
    endings = [text for texts in found.texts for text in texts if "g" in text]
    assert endings and all(text.index("g") == len(text) - 1 for text in endings)  # token 6, which is no special token
