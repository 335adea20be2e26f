// Rates, latency and errors of the last fifteen minutes, by route and by node.

import { badge, h, section, setText, show } from "./dom.js";
import { milliseconds, percent, rate } from "./format.js";
import { chart, sparkline } from "./charts.js";
import { errorShare, nodeKey, rateOf, recentOf, slowNodes, state } from "./state.js";
import { table } from "./table.js";

function seriesTable({ caption, of, link, filter, nothing, choose }) {
  const spark = (kind, pick) => () => {
    const line = sparkline(kind);
    return { element: line.element, update: (row) => line.update(pick(row)) };
  };
  return table({
    caption,
    filter,
    nothing,
    key: (row) => row.key,
    sort: { by: "rate", down: true },
    columns: [
      { name: "name", title: of, value: (row) => row.name, text: (row) => row.name,
        cell: (row) => {
          const mark = h("span", {});
          const update = ({ slow }) => show(mark, slow, () => (slow ? [" ", badge("warn", "slow")] : []));
          return { element: h("span", {}, h("button", { type: "button", class: "link", on: { click: () => choose(row.key) } }, row.name), mark), update };
        } },
      { name: "rate", title: "Now", numeric: true, value: (row) => row.rate ?? 0, text: (row) => rate(row.rate) },
      { name: "rates", title: "Requests, 15 min", cell: spark("a", (row) => row.series.requests) },
      { name: "p50", title: "p50", numeric: true, value: (row) => row.p50, text: (row) => milliseconds(row.p50) },
      { name: "p99", title: "p99", numeric: true, value: (row) => row.p99, text: (row) => milliseconds(row.p99) },
      { name: "latency", title: "p99, 15 min", cell: spark("b", (row) => row.series.p99) },
      { name: "errors", title: "Errors", numeric: true, value: (row) => row.errors, text: (row) => percent(row.errors) },
      { name: "error-line", title: "Errors, 15 min", cell: spark("bad", (row) => row.series.errors) },
    ],
    link,
  });
}

const row = (key, name, series) => ({
  key, name, series, rate: rateOf(series.requests), p50: recentOf(series.p50), p99: recentOf(series.p99), errors: errorShare(series),
});

export function trafficView(params) {
  let chosen = params.get("route") ? ["route", params.get("route")] : params.get("node") ? ["node", nodeKey(params.get("pool") ?? "", params.get("node"))] : null;
  const rates = chart({ title: "Requests and errors per second", unit: rate, lines: [{ name: "requests", kind: "a" }, { name: "errors", kind: "bad" }] });
  const latency = chart({ title: "Latency", unit: milliseconds, lines: [{ name: "p50", kind: "a" }, { name: "p99", kind: "b" }] });
  const name = h("h2", { class: "chosen-name" }, "–");
  const choose = (kind) => (key) => {
    chosen = [kind, key];
    const query = new URLSearchParams();
    if (kind === "route") query.set("route", key);
    else {
      const [pool, node] = JSON.parse(key);
      query.set("pool", pool);
      query.set("node", node);
    }
    history.replaceState(null, "", `#/traffic?${query}`);
    update();
  };
  const routes = seriesTable({ caption: "By route", of: "Route", filter: "a route", nothing: "No route has had a request yet. Send one to a listener.", choose: choose("route") });
  const nodes = seriesTable({ caption: "By node", of: "Node", filter: "a pool or a node", nothing: "No node has had a request yet.", choose: choose("node") });
  const element = h("div", { class: "stack" },
    h("section", { class: "panel" }, name, h("div", { class: "split" }, rates.element, latency.element)),
    section("Routes", routes.element), section("Nodes", nodes.element));

  function update() {
    const routeRows = [...state.routes.values()].map((series) => row(series.route, series.route === "none" ? "none (no route matched)" : series.route, series));
    const slow = new Set(slowNodes().map((it) => nodeKey(it.pool, it.node)));
    const nodeRows = [...state.nodes.values()].map((series) => {
      const key = nodeKey(series.pool, series.node);
      return { ...row(key, `${series.pool} / ${series.node}`, series), slow: slow.has(key) };
    });
    routes.update(routeRows);
    nodes.update(nodeRows);
    const busiest = [...routeRows].sort((a, b) => (b.rate ?? 0) - (a.rate ?? 0))[0];
    const wanted = chosen ? (chosen[0] === "route" ? routeRows : nodeRows).find((it) => it.key === chosen[1]) : busiest;
    if (!wanted) {
      setText(name, chosen ? "This one has had no request of late" : "No requests yet");
      return;
    }
    setText(name, `${chosen?.[0] === "node" ? "Node" : "Route"} ${wanted.name}`);
    rates.update([wanted.series.requests, wanted.series.errors].map((list) => list.map((value) => value / state.interval)));
    latency.update([wanted.series.p50, wanted.series.p99]);
  }
  return { title: "Traffic", element, update };
}
