// The fleet: its members, the bus, and whether all agree on every ring.

import { get } from "./api.js";
import { badge, empty, h, section, setText, show } from "./dom.js";
import { clock, day, plural, span } from "./format.js";
import { table } from "./table.js";

const PROBERS = { self: "checked here for all", leader: "checked by the leader", local: "checked by each proxy" };
const KINDS = { self: "good", live: "good", missed: "bad" };

function membersTable() {
  return table({
    caption: "Members",
    filter: "a name, an address",
    nothing: "No member is known yet.",
    key: (row) => row.process,
    sort: { by: "name" },
    columns: [
      { name: "name", title: "Member", value: (row) => row.name, text: (row) => row.name },
      { name: "state", title: "State", value: (row) => row.state, text: (row) => row.state, cell: () => {
        const element = h("span", {});
        return { element, update: (row) => show(element, row.state, () => [badge(KINDS[row.state] ?? "info", row.state)]) };
      } },
      { name: "address", title: "Admin listener", value: (row) => row.address, text: (row) => row.address },
      { name: "version", title: "Version", value: (row) => row.version, text: (row) => row.version },
      { name: "heard", title: "Last heard", numeric: true, value: (row) => row.heard_seconds, text: (row) => `${span(row.heard_seconds)} ago` },
      { name: "lag", title: "Lag", numeric: true, value: (row) => row.lag_seconds, text: (row) => `${(row.lag_seconds * 1000).toFixed(0)} ms` },
    ],
  });
}

export function fleetView() {
  const alone = empty("This proxy is alone: the file has no block `fleet`.");
  const warnings = h("ul", { class: "findings" });
  const rings = h("ul", { class: "facts" });
  const bus = h("div", {});
  const leader = h("div", {});
  const states = h("ul", { class: "findings" });
  const members = membersTable();
  const content = h("div", { class: "stack", hidden: true },
    section("Members", members.element),
    h("div", { class: "split" },
      h("div", { class: "stack" }, section("Bus", bus), section("Leader", leader)),
      h("div", { class: "stack" }, section("Rings", rings), section("States of nodes for the fleet", states), section("To look at", warnings))));
  alone.hidden = true;
  let timer = null;

  function draw(fleet) {
    members.update(fleet.members);
    show(warnings, fleet.warnings, () => (fleet.warnings.length ? fleet.warnings.map((text) => h("li", {}, badge("warn", "look"), " ", text)) : [h("li", {}, badge("good", "all well"))]));
    show(rings, fleet.rings, () => (fleet.rings.length
      ? fleet.rings.map((ring) => h("li", {}, badge(ring.agree ? "good" : "bad", `${ring.pool}: ${ring.agree ? "all send a key to the same node" : "members send keys to different nodes"}`)))
      : [h("li", {}, empty("There are no pools."))]));
    show(bus, fleet.bus, () => (fleet.bus
      ? [h("p", {}, badge(fleet.bus.open_gap ? "bad" : "good", fleet.bus.open_gap ? "too many nodes are away" : "works"), ` ${plural(fleet.bus.nodes.length, "node")}`),
        h("ul", { class: "findings" }, fleet.bus.nodes.map((node) => h("li", {}, badge(node.up ? "good" : "bad", node.up ? "up" : "away"), ` ${node.id} ${node.address}${node.error ? `: ${node.error}` : ""}${node.waiting ? `, ${plural(node.waiting, "event waits", "events wait")}` : ""}`))),
        ...fleet.bus.promise.map((text) => h("p", { class: "hint" }, text))]
      : [empty("No bus is configured: purges reach this proxy alone.")]));
  }

  function drawLeader(found) {
    show(leader, found && { ...found, pools: found.pools.map((pool) => [pool.pool, pool.prober, pool.reason]) }, () => (found
      ? [h("p", {}, badge(found.up ? "good" : "bad", found.up ? "etcd answers" : "etcd does not answer"), ` ${found.endpoint}${found.error ? `: ${found.error}` : ""}`),
        h("p", {}, found.process
          ? [badge(found.leads ? "good" : "info", found.leads ? "this process leads" : "another leads"), ` ${found.name ?? found.process}, term ${found.term}`]
          : badge("warn", "no leader")),
        h("ul", { class: "findings" }, found.pools.map((pool) => h("li", {}, badge(pool.prober === "local" ? "warn" : "good", PROBERS[pool.prober] ?? pool.prober), ` ${pool.pool}${pool.reason ? `: ${pool.reason}` : ""}`)))]
      : [empty("No etcd is configured: each proxy checks nodes by itself, and keeps states of nodes for itself.")]));
    const list = found?.states ?? [];
    show(states, list, () => (list.length
      ? list.map((it) => h("li", {}, badge(it.missing.length ? "warn" : "good", it.state), ` ${it.node} of ${it.pool}, by ${it.by}, ${day(new Date(it.at * 1000))} ${clock(new Date(it.at * 1000))}${it.missing.length ? `; not yet at ${it.missing.join(", ")}` : ""}${it.draining.length ? `; sessions are left at ${it.draining.join(", ")}` : ""}`))
      : [h("li", {}, empty("None: each node has the state of the file, or of one proxy."))]));
  }

  async function read() {
    // A call for a fleet that is not there would be an error in the console.
    const config = await get("/api/config");
    alone.hidden = !config || Boolean(config.fleet);
    content.hidden = !config?.fleet;
    if (!config?.fleet) return;
    const fleet = await get("/api/fleet");
    draw(fleet);
    drawLeader(fleet.leader);
  }
  const old = h("p", { class: "bad", role: "status" }, "");
  content.prepend(old);
  let readAt = null;
  const again = () => read().then(() => {
    readAt = Date.now();
    setText(old, "");
  }, (error) => setText(old, readAt === null ? error.message : `As it was ${span((Date.now() - readAt) / 1000)} ago: ${error.message}`));
  again();
  timer = setInterval(() => { if (!document.hidden) again(); }, 4000);
  return { title: "Fleet", element: h("div", {}, alone, content), update() {}, leave: () => clearInterval(timer) };
}
