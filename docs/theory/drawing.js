"use strict";
/* Elements and drawings of the page "Theory": charts of losses, and chains as points that can be dragged. */
const Drawing = (() => {
  const { sum, times } = Exact, HEIGHT = Math.sqrt(3) / 2, SIDE = 190, PAD = 30, SYMBOLS = "ABC";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const text = (x, y, words, attributes = {}) => svg("text", { x, y, "text-anchor": "middle", ...attributes }, words);
  const swatch = (kind) =>
    svg("svg", { class: "swatch", width: 28, height: 8 }, svg("path", { d: "M0 4H28", class: kind }));

  // --- Charts -------------------------------------------------------------------------------------------------------

  /** About four round numbers between two others. */
  function ticks(low, high) {
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough), first = Math.ceil(low / step - 1e-9);
    return times(Math.floor(high / step + 1e-9) - first + 1, (i) => Number(((first + i) * step).toPrecision(6)));
  }

  /** Least and largest of the finite numbers, with a margin. */
  function range(values, margin) {
    const finite = values.filter(Number.isFinite), [low, high] = [Math.min(...finite), Math.max(...finite)];
    return [low - margin * (high - low || 1), high + margin * (high - low || 1)];
  }

  /** A chart of nats per token. lines: [{points: [[x, y]], kind}]; levels: [{y, kind}]; band: two lines; at: an x.
      Lines of the kind "lower" may leave the chart, and none goes above the ceiling. */
  function chart(width, title, xLabel, { lines, levels, band, at, ceiling = Infinity }) {
    const points = lines.flatMap(({ kind, points }) => (kind === "lower" ? [] : points));
    const known = levels.filter((level) => Number.isFinite(level.y));
    const [left, right, top, bottom] = [52, width - 10, 24, 238];
    const [x0, x1] = range(points.map(([x]) => x), 0);
    const heights = [...points.map(([, y]) => Math.min(y, ceiling)), ...known.map(({ y }) => y)];
    const [y0, y1] = range(heights, 0.06);
    const x = (value) => left + ((value - x0) / (x1 - x0)) * (right - left);
    const y = (value) => top + ((y1 - value) / (y1 - y0)) * (bottom - top);
    const path = (list) => `M${list.map(([a, b]) => `${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("L")}`;
    const across = (value, kind) => svg("path", { d: `M${left} ${y(value)}H${right}`, class: kind });
    const inside = { x: left, y: top, width: right - left, height: bottom - top };
    const box = `${left} ${top} ${right - left} ${bottom - top}`;
    return svg("svg", { viewBox: `0 0 ${width} 280`, role: "img", "aria-label": title },
      ...ticks(y0, y1).flatMap((v) => [across(v, "grid"), text(left - 6, y(v) + 4, v, { "text-anchor": "end" })]),
      ...ticks(x0, x1).map((v) => text(x(v), bottom + 18, v)),
      svg("svg", { ...inside, viewBox: box },
        ...(band ? [svg("path", { d: path([...band[0], ...[...band[1]].reverse()]), class: "band" })] : []),
        ...known.map((level) => across(level.y, level.kind)),
        ...lines.map((line) => svg("path", { d: path(line.points), class: line.kind }))),
      svg("path", { d: `M${x(at)} ${top}V${bottom}`, class: "cursor" }),
      text(left, 14, "nats per token", { "text-anchor": "start" }), text((left + right) / 2, 274, xLabel));
  }

  // --- Chains as points: of a square for two symbols, and of a triangle for each row of three -----------------------

  const place = ([x, y]) => [PAD + SIDE * x, PAD + SIDE * (1 - y)];
  const round = (p) => Math.round(100 * Math.min(Math.max(p, 0), 1)) / 100;

  function pointOf(P, panel) {
    if (P.length === 2) return place([P[0][1], P[1][0]]);
    return place([P[panel][1] + P[panel][2] / 2, P[panel][2] * HEIGHT]);
  }

  /** The chain whose point lies nearest to a place of the drawing. */
  function chainAt(P, panel, [left, top]) {
    const x = (left - PAD) / SIDE, y = 1 - (top - PAD) / SIDE;
    if (P.length === 2) return [[round(1 - x), round(x)], [round(y), round(1 - y)]];
    const c = y / HEIGHT, row = [1 - x - c / 2, x - c / 2, c].map((p) => Math.max(p, 0)), a = round(row[0] / sum(row));
    const b = Math.min(round(row[1] / sum(row)), round(1 - a));
    return P.map((old, i) => (i === panel ? [a, b, round(1 - a - b)] : old));
  }

  function frame(size, panel) {
    const end = PAD + SIDE, middle = PAD + SIDE / 2;
    if (size === 2) {
      return [svg("rect", { x: PAD, y: PAD, width: SIDE, height: SIDE, class: "frame" }),
        text(middle, end + 20, "p: chance of B after A"), text(PAD, end + 20, "0"), text(end, end + 20, "1"),
        text(0, 0, "q: chance of A after B", { transform: `translate(18 ${middle}) rotate(-90)` }),
        text(18, PAD + 6, "1")];
    }
    const [a, b, c] = [[0, 0], [1, 0], [0.5, HEIGHT]].map(place);
    return [svg("path", { d: `M${a}L${b}L${c}Z`, class: "frame" }), text(a[0] - 12, a[1] + 4, "A"),
      text(b[0] + 12, b[1] + 4, "B"), text(c[0], c[1] - 8, "C"),
      text(middle, end + 24, `next after ${SYMBOLS[panel]}`)];
  }

  /** Drawings of chains as rings, their average as a diamond, and hypotheses as discs at the end of their trails.
      With onDrag(n, chain), rings can be dragged; `root` keeps the pointer while drawings are replaced. */
  function maps(chains, average, trails, root, onDrag) {
    const size = chains[0].length;
    return times(size === 2 ? 1 : 3, (panel) => {
      const spot = (P, ...nodes) => svg("g", { transform: `translate(${pointOf(P, panel)})` }, ...nodes);
      const ring = (P, n) => spot(P, svg("circle", { r: 11, class: onDrag ? "ring handle" : "ring", "data-chain": n }),
        text(0, 4, n + 1));
      const way = (trail, k) => [
        svg("path", { d: `M${trail.map((P) => pointOf(P, panel)).join("L")}`, class: `way h${k}` }),
        spot(trail.at(-1), svg("circle", { r: 6, class: `disc h${k}` }))];
      const known = average.flat().every(Number.isFinite) ? [average] : [];
      const title = size === 2 ? "chains as points (p, q)" : `chains: next symbol after ${SYMBOLS[panel]}`;
      const side = SIDE + 2 * PAD;
      const picture = svg("svg", { viewBox: `0 0 ${side} ${side}`, class: "map", role: "img", "aria-label": title },
        ...frame(size, panel), ...known.map((P) => spot(P, svg("path", { d: "M0-7L7 0L0 7L-7 0Z", class: "mean" }))),
        ...trails.flatMap(way), ...chains.map(ring));
      if (onDrag) makeDraggable(picture, root, (n, point) => onDrag(n, (P) => chainAt(P, panel, point)));
      return picture;
    });
  }

  function makeDraggable(picture, root, onDrag) {
    picture.addEventListener("pointerdown", (down) => {
      if (!down.target.classList.contains("handle")) return;
      down.preventDefault();
      root.setPointerCapture(down.pointerId);
      const box = picture.getBoundingClientRect(), scale = (SIDE + 2 * PAD) / box.width;
      root.onpointermove = (event) => onDrag(Number(down.target.dataset.chain),
        [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]);
      root.onpointerup = root.onpointercancel = () => (root.onpointermove = null);
    });
  }

  return { SYMBOLS, chart, html, maps, swatch };
})();
