"""The page of docs on the theory: its JavaScript, run by node, against experiments.markov.theory and mcl_jax."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mcl_jax as mcl
from experiments.markov import steps, theory
from experiments.markov.collapse import THREE_CHAINS
from experiments.markov.config import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "theory"
RUN = """
const Exact = require(process.argv[1]), input = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify((%s)(input)));
"""
FIELDS = ("mle", "wta_lower", "wta_upper", "wta_true_chains", "conditional_entropy")
OPTIONS = {"epsilon": 0.07, "tau": 0.9, "decay": 0.8, "eta": 0.05, "rate": 3.0}
OBJECTIVES = {
    "mle": mcl.objectives.mle(),
    "wta": mcl.objectives.wta(),
    "relaxed": mcl.objectives.relaxed_wta(OPTIONS["epsilon"]),
    "annealed": mcl.objectives.annealed(optax.exponential_decay(OPTIONS["tau"], 1, OPTIONS["decay"])),
    "balanced": mcl.objectives.balanced_wta(rate=OPTIONS["eta"]),
}
UNEQUAL = np.array([0.5, 0.3, 0.2])
# Some sequences are impossible under one chain only, and some under all of them.
SPARSE = [
    [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    [[0.5, 0.5, 0], [0, 0.25, 0.75], [1, 0, 0]],
    [[0, 0, 1], [0, 1, 0], [0, 1, 0]],
]


def javascript(function: str, **values):
    """What a function of Exact returns for these values."""
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not on PATH")
    values = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
    command = [node, "-e", RUN % function, str(PAGE / "exact.js")]
    return json.loads(
        subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True).stdout
    )


def random_chains(num_chains: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(vocabulary), (num_chains, vocabulary))


def setting(number: int) -> np.ndarray:
    return np.array([[[1 - p, p], [q, 1 - q]] for p, q in SETTINGS[number]])


@pytest.mark.parametrize(
    ("chains", "prior", "length", "num_hypotheses"),
    [
        (setting(1), None, 32, 2),
        (setting(2), [0.9, 0.1], 31, 3),
        (json.loads(THREE_CHAINS.read_text()), None, 29, 3),
        (random_chains(3, 3), UNEQUAL, 7, 5),
        (random_chains(3, 2), UNEQUAL, 13, 2),  # fewer hypotheses than chains
        (SPARSE, UNEQUAL, 5, 3),
    ],
    ids=["setting 1", "setting 2, 9:1", "three chains", "own", "K < N", "sparse"],
)
def test_bounds(chains, prior, length, num_hypotheses):
    prior = theory.validate_prior(prior, len(chains))
    found, average = javascript(
        "i => [Exact.bounds(i.chains, i.prior, i.length, i.K), Exact.average(i.chains, i.prior)]",
        chains=np.asarray(chains),
        prior=prior,
        length=length,
        K=num_hypotheses,
    )
    assert [entry["length"] for entry in found] == list(range(2, length + 1))
    for entry in (found[1], found[-1]):
        wanted = theory.bounds(chains, entry["length"], num_hypotheses, prior)
        for name in FIELDS:
            first, *rest = name.split("_")
            assert entry[first + "".join(map(str.title, rest))] == pytest.approx(getattr(wanted, name), abs=1e-11), name
    np.testing.assert_allclose(average, theory.average_transition(chains, prior), atol=1e-12)


def test_a_chain_without_a_unique_long_run_has_no_rate():
    assert javascript("i => [[1, 0], [0, 1]].map((_, k, P) => Exact.stationary(P)[k])") == [None, None]


def test_bounds_end_where_there_are_too_many_types():
    lengths = javascript(
        "i => Exact.bounds(i.chains, [0.5, 0.5], 50, 2).map(e => e.length)", chains=random_chains(2, 3)
    )
    assert lengths == list(range(2, 2 + len(lengths)))
    assert 8 < lengths[-1] < 50


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("step", [3, 100])
def test_weights(name, step):
    rng = np.random.default_rng(1)
    log_p, bias = rng.normal(-0.6, 0.3, (3, 7)), rng.normal(0, 0.2, 3)
    q = javascript(
        "i => i.scores.map(s => Exact.WEIGHTS[i.name](s, i.options, i.step, i.bias))",
        scores=log_p.T,
        name=name,
        options=OPTIONS,
        step=step,
        bias=bias,
    )
    state = jnp.asarray(bias, jnp.float32) if name == "balanced" else ()
    wanted = OBJECTIVES[name].weights(jnp.asarray(log_p, jnp.float32), step, state)
    np.testing.assert_allclose(np.transpose(q), wanted, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_learning(name):
    """Against all sequences one by one, and the gradient of JAX."""
    chains, prior, length, num_hypotheses = random_chains(2, 2), np.array([0.7, 0.3]), 5, 3
    states = javascript(
        "i => Exact.learn(Exact.problem(i.chains, i.prior, i.length), i.name, i.options, "
        "Exact.start(i.chains, i.prior, i.K, 1, true), 2)",
        chains=chains,
        prior=prior,
        length=length,
        K=num_hypotheses,
        name=name,
        options=OPTIONS,
    )
    sequences = np.stack(np.meshgrid(*[[0, 1]] * length, indexing="ij"), -1).reshape(-1, length)
    joint = prior[:, None] * np.exp(theory.log_likelihood(chains, sequences)) / 2  # [N, S]
    probability = jnp.asarray(joint.sum(0), jnp.float32)
    logits = jnp.log(jnp.asarray(states[1]["hypotheses"], jnp.float32))
    bias = jnp.asarray(states[1]["bias"], jnp.float32)

    def log_p(logits):
        return jax.nn.log_softmax(logits)[:, sequences[:, :-1], sequences[:, 1:]].sum(-1) / (length - 1)

    q = OBJECTIVES[name].weights(log_p(logits), 1, bias if name == "balanced" else ())
    gradient = jax.grad(lambda logits: -(probability * (q * log_p(logits)).sum(0)).sum())(logits)
    stepped = jax.nn.softmax(logits - OPTIONS["rate"] * gradient)
    np.testing.assert_allclose(states[2]["hypotheses"], stepped, atol=1e-5)

    winner = np.asarray(log_p(logits).argmax(0))
    assert states[1]["loss"] == pytest.approx(float(-(probability * log_p(logits).max(0)).sum()), abs=1e-5)
    wins = joint @ np.eye(num_hypotheses)[winner]
    np.testing.assert_allclose(states[1]["wins"], wins, atol=1e-6)
    if name == "balanced":
        biased = OBJECTIVES[name].next_state(bias, q @ probability, 1)
        np.testing.assert_allclose(states[2]["bias"], biased, atol=1e-6)


@pytest.mark.parametrize("num_hypotheses", [1, 5])
def test_learning_from_chains_without_an_average(num_hypotheses):
    stuck, alternating = [[1, 0], [0, 1]], [[0, 1], [1, 0]]  # the long run of the first depends on the first symbol
    losses = javascript(
        "i => Object.keys(Exact.WEIGHTS).map(name => Exact.learn(Exact.problem(i.chains, i.prior, 7), name, i.options, "
        "Exact.start(i.chains, i.prior, i.K, 1, true), 40).map(state => state.loss))",
        chains=[stuck, alternating],
        prior=[0.75, 0.25],
        K=num_hypotheses,
        options=OPTIONS,
    )
    assert np.isfinite(np.array(losses, float)).all()


def test_presets_are_those_of_the_experiment():
    presets = javascript("i => Exact.PRESETS")
    for number in SETTINGS:
        np.testing.assert_allclose(presets[f"Paper, setting {number}"]["chains"], setting(number), atol=1e-12)
    three = json.loads(THREE_CHAINS.read_text())
    np.testing.assert_allclose(presets["Three chains over three symbols"]["chains"], three, atol=1e-12)


def test_recorded_runs():
    text = (PAGE / "recorded.json").read_text()
    recorded, config = json.loads(text), steps.StepsConfig(out=PAGE / "recorded.json")
    run = config.of("wta")
    assert len(text) < 100_000
    assert recorded["chains"] == run.chains.tolist() and recorded["length"] == run.data.seq_len
    bounds = theory.bounds(run.chains, run.data.seq_len)
    assert {name: recorded["bounds"][name] for name in FIELDS} == {
        name: round(getattr(bounds, name), 4) for name in FIELDS
    }
    assert tuple(recorded["objectives"]) == config.objectives
    for states in recorded["objectives"].values():
        assert [state["step"] for state in states] == list(range(0, config.steps + 1, config.every))
        assert np.shape([state["hypotheses"] for state in states]) == (len(states), 3, 3, 3)
        np.testing.assert_allclose(np.sum([state["wins"] for state in states], axis=(1, 2)), 1, atol=1e-3)


@pytest.mark.slow
def test_recording(tmp_path, standard_promotion):
    config = steps.StepsConfig(out=tmp_path / "steps.json", objectives=("relaxed",), steps=3, every=2, sequences=50)
    steps.main(config)
    states = json.loads(config.out.read_text())["objectives"]["relaxed"]
    assert [state["step"] for state in states] == [0, 2, 3]
    assert states[0]["hypotheses"][0] == states[0]["hypotheses"][2] != states[2]["hypotheses"][2]
