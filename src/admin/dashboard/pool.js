// The view of one pool: its ring, the way of a key, its nodes with what can be done to them, and what a change would
// move.

import { get } from "./api.js";
import { nodeState } from "./actions.js";
import { badge, empty, h, section, setText, show, uniqueId } from "./dom.js";
import { clock, milliseconds, number, percent, plural, rate } from "./format.js";
import { sparkline } from "./charts.js";
import { ring, standing } from "./ring.js";
import { errorShare, nodeKey, rateOf, recentOf, slowNodes, state } from "./state.js";
import { markedCell, table } from "./table.js";
import { whatIf } from "./whatif.js";

// The nodes of a pool with their load of late.
function measured(pool) {
  const slow = slowNodes();
  return pool.nodes.map((node) => {
    const series = state.nodes.get(nodeKey(pool.name, node.id));
    return {
      ...node,
      rate: series ? rateOf(series.requests) : null,
      errors: series ? errorShare(series) : null,
      p50: series ? recentOf(series.p50) : null,
      p99: series ? recentOf(series.p99) : null,
      latencies: series?.p50 ?? [],
      slow: slow.find((it) => it.pool === pool.name && it.node === node.id) ?? null,
    };
  });
}

function reason(node) {
  const parts = [];
  if (node.slow) parts.push(`p50 ${milliseconds(node.slow.p50)}, the others ${milliseconds(node.slow.base)}${node.slow.isOlder ? "" : `, since ${clock(node.slow.since)}`}`);
  if (node.unresolved) parts.push(node.unresolved);
  if (node.ejected_for_seconds > 0) parts.push(`ejected for another ${Math.ceil(node.ejected_for_seconds)} s, as requests failed`);
  if (node.health_check?.error) parts.push(`last check: ${node.health_check.error}`);
  if (node.drain && !node.drain.done) parts.push(plural(node.drain.in_flight, "request still runs", "requests still run"));
  if (node.state !== node.file_state) parts.push(`the file says ${node.file_state}`);
  return parts.join(" · ");
}

function nodesTable(name, choose) {
  return table({
    caption: `Nodes of ${name}`,
    filter: "a name, an address, a state",
    nothing: "This pool has no nodes. Add some to the file, or see what discovery says.",
    key: (row) => row.id,
    sort: { by: "id" },
    columns: [
      { name: "id", title: "Node", value: (row) => row.id, text: (row) => row.id,
        cell: (row) => {
          const element = h("button", { type: "button", class: "link", on: { click: () => choose(row.id) } }, row.id);
          return { element, update: () => {} };
        } },
      { name: "state", title: "State", value: (row) => (row.slow ? "slow" : standing(row)[1]), text: (row) => `${standing(row)[1]} ${row.slow ? "slow" : ""} ${reason(row)}`,
        cell: markedCell((row) => {
          const [kind, words] = row.slow && standing(row)[0] === "good" ? ["warn", "slow"] : standing(row);
          const why = reason(row);
          return [`${kind} ${words} ${why}`, () => h("span", {}, badge(kind, words), why ? h("small", { class: "why" }, why) : "")];
        }) },
      { name: "share", title: "Share", numeric: true, value: (row) => row.share, text: (row) => percent(row.share) },
      { name: "weight", title: "Weight", numeric: true, value: (row) => row.weight, text: (row) => number(row.weight) },
      { name: "rate", title: "Requests", numeric: true, value: (row) => row.rate ?? 0, text: (row) => rate(row.rate) },
      { name: "flight", title: "In flight", numeric: true, value: (row) => row.in_flight, text: (row) => number(row.in_flight) },
      { name: "p50", title: "p50", numeric: true, value: (row) => row.p50, text: (row) => milliseconds(row.p50) },
      { name: "p99", title: "p99", numeric: true, value: (row) => row.p99, text: (row) => milliseconds(row.p99) },
      { name: "errors", title: "Failed or 5xx", numeric: true, value: (row) => row.errors, text: (row) => percent(row.errors) },
      { name: "line", title: "p50, 15 min", cell: () => {
        const line = sparkline("a");
        return { element: line.element, update: (row) => line.update(row.latencies) };
      } },
      { name: "actions", title: "Set to", cell: (row) => actions(name, row) },
    ],
  });
}

