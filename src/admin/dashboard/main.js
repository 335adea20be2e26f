// The frame: the header, the links of the views, and the view that the address names.

import { cacheView } from "./cache.js";
import { configView } from "./config.js";
import { fleetView } from "./fleet.js";
import { badge, empty, h, setAttribute, setText, show } from "./dom.js";
import { span } from "./format.js";
import { liveView } from "./live.js";
import { onceView } from "./once.js";
import { attention, overviewView } from "./overview.js";
import { poolView, poolsView } from "./pool.js";
import { start, state, subscribe } from "./state.js";
import { trafficView } from "./traffic.js";

const VIEWS = [
  ["", "Overview", overviewView],
  ["pools", "Pools", (params, rest) => (rest.length ? poolView(rest.join("/"), params) : poolsPage())],
  ["traffic", "Traffic", trafficView],
  ["live", "Live", liveView],
  ["cache", "Cache", cacheView],
  ["once", "Runs once", onceView],
  ["fleet", "Fleet", fleetView],
  ["config", "Configuration", configView],
];

const main = document.getElementById("main");
const heading = h("h1", {}, "");
let view = null;

function poolsPage() {
  const inner = poolsView();
  const only = () => (state.pools.length === 1 ? `#/pools/${encodeURIComponent(state.pools[0].name)}` : null);
  return { ...inner, update() {
    if (only()) return location.replace(only());
    inner.update();
  } };
}

function parse() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const decode = (part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  };
  const [name, ...rest] = path.split("/").map(decode);
  return [name, rest.filter(Boolean), new URLSearchParams(query)];
}

function route() {
  const [name, rest, params] = parse();
  const found = VIEWS.find(([path]) => path === name);
  const hadView = view !== null;
  view?.leave?.();
  view = found ? found[2](params, rest) : { title: "Not found", element: empty("There is no such view. Choose one of the links."), update() {} };
  setText(heading, view.title);
  document.title = `${view.title} · Ringway`;
  main.replaceChildren(heading, view.element);
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.update(state);
  if (hadView) main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

const standing = document.getElementById("standing");
const about = document.getElementById("process");

function drawFrame() {
  const { status, error, readAt, isLive } = state;
  const count = attention().filter(([kind]) => kind === "bad").length;
  const words = error
    ? ["bad", "no answer", readAt === null ? error : `${error}; as it was ${span((Date.now() - readAt) / 1000)} ago`]
    : !status
      ? ["off", "connecting", ""]
      : status.draining
        ? ["warn", "draining", ""]
        : !status.ready
          ? ["bad", "not ready", "no usable node"]
          : ["good", "ready", count ? `${count} to look at` : ""];
  show(standing, [words, isLive], () => [badge(words[0], words[1]), words[2] ? h("span", { class: "more" }, words[2]) : "", badge(isLive ? "good" : "off", isLive ? "live" : "polling")]);
  if (status) setText(about, `${status.version} · up ${span(status.uptime_seconds)} · ${status.workers} workers · ${status.listeners.map((it) => `${it.name} ${it.address}`).join(", ")}`);
}

document.getElementById("views").append(...VIEWS.map(([name, title]) => h("li", {}, h("a", { href: `#/${name}`, "data-view": name }, title))));
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
subscribe(() => {
  drawFrame();
  view?.update(state);
});
setAttribute(main, "data-ready", "true");
route();
start();
