// The cache: how often it answers, what it holds, the hottest URLs, and purges.

import { purge } from "./actions.js";
import { empty, h, section, setText, show, uniqueId } from "./dom.js";
import { bytes, number, percent } from "./format.js";
import { chart } from "./charts.js";
import { topPanel } from "./live.js";
import { state } from "./state.js";

const MEANINGS = {
  hit: "answered from the store",
  stale: "answered from the store although stale",
  revalidated: "answered from the store after a node confirmed it",
  collapsed: "answered by a fetch that another request had begun",
  miss: "fetched, for this request and later ones",
  pass: "fetched for this request alone",
  bypass: "not a request that a cache answers",
  refused: "only-if-cached, and it was not",
};

const TARGETS = {
  url: ["URL", "http://example.com/a", (value) => `Responses of ${value}`],
  prefix: ["URLs that begin with", "/shop/", (value) => `Responses whose URL begins with ${value}`],
  tag: ["Tag", "news", (value) => `Responses with the tag ${value}`],
  all: ["Everything", "", () => "All stored responses"],
};

export function cacheView() {
  const ratio = chart({ title: "Hit ratio", unit: (value) => percent(value, 0), lines: [{ name: "hits of requests", kind: "a" }] });
  const results = h("ul", { class: "bars" });
  const size = h("p", { class: "headline" }, "");
  const fill = h("i", { class: "a" });
  const meter = h("div", { class: "meter tall", "aria-hidden": "true" }, fill);
  const note = h("p", { class: "hint" }, "");
  const top = topPanel({ by: "url" });
  const what = h("select", { id: uniqueId("what") }, Object.entries(TARGETS).map(([value, [title]]) => h("option", { value }, title)));
  const value = h("input", { id: uniqueId("value"), type: "text", spellcheck: "false", placeholder: TARGETS.url[1] });
  const soft = h("input", { id: uniqueId("soft"), type: "checkbox", checked: true });
  what.addEventListener("change", () => {
    value.disabled = what.value === "all";
    value.placeholder = TARGETS[what.value][1];
  });
  const told = h("p", { class: "bad", role: "alert" });
  const form = h("form", { class: "inline", on: { submit: async (event) => {
    event.preventDefault();
    const text = value.value.trim();
    setText(told, what.value === "all" || text ? "" : "Say what is to be purged.");
    if (what.value !== "all" && !text) return value.focus();
    await purge({ [what.value]: what.value === "all" ? true : text, soft: soft.checked }, TARGETS[what.value][2](text));
  } } },
  h("label", { for: what.id }, "What"), what, h("label", { class: "sr", for: value.id }, "Value"), value,
  h("span", {}, soft, " ", h("label", { for: soft.id }, "soft: stale, not gone")), h("button", { type: "submit" }, "Purge…"));
  const nothing = empty("No request has met the cache yet. A route caches with `cache: {}`.");
  const element = h("div", { class: "stack" },
    h("div", { class: "split" }, section("Hits", ratio.element, nothing), section("Size", size, meter, note)),
    h("div", { class: "split" }, section("Results", results), section("Hottest URLs", top.element)),
    section("Purge", form, told));
  top.ask();
  const timer = setInterval(() => { if (!document.hidden) top.ask(); }, 3000);
  return {
    title: "Cache",
    element,
    update() {
      const cache = state.status?.cache;
      if (!cache) return;
      const list = state.cache.requests.map((requests, at) => (requests ? state.cache.hits[at] / requests : null));
      ratio.update([list]);
      nothing.hidden = Object.keys(cache.requests).length > 0;
      setText(size, `${bytes(cache.bytes)} of ${bytes(cache.memory)}`);
      fill.style.width = `${Math.min(100, (cache.bytes / cache.memory) * 100)}%`;
      setText(note, `${number(cache.entries)} keys, ${number(cache.evictions)} evicted since the start${cache.evictions && cache.bytes > cache.memory * 0.95 ? ": the cache is full" : ""}.`);
      const all = Object.values(cache.requests).reduce((sum, count) => sum + count, 0) || 1;
      show(results, cache.requests, () => Object.entries(MEANINGS).filter(([name]) => cache.requests[name]).map(([name, meaning]) => {
        const part = h("i", { class: "a" });
        part.style.width = `${(cache.requests[name] / all) * 100}%`;
        return h("li", {}, h("span", { class: "name" }, name, h("small", {}, meaning)), h("span", { class: "meter", "aria-hidden": "true" }, part), h("span", { class: "value" }, number(cache.requests[name])), h("small", {}, percent(cache.requests[name] / all)));
      }));
    },
    leave: () => clearInterval(timer),
  };
}
