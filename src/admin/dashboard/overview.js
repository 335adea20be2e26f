// The first view: what needs attention, the figures of the proxy, its pools, and what has happened.

import { badge, empty, h, isPointing, section, setText, show } from "./dom.js";
import { bytes, clock, milliseconds, number, percent, plural, rate, span } from "./format.js";
import { chart } from "./charts.js";
import { eventLine } from "./events.js";
import { poolsView } from "./pool.js";
import { standing } from "./ring.js";
import { rateOf, recentOf, slowNodes, slowSince, state, totals } from "./state.js";

const DAY = 86400;

// What an operator should look at, the gravest first: [kind, text, link].
export function attention() {
  const found = [];
  const { status, pools, sagas, check } = state;
  if (!status) return found;
  const pool = (name, node) => `#/pools/${encodeURIComponent(name)}${node ? `?node=${encodeURIComponent(node)}` : ""}`;
  const since = (kind, node, of) => {
    const event = [...state.events].reverse().find((it) => it.kind === kind && it.pool === of && it.node === node);
    return event ? `, since ${clock(new Date(event.time))} (${span((Date.now() - new Date(event.time)) / 1000)})` : "";
  };
  if (status.draining) found.push(["warn", "The proxy drains and will end", null]);
  for (const it of pools) {
    if (!it.usable) found.push(["bad", `The pool ${it.name} has no usable node`, pool(it.name)]);
    else if (it.panic) found.push(["bad", `The pool ${it.name} is in panic: so few nodes are well that health is ignored`, pool(it.name)]);
    for (const node of it.nodes) {
      const [kind, words] = standing(node);
      if (kind !== "bad") continue;
      const cause = node.ejected_for_seconds === null ? "node_health" : "node_ejection";
      found.push(["bad", `Node ${node.id} of the pool ${it.name} is ${words}${since(cause, node.id, it.name)}`, pool(it.name, node.id)]);
    }
    if (it.discovery && !it.discovery.success) found.push(["warn", `Discovery of the pool ${it.name} fails: ${it.discovery.error}`, pool(it.name)]);
  }
  for (const slow of slowNodes()) {
    found.push(["warn", `Node ${slow.node} of the pool ${slow.pool} is slow: half of its requests take over ${milliseconds(slow.p50)}, elsewhere ${milliseconds(slow.base)}, ${slowSince(slow)}`, pool(slow.pool, slow.node)]);
  }
  if (!status.last_reload.success) found.push(["bad", `The file is not in force: ${status.last_reload.error}`, "#/config"]);
  if (status.idempotency && !status.idempotency.up) found.push(["bad", "The idempotency store takes no claims", "#/once"]);
  if (state.storeError) found.push(["bad", `Sagas and records cannot be read: ${state.storeError}`, "#/once"]);
  if (state.unknown.length) found.push(["warn", `${plural(state.unknown.length, "request has", "requests have")} an outcome that is not known`, "#/once"]);
  if (sagas.length) found.push(["bad", `${plural(sagas.length, "saga is", "sagas are")} stuck and wait for a decision`, "#/once"]);
  for (const it of certificates()) {
    if (it.left < 14 * DAY) found.push([it.left < 0 ? "bad" : "warn", `The certificate ${it.name} ${it.left < 0 ? "has expired" : `ends in ${span(it.left)}`}`, "#/config"]);
  }
  if (status.last_reload.needs_restart.length) found.push(["warn", `A restart is needed for ${status.last_reload.needs_restart.join(", ")}`, "#/config"]);
  const warnings = check?.findings.filter((it) => it.severity === "warning").length ?? 0;
  if (warnings) found.push(["warn", `The configuration file has ${plural(warnings, "warning")}`, "#/config"]);
  const order = { bad: 0, warn: 1 };
  return found.sort((a, b) => order[a[0]] - order[b[0]]);
}

// The certificates in use.
export function certificates() {
  const all = state.status?.certificates ?? [];
  return all.map(({ name, file, expires }) => ({ name, file, ends: new Date(expires * 1000), left: expires - Date.now() / 1000 }));
}