function actions(pool, row) {
  let now = row;
  const words = { up: "Up", drain: "Drain", down: "Down" };
  const buttons = Object.entries(words).map(([word, title]) =>
    h("button", { type: "button", "aria-label": `${title}: ${row.id}`, on: { click: () => nodeState(pool, now, word) } }, title));
  const element = h("span", { class: "actions" }, buttons);
  const update = (node) => {
    now = node;
    Object.keys(words).forEach((word, at) => { buttons[at].disabled = node.state === word; });
  };
  return { element, update };
}

function keyForm(name, drawing, params) {
  const input = h("input", { id: uniqueId("key"), type: "text", spellcheck: "false", autocomplete: "off", placeholder: "/shop/17, user-42, …", value: params.get("key") ?? "" });
  const answer = h("div", { class: "answer", role: "status" });
  const look = async () => {
    const place = params.get("key_hash");
    const query = input.value ? `key=${encodeURIComponent(input.value)}` : place ? `key_hash=${encodeURIComponent(place)}` : null;
    if (!query) {
      drawing.show(null);
      return show(answer, null, () => [h("p", { class: "hint" }, "The nodes of a key: its owner first, then the next ones, as they take over.")]);
    }
    const link = `#/pools/${encodeURIComponent(name)}?${query}`;
    if (location.hash !== link) history.replaceState(null, "", link);
    try {
      const found = await get(`/api/pools/${encodeURIComponent(name)}/ring?${query}`);
      drawing.show(found);
      const word = (id, step) => h("li", { class: id === found.takes ? "takes" : "" }, h("span", { class: "name" }, id), id === found.takes ? badge("good", "takes it now") : step === 0 ? badge("warn", "owner, takes nothing now") : "");
      show(answer, found, () => [
        h("ol", { class: "order" }, found.order.slice(0, 8).map(word)),
        h("p", { class: "hint" }, `Place ${found.hash}${found.order.length > 8 ? `, and ${found.order.length - 8} more nodes` : ""}.${found.takes && found.takes !== found.order[0] ? " The owner is skipped at present." : ""}`),
      ]);
    } catch (error) {
      show(answer, error.message, () => [h("p", { class: "bad" }, error.message)]);
    }
  };
  const form = h("form", { class: "inline", on: { submit: (event) => { event.preventDefault(); params.delete("key_hash"); look(); } } },
    h("label", { for: input.id }, "Key"), input, h("button", { type: "submit" }, "Show its way"));
  return { element: h("div", { class: "key-form" }, form, answer), look };
}

