// Requests that run once: the outcomes of their keys, the records of a key with their release, and stuck sagas.

import { get } from "./api.js";
import { decide, release } from "./actions.js";
import { badge, empty, h, isPointing, section, show, uniqueId } from "./dom.js";
import { number, plural, span } from "./format.js";
import { refreshAll, state } from "./state.js";

const MEANINGS = {
  first: ["good", "it ran"],
  replayed: ["good", "it got the stored result"],
  conflict: ["info", "the same was still running"],
  mismatch: ["warn", "the key was used for another request"],
  unknown: ["bad", "it may have run, and its result is not known"],
  missing: ["warn", "there was no key, and there had to be one"],
  invalid: ["warn", "the key or the caller is not valid"],
  too_large: ["warn", "it has run, and its result was too large to keep"],
  store_failure: ["bad", "the store was out of order"],
};

const KINDS = { unknown: "bad", running: "info", done: "good" };

function recordCard(record, again) {
  const isRunning = record.state === "running";
  return h("li", { class: "record" },
    h("p", {}, badge(KINDS[record.state] ?? "info", record.state), h("b", {}, ` ${record.method} ${record.authority}${record.path}`)),
    h("p", { class: "hint" }, `Key ${record.key}, ${span(record.age)} old${record.status ? `, result ${record.status}` : ""}${record.expires_in === null ? "" : `, kept for another ${span(record.expires_in)}`}. Holder ${record.holder}.`),
    record.state === "unknown" ? h("p", {}, "The request may have run. Look at the node's own records: if it did not run, release the record and let the client try again.") : null,
    isRunning ? h("p", { class: "hint" }, "A proxy still works on it: it cannot be released.") : h("button", { type: "button", class: "grave-outline", on: { click: async () => { if (await release(record)) again(); } } }, "Release…"));
}

function keyForm(params) {
  const input = h("input", { id: uniqueId("key"), type: "text", spellcheck: "false", autocomplete: "off", value: params.get("key") ?? "" });
  const list = h("ul", { class: "records" });
  const told = h("div", { role: "status" });
  const look = async () => {
    const key = input.value.trim();
    if (!key) return;
    history.replaceState(null, "", `#/once?key=${encodeURIComponent(key)}`);
    try {
      const found = await get(`/api/idempotency?key=${encodeURIComponent(key)}`);
      told.replaceChildren(h("p", { class: "hint" }, found.length ? plural(found.length, "record") : "There is no record with this key: a request with it would run."));
      list.replaceChildren(...found.map((record) => recordCard(record, look)));
    } catch (error) {
      told.replaceChildren(h("p", { class: "bad" }, error.message));
    }
  };
  const form = h("form", { class: "inline", on: { submit: (event) => { event.preventDefault(); look(); } } },
    h("label", { for: input.id }, "Idempotency-Key"), input, h("button", { type: "submit" }, "Show its records"));
  if (input.value) look();
  return h("div", {}, form, told, list);
}

function sagaCard(saga) {
  const steps = h("ol", { class: "steps" }, saga.steps.map((step) => h("li", {}, badge({ done: "good", started: "warn", undone: "info" }[step.state] ?? "off", step.state), ` ${step.name}${step.status ? ` (${step.status})` : ""}`)));
  const button = (word, title) => h("button", { type: "button", on: { click: () => decide(saga, word) } }, title);
  return h("li", { class: "record" },
    h("p", {}, badge("bad", saga.state), h("b", {}, ` ${saga.route}`), h("small", {}, ` ${saga.id}`)),
    h("p", { class: "hint" }, `Began ${saga.started}${saga.failed ? `, failed at ${saga.failed.step}: ${saga.failed.cause}${saga.failed.status ? ` (${saga.failed.status})` : ""}` : ""}.`),
    steps,
    h("div", { class: "buttons left" }, button("retry", "Retry…"), saga.failed ? null : button("succeeded", "Resolve as succeeded…"), button("compensated", "Resolve as compensated…")));
}

// Why what is shown may be old.
const unread = () => (state.storeError ? h("li", { class: "bad" }, `Cannot be read now: ${state.storeError}`) : null);

export function onceView(params) {
  const outcomes = h("ul", { class: "outcomes" });
  const store = h("div", {});
  const sagas = h("ul", { class: "records" });
  const unknown = h("p", { class: "hint" }, "");
  const open = h("ul", { class: "records" });
  const element = h("div", { class: "stack" },
    h("div", { class: "split" }, section("Outcomes", outcomes, unknown), section("Store", store)),
    section("Outcomes that are not known", open),
    section("Records of a key", keyForm(params)),
    section("Sagas that are stuck", sagas));
  return {
    title: "Runs once",
    element,
    update() {
      if (!state.status) return;
      const found = state.status.idempotency;
      show(outcomes, found?.requests ?? null, () => {
        const known = Object.entries(MEANINGS).filter(([name]) => found?.requests[name]);
        if (!known.length) return [h("li", {}, empty("No request with a key yet. A route runs requests once with `idempotency: {}`."))];
        return known.map(([name, [kind, meaning]]) => h("li", {}, badge(kind, name.replace("_", " ")), h("strong", {}, number(found.requests[name])), h("small", {}, meaning)));
      });
      show(unknown, found?.requests.unknown ?? 0, () => (found?.requests.unknown ? ["Requests without a known outcome, as they come: ", h("a", { href: "#/live?idempotency=unknown" }, "the live view"), "."] : [""]));
      // A card that has the focus, or the pointer, stays.
      const isHeld = (element) => element.contains(document.activeElement) || (element.matches(":hover") && isPointing());
      if (!isHeld(open)) show(open, [state.storeError, state.unknown.map((record) => [record.id, Math.round(record.age / 60)])], () => (state.unknown.length || state.storeError
        ? [unread(), ...state.unknown.map((record) => recordCard(record, refreshAll))]
        : [h("li", {}, empty("None, as far as this process has seen since its start. Those of other processes are found by their key."))]));
      show(store, found, () => (found
        ? [h("p", {}, badge(found.up ? "good" : "bad", found.up ? "works" : "takes no claims"), ` ${found.store}${found.records === null ? "" : `, ${plural(found.records, "record")}`}`), h("ul", {}, found.promise.map((text) => h("li", {}, text)))]
        : [empty("No route uses the store.")]));
      if (!isHeld(sagas)) show(sagas, [state.storeError, state.sagas], () => (state.sagas.length || state.storeError ? [unread(), ...state.sagas.map(sagaCard)] : [h("li", {}, empty("None waits for a decision."))]));
    },
  };
}
