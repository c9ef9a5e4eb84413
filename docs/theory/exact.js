"use strict";
/* The exact theory of mixtures of Markov chains, and hypotheses that learn from them. Pure functions, in nats.

   Data (LoRA-MCL, arXiv 2507.10419, section on Markov chains): z ~ prior over N chains, x_1 uniform over V symbols,
   x_{t+1} ~ P_z[x_t, :], up to length T. Chains are [N][V][V]. Tests run this file under node and compare it with
   experiments.markov.theory and mcl_jax.objectives. */
const Exact = (() => {
  const LIMITS = { exact: 6000, learn: 2500 }; // types of sequences that a phone goes through without a pause
  const sum = (values, of = (value) => value) => values.reduce((total, value, i) => total + of(value, i), 0);
  const times = (n, make) => Array.from({ length: n }, (_, i) => make(i));
  const grid = (rows, columns, make) => times(rows, (i) => times(columns, (j) => make(i, j)));
  const xlogx = (p) => (p > 0 ? p * Math.log(p) : 0);
  const entropy = (row) => -sum(row, xlogx);
  const two = (p, q) => [[1 - p, p], [q, 1 - q]]; // the paper's P(p, q)

  const circle = (stay, next) => grid(3, 3, (i, j) => (j === (i + stay) % 3 ? next : (1 - next) / 2));
  const PRESETS = {
    "Paper, setting 1": { chains: [two(0.2, 0.9), two(0.8, 0.25)], K: 2 },
    "Paper, setting 2": { chains: [two(0.7, 0.8), two(0.8, 0.25)], K: 2 },
    "Setting 1, weights 9:1": { chains: [two(0.2, 0.9), two(0.8, 0.25)], prior: [0.9, 0.1], K: 2 },
    "Setting 1, more hypotheses than chains": { chains: [two(0.2, 0.9), two(0.8, 0.25)], K: 4 },
    "Two chains that are nearly equal": { chains: [two(0.4, 0.5), two(0.55, 0.5)], K: 2 },
    "Three chains over three symbols": { chains: times(3, (n) => circle(n, 0.8)), K: 3 },
  };

  /** Long-run share of each symbol, pi = pi P, by the Markov chain tree theorem: pi_i ~ the minor of I - P without i.
      NaN if it depends on the first symbol. */
  function stationary(P) {
    const a = P.map((row, i) => row.map((p, j) => (i === j ? 1 : 0) - p));
    const minors = P.map((_, i) => {
      const [j, k] = P.map((_, s) => s).filter((s) => s !== i);
      return k === undefined ? a[j][j] : a[j][j] * a[k][k] - a[j][k] * a[k][j];
    });
    const total = sum(minors);
    return minors.map((minor) => (total > 1e-12 ? minor / total : NaN));
  }

  /** Entropy of the next symbol in the long run, sum_i pi(i) H(P[i, :]); its mean is the paper's upper line of WTA. */
  const entropyRate = (P) => sum(stationary(P), (share, i) => share * entropy(P[i]));

  /** Where one chain goes under MLE: Pbar[i, :] = sum_k prior_k pi_k(i) P_k[i, :] / sum_k prior_k pi_k(i). */
  function average(chains, prior) {
    const share = chains.map((P, n) => stationary(P).map((pi) => pi * prior[n]));
    const visits = (i) => sum(share, (row) => row[i]);
    return chains[0].map((row, i) => row.map((_, j) => sum(chains, (P, n) => share[n][i] * P[i][j]) / visits(i)));
  }

  /** H(x_2..x_T | x_1, z), the WTA optimum of the paper's proposition, for T = 1, ..., length (nats per sequence). */
  function conditionalEntropies(chains, prior, length) {
    let symbol = chains.map((P) => P.map(() => 1 / P.length));
    const totals = [0];
    while (totals.length < length) {
      totals.push(totals.at(-1) + sum(chains, (P, n) => prior[n] * sum(P, (row, i) => symbol[n][i] * entropy(row))));
      symbol = chains.map((P, n) => P.map((_, j) => sum(P, (row, i) => symbol[n][i] * row[j])));
    }
    return totals;
  }

  /** Transitions (i, j) that have the same probability under every chain are one class: classOf [V][V] (-1 where no
      chain goes), and the probabilities of each class [C][N]. With merge = false, each transition is its own class. */
  function transitionClasses(chains, merge) {
    const known = new Map(), probabilities = [];
    const classOf = grid(chains[0].length, chains[0].length, (i, j) => {
      const entry = chains.map((P) => P[i][j]);
      if (!entry.some((p) => p > 0)) return -1;
      const key = merge ? entry.map((p) => p.toPrecision(12)).join() : `${i},${j}`;
      if (!known.has(key)) known.set(key, probabilities.push(entry) - 1);
      return known.get(key);
    });
    return { classOf, probabilities };
  }

  /** Groups all sequences x_1..x_t by their counts of transitions, for t = 2, 3, ..., length, up to `limit` types.
      All sequences of one type are equally likely under every chain. Yields {length, types}; a type has its counts [C],
      `many` sequences, and log p(x_2..x_t | x_1; P_n) [N]. A dynamic programme over t; counts are digits of a code. */
  function* sequenceTypes(chains, length, { classOf, probabilities }, limit) {
    const unit = probabilities.map((_, c) => length ** c), logs = probabilities.map((entry) => entry.map(Math.log));
    const decode = ([code, many]) => {
      const counts = unit.map((u) => Math.floor(code / u) % length);
      return { counts, many, logp: chains.map((_, n) => sum(counts, (count, c) => (count ? count * logs[c][n] : 0))) };
    };
    let ends = classOf.map(() => new Map([[0, 1]])); // for each last symbol: code -> number of sequences
    for (let t = 2; t <= length; t++) {
      const next = classOf.map(() => new Map());
      ends.forEach((codes, i) => classOf[i].forEach((c, j) => {
        if (c < 0) return;
        for (const [code, many] of codes) next[j].set(code + unit[c], (next[j].get(code + unit[c]) ?? 0) + many);
      }));
      ends = next;
      if (sum(ends, (codes) => codes.size) > limit) return;
      yield { length: t, types: ends.flatMap((codes) => [...codes].map(decode)) };
    }
  }

  /** The paper's proposition for each T = 2, 3, ..., in nats per predicted token: one model reaches H / (T - 1) and no
      less; K hypotheses lie between (H - log K) / (T - 1) and that. Ends at the longest T that is exact at once. */
  function bounds(chains, prior, length, K) {
    const given = conditionalEntropies(chains, prior, length), symbols = chains[0].length;
    const rate = sum(chains, (P, n) => prior[n] * entropyRate(P));
    const classes = transitionClasses(chains, true);
    return Array.from(sequenceTypes(chains, length, classes, LIMITS.exact), ({ length: t, types }) => {
      let mixture = 0, wta = 0;
      types.forEach(({ many, logp }) => {
        const p = sum(prior, (weight, n) => weight * Math.exp(logp[n]));
        if (p === 0) return;
        mixture -= ((many * p) / symbols) * Math.log(p); // H(x_2..x_T | x_1)
        wta -= ((many * p) / symbols) * Math.max(...logp); // E[min_n -log p(x_2..x_T | x_1; P_n)]
      });
      const [mle, wtaTrueChains, conditionalEntropy] = [mixture, wta, given[t - 1]].map((nats) => nats / (t - 1));
      const wtaUpper = K >= chains.length ? rate : mle;
      return { length: t, mle, wtaLower: mle - Math.log(K) / (t - 1), wtaUpper, wtaTrueChains, conditionalEntropy };
    });
  }

  // --- Objectives: the weights q [K] of a sequence, from log p per token [K] (the paper's; `balanced` is ours) ------

  const softmax = (scores) => {
    const best = Math.max(...scores), exps = scores.map((score) => Math.exp(score - best)), total = sum(exps);
    return exps.map((e) => e / total);
  };
  const winner = (scores) => scores.indexOf(Math.max(...scores));
  const oneHot = (scores) => scores.map((_, k) => (k === winner(scores) ? 1 : 0));
  const temperature = ({ tau, decay }, step) => tau * decay ** step; // tau(t) = tau(0) rho^t

  const WEIGHTS = {
    mle: (scores) => scores.map(() => 1 / scores.length),
    wta: oneHot, // L = -E[max_k log p]
    relaxed: (scores, { epsilon }) => // 1 - eps for the winner, eps / (K - 1) for each other
      oneHot(scores).map((hot) => (scores.length === 1 ? 1 : hot ? 1 - epsilon : epsilon / (scores.length - 1))),
    annealed: (scores, options, step) => { // softmax(log p / tau(t)), and hard once tau <= 1e-6
      const tau = temperature(options, step);
      return tau <= 1e-6 ? oneHot(scores) : softmax(scores.map((score) => score / tau));
    },
    balanced: (scores, _, step, bias) => oneHot(scores.map((score, k) => score + bias[k])),
  };

  // --- Hypotheses that learn: K first-order chains, by gradient steps on the exact expected loss ---------------------

  /** All sequences of the longest exact length up to `length`, by type: counts [S C] of the transitions in `places`,
      probability [S], and its parts that come from each chain [S][N]. */
  function problem(chains, prior, length) {
    const classes = transitionClasses(chains, false), places = [];
    classes.classOf.forEach((row, i) => row.forEach((c, j) => c < 0 || (places[c] = [i, j])));
    const last = Array.from(sequenceTypes(chains, length, classes, LIMITS.learn)).at(-1);
    const ofChain = last.types.map(({ many, logp }) =>
      logp.map((log, n) => (many / chains[0].length) * prior[n] * Math.exp(log)));
    const counts = Float64Array.from(last.types.flatMap((type) => type.counts));
    return { chains, places, counts, ofChain, probability: ofChain.map((parts) => sum(parts)), length: last.length };
  }

  /** Normal numbers from a seed. */
  function normals(seed) {
    const uniform = () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32 + 2 ** -33;
    };
    return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** Logits [K][V][V] at step 0: nearly equal rows. With `ahead`, hypothesis 1 starts at the average of the chains,
      and the others say the rarest symbol nearly always, so that they are worse on every sequence. */
  function start(chains, prior, K, seed, ahead) {
    const normal = normals(seed), mean = average(chains, prior), size = chains[0].length;
    const visits = times(size, (i) => sum(chains, (P, n) => prior[n] * stationary(P)[i]));
    const rarest = visits.indexOf(Math.min(...visits));
    const shift = (k, i, j) => (k === 0 ? Math.log(Math.max(mean[i][j] || 0, 1e-3)) : j === rarest ? 4 : 0);
    return times(K, (k) => grid(size, size, (i, j) => 0.3 * normal() + (ahead ? shift(k, i, j) : 0)));
  }

  /** One gradient step on -sum_x p(x) sum_k q_k(x) log p(x; theta_k) / (T - 1). Changes logits and bias. Returns the
      state before it: the hypotheses, the hard WTA loss (nats per token), and wins [N][K], the share of all sequences
      that come from chain n and are won by hypothesis k. */
  function update({ chains, places, counts, ofChain, probability, length }, objective, options, step, logits, bias) {
    const K = logits.length, C = places.length, tokens = length - 1;
    const theta = logits.map((rows) => rows.map(softmax)), gradient = times(K, () => new Float64Array(C));
    const logs = theta.map((P) => Float64Array.from(places, ([i, j]) => Math.log(P[i][j]) / tokens));
    const state = { step, loss: 0, wins: grid(chains.length, K, () => 0), hypotheses: theta, bias: [...bias] };
    const rates = bias.map(() => 0);
    for (let s = 0; s < probability.length; s++) {
      const scores = logs.map((log) => dot(counts, s * C, log)), best = winner(scores);
      const q = WEIGHTS[objective](scores, options, step, bias);
      state.loss -= probability[s] * scores[best];
      ofChain[s].forEach((p, n) => (state.wins[n][best] += p));
      if (objective === "balanced") q.forEach((weight, k) => (rates[k] += weight * probability[s]));
      for (let k = 0; k < K; k++) addScaled(gradient[k], (q[k] * probability[s]) / tokens, counts, s * C);
    }
    logits.forEach((rows, k) => climb(rows, theta[k], gradient[k], places, options.rate));
    rates.forEach((rate, k) => (bias[k] += objective === "balanced" ? options.eta * (1 / K - rate) : 0));
    return state;
  }

  function dot(counts, from, log) {
    let total = 0;
    for (let c = 0; c < log.length; c++) total += counts[from + c] * log[c];
    return total;
  }

  function addScaled(total, factor, counts, from) {
    for (let c = 0; c < total.length; c++) total[c] += factor * counts[from + c];
  }

  /** The gradient of logits behind a softmax: row i gets G_ij - theta_ij sum_j G_ij. */
  function climb(rows, theta, gradient, places, rate) {
    const used = rows.map((_, i) => sum(places, ([from], c) => (from === i ? gradient[c] : 0)));
    rows.forEach((row, i) => row.forEach((_, j) => (row[j] -= rate * used[i] * theta[i][j])));
    places.forEach(([i, j], c) => (rows[i][j] += rate * gradient[c]));
  }

  /** The states at steps 0, 1, ..., steps under one objective. */
  function learn(task, objective, options, logits, steps) {
    const own = structuredClone(logits), bias = logits.map(() => 0);
    return times(steps + 1, (step) => update(task, objective, options, step, own, bias));
  }

  return {
    PRESETS, WEIGHTS, average, bounds, conditionalEntropies, entropyRate, learn, problem, start, stationary, sum,
    temperature, times,
  };
})();
if (typeof module !== "undefined") module.exports = Exact;
