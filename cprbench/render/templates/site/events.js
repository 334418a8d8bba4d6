// --- events -----------------------------------------------------------------------------------------
const changed = replace => {
  extra.row = "";
  limit = AT_ONCE;
  act(replace);
};
const act = async replace => {
  keep(replace);
  const waiting = load();
  if (waiting) {
    count.textContent = "Reading the other pages …";
    await waiting;
  }
  show();
  side();
};
const reveal = id => {
  const row = byId.get(id);
  if (!row) return;
  extra.row = id;
  keep();
  if (!row.tr.isConnected || row.tr.ownerDocument !== document) show();
  for (const other of table.querySelectorAll("tr.on")) other.classList.remove("on");
  row.tr.classList.add("on");
  row.tr.scrollIntoView({block: "center"});
  row.box.focus({preventScroll: true});
};
for (const part of document.querySelectorAll(".js")) part.hidden = false;
for (const row of rows) row.tr.cells[0].prepend(box(row));
for (const h of heads.slice(1)) {
  const button = make("button", {type: "button"}, ...h.th.childNodes);
  h.th.append(button);
  button.addEventListener("click", () => {
    // The better way first, the other way, and back to the order of the board.
    const first = h.first ?? "ascending", second = first === "ascending" ? "descending" : "ascending";
    const next = {[`${h.key}.${first}`]: `${h.key}.${second}`, [`${h.key}.${second}`]: ""}[extra.sort];
    extra.sort = next ?? `${h.key}.${first}`;
    changed();
  });
}
let typing = 0;
form.addEventListener("input", event => {
  if (event.target.name === "search") {
    clearTimeout(typing);
    typing = setTimeout(changed, 120, true);
  } else if (event.target.name === "column") keep();
  else changed();
});
form.addEventListener("submit", event => event.preventDefault());
for (const part of [form, table.tHead]) for (const kind of ["pointerover", "focusin"]) part.addEventListener(kind, () => { load(); }, {once: true});
$("more").addEventListener("click", () => {
  limit += AT_ONCE;
  show();
});
$("reset").addEventListener("click", () => {
  history.pushState(null, "", location.pathname + location.search);
  restore();
  changed();
});
table.addEventListener("change", event => {
  const id = event.target.closest("tr")?.id.slice(2), rest = extra.compare.filter(other => other !== id);
  if (id) choose(event.target.checked ? [...rest.slice(-1), id] : rest);
});
document.addEventListener("click", event => {
  const link = event.target.closest?.("a"), to = /^#([rp])-(.+)$/.exec(link?.getAttribute("href") ?? "");
  if (!to || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (to[1] === "r") reveal(to[2]);
  else {
    svg.scrollIntoView({block: "nearest"});
    $(`p-${to[2]}`)?.focus({preventScroll: true});
  }
});
const light = on => event => {
  const at = event.target.closest?.("tr[data-v], .points a");
  if (at) glow(at.id.slice(2), on, $(`p-${at.id.slice(2)}`)?.querySelector("title").textContent);
};
const glow = (id, on, told) => {
  $(`p-${id}`)?.classList.toggle("on", on);
  byId.get(id)?.tr.classList.toggle("on", on || id === extra.row);
  $("plot-told")?.replaceChildren((on && told) || $("plot-told").dataset.usual);
};
for (const part of [table, svg].filter(Boolean)) {
  for (const kind of ["pointerover", "focusin"]) part.addEventListener(kind, light(true));
  for (const kind of ["pointerout", "focusout"]) part.addEventListener(kind, light(false));
}
let over = null;
svg?.addEventListener("pointermove", event => {
  if (event.target.closest("a")) return;
  const spot = near(event);
  if (spot?.row === over) return;
  if (over) glow(over.id, false);
  if (spot) glow(spot.row.id, true, spot.told());
  over = spot?.row ?? null;
});
svg?.addEventListener("click", event => {
  const spot = event.target.closest("a") ? null : near(event);
  if (spot) reveal(spot.row.id);
});
const follow = async () => {
  restore();
  limit = AT_ONCE;
  await act(true);
  const row = byId.get(extra.row);
  if (row) row.tr.scrollIntoView({block: "center"});
};
addEventListener("hashchange", follow);
if (location.hash && location.hash !== "#rows") follow();
