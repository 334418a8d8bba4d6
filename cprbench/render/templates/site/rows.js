"use strict";
// A board is whole without this: every row and every column is in its pages. This filters, sorts, groups, compares and
// redraws them. Values are read once from data-v (numbers, by data-number of the heads) and data-f (words, by
// data-facets); only rows that are shown are touched. All text goes into the page as text, never as HTML.
const AT_ONCE = 100, COUNTED = "flops", LEGEND = 12;
const $ = id => document.getElementById(id);
const table = $("board"), form = $("controls"), count = $("count"), svg = document.querySelector("figure.plot svg");
const F = Object.assign(Object.create(null), Object.fromEntries(table.dataset.facets.split(" ").map((name, i) => [name, i])));
const heads = [...table.tHead.rows[0].cells].map((th, i) => {
  const {key, number, first, needs, show} = th.dataset;
  return {th, i, key, title: th.textContent, n: number === undefined ? -1 : Number(number), first, needs: needs ?? "", show};
});
const head = Object.assign(Object.create(null), Object.fromEntries(heads.map(h => [h.key, h])));
const make = (tag, fields = {}, ...inside) => {
  const made = document.createElement(tag);
  Object.assign(made, fields);
  made.append(...inside);
  return made;
};
const compareText = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

// --- rows -------------------------------------------------------------------------------------------
const rows = [], byId = new Map();
const read = body => {
  for (const tr of body.querySelectorAll("tr[data-v]")) {
    const f = JSON.parse(tr.dataset.f), v = JSON.parse(tr.dataset.v), id = tr.id.slice(2);
    if (tr.ownerDocument !== document) document.adoptNode(tr); // else all of its page is kept in memory
    const row = {tr, id, v, f, at: rows.length, text: f.slice(0, F.flags).join(" ").toLowerCase(), position: null, front: false};
    row.ranked = f[F.flags].includes("r");
    row.baseline = f[F.flags].includes("b");
    row.falls = f[F.flags].includes("d");
    rows.push(row);
    byId.set(id, row);
  }
};
read(table);
const others = table.dataset.pages.split(" ").filter(Boolean);
const alone = others.length > 0 && location.protocol === "file:"; // a page may not read its neighbours there
let loading = null, whole = others.length === 0;
const load = () => {
  if (whole || alone) return null;
  return (loading ??= Promise.all(others.map(async path => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  })).then(pages => {
    const own = rows.splice(0);
    byId.clear();
    // In the order of the board, of which this page may be any: ties keep it.
    const place = Number(table.dataset.page) - 1;
    pages.forEach((page, i) => {
      if (i === place) own.forEach(again);
      read(page.getElementById("board"));
    });
    if (place === pages.length) own.forEach(again);
    whole = true;
    for (const nav of document.querySelectorAll("nav[aria-label=Pages]")) nav.hidden = true;
  }, error => {
    loading = null;
    failed = `The other pages could not be read (${error.message}): this acts on the rows of this page.`;
  }));
};
let failed = alone
  ? "Opened as a file, this acts on the rows of this page only: serve the folder to act on all, or turn its pages below."
  : "";
const again = row => {
  row.at = rows.length;
  rows.push(row);
  byId.set(row.id, row);
};

