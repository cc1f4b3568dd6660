"use strict";
// The laws and their intervals, as hf_muscaling.laws computes them; no document here.
const Laws = (() => {
  const logAddExp = (a, b) => {
    const most = Math.max(a, b);
    return most === -Infinity ? most : most + Math.log1p(Math.exp(-Math.abs(a - b)));
  };

  // erfc by Chebyshev approximation to double precision (Press et al., Numerical Recipes, 3rd ed., 6.2.2)
  const ERFC = [
    -1.3026537197817094, 6.4196979235649026e-1, 1.9476473204185836e-2, -9.561514786808631e-3, -9.46595344482036e-4,
    3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5, -1.624290004647e-6, 1.30365583558e-6,
    1.5626441722e-8, -8.5238095915e-8, 6.529054439e-9, 5.059343495e-9, -9.91364156e-10, -2.27365122e-10,
    9.6467911e-11, 2.394038e-12, -6.886027e-12, 8.94487e-13, 3.13092e-13, -1.12708e-13, 3.81e-16, 7.106e-15,
    -1.523e-15, -9.4e-17, 1.21e-16, -2.8e-17,
  ];
  const erfcPositive = (z) => {
    const t = 2 / (2 + z), ty = 4 * t - 2;
    let d = 0, dd = 0;
    for (let j = ERFC.length - 1; j > 0; j--) [d, dd] = [ty * d - dd + ERFC[j], d];
    return t * Math.exp(-z * z + 0.5 * (ERFC[0] + ty * d) - dd);
  };
  const normalCdf = (x) => {
    const tail = 0.5 * erfcPositive(Math.abs(x) / Math.SQRT2);
    return x > 0 ? 1 - tail : tail;
  };

  // The root l of l = logaddexp(floor, fall + alpha·softplus(middle - curvature·l)), as laws.kaplan_step
  const stepLogLoss = (floor, fall, alpha, middle, curvature) => {
    let log = logAddExp(floor, fall);
    for (let i = 0; i < 60; i++) {
      const turn = middle - curvature * log;
      const soft = logAddExp(0, turn);
      const right = logAddExp(floor, fall + alpha * soft);
      const slope = curvature * alpha * Math.exp(fall + alpha * soft - right + turn - soft);
      const step = (right - log) / (1 + slope);
      log += step;
      if (Math.abs(step) <= 1e-14 * (1 + Math.abs(log))) break;
    }
    return log;
  };

  const NONE = -700; // log E that means no irreducible loss
  // Each law's loss at x, given its parameters
  const LOSS = {
    PowerLaw: (x, p, name) => p.a * x[name] ** p.b + p.c,
    ChinchillaLaw: (x, p) => p.E + p.A * x.N ** -p.alpha + p.B * x.D ** -p.beta,
    KaplanLaw: (x, p) => {
      const bySize = (p.alpha_N / p.alpha_D) * (Math.log(p.N_c) - Math.log(x.N));
      return Math.exp(p.alpha_D * logAddExp(bySize, Math.log(p.D_c) - Math.log(x.D)));
    },
    KaplanStepLaw: (x, p) => {
      const size = p.alpha_N * (Math.log(p.N_c) - Math.log(x.N));
      const floor = logAddExp(size, Math.log(Math.max(p.E, Math.exp(NONE))));
      const fall = p.alpha_S * (Math.log(p.S_c) - Math.log(x.S));
      return Math.exp(stepLogLoss(floor, fall, p.alpha_S, Math.log(p.B_star) - Math.log(x.B), 1 / p.alpha_B));
    },
  };

  const lossAt = (law, x) => LOSS[law.law](x, law.params, law.variables[0]);

  // Where the distribution of an equal mixture of normals reaches a probability: Newton's method inside a bracket
  const mixtureQuantile = (centre, deviation, probability) => {
    let low = Infinity, high = -Infinity;
    for (let m = 0; m < centre.length; m++) {
      low = Math.min(low, centre[m] - 12 * deviation[m]);
      high = Math.max(high, centre[m] + 12 * deviation[m]);
    }
    let at = 0.5 * (low + high);
    for (let i = 0; i < 200; i++) {
      let mass = 0, density = 0;
      for (let m = 0; m < centre.length; m++) {
        const z = (at - centre[m]) / deviation[m];
        mass += normalCdf(z);
        density += Math.exp(-0.5 * z * z) / deviation[m];
      }
      mass /= centre.length;
      density /= centre.length * Math.sqrt(2 * Math.PI);
      if (mass < probability) low = at;
      else high = at;
      let next = at - (mass - probability) / density;
      if (!(next > low && next < high)) next = 0.5 * (low + high);
      if (Math.abs(next - at) <= 1e-13 * (1 + Math.abs(at)) || high - low <= 1e-14 * (1 + Math.abs(at))) return next;
      at = next;
    }
    return at;
  };

  const logOutside = (x, span) => {
    let most = 0;
    for (const [name, [low, high]] of Object.entries(span)) {
      most = Math.max(most, Math.log(x[name] / high), Math.log(low / x[name]));
    }
    return most;
  };

  // d log L / d theta at x, theta and origin as in the laws' `_problem`
  const SLOPES = {
    ChinchillaLaw: (x, [e, a, alpha, b, beta], origin) => {
      const n = origin.N - Math.log(x.N), d = origin.D - Math.log(x.D);
      const parts = [Math.exp(e), Math.exp(a + alpha * n), Math.exp(b + beta * d)];
      const [floor, size, data] = parts.map((part) => part / (parts[0] + parts[1] + parts[2]));
      return [floor, size, size * n, data, data * d];
    },
    KaplanLaw: (x, [a, alphaN, q, alphaD], origin) => {
      const n = Math.log(x.N) - origin.N, d = Math.log(x.D) - origin.D;
      const bySize = (a - alphaN * n) / alphaD, sum = logAddExp(bySize, q - d), share = Math.exp(bySize - sum);
      return [share, -share * n, alphaD * Math.exp(q - d - sum), sum - share * bySize];
    },
    KaplanStepLaw: (x, [a, alphaN, c, alpha, middle, curvature, irreducible], origin) => {
      const n = Math.log(x.N) - origin.N, s = Math.log(x.S) - origin.S, b = Math.log(x.B) - origin.B;
      const size = a - alphaN * n, fall = c - alpha * s;
      const log = stepLogLoss(logAddExp(size, irreducible), fall, alpha, middle - b + curvature * origin.L, curvature);
      const away = log - origin.L, turn = middle - b - curvature * away, soft = logAddExp(0, turn);
      const rate = alpha * Math.exp(turn - soft), step = Math.exp(fall + alpha * soft - log);
      const share = Math.exp(size - log), rest = Math.exp(irreducible - log);
      const slack = 1 + step * rate * curvature;
      return [share, -share * n, step, step * (soft - s), step * rate, -step * rate * away, rest].map((v) => v / slack);
    },
  };

  const quadratic = (slopes, matrix) => {
    let sum = 0;
    slopes.forEach((g, i) => slopes.forEach((h, j) => (sum += g * matrix[i][j] * h)));
    return sum;
  };

  // Moves the draws' log losses away from the fitted law's where they scatter less than the linearised fit expects
  const widen = (law, x, slopes, centre) => {
    const { covariance, widest } = law.interval.neighbourhood;
    const mean = centre.reduce((sum, v) => sum + v, 0) / centre.length;
    const scatter = Math.sqrt(centre.reduce((sum, v) => sum + (v - mean) ** 2, 0) / centre.length);
    if (!(scatter > 0)) return;
    const own = Math.log(lossAt(law, x)), expected = Math.sqrt(Math.max(quadratic(slopes, covariance), 0));
    const factor = Math.min(Math.max(expected / scatter, 1), widest);
    for (let m = 0; m < centre.length; m++) centre[m] = own + factor * (centre[m] - own);
  };

  // The variances of the law's miss in tau², 1 - 2·bᵀk(X, x) + bᵀKb for each length, as laws.misfit
  const misses = (law, x, slopes) => {
    const { points, influence, gram, lengths } = law.interval.neighbourhood;
    const at = law.variables.map((name) => Math.log(x[name]));
    const followed = lengths.map(() => 0);
    for (let m = 0; m < points[0].length; m++) {
      let square = 0, moved = 0;
      at.forEach((value, v) => (square += (points[v][m] - value) ** 2));
      slopes.forEach((g, i) => (moved += g * influence[i][m]));
      lengths.forEach((length, l) => (followed[l] += moved * Math.exp(-0.5 * square / length ** 2)));
    }
    return followed.map((value, l) => Math.max(1 - 2 * value + quadratic(slopes, gram[l]), 0));
  };

  // N(log L(x; params_m), sigma_m²·(1 + rho_m·ln(x_max/x)²) + tau_m²·away_m(x)), as laws.interval_data
  const interval = (law, x, level) => {
    const data = law.interval, names = Object.keys(data.params), draws = data.sigma.length;
    const near = data.neighbourhood, slopes = near ? SLOPES[law.law](x, near.theta, near.origin) : null;
    const missed = near ? misses(law, x, slopes) : null;
    const drift = logOutside(x, data.span) ** (2 * data.power);
    const variable = law.variables[0];
    const inside = data.rho ? Math.log(data.span[variable][1] / x[variable]) ** 2 : 0;
    const centre = new Float64Array(draws), deviation = new Float64Array(draws), p = {};
    for (let m = 0; m < draws; m++) {
      for (const name of names) p[name] = data.params[name][m];
      centre[m] = Math.log(Math.max(LOSS[law.law](x, p, variable), 1e-300));
      const own = data.sigma[m] ** 2 * (1 + (data.rho ? data.rho[m] * inside : 0));
      deviation[m] = Math.sqrt(own + data.tau[m] ** 2 * (near ? missed[near.length[m]] : drift));
    }
    if (near) widen(law, x, slopes, centre);
    const ends = [0.5 * (1 - level), 0.5 * (1 + level)];
    return ends.map((probability) => Math.exp(mixtureQuantile(centre, deviation, probability)));
  };

  // The loss at x (every variable of the law), its interval, and how many times beyond the largest fitted values x lies
  const predict = (law, x, level) => {
    const loss = lossAt(law, x);
    const [low, high] = interval(law, x, level);
    const beyond = {};
    for (const name of law.variables) beyond[name] = x[name] / law.range[name][1];
    return {
      loss, low: Math.min(low, loss), high: Math.max(high, loss), beyond,
      extrapolation: Math.max(...Object.values(beyond)), outside: logOutside(x, law.range) > 1e-12,
    };
  };

  // Part I: B_crit(L) = B_star / L^(1/alpha_B) tokens; the fewest steps to a loss, S_c·(L - (N_c/N)^alpha_N - E)^(-1/alpha_S)
  const criticalBatch = (law, loss) => law.params.B_star / loss ** (1 / law.params.alpha_B);
  const minimalSteps = (law, loss, N) => {
    const p = law.params, rest = loss - (p.N_c / N) ** p.alpha_N - p.E;
    return rest > 0 ? p.S_c * rest ** (-1 / p.alpha_S) : Infinity;
  };

  // A design's quantity at width w and depth l: p0 + p1·w + p2·w² + l·(p3 + p4·w + p5·w²)
  const quantity = (design, name, w, l) => {
    const p = design.polynomials[name];
    return p[0] + p[1] * w + p[2] * w * w + l * (p[3] + p[4] * w + p[5] * w * w);
  };
  const memory = (design, w, l, sequences, precision, checkpointing) => {
    const key = precision + (checkpointing ? "_ckpt" : "");
    const state = quantity(design, "state", w, l);
    return state + quantity(design, `fixed_${key}`, w, l) + sequences * quantity(design, `sequence_${key}`, w, l);
  };

  // The largest relative difference from the predictions that Python wrote into the page, and how many there are
  const check = (space) => {
    let worst = 0, count = 0;
    const compare = (own, theirs) => {
      count++;
      const error = own === theirs ? 0 : Math.abs(own - theirs) / Math.abs(theirs);
      worst = Math.max(worst, Number.isNaN(error) ? Infinity : error);
    };
    for (const v of space.vectors.laws) {
      const law = space.laws[v.law], p = predict(law, v.at, v.level);
      for (const name of ["loss", "low", "high", "extrapolation"]) compare(p[name], v[name]);
      if ("critical_batch" in v) {
        compare(criticalBatch(law, p.loss), v.critical_batch);
        compare(minimalSteps(law, v.loss, v.at.N), v.minimal_steps);
      }
    }
    for (const v of space.vectors.designs) {
      const design = space.designs[v.design];
      for (const name of ["N", "N_non_embedding", "step_flops"]) compare(quantity(design, name, v.width, v.depth), v[name]);
      compare(memory(design, v.width, v.depth, v.sequences, v.precision, v.checkpointing), v.memory);
    }
    return { worst, count };
  };

  return { loss: lossAt, predict, criticalBatch, minimalSteps, quantity, memory, check, normalCdf };
})();
