// A table that can be sorted and filtered. Rows stay the same elements as long as they last, and keep their places while
// a pointer or the keyboard is at work.

import { h, isPointing, setAttribute, setText, uniqueId } from "./dom.js";

const compare = (a, b) => {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
};

// Columns: { name, title, numeric, value(row) to sort by, text(row), or cell(row) returning { element, update(row) } }.
export function table({ caption, columns, key, sort, nothing, filter = null, most = 1000 }) {
  let [by, isDown] = [sort.by, sort.down ?? false];
  let rows = [];
  let wanted = "";
  const known = new Map();
  const body = h("tbody");
  const heads = columns.map((column) => {
    const button = h("button", { type: "button", class: "sort", on: { click: () => choose(column.name) } }, column.title, h("span", { class: "direction", "aria-hidden": "true" }));
    return h("th", { scope: "col", class: column.numeric ? "number" : "" }, column.value ? button : column.title);
  });
  const note = h("p", { class: "empty", hidden: true }, nothing);
  const shownTable = h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), body);
  const region = h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, shownTable);
  const search = h("input", { type: "search", id: uniqueId("filter"), placeholder: filter ?? "", on: { input: () => { wanted = search.value.toLowerCase(); draw(true); } } });
  const bar = filter ? h("div", { class: "filter" }, h("label", { for: search.id }, "Filter"), search) : null;
  const element = h("div", { class: "table" }, bar, region, note);

  function choose(name) {
    isDown = by === name ? !isDown : Boolean(columns.find((column) => column.name === name).numeric);
    by = name;
    draw(true);
  }

  function make(row) {
    const cells = columns.map((column) => (column.cell ? column.cell(row) : null));
    const tags = columns.map((column, at) =>
      h(at === 0 ? "th" : "td", { scope: at === 0 ? "row" : null, class: column.numeric ? "number" : "" }, cells[at]?.element));
    return { element: h("tr", {}, tags), cells, tags };
  }

  function fill(made, row) {
    columns.forEach((column, at) => {
      if (made.cells[at]) made.cells[at].update(row);
      else setText(made.tags[at], column.text(row));
    });
  }

  function draw(isAsked) {
    heads.forEach((head, at) => {
      const isBy = columns[at].name === by;
      setAttribute(head, "aria-sort", isBy ? (isDown ? "descending" : "ascending") : "none");
    });
    const texts = (row) => columns.map((column) => (column.text ? column.text(row) : String(column.value?.(row) ?? ""))).join(" ");
    let wantedRows = wanted ? rows.filter((row) => texts(row).toLowerCase().includes(wanted)) : [...rows];
    const column = columns.find((it) => it.name === by);
    if (column?.value) {
      wantedRows.sort((a, b) => compare(column.value(a), column.value(b)) * (isDown ? -1 : 1) || compare(key(a), key(b)));
    }
    wantedRows = wantedRows.slice(0, most);
    const keys = new Set(wantedRows.map(key));
    for (const row of wantedRows) {
      const name = key(row);
      if (!known.has(name)) known.set(name, make(row));
      fill(known.get(name), row);
    }
    const isHeld = !isAsked && (isPointing() || region.contains(document.activeElement) && document.activeElement !== region);
    const order = wantedRows.map((row) => known.get(key(row)).element);
    if (!isHeld) {
      for (const [name, made] of known) {
        if (keys.has(name)) continue;
        made.element.remove();
        known.delete(name);
      }
      order.forEach((tr, at) => { if (body.children[at] !== tr) body.insertBefore(tr, body.children[at] ?? null); });
    } else {
      // New rows go to the end, and rows that are gone stay until there is time.
      for (const tr of order) if (!tr.isConnected) body.append(tr);
    }
    note.hidden = order.length > 0;
    setText(note, wanted && rows.length ? "No row has this text. Clear the filter to see all." : nothing);
    region.hidden = order.length === 0;
  }

  return { element, update: (given) => { rows = given; draw(false); } };
}

// A cell whose text may be marked with a state.
export function markedCell(render) {
  return () => {
    const element = h("span", { class: "marked" });
    let before = null;
    return {
      element,
      update: (row) => {
        const [stamp, child] = render(row);
        if (stamp === before) return;
        before = stamp;
        element.replaceChildren(child());
      },
    };
  };
}
