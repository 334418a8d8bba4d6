// --- the plane --------------------------------------------------------------------------------------
const drawn = (tag, fields, ...inside) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, of] of Object.entries(fields)) made.setAttribute(name, of);
  made.append(...inside);
  return made;
};
// Groups that may not be compared are not drawn in one plane: it is of the first one.
const plotted = groups => {
  const gamma = `gamma_${axis()}`, all = groups.flatMap(group => group.rows);
  const able = all.filter(row => value(row, "psi") !== null && value(row, gamma) > 0);
  const first = able.length ? forced(able[0]) : "";
  return able.filter(row => forced(row) === first);
};
const tick = value => {
  if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5)) return String(Number(value.toPrecision(6)));
  const [digits, power] = value.toExponential(3).split("e");
  const raised = String(Number(power)).replace(/./g, c => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);
  const short = String(Number(digits));
  return short === "1" ? `10${raised}` : `${short}×10${raised}`;
};
const ticks = ({low, high, log}) => {
  const found = [];
  if (log && high >= 3 * low) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of high < 50 * low ? [1, 2, 5] : [1]) found.push(step * 10 ** power);
  } else {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find(n => n * power >= rough * 0.999);
    for (let n = Math.ceil(low / step); n <= Math.floor(high / step); n++) found.push(n * step);
  }
  return found.filter(v => v >= low && v <= high);
};
const scale = ({low, high, log}, start, length) => value => {
  const [a, b, c] = [low, high, value].map(v => (log ? Math.log10(v) : v));
  return Math.round(10 * (start + (length * (c - a)) / (b - a))) / 10;
};
const span = (values, log) => {
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (log) return {low: low / Math.max((high / low) ** 0.04, 1.05), high: high * Math.max((high / low) ** 0.04, 1.05), log};
  const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.05;
  return {low: low - room, high: high + room, log};
};
const words = (row, key) => {
  const [main, small] = row.tr.cells[head[key].i].childNodes;
  return small ? `${main.textContent} ${small.textContent}` : main.textContent;
};
let spots = [];
const near = event => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const far = spot => Math.hypot(spot.x - at.x, spot.y - at.y);
  const best = spots.reduce((a, b) => (a && far(a) <= far(b) ? a : b), null);
  return best && far(best) < 10 ? best : null;
};
const draw = groups => {
  if (!svg) return;
  spots = [];
  const found = plotted(groups), gamma = `gamma_${axis()}`, unit = head[gamma].title;
  const [axes, fronts, points] = ["axes", "fronts", "points"].map(name => svg.querySelector(`.${name}`));
  const [left, right, top, bottom] = svg.dataset.frame.split(" ").map(Number);
  for (const part of [axes, fronts, points]) part.replaceChildren();
  const metric = svg.dataset.metric, which = found.length ? forced(found[0]).trim() : "";
  $("plot-title").textContent = `${metric} against billed ${unit} per run${which ? ` (${which})` : ""}`;
  const rest = groups.reduce((n, group) => n + group.rows.length, 0) - found.length;
  const on = found.filter(row => row.front);
  $("plot-text").textContent = [
    on.length ? `On the front: ${on.slice(0, 8).map(row => about(row, gamma, unit)).join("; ")}${on.length > 8 ? ` and ${on.length - 8} more` : ""}.` : found.length ? "No row is on a front." : "No row has both.",
    rest ? `Not drawn: ${rest} rows without a score or ${unit}, or of another group, with which these do not compare.` : "",
  ].join(" ").trim();
  if (!found.length) {
    const some = groups.flatMap(group => group.rows), costs = some.some(row => value(row, gamma) !== null);
    const why = !some.length ? "no row fits" : costs ? "no row here has both" : "not measured in any row here";
    axes.append(drawn("text", {class: "unit", x: (left + right) / 2, y: (top + bottom) / 2, "text-anchor": "middle"}, `${unit}: ${why}`));
    document.querySelector(".legend").replaceChildren();
    return;
  }
  const xs = span(found.map(row => value(row, gamma)), true), ys = span(found.map(row => value(row, "psi")), false);
  const x = scale(xs, left, right - left), y = scale(ys, bottom, top - bottom);
  for (const v of ticks(xs)) axes.append(drawn("path", {d: `M${x(v)} ${top}V${bottom}`}), drawn("text", {x: x(v), y: bottom + 16, "text-anchor": "middle"}, tick(v)));
  for (const v of ticks(ys)) axes.append(drawn("path", {d: `M${left} ${y(v)}H${right}`}), drawn("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end"}, tick(v)));
  axes.append(drawn("text", {class: "unit", x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle"}, `billed ${unit} per run, logarithmic`));
  for (const group of groups) {
    const line = group.rows.filter(row => row.front && forced(row).trim() === which && value(row, gamma) > 0)
      .sort((a, b) => value(a, gamma) - value(b, gamma)).map(row => [x(value(row, gamma)), y(value(row, "psi"))]);
    if (line.length) fronts.append(drawn("path", {d: `M${line[0].join(" ")}${line.slice(1).map(([h, v]) => `H${h}V${v}`).join("")}H${right}`}));
  }
  // Rows in the table have marks that lead to them; the others are dots, a path for all of one colour.
  const dots = new Map();
  spots = found.map(row => ({row, x: x(value(row, gamma)), y: y(value(row, "psi")), told: () => about(row, gamma, unit)}));
  for (const {row, x: cx, y: cy} of spots) {
    const colour = $(`mk${row.f[F.look]}`).getAttribute("stroke");
    if (!row.tr.isConnected) dots.set(colour, `${dots.get(colour) ?? ""}M${cx - 1.5} ${cy}h3`);
  }
  points.append(...[...dots].map(([stroke, d]) => drawn("path", {d, stroke, "stroke-width": 3})));
  points.append(...spots.filter(({row}) => row.tr.isConnected).map(({row, x: cx, y: cy, told}) => drawn(
    "a", {id: `p-${row.id}`, href: `#r-${row.id}`, ...(row.front ? {} : {tabindex: -1})},
    drawn("title", {}, told()),
    drawn("use", {href: `#m${row.ranked ? "k" : "h"}${row.f[F.look]}`, x: cx, y: cy}),
  )));
  const methods = new Map(found.map(row => [row.f[F.method], row.f[F.look]]));
  document.querySelector(".legend").replaceChildren(...[...methods].sort((a, b) => a[1] - b[1]).slice(0, LEGEND).map(([method, look]) => {
    const mark = drawn("svg", {viewBox: "-6 -6 12 12", width: 12, height: 12, "aria-hidden": "true"}, drawn("use", {href: `#mk${look}`}));
    return make("li", {}, mark, method);
  }));
};
const about = (row, gamma, unit) => `${row.f[F.arm]}, ${row.f[F.model]}: ${words(row, "psi")} at ${words(row, gamma)} ${unit}`;
