"use strict";
// Tables are whole without this: it only lets a reader sort them. A cell sorts by its data-value; one without (a name,
// a reason why there is no number) by its text, and after every number whichever way the numbers go.
const texts = new Intl.Collator("en", {numeric: true});
const key = (row, column) => {
  const {dataset, textContent} = row.cells[column];
  return "value" in dataset ? {value: Number(dataset.value)} : {text: textContent};
};
const compare = (a, b, way) => {
  if ("value" in a && "value" in b) return way * (a.value - b.value);
  if ("text" in a && "text" in b) return way * texts.compare(a.text, b.text);
  return "value" in a ? -1 : 1;
};
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0], given = [...body.rows], heads = [...table.tHead.rows[0].cells];
  if (given.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Up, down, and back to the order in which the report gives the rows.
      const next = {ascending: "descending", descending: null}[head.getAttribute("aria-sort")];
      const order = next === undefined ? "ascending" : next;
      for (const other of heads) other.removeAttribute("aria-sort");
      const rows = [...given];
      if (order) {
        head.setAttribute("aria-sort", order);
        const way = order === "ascending" ? 1 : -1;
        const keys = new Map(rows.map(row => [row, key(row, column)]));
        rows.sort((a, b) => compare(keys.get(a), keys.get(b), way));
      }
      body.append(...rows);
    });
  });
}