// --- state: what the form says, and sort, compare and row; all of it is in the address --------------
const extra = {sort: "", compare: [], row: ""};
const boxes = [...form.elements].filter(e => e.name === "column");
const fields = [...form.elements].filter(e => e.name && e.name !== "column" && e.name !== "axis");
const usual = boxes.filter(b => b.checked).map(b => b.value).join(".");
const axes = [...form.elements].filter(e => e.name === "axis"), grouping = form.elements.group;
const axis = () => axes.find(radio => radio.checked).value;
const address = () => {
  const said = new URLSearchParams();
  for (const field of fields) if (field.value) said.set(field.name, field.value);
  if (axis() !== COUNTED) said.set("axis", axis());
  const ticked = boxes.filter(b => b.checked).map(b => b.value).join(".");
  if (ticked !== usual) said.set("columns", ticked);
  if (extra.sort) said.set("sort", extra.sort);
  if (extra.compare.length) said.set("compare", extra.compare.join("."));
  if (extra.row) said.set("row", extra.row);
  return String(said);
};
const restore = () => {
  const plain = /^#[rp]-(.+)$/.exec(location.hash);
  const said = new URLSearchParams(plain ? {row: plain[1]} : location.hash.slice(1));
  for (const field of fields) {
    field.value = said.get(field.name) ?? "";
    if (field.selectedIndex === -1) field.value = "";
  }
  const chosen = $(`a-${said.get("axis")}`) ?? $(`a-${COUNTED}`);
  chosen.checked = true;
  const ticked = new Set((said.get("columns") ?? usual).split("."));
  for (const box of boxes) box.checked = ticked.has(box.value);
  const [key, way] = (said.get("sort") ?? "").split(".");
  extra.sort = head[key] && ["ascending", "descending"].includes(way) ? `${key}.${way}` : "";
  extra.compare = (said.get("compare") ?? "").split(".").filter(Boolean).slice(0, 2);
  extra.row = said.get("row") ?? "";
};
const keep = replace => {
  const now = address(), url = location.pathname + location.search + (now ? `#${now}` : "");
  if (now !== location.hash.slice(1)) history[replace ? "replaceState" : "pushState"](null, "", url);
};

// --- order: as cprbench/render/site/ordering.py -----------------------------------------------------
const value = (row, key) => row.v[head[key].n];
const better = (row, psi) => (row.falls ? -psi : psi);
const front = points => {
  const found = new Set();
  let best = -Infinity, at = null;
  for (const p of [...points].sort((a, b) => a.cost - b.cost || b.psi - a.psi)) {
    if (p.psi > best || (at && p.psi === at.psi && p.cost === at.cost)) {
      [best, at] = [p.psi, p];
      found.add(p.row);
    }
  }
  return found;
};
const last = (a, b, compare) => (a === null || b === null ? (a === null) - (b === null) : compare(a, b));
let machine = false; // whether what the view compares hangs on the machine
const bound = () => [head[`gamma_${axis()}`], head[extra.sort.split(".")[0]]].some(h => h?.needs.includes("hardware"));
const filtered = () => {
  const said = Object.fromEntries(fields.map(field => [field.name, field.value]));
  const terms = said.search.toLowerCase().split(/\s+/).filter(Boolean);
  const exact = Object.keys(F).filter(name => said[name]).map(name => [F[name], said[name]]);
  const kinds = {ranked: row => row.ranked, baseline: row => row.baseline, method: row => !row.baseline};
  const kind = kinds[said.kind] ?? (() => true);
  return rows.filter(row => kind(row) && exact.every(([i, of]) => row.f[i] === of) && terms.every(t => row.text.includes(t)));
};
const forced = row => (machine ? `${row.f[F.scale]} ${row.f[F.hardware]}` : row.f[F.scale]);
const grouped = found => {
  const by = grouping.value, groups = new Map();
  machine = bound();
  for (const row of found) {
    const parts = [by && row.f[F[by]], row.f[F.scale], machine && by !== "hardware" && row.f[F.hardware]];
    const title = parts.filter(Boolean).filter((part, i, all) => all.indexOf(part) === i).join(" · ");
    if (!groups.has(title)) groups.set(title, []);
    groups.get(title).push(row);
  }
  const all = [...groups].map(([title, inside]) => ({title, rows: placed(inside)}));
  return all.sort((a, b) => b.rows.some(ranks) - a.rows.some(ranks)); // a group without a position comes last
};
const ranks = row => row.position !== null;
const placed = inside => {
  const gamma = `gamma_${axis()}`;
  const points = inside.filter(row => row.ranked && value(row, "psi") !== null && value(row, gamma) !== null)
    .map(row => ({row, cost: value(row, gamma), psi: better(row, value(row, "psi"))}));
  const on = front(points), able = new Set(points.map(p => p.row));
  const tier = row => (!row.ranked ? 3 : !able.has(row) ? 2 : on.has(row) ? 0 : 1);
  const order = inside.map(row => ({row, tier: tier(row), psi: value(row, "psi"), cost: value(row, gamma)}));
  order.sort((a, b) => a.tier - b.tier || last(a.psi, b.psi, (x, y) => better(b.row, y) - better(a.row, x))
    || last(a.cost, b.cost, (x, y) => x - y) || a.row.at - b.row.at);
  order.forEach(({row}, i) => Object.assign(row, {position: able.has(row) ? i + 1 : null, front: on.has(row)}));
  return sorted(order.map(o => o.row));
};
const sorted = inside => {
  const [key, way] = extra.sort.split(".");
  if (!key) return inside;
  const sign = way === "ascending" ? 1 : -1, {n, i} = head[key];
  const told = row => (n >= 0 ? row.v[n] : key in F ? row.f[F[key]] : row.tr.cells[i].textContent);
  const keys = new Map(inside.map(row => [row, told(row)]));
  const compare = n >= 0 ? (a, b) => sign * (a - b) : (a, b) => sign * compareText(a, b);
  return inside.sort((a, b) => b.ranked - a.ranked || last(keys.get(a), keys.get(b), compare));
};

