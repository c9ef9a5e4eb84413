"""The methods of a run, one after the other: trained, evaluated on the test split, and asked for answers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from experiments.common.config import LIST
from experiments.common.decoding import Answers, answer
from experiments.common.experiment import merged, on_test
from experiments.common.held_out import Likelihoods, evaluator
from experiments.common.lists import NO_LIKELIHOOD
from experiments.common.selection import Selection, select
from experiments.common.task import Items, Task
from experiments.common.training import costs, train
from experiments.common.usage import merged_pairs
from mcl_jax import data
from mcl_jax.run import Run


class Compared(NamedTuple):
    """What `compare` found.

    Attributes:
      results: results by the name of the method and decoder.
      likelihoods: likelihoods on the test split, by method.
      answers: answers by the name of the method and decoder.
    """

    results: dict[str, dict[str, Any]]
    likelihoods: dict[str, Likelihoods]
    answers: dict[str, Answers]


def compare(
    run: Run,
    task: Task,
    asked: tuple[data.Record, ...],
    score: Callable[[Answers], Mapping[str, Any]],
    relevance: Callable[[Callable[[Items], Likelihoods]], Mapping[str, Any]] = lambda of_items: {},
) -> Compared:
    """Trains, evaluates and scores each method of a run.

    Args:
      run: the run.
      task: the task, whose configuration names the methods.
      asked: test records that the methods answer.
      score: returns the results of the answers to these records.
      relevance: returns further results of a method, from the function that gives its likelihoods of items.
    """
    config, found = task.config, Compared({}, {}, {})
    test = task.encode(task.records("test", config.evaluation.test_items))
    for method in config.methods:
        evaluate = evaluator(task, method)
        state, seconds = train(run, task, method, evaluate)
        held_out, selection = NO_LIKELIHOOD, Selection()
        if method != LIST:
            of_items = partial(evaluate, state)
            on_all = found.likelihoods[method] = of_items(test)
            held_out = merged(on_test(on_all, task, merged_pairs(task, method, state, test)), relevance(of_items))
            selection = select(task, run, method, of_items, (test, on_all), asked)
        for name, decoder in config.decoders(method).items():
            answers = found.answers[name] = selection.marked(answer(task, run, name, state, asked, decoder))
            spent = costs(state, seconds) | answers.costs
            found.results[name] = merged(held_out, score(answers), spent, selection.results(answers))
    return found
