// Lines over fifteen minutes, drawn as SVG. A chart keeps its size; what the pointer reads stands in a place of its own.

import { h, setText, svg, uniqueId } from "./dom.js";
import { clock, span } from "./format.js";
import { KEPT, state, timeOf } from "./state.js";

const WIDTH = 640;

function path(values, top, height, width) {
  const step = width / (KEPT - 1);
  let [text, isOpen] = ["", false];
  values.forEach((value, at) => {
    if (value === null || value === undefined) {
      isOpen = false;
      return;
    }
    const x = width - (values.length - 1 - at) * step;
    const y = height - (top > 0 ? value / top : 0) * height;
    text += `${isOpen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    // A lone value is a dot.
    if (!isOpen && (values[at + 1] === null || values[at + 1] === undefined)) text += "h0.01";
    isOpen = true;
  });
  return text;
}

// A rounded number that is not smaller: the top of a scale.
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value) ?? value;
}

export function chart({ title, unit, lines, height = 120 }) {
  const paths = lines.map((line) => svg("path", { class: `line ${line.kind}`, fill: "none" }));
  const cursor = svg("line", { class: "cursor", y1: 0, y2: height, x1: -9, x2: -9 });
  const grid = [0.25, 0.5, 0.75].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: height * part, y2: height * part }));
  const id = uniqueId("chart");
  const description = svg("title", { id }, title);
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${height}`, class: "chart", role: "img", "aria-labelledby": id, preserveAspectRatio: "none" },
    description, ...grid, ...paths, cursor,
  );
  const scale = h("span", { class: "scale" });
  const values = lines.map(() => h("span", { class: "value" }, "–"));
  const legend = h(
    "ul",
    { class: "legend" },
    lines.map((line, at) => h("li", {}, h("span", { class: `key ${line.kind}`, "aria-hidden": "true" }), `${line.name} `, values[at])),
  );
  const when = h("span", { class: "when" }, "now");
  const element = h(
    "figure",
    { class: "figure" },
    h("figcaption", {}, h("span", { class: "title" }, title), when),
    h("div", { class: "plot" }, drawing, scale),
    h("div", { class: "axis", "aria-hidden": "true" }, h("span", {}, "15 min ago"), h("span", {}, "now")),
    legend,
  );
  let lists = lines.map(() => []);
  let back = 0;
  const read = () => {
    lists.forEach((list, at) => setText(values[at], unit(list[list.length - 1 - back] ?? null)));
    setText(when, back === 0 ? "now" : `${clock(timeOf(back))}, ${span(back * state.interval)} ago`);
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const part = (event.clientX - box.left) / box.width;
    back = Math.max(0, Math.min(KEPT - 1, Math.round((1 - part) * (KEPT - 1))));
    const x = WIDTH * (1 - back / (KEPT - 1));
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    read();
  });
  drawing.addEventListener("pointerleave", () => {
    back = 0;
    read();
  });
  const update = (given) => {
    lists = given;
    const top = ceiling(Math.max(0, ...given.flat().filter((value) => value !== null && value !== undefined)));
    given.forEach((list, at) => paths[at].setAttribute("d", path(list, top, height - 2, WIDTH)));
    setText(scale, unit(top));
    const newest = lines.map((line, at) => `${line.name} ${unit(given[at][given[at].length - 1] ?? null)}`);
    setText(description, `${title}, the last fifteen minutes: now ${newest.join(", ")}`);
    read();
  };
  return { element, update };
}

// A small line without a scale, for a row of a table.
export function sparkline(kind) {
  const line = svg("path", { class: `line ${kind}`, fill: "none" });
  const element = svg("svg", { viewBox: "0 0 120 24", class: "spark", "aria-hidden": "true", preserveAspectRatio: "none" }, line);
  const update = (values, top = Math.max(0, ...values.filter((value) => value !== null))) =>
    line.setAttribute("d", path(values, top, 23, 120));
  return { element, update };
}