// --- what is shown ----------------------------------------------------------------------------------
let limit = AT_ONCE, drawing = 0;
const box = row => {
  row.box ??= make("input", {type: "checkbox"});
  row.box.setAttribute("aria-label", `Compare ${row.f[F.arm]}`);
  row.box.checked = extra.compare.includes(row.id);
  return row.box;
};
const show = () => {
  const found = filtered(), groups = grouped(found);
  const here = row => row.id === extra.row;
  if (extra.row) {
    const at = groups.flatMap(group => group.rows).findIndex(here);
    limit = Math.max(limit, AT_ONCE * Math.ceil((at + 1) / AT_ONCE));
  }
  let left = limit;
  const drawable = new Set(plotted(groups).map(row => row.id)), bodies = [];
  for (const group of groups) {
    if (left <= 0) break;
    const body = make("tbody");
    if (group.title) {
      const th = make("th", {colSpan: heads.length, scope: "rowgroup"}, make("span", {}, `${group.title}`));
      body.append(make("tr", {className: "group"}, th));
    }
    for (const row of group.rows.slice(0, left)) {
      const mark = row.position ?? "–";
      const link = drawable.has(row.id) ? make("a", {href: `#p-${row.id}`, ariaLabel: `${mark}, its mark`}, mark) : mark;
      row.tr.cells[0].replaceChildren(box(row), link, ...(row.front ? [make("b", {}, "front")] : []));
      row.tr.classList.toggle("front", row.front);
      row.tr.classList.toggle("on", here(row));
      body.append(row.tr);
    }
    left -= group.rows.length;
    bodies.push(body);
  }
  if (!found.length) bodies.push(make("tbody", {}, make("tr", {}, make("td", {colSpan: heads.length, className: "w"}, "No row fits."))));
  for (const body of [...table.tBodies]) body.remove();
  table.append(...bodies);
  for (const {th, key} of heads) {
    const [by, way] = extra.sort.split(".");
    if (by === key) th.setAttribute("aria-sort", way);
    else th.removeAttribute("aria-sort");
  }
  $("more").hidden = found.length <= limit;
  $("more").textContent = `Show ${Math.min(AT_ONCE, found.length - limit)} more`;
  $("reset").hidden = !address();
  tell(found.length, groups);
  clearTimeout(drawing);
  drawing = setTimeout(draw, 30, groups); // the table first
};
const tell = (shown, groups) => {
  const said = [`${shown} of ${rows.length} rows.`];
  if (shown < rows.length || groups.length > 1) said.push(`Positions and fronts are of ${groups.length > 1 ? "each group" : "these rows"}.`);
  if (extra.row && !byId.has(extra.row)) said.push(`The row that the address names is not on this ${whole ? "board" : "page"}.`);
  if (machine) said.push("Grouped by hardware class: what hangs on the machine compares only inside one.");
  count.textContent = [...said, failed].join(" ").trim();
};