export function poolView(name, params) {
  let chosen = params.get("node");
  const drawing = ring({ onChoose: choose });
  const nodes = nodesTable(name, choose);
  const facts = h("ul", { class: "facts" });
  const missing = empty(`There is no pool ${name}. It may have been renamed or removed by a reload.`);
  const form = keyForm(name, drawing, params);
  const plan = whatIf(name, params);
  const content = h("div", { class: "stack" },
    h("div", { class: "split" },
      section("Ring", drawing.element, h("p", { class: "hint" }, "Outside: where the chosen node's keys lie. Ring: shares. Inside: load for its share.")),
      h("div", { class: "stack" }, section("The way of a key", form.element), section("State", facts))),
    section("Nodes", nodes.element),
    plan.element);
  let knownRing = null;
  let knownStates = null;

  function choose(id) {
    chosen = chosen === id ? null : id;
    drawing.choose(chosen);
  }

  async function readSlices(pool) {
    const stamp = JSON.stringify([pool.points, state.status?.last_reload.time, pool.nodes.map((node) => [node.id, node.weight])]);
    if (stamp === knownRing) return;
    knownRing = stamp;
    try {
      drawing.slices(await get(`/api/pools/${encodeURIComponent(name)}/ring?slices=720`));
    } catch {
      // Read again with the next update.
      knownRing = null;
    }
  }

  // The way of the key, whenever a node that it may go to has changed.
  function followKey(rows) {
    const stamp = JSON.stringify([knownRing, rows.map((row) => standing(row))]);
    if (stamp === knownStates) return;
    knownStates = stamp;
    form.look();
  }

  const element = h("div", {}, content, missing);
  let isFirst = true;
  return {
    title: `Pool ${name}`,
    element,
    update() {
      const pool = state.pools.find((it) => it.name === name);
      content.hidden = !pool;
      missing.hidden = Boolean(pool) || !state.status;
      if (!pool) return;
      const rows = measured(pool);
      drawing.update(rows);
      if (isFirst) drawing.choose(chosen);
      isFirst = false;
      nodes.update(rows);
      plan.update(pool);
      readSlices(pool);
      followKey(rows);
      const ups = rows.filter((row) => ["good", "info"].includes(standing(row)[0])).length;
      const slow = rows.filter((row) => row.slow);
      const lines = [
        ...slow.map((row) => [`${row.id} is slow`, "warn"]),
        [`${ups} of ${rows.length} nodes take new keys`, ups === rows.length ? "good" : ups ? "warn" : "bad"],
        [pool.panic ? "In panic: so few nodes are well that health is ignored" : "Health is respected", pool.panic ? "bad" : "good"],
        [pool.queued ? `${plural(pool.queued, "request waits", "requests wait")} for a node with room` : "No request waits for room", pool.queued ? "warn" : "good"],
        [`${pool.retry_tokens.toFixed(0)} retries in the budget`, pool.retry_tokens < 1 ? "warn" : "good"],
        [`${number(pool.points)} points on the ring`, "info"],
      ];
      if (pool.discovery) lines.push([pool.discovery.success ? "Discovery works" : `Discovery fails, the last nodes stay: ${pool.discovery.error}`, pool.discovery.success ? "good" : "bad"]);
      show(facts, lines, () => lines.map(([text, kind]) => h("li", {}, badge(kind, text))));
    },
  };
}

export function poolsView() {
  const list = h("ul", { class: "cards" });
  const nothing = empty("The configuration has no pools: all routes redirect or respond by themselves.");
  return {
    title: "Pools",
    element: h("div", {}, list, nothing),
    update() {
      nothing.hidden = state.pools.length > 0 || !state.status;
      const all = slowNodes();
      const slowIn = (pool) => all.filter((it) => it.pool === pool.name).map((it) => it.node);
      show(list, state.pools.map((pool) => [pool.name, pool.nodes.map((node) => standing(node)), slowIn(pool)]), () => state.pools.map((pool) => {
        const slow = slowIn(pool);
        const ill = pool.nodes.filter((node) => !["good", "info"].includes(standing(node)[0])).length;
        const kinds = pool.nodes.map((node) => (standing(node)[0] === "good" && slow.includes(node.id) ? "warn" : standing(node)[0]));
        const faults = [];
        if (ill) faults.push(`${ill} of ${kinds.length} nodes take no new keys`);
        if (slow.length) faults.push(slow.length === 1 ? `${slow[0]} is slow` : `${slow.length} nodes are slow`);
        const well = faults.length ? faults.map((text) => badge("warn", text)) : [badge("good", "all nodes well")];
        const dots = h("span", { class: "dots", "aria-hidden": "true" }, kinds.slice(0, 60).map((it) => h("i", { class: it })));
        return h("li", {}, h("a", { class: "card", href: `#/pools/${encodeURIComponent(pool.name)}` },
          h("strong", {}, pool.name), pool.usable ? well : badge("bad", "no usable node"), dots, h("small", {}, plural(pool.nodes.length, "node"))));
      }));
    },
  };
}
