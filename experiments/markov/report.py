"""Reports a finished Markov run: results.json, the table, and a comparison with the theory."""

import dataclasses
from typing import Any

import numpy as np
from rich.text import Text

from experiments.markov import theory
from experiments.markov.config import Config
from mcl_jax.console import plain

ONE_PERCENT = 0.01


def summarise(config: Config, bounds: theory.WtaBounds, trained: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the content of results.json.

    With several seeds, all values are means; "spread" has the standard deviations, and "seeds" the single runs.
    Hypotheses are listed in the order of the chains that they match, so that seeds can be averaged.
    """
    chains = config.chains
    average, first = theory.average_transition(chains), theory.first_transition(chains)
    mle = [_mle(run, average, first) for run in trained["mle"]]
    mcl = [_mcl(run, chains, average) for run in trained["mcl"]]
    return {
        "bounds": dataclasses.asdict(bounds) | {"mle_limited_memory": _limited_memory(config)},
        "mle": _mean(mle),
        "mcl": _mean(mcl),
        "targets": {"transition_matrices": chains, "average": average, "first_transition": first},
        "seconds": sum(run["seconds"] for runs in trained.values() for run in runs),
        "seeds": [
            {"seed": seed, "mle": one, "mcl": several} for seed, one, several in zip(config.seed, mle, mcl, strict=True)
        ],
        "objective": config.objective.name,
        "standard_error": max(run["standard_error"] for runs in trained.values() for run in runs),
    }


def _limited_memory(config: Config) -> float | None:
    """Returns the best loss of one model that sees only as far back as the windows; None if it takes too long."""
    try:
        entropy = theory.limited_memory_entropy(config.chains, config.data.seq_len, config.memory)
    except ValueError:
        return None
    return entropy / (config.data.seq_len - 1)


def _distance(p: np.ndarray, q: np.ndarray) -> float:
    """Returns the largest total variation between two rows."""
    return theory.row_total_variation(p, q).max(-1)


def _mle(run: dict[str, Any], average: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    learned = run["transition_matrices"][0]
    return {
        "eval_loss": run["eval_loss"],
        "transition_matrix": learned,
        "distance_to_first_transition": _distance(learned, first),
        "distance_to_average": _distance(learned, average),
    }


def _mcl(run: dict[str, Any], chains: np.ndarray, average: np.ndarray) -> dict[str, Any]:
    learned = run["transition_matrices"]
    matching = theory.match_chains(learned, chains)
    rest = [k for k in range(len(learned)) if k not in matching.hypothesis]
    order = [*dict.fromkeys(int(k) for k in matching.hypothesis), *rest]
    to_chains = np.array([[_distance(p, q) for q in chains] for p in learned[order]])
    return {
        "eval_loss": run["eval_loss"],
        "transition_matrices": learned[order],
        "win_rate": run["win_matrix"].sum(0)[order],
        "win_matrix": run["win_matrix"][:, order],
        "total_variation": matching.total_variation,
        "distance_to_nearest_chain": to_chains.min(1),
        "distance_to_average": np.array([_distance(p, average) for p in learned[order]]),
        "covered": bool(matching.covered.all() and len(set(to_chains.argmin(1))) == min(len(chains), len(learned))),
    }


def _mean(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if len(runs) == 1:
        return dict(runs[0])
    stacked = {name: np.stack([np.asarray(run[name]) for run in runs]) for name in runs[0]}
    means = {name: values.all() if values.dtype == bool else values.mean(0) for name, values in stacked.items()}
    spread = {name: values.std(0, ddof=1) for name, values in stacked.items() if values.dtype != bool}
    return {name: bool(value) if name == "covered" else value for name, value in means.items()} | {"spread": spread}


def table(results: dict[str, Any]) -> tuple[str, list[str], list[list[Any]]]:
    """Returns title, columns and rows of the summary."""
    bounds, mle, mcl = results["bounds"], results["mle"], results["mcl"]
    spread = lambda method: f" ± {method['spread']['eval_loss']:.4f}" if "spread" in method else ""
    rows = [
        ["MLE optimum (exact)" if bounds["exact"] else "MLE optimum (sampled)", f"{bounds['mle']:.5f}", "", ""],
        ["  with the memory of the windows", bounds["mle_limited_memory"], "", ""],
        ["MLE, K=1", f"{mle['eval_loss']:.5f}{spread(mle)}", _percent(mle["eval_loss"], bounds["mle"]), ""],
        ["WTA band", f"{bounds['wta_lower']:.5f} to {bounds['wta_upper']:.5f}", "", ""],
        [
            f"MCL, K={len(mcl['win_rate'])}, {results['objective']}",
            f"{mcl['eval_loss']:.5f}{spread(mcl)}",
            _percent(mcl["eval_loss"], bounds["wta_upper"]),
            _numbers(mcl["win_rate"]),
        ],
        ["total variation, per chain", _numbers(mcl["total_variation"], 3), "", ""],
    ]
    rows[1][1] = "n/a" if rows[1][1] is None else f"{rows[1][1]:.5f}"
    return "Nats per predicted token", ["", "loss", "against theory", "win rate"], rows


def verdict(results: dict[str, Any]) -> list[tuple[Text, str]]:
    """Returns, for each claim of the experiment, whether it holds in this run, and the claim."""
    bounds, mle, mcl = results["bounds"], results["mle"], results["mcl"]
    nearer = np.all(np.array(mcl["distance_to_nearest_chain"]) < np.array(mcl["distance_to_average"]))
    low, high = bounds["wta_lower"] * (1 - ONE_PERCENT), bounds["wta_upper"] * (1 + ONE_PERCENT)
    near = lambda value, reference: abs(value / reference - 1) <= ONE_PERCENT
    claims = {"K=1 within 1 % of the MLE optimum": near(mle["eval_loss"], bounds["mle"])}
    if (reachable := bounds["mle_limited_memory"]) is not None:
        claims["K=1 within 1 % of the best model that sees only its windows"] = near(mle["eval_loss"], reachable)
    claims |= {
        "MCL inside or within 1 % of the WTA band": low <= mcl["eval_loss"] <= high,
        "every hypothesis nearer to a chain than to the average": nearer,
        "every chain covered": mcl["covered"],
    }
    return [(plain("yes", "green") if holds else plain("no ", "red"), f"  {claim}") for claim, holds in claims.items()]


def _percent(value: float, reference: float) -> str:
    return f"{100 * (value / reference - 1):+.2f} %"


def _numbers(values: list[float], digits: int = 2) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)
