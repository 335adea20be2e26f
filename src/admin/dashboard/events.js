// Events in words.

import { badge, h } from "./dom.js";
import { clock, plural } from "./format.js";

const WORDS = {
  reload: (it) => (it.success ? ["good", "The configuration was reloaded"] : ["bad", `A reload was refused: ${it.error}`]),
  upgrade: (it) => (it.success ? ["good", "A new binary takes over"] : ["bad", `An upgrade failed: ${it.error}`]),
  node_state: (it) => [it.state === "up" ? "good" : "warn", `${it.node} of ${it.pool} was set to ${it.state}`],
  node_health: (it) => (it.healthy ? ["good", `${it.node} of ${it.pool} is well again`] : ["bad", `${it.node} of ${it.pool} is unhealthy: ${it.error ?? "its checks fail"}`]),
  node_ejection: (it) => (it.ejected ? ["bad", `${it.node} of ${it.pool} was ejected: ${it.reason}`] : ["good", `${it.node} of ${it.pool} takes requests again`]),
  purge: (it) => ["info", `Purged ${it.by === "all" ? "everything" : `${it.by} ${it.value}`}${it.soft ? ", softly" : ""}: ${plural(it.responses, "response")}`],
  record_released: (it) => ["warn", `The record ${it.id} was released by ${it.by}`],
  saga: (it) => [it.state === "stuck" ? "bad" : "warn", `The saga ${it.id} of ${it.route} is ${it.state}${it.step ? ` at ${it.step}` : ""}`],
  saga_decided: (it) => ["info", `${it.by} decided on the saga ${it.id}: ${it.decision}`],
  drain: () => ["warn", "The proxy drains and will end"],
  certificate: (it) => ["info", `The certificate ${it.name} is in use`],
  store: (it) => (it.working ? ["good", `The idempotency store (${it.store}) works`] : ["bad", `The idempotency store (${it.store}) does not work: ${it.error ?? ""}`]),
};

export function eventLine(event) {
  const [kind, text] = WORDS[event.kind]?.(event) ?? ["info", event.kind];
  const time = new Date(event.time);
  return h("li", {}, h("time", { datetime: event.time }, clock(time)), badge(kind, event.kind.replace("_", " ")), h("span", { class: "text" }, text));
}