function figure(title) {
  const value = h("dd", {}, "–");
  const note = h("dd", { class: "note" }, "");
  return { element: h("div", { class: "figure-box" }, h("dt", {}, title), value, note), set: (text, more = "") => { setText(value, text); setText(note, more); } };
}

// The slowest route of late, by p99.
function slowest() {
  let found = null;
  for (const series of state.routes.values()) {
    const value = recentOf(series.p99, 3);
    if (value !== null && (!found || value > found.value)) found = { route: series.route, value };
  }
  return found;
}

export function overviewView() {
  const list = h("ul", { class: "attention" });
  // What is said aloud: only what is new, and no running times.
  const spoken = h("p", { class: "sr", role: "status" });
  const figures = { rate: figure("Requests"), errors: figure("Errors"), p99: figure("Slowest route, p99"), hits: figure("Cache hits"), flight: figure("Connections") };
  const rates = chart({ title: "Requests and errors per second", unit: rate, lines: [{ name: "requests", kind: "a" }, { name: "errors", kind: "bad" }] });
  const pools = poolsView();
  const events = h("ol", { class: "events" });
  const element = h("div", { class: "stack" },
    section("What needs attention", list, spoken),
    h("dl", { class: "figures" }, Object.values(figures).map((it) => it.element)),
    h("div", { class: "split wide-left" },
      h("div", { class: "stack" }, section("Traffic", rates.element), section("Pools", pools.element)),
      section("What happened", events)));

  function drawAttention() {
    const found = attention();
    setText(spoken, found.length ? found.map(([, text]) => text.split(/, since |, for over |: half of/)[0]).join(". ") : "All is well.");
    const draw = () => found.length
      ? found.map(([kind, text, link]) => h("li", { class: kind }, badge(kind, kind === "bad" ? "now" : "look"), " ", link ? h("a", { href: link }, text) : h("span", {}, text)))
      : [h("li", { class: "good" }, badge("good", "all well"), " No node is ill or slow, the file is in force, nothing waits for a decision.")];
    // Texts with a time change each second; the lines themselves stay in their places.
    if (list.children.length === found.length && found.length) {
      const links = [...list.querySelectorAll("a, li > span:last-child")];
      const subject = (text) => text.split(/[,:]| is /)[0];
      const same = links.length === found.length && found.every(([kind, text, link], at) =>
        list.children[at].className === kind && links[at].getAttribute("href") === link && subject(links[at].textContent) === subject(text));
      if (same) {
        found.forEach(([, text], at) => setText(links[at], text));
        return;
      }
    }
    if (isPointing() && list.children.length) return;
    show(list, found.length ? found : "well", draw);
  }

  return {
    title: "Overview",
    element,
    update() {
      const { status } = state;
      if (!status) return;
      drawAttention();
      const all = totals();
      const now = rateOf(all.requests);
      const errors = rateOf(all.errors);
      figures.rate.set(rate(now), "over the last 15 s");
      figures.errors.set(now ? percent(errors / now) : "–", `${rate(errors)} with 5xx`);
      const slow = slowest();
      figures.p99.set(milliseconds(slow?.value ?? null), slow?.route ?? "no requests");
      const hits = rateOf(state.cache.hits, 12);
      const requests = rateOf(state.cache.requests, 12);
      figures.hits.set(requests ? percent(hits / requests) : "–", `${bytes(status.cache.bytes)} of ${bytes(status.cache.memory)}`);
      figures.flight.set(number(status.connections.limit - status.connections.free), `of ${number(status.connections.limit)}`);
      rates.update([all.requests, all.errors].map((values) => values.map((value) => value / state.interval)));
      pools.update();
      const recent = state.events.slice(-12).reverse();
      if (!isPointing() || !events.children.length) {
        show(events, recent.map((event) => event.sequence), () => (recent.length ? recent.map(eventLine) : [h("li", {}, empty("Nothing since the start."))]));
      }
    },
  };
}
