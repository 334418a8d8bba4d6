// --- two rows side by side --------------------------------------------------------------------------
const figure = value => {
  if (value === 0) return "0";
  const [digits, power] = value.toExponential(2).split("e");
  if (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4) return `${digits}e${power[0]}${power.slice(1).padStart(2, "0")}`;
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
};
const named = {suite: "suite version", hardware: "hardware class"};
const apart = (a, b, needs) => needs.replace("suite", "suite metric limits role").split(" ").filter(need => {
  const [one, two] = [a, b].map(row => row.f[F[need]]);
  return need && (!one || one !== two); // weights that nobody saw are nobody's
}).map(need => `other ${named[need] ?? need}`);
const against = (a, b, {n, key, needs, first, show}) => {
  if (n < 0) return words(a, key) === words(b, key) ? "same" : "differs";
  if (a.v[n] === null || b.v[n] === null) return "";
  const other = apart(a, b, needs);
  if (other.length) return `not comparable: ${other.join(", ")}`;
  const less = b.v[n] - a.v[n], sign = less < 0 ? "−" : "+", size = Math.abs(less);
  const said = show === "percent" ? `${figure(100 * size)} points` : show === "gb" ? figure(size / 1e9)
    : ["score", "signed"].includes(show) ? size.toFixed(3) : figure(size);
  const ratio = first === "ascending" && a.v[n] > 0 && b.v[n] > 0 ? `, ${(b.v[n] / a.v[n]).toFixed(2)}x` : "";
  return less === 0 ? "same" : `${sign}${said}${ratio}`;
};
const side = () => {
  const section = $("compare"), two = extra.compare.map(id => byId.get(id)).filter(Boolean);
  section.hidden = two.length === 0;
  section.replaceChildren();
  if (!two.length) return;
  const done = make("button", {type: "button"}, "Close");
  done.addEventListener("click", () => choose([]));
  const title = make("h2", {id: "compare-title", tabIndex: -1}, "Compare");
  if (two.length < 2) {
    section.append(title, make("p", {}, `${two[0].f[F.arm]}: tick a second row. `, done));
    return;
  }
  const [a, b] = two, other = apart(a, b, "suite weights hardware");
  const division = a.f[F.division] === b.f[F.division] ? "" : "Other division: recipe and arms may differ. ";
  const note = (other.length ? `Not comparable in part: ${other.join(", ")}. ` : "") + division;
  const line = h => {
    const cells = [a, b].map(row => {
      const own = row.tr.cells[h.i], td = make("td", {}, ...[...own.childNodes].map(node => node.cloneNode(true)));
      if (own.title) td.append(make("span", {}, own.title));
      return td;
    });
    return make("tr", {}, make("th", {scope: "row"}, h.title), ...cells, make("td", {className: "w"}, against(a, b, h)));
  };
  const tr = make("tr", {}, ...["", ...[a, b].map(row => `${row.f[F.arm]}, ${row.f[F.submission]}`), "second against first"].map((text, i) =>
    i ? make("th", {scope: "col"}, text) : make("td")));
  const inside = make("table", {className: "data"}, make("thead", {}, tr), make("tbody", {}, ...heads.slice(1).filter(seen).map(line)));
  const scroll = make("div", {className: "scroll", tabIndex: 0});
  scroll.setAttribute("role", "group");
  scroll.setAttribute("aria-labelledby", "compare-title");
  scroll.append(inside);
  section.append(title, make("p", {className: "note"}, `${note}Intervals are each row's own; a difference is of points. `, done), scroll);
};
// All columns but those of resources that were not chosen.
const seen = ({key}) => !/^(multiple|quadrant)_/.test(key) || key.replace(/^[a-z]+_/, "") === axis();
const choose = ids => {
  extra.compare = ids;
  for (const row of rows) if (row.box) row.box.checked = ids.includes(row.id);
  keep();
  side();
  if (ids.length === 2) $("compare-title").focus();
};
