// Requests as they end, and the hottest keys, URLs, clients and routes.

import { get, stream } from "./api.js";
import { badge, h, isPointing, section, setText, show, uniqueId } from "./dom.js";
import { bytes, milliseconds, number, percent, plural, span } from "./format.js";

const MAX_LINES = 200;

const FILTERS = [
  ["route", "Route", "site"],
  ["status", "Status", "5xx"],
  ["node", "Node", "app-1"],
  ["path", "Path begins with", "/shop"],
  ["client", "Client", "10.0.0.0/8"],
  ["min", "Took at least", "250ms"],
  ["cache", "Cache", "miss"],
  ["idempotency", "Key result", "unknown"],
  ["key", "Hash key", "user-42"],
];

function statusBadge(status) {
  const kind = status >= 500 ? "bad" : status >= 400 ? "warn" : "good";
  return badge(kind, String(status));
}

function line(record) {
  const timers = [record.connect === null ? null : `connect ${milliseconds(record.connect * 1000)}`, record.first_byte === null ? null : `first byte ${milliseconds(record.first_byte * 1000)}`];
  const notes = [record.cache && `cache ${record.cache}`, record.idempotency && `key ${record.idempotency}`, record.consistency && `consistency ${record.consistency}`, record.error, record.attempts > 1 && plural(record.attempts, "attempt"), record.ended_by !== "completed" && `ended by ${record.ended_by}`];
  const place = record.node ? `#/pools/${encodeURIComponent(record.pool)}?${record.key_hash ? `key_hash=${record.key_hash}` : `node=${encodeURIComponent(record.node)}`}` : null;
  return h("tr", {},
    h("td", {}, record.time.slice(11, 23)),
    h("td", {}, statusBadge(record.status)),
    h("th", { scope: "row", class: "uri" }, h("span", { class: "method" }, record.method), ` ${record.host}${record.uri}`),
    h("td", { class: "number" }, milliseconds(record.duration * 1000), h("small", { class: "why" }, timers.filter(Boolean).join(", "))),
    h("td", {}, record.route),
    h("td", {}, place ? h("a", { href: place, title: record.key_hash ? "Show the way of its key" : "Show the node" }, record.node) : "–"),
    h("td", {}, notes.filter(Boolean).join(" · ")),
    h("td", { class: "number" }, bytes(record.response_bytes)),
    h("td", {}, record.client));
}

function tapPanel(params) {
  const inputs = Object.fromEntries(FILTERS.map(([name, , placeholder]) => [name, h("input", { id: uniqueId(name), type: "text", spellcheck: "false", autocomplete: "off", placeholder, value: params.get(name) ?? "" })]));
  const rows = h("tbody");
  const told = h("p", { class: "hint" }, "Not reading. Requests cost nothing while no reader is there.");
  // The beginning and the end are said aloud; the running count is not.
  const spoken = h("p", { class: "sr", role: "status" });
  const begin = h("button", { type: "submit", class: "primary" }, "Read");
  const stop = h("button", { type: "button", disabled: true, on: { click: () => end() } }, "Stop");
  const form = h("form", { on: { submit: (event) => { event.preventDefault(); read(); } } },
    h("div", { class: "filters" }, FILTERS.map(([name, title]) => h("div", {}, h("label", { for: inputs[name].id }, title), inputs[name]))),
    h("div", { class: "buttons" }, begin, stop));
  const table = h("div", { class: "scroll tap", role: "region", tabindex: "0", "aria-label": "Requests" },
    h("table", {}, h("caption", {}, "Requests, the newest first"),
      h("thead", {}, h("tr", {}, ["Time", "Status", "Request", "Took", "Route", "Node", "Notes", "Sent", "Client"].map((title) => h("th", { scope: "col" }, title)))), rows));
  let reading = null;
  let waiting = [];
  let [seen, leftOut] = [0, 0];

  function end(text = "Stopped.") {
    reading?.abort();
    reading = null;
    stop.disabled = true;
    setText(told, text);
    setText(spoken, text);
  }

  function read() {
    end();
    const query = new URLSearchParams();
    for (const [name] of FILTERS) if (inputs[name].value.trim()) query.set(name, inputs[name].value.trim());
    history.replaceState(null, "", `#/live${query.size ? `?${query}` : ""}`);
    query.set("rate", "40");
    [seen, leftOut, waiting] = [0, 0, []];
    rows.replaceChildren();
    reading = new AbortController();
    stop.disabled = false;
    setText(told, "Reading. Nothing has come yet: send a request, or loosen the filter.");
    setText(spoken, "Reading.");
    stream(`/api/tap?${query}`, {
      onEvent: (name, data) => {
        if (name === "request") {
          seen += 1;
          waiting.push(data);
          if (waiting.length > MAX_LINES) waiting.shift();
        } else leftOut += data.requests;
      },
      onState: (word, error) => { if (word === "failed") end(error.message); },
      signal: reading.signal,
    });
  }

  function draw() {
    if (!reading || !seen) return;
    // Lines wait while the pointer is among them.
    if (waiting.length && !(table.matches(":hover") && isPointing())) {
      rows.prepend(...waiting.reverse().map(line));
      waiting = [];
      while (rows.children.length > MAX_LINES) rows.lastElementChild.remove();
    }
    setText(told, `${plural(seen, "request")} shown${leftOut ? `, ${number(leftOut)} left out: more than are shown in this time` : ""}${waiting.length ? `, ${waiting.length} wait for the pointer to rest` : ""}.`);
  }
  return { element: section("Requests as they end", form, told, spoken, table), draw, leave: () => end(), isWanted: FILTERS.some(([name]) => params.get(name)), read };
}

