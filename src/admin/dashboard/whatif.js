// What if: a node leaves, joins or gets another weight, or the file is another one. The proxy says what would move,
// by the same code as `ringway ring`; nothing is changed.

import { post } from "./api.js";
import { badge, h, section, uniqueId } from "./dom.js";
import { percent, rate } from "./format.js";

const bar = (part, kind) => {
  const fill = h("i", { class: kind });
  fill.style.width = `${Math.min(100, part * 100)}%`;
  return h("span", { class: "meter", "aria-hidden": "true" }, fill);
};

function transfers(change) {
  const rows = change.transfers.slice(0, 40);
  const largest = rows[0]?.share ?? 1;
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Keys that move" },
    h("table", {}, h("caption", {}, "From whom to whom"),
      h("thead", {}, h("tr", {}, ["From", "To"].map((title) => h("th", { scope: "col" }, title)), h("th", { scope: "col", class: "number" }, "Of all keys"), h("th", { scope: "col" }, ""))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.from ?? "no node"), h("td", {}, row.to ?? "no node"), h("td", { class: "number" }, percent(row.share, 2)), h("td", {}, bar(row.share / largest, "a"))))),
    ),
    change.transfers.length > rows.length ? h("p", { class: "hint" }, `and ${change.transfers.length - rows.length} smaller moves`) : null);
}

function loads(plan) {
  const { change } = plan;
  const loadOf = (id) => change.load?.find((it) => it.id === id);
  const before = new Map(plan.nodes.map((node) => [node.id, node]));
  const after = new Map(change.nodes.map((node) => [node.id, node]));
  const ids = [...new Set([...before.keys(), ...after.keys()])];
  const most = Math.max(...ids.map((id) => after.get(id)?.share ?? 0), ...ids.map((id) => before.get(id)?.share ?? 0));
  const moved = (id) => Math.abs((after.get(id)?.share ?? 0) - (before.get(id)?.share ?? 0));
  const listed = ids.sort((a, b) => moved(b) - moved(a)).slice(0, 60);
  const cell = (id) => {
    const load = loadOf(id);
    return load ? `${rate(load.now)} → ${rate(load.then)}` : "–";
  };
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Shares and load afterwards" },
    h("table", {}, h("caption", {}, "Shares and load afterwards"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Node"), h("th", { scope: "col", class: "number" }, "Share now"), h("th", { scope: "col", class: "number" }, "Then"), h("th", { scope: "col" }, ""), h("th", { scope: "col", class: "number" }, "Load now → then"))),
      h("tbody", {}, listed.map((id) => h("tr", {}, h("th", { scope: "row" }, id, before.has(id) ? "" : h("small", {}, " joins"), after.has(id) ? "" : h("small", {}, " leaves")),
        h("td", { class: "number" }, before.has(id) ? percent(before.get(id).share) : "–"), h("td", { class: "number" }, after.has(id) ? percent(after.get(id).share) : "–"),
        h("td", {}, bar((before.get(id)?.share ?? 0) / most, "muted"), bar((after.get(id)?.share ?? 0) / most, "a")), h("td", { class: "number" }, cell(id)))))));
}

function poolPlan(plan) {
  if (!plan.change) return h("p", {}, `Pool ${plan.pool}: no key moves.`);
  return h("div", { class: "plan" },
    h("p", { class: "headline" }, h("strong", {}, percent(plan.change.moved, 2)), ` of the keys of ${plan.pool} get another node.`),
    h("p", { class: "hint" }, plan.change.moved > 0 ? "What the nodes keep in caches of their own is cold for these keys. This proxy's cache keeps all that it has: it stores by URL, not by node." : "No cache loses anything."),
    h("div", { class: "split" }, transfers(plan.change), loads(plan)));
}

function shown(result) {
  const list = (title, items) => (items.length ? h("div", {}, h("h3", {}, title), h("ul", {}, items.map((text) => h("li", {}, text)))) : null);
  const finding = (it) => h("li", {}, badge(it.severity === "error" ? "bad" : "warn", it.severity), ` ${it.line ? `line ${it.line}, column ${it.column}: ` : ""}${it.message}`);
  const findings = result.findings.length ? h("ul", { class: "findings" }, result.findings.map(finding)) : null;
  if (!result.valid) return [h("p", { class: "headline" }, badge("bad", "The file is not valid: a reload would change nothing.")), findings];
  return [
    findings,
    ...result.pools.map(poolPlan),
    result.pools.length || result.changes.length || result.unknown.length ? null : h("p", {}, "Nothing would change."),
    list("What changes in the file", result.changes),
    list("Pools that come", result.pools_added),
    list("Pools that go", result.pools_removed),
    list("Not known before it happens", result.unknown),
    list("Takes effect at a restart only", result.needs_restart),
    list("Stored responses that would not be found any more", result.cache_lost.map((route) => `those of the route ${route}`)),
  ];
}

