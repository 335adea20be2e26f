// Elements from plain values. Texts become text nodes: nothing is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS(SVG, tag), attributes, children);

// Writes a text only where it differs, so that a selection and a screen reader are left alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

// Replaces the children where what they show has changed.
const shown = new WeakMap();
export function show(element, stamp, children) {
  const text = JSON.stringify(stamp);
  if (shown.get(element) === text) return;
  shown.set(element, text);
  element.replaceChildren(...children().flat().filter(Boolean));
}

// Whether a pointer is at work: then nothing may move below it.
let pointed = 0;
const note = () => { pointed = performance.now(); };
for (const event of ["pointermove", "pointerdown", "keydown"]) addEventListener(event, note, { passive: true });
export const isPointing = () => performance.now() - pointed < 1200;

let numbers = 0;
export const uniqueId = (prefix) => `${prefix}-${++numbers}`;

export function section(title, ...children) {
  const id = uniqueId("section");
  return h("section", { class: "panel", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

export const empty = (text) => h("p", { class: "empty" }, text);

// A state in words with a sign before them, so that colour never stands alone.
const SIGNS = { good: "●", warn: "▲", bad: "✕", off: "○", info: "◆" };
export const badge = (kind, text) =>
  h("span", { class: `badge ${kind}` }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[kind] ?? ""), text);