const shownValue = { time: (value) => milliseconds(value / 1000), bytes, requests: number, errors: number };

export function topPanel(fixed = {}) {
  const select = (name, options) => h("select", { id: uniqueId(name), on: { change: () => ask() } }, options.map(([value, title]) => h("option", { value }, title)));
  const by = select("by", [["url", "URLs"], ["key", "hash keys"], ["client", "clients"], ["route", "routes"]]);
  const measure = select("measure", [["requests", "requests"], ["bytes", "bytes"], ["time", "time"], ["errors", "errors"]]);
  if (fixed.by) by.value = fixed.by;
  const told = h("p", { class: "hint" }, "");
  const list = h("ol", { class: "top" });
  const bar = h("div", { class: "inline" }, fixed.by ? null : [h("label", { for: by.id }, "The hottest"), by], h("label", { for: measure.id }, "by"), measure);
  let asked = 0;
  async function ask() {
    asked += 1;
    const turn = asked;
    const [of, measured] = [by.value, measure.value];
    const found = await get(`/api/top?by=${of}&measure=${measured}&limit=15`).catch((error) => ({ error: error.message }));
    // An answer to an earlier question comes late.
    if (turn !== asked) return;
    if (found.error) return setText(told, found.error);
    setText(told, found.rows.length
      ? `The last ${span(found.seconds)}${found.one_of > 1 ? `, one request of ${found.one_of} counted` : ""}.`
      : "Counting has begun. Nothing has come yet.");
    if ((isPointing() && list.matches(":hover")) || list.contains(document.activeElement)) return;
    show(list, [of, measured, found.rows], () => found.rows.map((row) => {
      const fill = h("i", { class: "a" });
      fill.style.width = `${(row.value / Math.max(1, found.rows[0].value)) * 100}%`;
      const [pool, place] = of === "key" ? row.name.split(" ") : [];
      const name = place ? h("a", { href: `#/pools/${encodeURIComponent(pool)}?key_hash=${place}` }, row.name) : row.name;
      return h("li", {}, h("span", { class: "name" }, name), h("span", { class: "meter", "aria-hidden": "true" }, fill),
        h("span", { class: "value" }, `${row.excess ? "≤ " : ""}${shownValue[measured](row.value)}`), h("small", {}, percent(row.value / Math.max(1, found.total))));
    }));
  }
  return { element: h("div", {}, bar, told, list), ask };
}

export function liveView(params) {
  const tap = tapPanel(params);
  const top = topPanel();
  let turns = 0;
  if (tap.isWanted) tap.read();
  top.ask();
  const timer = setInterval(() => {
    tap.draw();
    turns += 1;
    if (turns % 8 === 0 && !document.hidden) top.ask();
  }, 250);
  return {
    title: "Live",
    element: h("div", { class: "stack" }, tap.element, section("The hottest", top.element)),
    update() {},
    leave() {
      clearInterval(timer);
      tap.leave();
    },
  };
}
