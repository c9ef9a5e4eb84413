"""What the command `python -m mcl_jax.answer` says of a finished run, beside the samples in its results.json."""

import json

import numpy as np
import pytest
from scipy.special import logsumexp

from mcl_jax.answer.__main__ import cli


def answers(capsys, *arguments):
    """The lines of --json."""
    capsys.readouterr()
    cli([*map(str, arguments), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_samples(capsys, workdir, inputs):
    """The command gives the run's own answers: the same texts, with the same likelihoods, the likeliest k first.

    Args:
      capsys: the fixture.
      workdir: a finished run.
      inputs: a function from the samples to the arguments that name their sources.
    """
    samples = json.loads((workdir / "results.json").read_text())["methods"]["mcl"]["samples"]
    lines = answers(capsys, workdir, *inputs(samples), "--batch-size=2")
    assert len(lines) == len(samples) >= 3
    for sample, line in zip(samples, lines, strict=True):
        given = sorted(line["answers"], key=lambda answer: answer["hypothesis"])
        assert [answer["text"] for answer in given] == sample["answers"]["mcl"]
        assert [answer["hypothesis"] for answer in given] == list(range(len(given)))
        gamma = [answer["probability"] for answer in line["answers"]]
        assert sum(gamma) == pytest.approx(1.0, rel=1e-4) and gamma == sorted(gamma, reverse=True)
        for answer, mixture in zip(given, sample["log_likelihoods"]["mcl"], strict=True):
            log_p = answer["log_likelihoods"]
            assert answer["log_likelihood"] == log_p[answer["hypothesis"]]
            assert answer["log_likelihood_per_token"] == pytest.approx(answer["log_likelihood"] / answer["tokens"])
            together = (logsumexp(log_p) - np.log(len(log_p))) / answer["tokens"]
            assert together == pytest.approx(mixture, rel=1e-4)
