// The page: controls → predictions. Every text of the data goes in as text, never as markup.
(() => {
  const space = JSON.parse(document.getElementById("space").textContent);
  const $ = (id) => document.getElementById(id);
  const theme = new URLSearchParams(location.search).get("__theme"); // what the Hub asks of an embedded page
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;

  const make = (name, text, parent, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  };
  const show = (id, text, value) => {
    $(id).textContent = text;
    if (value !== undefined) $(id).dataset.value = String(value);
  };

  // -- controls: a text field and, beside it, a slider on a logarithmic scale ---------------------------------------

  const TICKS = 400;
  const state = {};
  const controls = {};
  const slidable = (name, { low, high, round, text, check }) => {
    const field = $(name), slider = $(`${name}-slider`), error = $(`${name}-error`);
    const control = {
      set(value) {
        state[name] = value;
        field.value = text(value);
        this.say("");
        this.place();
      },
      place() {
        if (!slider) return;
        const { low, high } = this.bounds();
        slider.min = 0;
        slider.max = TICKS;
        slider.value = Math.round((TICKS * Math.log(state[name] / low)) / Math.log(high / low));
        slider.setAttribute("aria-valuetext", field.value);
      },
      bounds: () => ({ low: typeof low === "function" ? low() : low, high: typeof high === "function" ? high() : high }),
      say(message) {
        error.textContent = message;
        if (message) field.setAttribute("aria-invalid", "true");
        else field.removeAttribute("aria-invalid");
      },
      read() {
        const value = Numbers.parse(field.value);
        const message = Number.isNaN(value) ? "A number above 0, such as 7B or 1.5e9." : check ? check(value) : "";
        this.say(message);
        if (message) return false;
        state[name] = value;
        this.place();
        return true;
      },
    };
    field.addEventListener("input", () => control.read() && update());
    field.addEventListener("blur", () => control.read() && (field.value = text(state[name])));
    if (slider) {
      slider.addEventListener("input", () => {
        const { low, high } = control.bounds();
        const raw = low * (high / low) ** (slider.value / TICKS);
        let value = round(raw);
        // a press of an arrow key must change something although values are rounded
        if (value === state[name] && Number(slider.value) !== 0) value = round(state[name], raw > state[name] ? 1 : -1);
        state[name] = value;
        field.value = text(value);
        control.say("");
        slider.setAttribute("aria-valuetext", field.value);
        update();
      });
      slider.addEventListener("change", () => control.place());
    }
    controls[name] = control;
  };

  const whole = (unit) => (value, turn = 0) => Math.max(unit(), (Math.round(value / unit()) + turn) * unit());
  const twoDigits = (value, turn = 0) => {
    const size = 10 ** (Math.floor(Math.log10(value) + 1e-9) - 1);
    return Math.max(1, Number(((Math.round(value / size) + turn) * size).toPrecision(2)));
  };
  const plain = (value) => (value < 1e4 ? String(value) : Numbers.parse(Numbers.short(value, 4)) === value ? Numbers.short(value, 4) : String(value));
  const design = () => space.designs[Number($("design").value)] || null;
  const unit = () => (design() ? design().width_step : 1);
  const isWhole = (value) => (Number.isInteger(value) ? "" : "A whole number.");

  slidable("width", {
    low: unit, high: () => Math.max(32768, 4 * space.start.width), round: whole(unit), text: String,
    check: (value) => (value % unit() ? `Widths of this design are multiples of ${unit()}.` : value > 1e7 ? "At most 10 million." : ""),
  });
  slidable("depth", { low: 1, high: () => Math.max(160, space.start.depth), round: whole(() => 1), text: String, check: (v) => (v > 1e5 ? "At most 100 000." : isWhole(v)) });
  slidable("size", { low: 1e4, high: 1e13, round: twoDigits, text: plain });
  slidable("tokens", { low: 1e5, high: 1e14, round: twoDigits, text: plain, check: (v) => (v < state.batch ? "At least one batch." : "") });
  slidable("batch", { low: 64, high: 1e9, round: twoDigits, text: plain, check: (v) => (v > state.tokens ? "At most the tokens." : "") });
  slidable("sequences", { round: whole(() => 1), text: String, check: isWhole });

  const select = (id, options, chosen) => {
    options.forEach(([value, text]) => make("option", text, $(id), { value }));
    if (chosen !== undefined) $(id).value = chosen;
    $(id).addEventListener("change", update);
  };

  // -- the chosen run -----------------------------------------------------------------------------------------------

  const units = { N: "parameters N", D: "training tokens D", S: "optimizer steps S", B: "batch size B, tokens", C: "training FLOPs C" };

  const run = () => {
    const shape = design();
    const total = shape ? Laws.quantity(shape, "N", state.width, state.depth) : state.size;
    const other = shape ? Laws.quantity(shape, "N_non_embedding", state.width, state.depth) : state.size;
    return { total, other, D: state.tokens, B: state.batch, S: state.tokens / state.batch, C: 6 * total * state.tokens };
  };
  // The law's variables, N counted as its runs count it
  const pointOf = (law) => {
    const now = run();
    const count = law.count || $("count").value;
    return { N: count === "non_embedding" ? now.other : now.total, D: now.D, S: now.S, B: now.B, C: now.C };
  };

  // -- what is shown ------------------------------------------------------------------------------------------------

  const beyondText = (law, p) => {
    if (!p.outside) return "Inside the fitted range";
    const [name, factor] = Object.entries(p.beyond).sort((a, b) => b[1] - a[1])[0];
    if (factor > 1 + 1e-9) return `Extrapolation: ${Numbers.times(factor)} the largest fitted ${name}`;
    const [least, share] = law.variables.map((n) => [n, pointOf(law)[n] / law.range[n][0]]).sort((a, b) => a[1] - b[1])[0];
    return `Extrapolation: ${Numbers.times(1 / share)} below the smallest fitted ${least}`;
  };

  const update = () => {
    const shown = Number($("law").value), law = space.laws[shown], level = Number($("level").value);
    const now = run(), point = pointOf(law), p = Laws.predict(law, point, level);
    const shape = design();

    document.querySelectorAll(".by-shape").forEach((part) => (part.hidden = !shape));
    document.querySelectorAll(".by-size").forEach((part) => (part.hidden = Boolean(shape)));

    show("loss", Numbers.loss(p.loss), p.loss);
    show("low", Numbers.loss(p.low), p.low);
    show("high", Numbers.loss(p.high), p.high);
    show("dock", `${Numbers.loss(p.loss)} nats · ${Numbers.loss(p.low)} … ${Numbers.loss(p.high)}`);
    show("level-text", `${Numbers.significant(100 * level, 4)} %`);
    show("perplexity", `perplexity ${Numbers.significant(Math.exp(p.loss), 4)}`, Math.exp(p.loss));
    show("reach", `${p.outside ? "▲" : "✓"} ${beyondText(law, p)}`, p.extrapolation);
    $("reach").classList.toggle("beyond", p.outside);
    show("measured", measured(law, p, point));
    const unused = [["N", "the size"], ["D", "tokens"], ["B", "the batch"]].filter(
      ([n]) => !law.variables.includes(n) && !(n !== "B" && law.variables.includes("C")) && !(n === "D" && law.variables.includes("S")));
    const depth = law.design === Number($("design").value) && shape && shape.depth !== state.depth
      ? ` Its runs have ${shape.depth} layers: other depths were not measured.` : "";
    show("horizon", (unused.length ? `A law in ${law.variables.join(", ")} alone: ${unused.map((u) => u[1]).join(" and ")} must be as in its runs: what is set here changes the costs only.` : "") + depth);

    show("parameters", Numbers.short(now.total), now.total);
    show("parameters-hint", shape ? `${Numbers.short(now.other)} without embeddings` : "given directly");
    $("parameters-hint").dataset.value = String(now.other);
    show("flops", `${Numbers.power(now.C)} FLOPs`, now.C);
    const nanolm = shape ? Laws.quantity(shape, "step_flops", state.width, state.depth) * (now.D / shape.tokens) : NaN;
    show("flops-hint", shape ? `6·N·D; with attention and recomputation ${Numbers.power(nanolm)}` : "6·N·D", shape ? nanolm : undefined);
    show("steps", Numbers.count(now.S), now.S);
    show("steps-hint", `of ${Numbers.count(now.B)} tokens`);
    critical(law, p, now);
    cost(law, now, point, nanolm);
    if (shape) {
      const bytes = Laws.memory(shape, state.width, state.depth, state.sequences, $("precision").value, $("checkpointing").checked);
      const stay = Laws.quantity(shape, "state", state.width, state.depth);
      show("memory", Numbers.bytes(bytes), bytes);
      show("memory-hint", `${Numbers.bytes(stay)} weights, gradients, AdamW; the rest for ${state.sequences} × ${Numbers.count(shape.sequence)} tokens`);
    } else {
      show("memory", Numbers.bytes(16 * now.total), 16 * now.total);
      show("memory-hint", "weights, gradients and AdamW in fp32; activations need a design");
    }
    comparison(shown, level);
    later(shown, level, p, point);
  };

  // What a run of these settings reached, where one was trained after the prediction
  const measured = (law, p, point) => {
    const same = (run) => law.variables.every((name) => {
      const column = name === "N" && law.count === "non_embedding" ? "N_non_embedding" : name;
      return Math.abs(run[column] / point[name] - 1) < 1e-3;
    });
    const runs = law.targets.filter(same);
    if (!runs.length) return "";
    const loss = runs.reduce((sum, run) => sum + run.loss, 0) / runs.length, error = p.loss / loss - 1;
    const where = loss >= p.low && loss <= p.high ? "inside" : "outside";
    return `★ Trained afterwards: ${Numbers.loss(loss)}, so the prediction is ${Numbers.significant(100 * Math.abs(error), 2)} % too ${error > 0 ? "high" : "low"}, and the loss ${where} the interval.`;
  };

  const critical = (law, p, now) => {
    const step = law.law === "KaplanStepLaw" ? law : space.laws.find((l) => l.law === "KaplanStepLaw");
    if (!step) {
      show("critical", "—", NaN);
      show("critical-hint", "needs a law in batch size (KaplanStepLaw)");
      return;
    }
    const batch = Laws.criticalBatch(step, p.loss);
    show("critical", `${Numbers.short(batch)} tokens`, batch);
    show("critical-hint", `here ${Numbers.times(1 + batch / now.B)} the fewest steps, ${Numbers.times(1 + now.B / batch)} the fewest tokens`);
  };

  // What the law's runs took over what this one takes: as nanoLM counts where both are known so (its Eq. 1), else 6·N·D
  const cost = (law, now, point, nanolm) => {
    const known = law.cost;
    if (known && known.nanolm && law.design === Number($("design").value) && nanolm) {
      show("cost", Numbers.percent(known.nanolm / nanolm), known.nanolm / nanolm);
      show("cost-hint", `search and proxies took ${Numbers.power(known.nanolm)} FLOPs, recomputation included`);
    } else if (known && known.flops) {
      show("cost", Numbers.percent(known.flops / now.C), known.flops / now.C);
      show("cost-hint", `the law's runs took ${Numbers.power(known.flops)} FLOPs`);
    } else if (known && known.parameters) {
      show("cost", Numbers.percent(known.parameters / point.N), known.parameters / point.N);
      show("cost-hint", "of the law's runs, if they took as many tokens");
    } else {
      show("cost", "—", NaN);
      show("cost-hint", "the law does not say what its runs cost");
    }
  };

  const comparison = (shown, level) => {
    $("comparison").hidden = space.laws.length < 2;
    if (space.laws.length < 2) return;
    const body = $("laws").tBodies[0];
    body.replaceChildren();
    space.laws.forEach((law, i) => {
      const p = Laws.predict(law, pointOf(law), level), row = make("tr", null, body);
      if (i === shown) row.setAttribute("aria-current", "true");
      const head = make("th", null, row, { scope: "row" });
      make("span", null, head, { class: `swatch law-${i}`, "aria-hidden": "true" });
      head.append(law.name);
      make("td", Numbers.loss(p.loss), row).dataset.value = String(p.loss);
      make("td", `${Numbers.loss(p.low)} … ${Numbers.loss(p.high)}`, row);
      make("td", p.outside ? Numbers.times(p.extrapolation) : "inside", row);
      make("td", `${Numbers.significant(100 * law.residual, 2)} %`, row);
    });
  };

  // The chart and the announcement wait until the hand rests
  let timer = 0, voice = 0;
  const later = (shown, level, p, point) => {
    clearTimeout(timer);
    clearTimeout(voice);
    timer = setTimeout(() => chart(shown, level, p), 40);
    voice = setTimeout(() => {
      const law = space.laws[shown];
      show("announce", `Predicted loss ${Numbers.loss(p.loss)} nats per token, ${100 * level} percent interval ${Numbers.loss(p.low)} to ${Numbers.loss(p.high)}, ${beyondText(law, p)}.`);
    }, 700);
  };

  const chart = (shown, level, p) => {
    const variable = $("axis").value, law = space.laws[shown];
    const drawn = Chart.draw($("chart"), { laws: space.laws, shown, variable, at: pointOf, level, units, chosen: p });
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.id = "chart-title";
    const first = drawn.band[0], last = drawn.band[drawn.band.length - 1];
    title.textContent = `Loss over ${units[variable]}: from ${Numbers.loss(first.loss)} at ${Numbers.short(first.x)} to ${Numbers.loss(last.loss)} at ${Numbers.short(last.x)}; the chosen run at ${Numbers.loss(p.loss)}. The table below has the curve.`;
    $("chart").prepend(title);
    legend(law, level, drawn, shown);
    const [head, body] = [$("curve").tHead, $("curve").tBodies[0]];
    head.replaceChildren();
    body.replaceChildren();
    const names = make("tr", null, head);
    [units[variable], "loss", "from", "to"].forEach((name) => make("th", name, names, { scope: "col" }));
    drawn.band.filter((_, k) => k % 4 === 0).forEach((q) => {
      const row = make("tr", null, body);
      make("th", Numbers.short(q.x, 3), row, { scope: "row" });
      [q.loss, q.low, q.high].forEach((value) => make("td", Numbers.loss(value), row));
    });
  };

  const legend = (law, level, drawn, shown) => {
    const list = $("legend");
    list.replaceChildren();
    const entry = (text, shapes) => {
      const item = make("li", null, list), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("aria-hidden", "true");
      svg.setAttribute("viewBox", "0 0 28 14");
      for (const [name, attributes] of shapes) {
        const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
        for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
        svg.append(shape);
      }
      item.append(svg, text);
    };
    space.laws.forEach((own, i) => entry(own.name, [["path", { d: "M0,7H28", class: `curve law-${i}` }]]));
    entry(`${Numbers.significant(100 * level, 4)} % interval`, [["rect", { width: 28, height: 14, class: `band law-${shown}` }]]);
    entry("extrapolated", [["path", { d: "M0,7H28", class: `curve dashed law-${shown}` }]]);
    entry("chosen run", [["path", { d: "M14,0V14", class: "bar" }], ["circle", { cx: 14, cy: 7, r: 5, class: `chosen law-${shown}` }]]);
    if (drawn.dots) entry("fitted runs", [["circle", { cx: 14, cy: 7, r: 3.5, class: `dot law-${shown}` }]]);
    if (drawn.stars) entry("trained afterwards", [["path", { d: "M14,0l2,5 5,0 -4,3 2,5 -5,-3 -5,3 2,-5 -4,-3 5,0z", class: "star" }]]);
  };

  const about = () => {
    for (const law of space.laws) {
      const part = make("div", null, $("about"));
      make("h3", `${law.name} · ${law.law}`, part);
      make("p", law.equation, part, { class: "equation" });
      make("p", Object.entries(law.params).map(([name, value]) => `${name} = ${Numbers.power(value, 6)}`).join(", "), part, { class: "equation" });
      make("p", `Fitted to ${law.fitted}, objective ${law.objective}; it misses them by ${Numbers.significant(100 * law.residual, 2)} % on average.`, part);
      for (const name of law.variables) {
        const [low, high] = law.range[name];
        make("p", `${name} from ${Numbers.short(low)} to ${Numbers.short(high)}: ${law.units[name]}.`, part);
      }
      law.notes.forEach((note) => make("p", `Note: ${note}`, part, { class: "note" }));
      if (law.repository) make("p", `From ${law.repository} on the Hub.`, part);
    }
  };

  // -- start --------------------------------------------------------------------------------------------------------

  $("title").textContent = space.title;
  document.title = space.title;
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  select("design", [...space.designs.map((d, i) => [i, d.name]), ["any", "Any: give N"]], "0");
  select("law", space.laws.map((law, i) => [i, law.name]), "0");
  $("law-field").hidden = space.laws.length < 2;
  select("level", []);
  select("count", []);
  $("count-field").hidden = space.laws.every((law) => law.count);
  select("precision", []);
  select("checkpointing", []);
  const order = ["N", "D", "B", "S", "C"].filter((name) => space.laws.some((law) => law.variables.includes(name)));
  select("axis", order.map((name) => [name, units[name]]), order[0]);
  Object.assign(state, { tokens: space.start.D, batch: space.start.B });
  controls.width.set(space.start.width);
  controls.depth.set(space.start.depth);
  controls.size.set(space.start.N);
  controls.tokens.set(space.start.D);
  controls.batch.set(space.start.B);
  controls.sequences.set(1);
  $("design").addEventListener("change", () => {
    if (design()) controls.width.set(whole(unit)(state.width));
    update();
  });
  about();
  update();
  // Where the prediction is out of sight, a bar repeats it
  new IntersectionObserver(([seen]) => ($("dock").hidden = seen.isIntersecting)).observe($("loss"));
  let redraw = 0;
  new ResizeObserver(() => {
    clearTimeout(redraw);
    redraw = setTimeout(update, 80);
  }).observe($("results"));
  setTimeout(() => {
    const { worst, count } = Laws.check(space), good = worst < 1e-6;
    show("check", good ? `✓ ${count} numbers agree with Python's to 6 digits or more (largest difference ${Numbers.power(worst, 1)}).`
      : `✗ This page does not compute what Python does (difference ${Numbers.power(worst, 2)}): do not trust it.`, worst);
    $("check").dataset.count = String(count);
    $("check").classList.toggle("failed", !good);
  }, 0);
})();
