// Numbers as people write and read them.
const Numbers = (() => {
  const UNITS = { "": 1, k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12 };

  // "7B", "1.4e12", "300 000" → a positive number, else NaN
  const parse = (text) => {
    const found = /^([0-9]*\.?[0-9]+(?:e[+-]?[0-9]{1,3})?)([kmbgt]?)$/.exec(text.replace(/[\s,_]/g, "").toLowerCase());
    const value = found ? Number(found[1]) * UNITS[found[2]] : NaN;
    return value > 0 && Number.isFinite(value) ? value : NaN;
  };

  const significant = (value, digits) => String(Number(value.toPrecision(digits)));

  // 6738415616 → "6.738B"
  const short = (value, digits = 4) => {
    for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
      if (value >= size) return value >= 1e16 ? power(value, digits) : significant(value / size, digits) + unit;
    }
    return significant(value, digits);
  };

  // 2048 → "2,048", as long as it is short that way
  const count = (value) => {
    if (value >= 1e6) return short(value);
    const whole = String(Math.round(value));
    return whole.length > 3 ? `${whole.slice(0, -3)},${whole.slice(-3)}` : whole;
  };

  // 5.88e23 → "5.88 × 10²³"
  const power = (value, digits = 3) => {
    if (value < 0) return `−${power(-value, digits)}`;
    if (value === 0) return "0";
    if (!Number.isFinite(value)) return "∞";
    if (value >= 1e-3 && value < 1e6) return significant(value, digits);
    const [head, exponent] = value.toExponential(digits - 1).split("e");
    const raised = [...exponent.replace("+", "")].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)])).join("");
    return `${head} × 10${raised}`;
  };

  const bytes = (value) => {
    for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
      if (value >= size) return `${significant(value / size, 3)} ${unit}`;
    }
    return `${Math.round(value)} B`;
  };

  const percent = (share) => {
    const value = 100 * share;
    if (value >= 1000) return `${short(share, 3)} ×`;
    return `${value < 0.001 ? power(value, 2) : significant(value, value < 10 ? 2 : 3)} %`;
  };

  // 12.3 → "12 ×"
  const times = (factor) => `${factor >= 1e4 ? short(factor, 2) : significant(factor, factor < 10 ? 2 : 3)} ×`;
  const loss = (value) => value.toFixed(value >= 100 ? 2 : 4);

  return { parse, short, count, power, bytes, percent, times, loss, significant };
})();
