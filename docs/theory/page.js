"use strict";
/* The page "Theory": shows what exact.js computes, and the runs that experiments.markov.steps recorded.

   The state is in one object. Elements made by `live` renew themselves from it, so that they keep the focus. */
(() => {
  const { sum } = Exact, { SYMBOLS, chart, html, maps, swatch } = Drawing, STEPS = 80, OWN = "Your own";
  const NAMES = { mle: "MLE", wta: "WTA", relaxed: "relaxed", annealed: "annealed", balanced: "balanced" };
  const OPTIONS = { // of the objectives: name, label, largest value
    relaxed: [["epsilon", "ε", 0.9]],
    annealed: [["tau", "τ(0), nats per token", 10], ["decay", "ρ, factor per step", 1]],
    balanced: [["eta", "η, nats per token", 10]],
  };
  const state = { T: 32, seed: 1, ahead: true, options: { epsilon: 0.1, tau: 1, decay: 0.9, eta: 0.05, rate: 4 } };

  // --- Elements that follow the state -------------------------------------------------------------------------------

  const digits = (value, number) => (Number.isFinite(value) ? value.toFixed(number) : "undefined");
  const label = (words, ...nodes) => html("label", {}, `${words} `, ...nodes);

  function live(node, renew) {
    node.renew = () => renew(node);
    node.renew();
    return node;
  }
  const renewAll = (root) => root.querySelectorAll("*").forEach((node) => node.renew?.());

  /** A field for a number; what is not valid is not taken. */
  function number(get, attributes, change) {
    const taken = ({ target }) => target.value !== "" && target.validity.valid && change(Number(target.value));
    const field = html("input", { type: "number", min: 0, step: "any", onchange: taken, ...attributes });
    return live(field, () => (field.value = +get().toFixed(4)));
  }

  const button = (words, onclick, renew = () => {}) => live(html("button", { type: "button", onclick }, words), renew);

  function choice(words, names, get, change) {
    const options = names.map((name) => html("option", {}, name));
    const select = html("select", { onchange: () => change(select.value) }, ...options);
    return label(words, live(select, () => (select.value = get())));
  }

  // --- The mixture --------------------------------------------------------------------------------------------------

  /** The distribution with another value at j; the other entries keep their proportions. */
  function withEntry(row, j, value) {
    const rest = sum(row) - row[j], others = row.length - 1;
    return row.map((p, i) => (i === j ? value : rest > 1e-9 ? (p * (1 - value)) / rest : (1 - value) / others));
  }

  function load(preset) {
    const { chains, prior = chains.map(() => 1 / chains.length), K } = Exact.PRESETS[preset];
    Object.assign(state, { preset, chains, prior, K });
  }

  const edit = (changes) => draw(Object.assign(state, changes, { preset: OWN }));
  const editChain = (n, change) => edit({ chains: state.chains.map((P, m) => (m === n ? change(P) : P)) });

  function addChain() {
    const N = state.chains.length, uniform = state.chains[0].map((row) => row.map(() => 1 / row.length));
    edit({ chains: [...state.chains, uniform], prior: withEntry([...state.prior, 0], N, 1 / (N + 1)) });
  }

  function removeChain() {
    const last = state.chains.length - 1;
    edit({ chains: state.chains.slice(0, last), prior: withEntry(state.prior, last, 0).slice(0, last) });
  }

  function chainCard(P, n) {
    const cell = (i, j) => html("td", {}, number(() => state.chains[n][i][j],
      { max: 1, "aria-label": `chain ${n + 1}: probability of ${SYMBOLS[j]} after ${SYMBOLS[i]}` },
      (value) => editChain(n, (old) => old.map((row, r) => (r === i ? withEntry(row, j, value) : row)))));
    const weight = number(() => state.prior[n], { max: 1 }, (value) =>
      state.chains.length > 1 && edit({ prior: withEntry(state.prior, n, value) }));
    const heads = ["next", ...P.map((_, j) => SYMBOLS[j])].map((head) => html("th", {}, head));
    return html("fieldset", {}, html("legend", {}, `Chain ${n + 1}`), label("Weight", weight),
      html("table", { class: "chain" }, html("tr", {}, ...heads),
        ...P.map((row, i) => html("tr", {}, html("th", {}, `after ${SYMBOLS[i]}`), ...row.map((_, j) => cell(i, j))))));
  }

  function mixtureControls() {
    const preset = (name) => draw(name === OWN ? (state.preset = OWN) : load(name));
    const count = number(() => state.K, { min: 1, max: 6, step: 1 }, (K) => draw((state.K = K)));
    return [
      choice("Chains", [...Object.keys(Exact.PRESETS), OWN], () => state.preset, preset),
      button("Add a chain", addChain, (node) => (node.disabled = state.chains.length === 4)),
      button("Remove the last", removeChain, (node) => (node.disabled = state.chains.length === 1)),
      label("Hypotheses K", count)];
  }

  function lengthControl() {
    const told = live(html("output"), (node) => (node.textContent = `${state.T} symbols`));
    const slider = html("input", { type: "range", min: 2, max: 50, value: state.T,
      oninput: () => draw((state.T = Number(slider.value))) });
    return html("div", { class: "controls" }, label("Length T of a sequence", slider), told);
  }

  // --- Exact losses -------------------------------------------------------------------------------------------------

  function lossTable(at) {
    const enough = state.K >= state.chains.length, [T, K] = [at.length, state.K];
    const rows = [
      ["mle", "MLE optimum: the entropy of the mixture, H(x | x₁)", at.mle],
      ["lower", "Lower bound of WTA: MLE optimum − log K", at.wtaLower],
      ["true", `WTA loss of the true chains${enough ? "" : ` (more than K = ${K})`}`, at.wtaTrueChains],
      ["given", "WTA optimum in the paper: the entropy given the chain, H(x | x₁, z)", at.conditionalEntropy],
      ["rate", enough ? "Its limit for long sequences: the mean entropy rate" : "Upper bound of WTA: MLE optimum",
        at.wtaUpper]];
    const line = (kind, cells) => html("tr", {}, ...cells.map((cell) => html(kind, {}, cell)));
    return html("table", { class: "losses" }, line("th", ["", `At T = ${T}`, "nats per token", "nats per sequence"]),
      ...rows.map(([kind, words, value]) =>
        line("td", [swatch(kind), words, digits(value, 4), digits(value * (T - 1), 3)])));
  }

  function verdict(at) {
    const gain = (at.mle - at.wtaTrueChains) * (at.length - 1);
    const short = ` Here the page stops at T = ${at.length}; experiments.markov.theory.bounds goes further.`;
    return `The true chains gain ${digits(gain, 3)} nats per sequence over one model. K = ${state.K} hypotheses gain ` +
      `at most log K = ${digits(Math.log(state.K), 3)}.${at.length < state.T ? short : ""}`;
  }

  function lossChart(curve, at, width) {
    const points = (name) => curve.map((one) => [one.length, one[name]]);
    const kinds = [["mle", "mle"], ["lower", "wtaLower"], ["given", "conditionalEntropy"], ["true", "wtaTrueChains"]];
    return chart(width, "Exact losses by length of the sequence", "length T of a sequence", {
      lines: kinds.map(([kind, name]) => ({ kind, points: points(name) })), levels: [{ y: at.wtaUpper, kind: "rate" }],
      band: [points("mle"), points("wtaLower")], at: at.length });
  }

  function drawLosses(root) {
    const curve = Exact.bounds(state.chains, state.prior, 50, state.K);
    const at = curve.findLast((one) => one.length <= state.T);
    root.replaceChildren(lossTable(at), html("p", {}, verdict(at)), lossChart(curve, at, widthOf(root)));
  }

  const widthOf = (root) => Math.min(Math.max(root.clientWidth, 280), 640);

  // --- Step by step -------------------------------------------------------------------------------------------------

  const levelsOf = (at) =>
    [{ y: at.mle, kind: "mle" }, { y: at.wtaTrueChains, kind: "true" }, { y: at.wtaLower, kind: "lower" }];

  function simulation() {
    const { chains, prior, K, options, seed, ahead } = state, task = Exact.problem(chains, prior, state.T);
    const at = Exact.bounds(chains, prior, task.length, K).at(-1), logits = Exact.start(chains, prior, K, seed, ahead);
    const runs = Object.keys(NAMES).map((name) => [name, Exact.learn(task, name, options, logits, STEPS)]);
    const tell = (name, now) => `T = ${task.length}. ` + ({
      annealed: `Temperature τ = ${digits(Exact.temperature(options, now.step), 4)} nats per token.`,
      balanced: `Biases b = ${now.bias.map((b) => digits(b, 3)).join(", ")} nats per token.` }[name] ?? "");
    return { chains, prior, runs: Object.fromEntries(runs), levels: levelsOf(at), tell };
  }

  function simulationControls() {
    const starts = ["hypothesis 1 is ahead", "all are nearly equal"];
    const fields = Object.entries(OPTIONS).flatMap(([name, options]) => options.map(([key, words, max]) => {
      const change = (value) => draw((state.options[key] = value));
      return html("span", { "data-only": name }, label(words, number(() => state.options[key], { max }, change)));
    }));
    const begin = (name) => draw((state.ahead = name === starts[0]));
    return [choice("Start:", starts, () => starts[state.ahead ? 0 : 1], begin),
      button("Another start", () => draw(state.seed++)), ...fields];
  }

  function winTable({ wins }) {
    const shade = (share, row) => `--share: ${(100 * share) / (sum(row) || 1)}%`;
    const cell = (share, k, row) =>
      html("td", { class: `h${k}`, style: shade(share, row) }, `${digits(100 * share, 1)} %`);
    const heads = wins[0].map((_, k) => html("th", {}, html("i", { class: `dot h${k}` }), ` hyp. ${k + 1}`));
    return html("table", { class: "wins" }, html("caption", {}, "Share of all sequences, by chain and winner"),
      html("tr", {}, html("th"), ...heads),
      ...wins.map((row, n) => html("tr", {}, html("th", {}, `chain ${n + 1}`), ...row.map(cell))));
  }

  function stepChart(width, { chains, runs, levels }, chosen, step) {
    const names = Object.keys(runs).sort((a, b) => (a === chosen) - (b === chosen)); // the chosen one is drawn last
    const points = (name) => runs[name].map((one) => [one.step, one.loss]);
    const lines = names.map((name) => ({ kind: name === chosen ? "chosen" : "other", points: points(name) }));
    const ceiling = Math.log(chains[0].length); // the loss of guessing
    const title = "Loss of winner takes all by training step";
    return chart(width, title, "training step", { lines, levels, at: step, ceiling });
  }

  /** Shows runs step by step, and returns a function that shows them again.
      source() gives {chains, prior, levels, runs: {objective: states}, tell(objective, state)}. */
  function player(root, source, extra = []) {
    let name = "wta", index = Infinity, timer = null;
    const pick = (key) => button("", () => show((name = key)), (node) => {
      node.textContent = `${NAMES[key]} ${digits(source().runs[key].at(-1).loss, 3)}`;
      node.setAttribute("aria-pressed", key === name);
    });
    const picks = [html("span", {}, "Last loss:"), ...Object.keys(source().runs).map(pick)], told = html("output");
    const slider = html("input", { type: "range", min: 0, "aria-label": "training step",
      oninput: () => show((index = Number(slider.value))) });
    const play = button("Play", () => (timer ? stop() : begin()));
    const [map, wins, loss] = ["maps", "", "wide"].map((kind) => html("div", { class: kind }));
    const bars = [picks, extra, [play, slider, told]].map((nodes) => html("div", { class: "controls" }, ...nodes));
    root.append(...bars, html("div", { class: "sides" }, map, wins), loss);

    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }

    function begin() {
      if (index >= Number(slider.max)) index = 0;
      play.textContent = "Pause";
      timer = setInterval(() => (index < Number(slider.max) ? show(index++) : stop()), 100);
    }

    function show() {
      const data = source(), { chains, prior } = data, states = data.runs[name];
      index = Math.min(index, states.length - 1);
      const now = states[index], past = states.slice(0, index + 1);
      const trails = now.hypotheses.map((_, k) => past.map((one) => one.hypotheses[k]));
      [slider.max, slider.value] = [states.length - 1, index];
      renewAll(root);
      root.querySelectorAll("[data-only]").forEach((node) => (node.hidden = node.dataset.only !== name));
      told.textContent = `Step ${now.step}: loss ${digits(now.loss, 4)} nats per token. ${data.tell(name, now)}`;
      map.replaceChildren(...maps(chains, Exact.average(chains, prior), trails));
      wins.replaceChildren(winTable(now));
      loss.replaceChildren(stepChart(widthOf(root), data, name, now.step));
    }
    show();
    return show;
  }

  // --- The page -----------------------------------------------------------------------------------------------------

  const find = (id) => document.getElementById(id);
  const [bar, cards, map, losses] = ["controls", "cards", "maps", "wide"].map((kind) => html("div", { class: kind }));
  let simulated, showSimulation, waiting;

  /** Draws the chains and their losses; the training waits for a pause. */
  function draw() {
    const shape = `${state.chains.length} ${state.chains[0].length}`;
    if (cards.dataset.shape !== shape) cards.replaceChildren(...state.chains.map(chainCard));
    cards.dataset.shape = shape;
    renewAll(find("theory-chains"));
    map.replaceChildren(...maps(state.chains, Exact.average(state.chains, state.prior), [], map, editChain));
    drawLosses(losses);
    clearTimeout(waiting);
    waiting = setTimeout(() => showSimulation((simulated = simulation())), 150);
  }

  load("Paper, setting 2");
  bar.append(...mixtureControls());
  find("theory-chains").append(bar, lengthControl(), html("div", { class: "sides" }, map, cards), losses);
  simulated = simulation();
  showSimulation = player(find("theory-steps"), () => simulated, simulationControls());
  draw();

  const recorded = JSON.parse(find("theory-data").textContent);
  const prior = recorded.chains.map(() => 1 / recorded.chains.length);
  const { mle, wta_true_chains: wtaTrueChains, wta_lower: wtaLower } = recorded.bounds;
  const data = { chains: recorded.chains, prior, runs: recorded.objectives, tell: () => `T = ${recorded.length}.`,
    levels: levelsOf({ mle, wtaTrueChains, wtaLower }) };
  const showRecorded = player(find("theory-recorded"), () => data);
  addEventListener("resize", () => (drawLosses(losses), showSimulation(), showRecorded()));
})();
