// The laws over one variable: curves, interval, runs, the chosen run, and where the fitted range ends.
const Chart = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const POINTS = 45;
  const SIGNS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

  const element = (name, attributes, parent, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };

  const tens = (exponent) =>
    "10" + [...String(exponent)].map((c) => (c === "-" ? "⁻" : SIGNS[Number(c)])).join("");

  const niceStep = (span, count) => {
    const rough = span / count, size = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 2.5, 5, 10].map((k) => k * size).find((step) => step >= rough);
  };

  // Curves of every law along one variable: x on a logarithmic grid that holds the fitted range and the chosen run
  const curves = (laws, shown, variable, at, level) => {
    const ranges = laws.flatMap((law) => (law.range[variable] ? [law.range[variable]] : []));
    const here = at(laws[0])[variable];
    const low = Math.min(...ranges.map((r) => r[0]), here) / 1.5;
    const high = Math.max(...ranges.map((r) => r[1]), here) * 3;
    const grid = Array.from({ length: POINTS }, (_, i) => low * (high / low) ** (i / (POINTS - 1)));
    return {
      low, high,
      lines: laws.map((law, i) => {
        const x = at(law);
        return grid.map((value) => {
          const there = move(x, variable, value);
          return { x: value, ...(i === shown ? Laws.predict(law, there, level) : { loss: Laws.loss(law, there) }) };
        });
      }),
    };
  };

  // The others follow: C = 6·N·D and D = S·B stay true; B moves at the same tokens
  const move = (x, variable, value) => {
    const moved = { ...x, [variable]: value };
    const factor = value / x[variable];
    if (variable === "N" || variable === "D") moved.C = x.C * factor;
    if (variable === "D") moved.S = x.S * factor;
    if (variable === "S") [moved.D, moved.C] = [x.D * factor, x.C * factor];
    if (variable === "B") moved.S = x.S / factor;
    return moved;
  };

  const draw = (svg, { laws, shown, variable, at, level, units, chosen }) => {
    const width = Math.max(280, svg.clientWidth), narrow = width < 520;
    const height = narrow ? 300 : 380;
    const left = 52, right = 14, top = 30, bottom = 46;
    const { low, high, lines } = curves(laws, shown, variable, at, level);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);

    const dots = laws.map((law) => runsNear(law, at(law), variable));
    const stars = laws.map((law) => targetsNear(law, at(law), variable));
    const values = lines.flatMap((line, i) => line.flatMap((p) => (i === shown ? [p.low, p.high] : [p.loss])));
    values.push(...dots.flat().map((d) => d.loss), ...stars.flat().map((d) => d.loss));
    let bottomLoss = Math.min(...values), topLoss = Math.max(...values);
    const room = 0.06 * (topLoss - bottomLoss || bottomLoss);
    bottomLoss = Math.max(0, bottomLoss - room);
    topLoss += room;
    const X = (v) => left + ((Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (width - left - right);
    const Y = (v) => top + ((topLoss - v) / (topLoss - bottomLoss)) * (height - top - bottom);

    // what was not fitted, hatched
    const pattern = element("pattern", { id: "hatch", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, element("defs", {}, svg));
    element("line", { x1: 0, y1: 0, x2: 0, y2: 7, class: "hatch" }, pattern);
    const range = laws[shown].range[variable];
    if (range) {
      for (const [from, to] of [[low, range[0]], [range[1], high]]) {
        const a = X(from), b = X(to);
        element("rect", { x: a, y: top, width: Math.max(0, b - a), height: height - top - bottom, class: "outside" }, svg);
        element("rect", { x: a, y: top, width: Math.max(0, b - a), height: height - top - bottom, fill: "url(#hatch)" }, svg);
      }
      const fitted = X(range[1]) - X(range[0]), beyond = X(high) - X(range[1]);
      const label = (texts, a, space) => {
        const text = texts.find((t) => space > 7.2 * t.length);
        if (text) element("text", { x: a + space / 2, y: top - 10, class: "zone" }, svg, text);
      };
      label(["fitted range", "fitted"], X(range[0]), fitted);
      label(["extrapolation", "beyond"], X(range[1]), beyond);
      for (const end of range) element("line", { x1: X(end), x2: X(end), y1: top - 6, y2: height - bottom, class: "edge" }, svg);
    }

    // axes
    const step = niceStep(topLoss - bottomLoss, narrow ? 4 : 6);
    const digits = Math.max(0, Math.min(4, -Math.floor(Math.log10(step) + 1e-9) + (step / 10 ** Math.floor(Math.log10(step)) === 2.5 ? 1 : 0)));
    for (let v = Math.ceil(bottomLoss / step) * step; v <= topLoss; v += step) {
      element("line", { x1: left, x2: width - right, y1: Y(v), y2: Y(v), class: "grid" }, svg);
      element("text", { x: left - 8, y: Y(v) + 4, class: "tick end" }, svg, v.toFixed(digits));
    }
    const decades = Math.log10(high / low);
    const every = Math.max(1, Math.ceil(decades / (narrow ? 4 : 8)));
    const marks = decades < 2.2 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
      for (const m of marks) {
        const v = m * 10 ** e;
        if (v < low || v > high || e % every) continue;
        element("line", { x1: X(v), x2: X(v), y1: height - bottom, y2: height - bottom + 5, class: "axis" }, svg);
        element("text", { x: X(v), y: height - bottom + 20, class: "tick middle" }, svg, marks.length > 1 ? Numbers.short(v, 2) : tens(e));
      }
    }
    element("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }, svg);
    element("text", { x: (left + width - right) / 2, y: height - 6, class: "name middle" }, svg, units[variable]);
    element("text", { x: 4, y: 14, class: "name" }, svg, "loss, nats");

    // interval of the law shown, then every curve: solid where it was fitted, dashed beyond
    const band = lines[shown];
    const outline = band.map((p) => `${X(p.x)},${Y(p.high)}`).concat([...band].reverse().map((p) => `${X(p.x)},${Y(p.low)}`));
    element("polygon", { points: outline.join(" "), class: `band law-${shown}` }, svg);
    lines.forEach((line, i) => {
      const ends = laws[i].range[variable];
      const inside = (p) => !ends || (p.x >= ends[0] * 0.999 && p.x <= ends[1] * 1.001);
      const path = (points) => points.map((p, k) => `${k ? "L" : "M"}${X(p.x).toFixed(1)},${Y(p.loss).toFixed(1)}`).join("");
      element("path", { d: path(line), class: `curve dashed law-${i}` }, svg);
      element("path", { d: path(line.filter(inside)), class: `curve law-${i}` }, svg);
    });
    dots.forEach((runs, i) => runs.forEach((run) => element("circle", { cx: X(run.x), cy: Y(run.loss), r: 3.5, class: `dot law-${i}` }, svg)));

    // the chosen run
    const x = X(at(laws[shown])[variable]);
    element("line", { x1: x, x2: x, y1: Y(chosen.low), y2: Y(chosen.high), class: `bar law-${shown}` }, svg);
    for (const end of [chosen.low, chosen.high]) element("line", { x1: x - 6, x2: x + 6, y1: Y(end), y2: Y(end), class: `bar law-${shown}` }, svg);
    element("circle", { cx: x, cy: Y(chosen.loss), r: 8, class: `chosen law-${shown}` }, svg);
    stars.forEach((runs, i) => runs.forEach((run) => star(svg, X(run.x), Y(run.loss), i)));
    svg.dataset.drawn = `${variable} ${shown}`;
    return { band: lines[shown], dots: dots.flat().length, stars: stars.flat().length };
  };

  const star = (svg, x, y, index) => {
    const points = Array.from({ length: 10 }, (_, k) => {
      const r = k % 2 ? 2.7 : 6.5, turn = (Math.PI * k) / 5 - Math.PI / 2;
      return `${(x + r * Math.cos(turn)).toFixed(1)},${(y + r * Math.sin(turn)).toFixed(1)}`;
    });
    element("polygon", { points: points.join(" "), class: `star law-${index}` }, svg);
  };

  // Fitted runs whose other variables are those chosen, within a tenth
  const runsNear = (law, x, variable) => {
    if (!law.runs[variable]) return [];
    const others = law.variables.filter((name) => name !== variable);
    return law.runs.loss
      .map((loss, k) => ({ loss, x: law.runs[variable][k], near: others.every((n) => Math.abs(law.runs[n][k] / x[n] - 1) < 0.1) }))
      .filter((run) => run.near);
  };

  // Runs that were trained after the prediction
  const targetsNear = (law, x, variable) => {
    const column = variable === "N" && law.count === "non_embedding" ? "N_non_embedding" : variable;
    if (!law.range[variable]) return [];
    const others = law.variables.filter((name) => name !== variable);
    return law.targets
      .filter((run) => others.every((n) => Math.abs(run[n] / x[n] - 1) < 0.1))
      .map((run) => ({ loss: run.loss, x: run[column] }));
  };

  return { draw };
})();