export function whatIf(name, params) {
  const rows = h("div", { class: "members" });
  const joins = { id: h("input", { id: uniqueId("join"), type: "text", spellcheck: "false", placeholder: "app-9" }), weight: h("input", { id: uniqueId("weight"), type: "number", min: 0, max: 1000, value: 1 }) };
  const file = h("textarea", { id: uniqueId("file"), rows: 8, spellcheck: "false", placeholder: "listeners:\n  - …" });
  const result = h("div", { class: "result", role: "status" });
  const members = new Map();
  let isFirst = true;

  async function ask(order) {
    result.replaceChildren(h("p", { class: "hint" }, "Asking the proxy…"));
    try {
      const plan = await post("/api/plan", order);
      result.replaceChildren(...shown(plan).flat().filter(Boolean));
    } catch (error) {
      result.replaceChildren(h("p", { class: "headline" }, badge("bad", error.message)));
    }
  }

  function askMembers(event) {
    event?.preventDefault();
    const order = { pool: name, without: [], with: [] };
    for (const [id, member] of members) {
      if (member.out.checked) order.without.push(id);
      else if (Number(member.weight.value) !== member.is) order.with.push(`${id}=${Number(member.weight.value)}`);
    }
    if (joins.id.value.trim()) order.with.push(`${joins.id.value.trim()}=${Number(joins.weight.value)}`);
    if (!order.without.length && !order.with.length) {
      result.replaceChildren(h("p", { class: "hint" }, "Choose a node that leaves, change a weight, or name one that joins."));
      return;
    }
    const query = new URLSearchParams();
    order.without.forEach((id) => query.append("without", id));
    order.with.forEach((id) => query.append("with", id));
    history.replaceState(null, "", `#/pools/${encodeURIComponent(name)}?${query}`);
    ask(order);
  }

  function add(node) {
    const out = h("input", { type: "checkbox", id: uniqueId("out") });
    const weight = h("input", { type: "number", min: 0, max: 1000, value: node.weight, "aria-label": `Weight of ${node.id}` });
    members.set(node.id, { out, weight, is: node.weight });
    rows.append(h("div", { class: "member" }, out, h("label", { for: out.id }, "Take out ", h("b", {}, node.id)), weight));
  }

  const byNodes = h("form", { on: { submit: askMembers } }, rows,
    h("div", { class: "member join" }, h("label", { for: joins.id.id }, "Add"), joins.id, h("label", { for: joins.weight.id }, "weight"), joins.weight),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Show what moves")));
  const byFile = h("form", { on: { submit: (event) => { event.preventDefault(); ask({ file: file.value }); } } },
    h("label", { for: file.id }, "A whole configuration file"), file,
    h("p", { class: "hint" }, "It is validated and compared. None of the files that it names is read, and nothing is changed."),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Show what moves")));
  const element = section("What if", h("div", { class: "split" },
    h("div", {}, h("h3", {}, "Nodes of this pool"), byNodes), h("details", { class: "paste" }, h("summary", {}, "Paste an edited file"), byFile)), result);
  element.id = "what-if";

  return {
    element,
    update(pool) {
      for (const node of pool.nodes) {
        if (!members.has(node.id)) add(node);
        const member = members.get(node.id);
        if (member.is !== node.weight && document.activeElement !== member.weight) {
          if (Number(member.weight.value) === member.is) member.weight.value = node.weight;
          member.is = node.weight;
        }
      }
      if (!isFirst) return;
      isFirst = false;
      const wanted = params.getAll("without").concat(params.getAll("with"));
      params.getAll("without").forEach((id) => { if (members.has(id)) members.get(id).out.checked = true; });
      for (const text of params.getAll("with")) {
        const at = text.lastIndexOf("=");
        const [id, weight] = [text.slice(0, at), text.slice(at + 1)];
        if (members.has(id)) members.get(id).weight.value = weight;
        else [joins.id.value, joins.weight.value] = [id, weight];
      }
      if (wanted.length) askMembers();
    },
  };
}
