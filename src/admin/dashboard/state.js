// What the page knows of the proxy: read from the API, kept in one place, handed to the view.

import { get, stream } from "./api.js";
import { clock, span } from "./format.js";

export const KEPT = 180;
const MAX_EVENTS = 400;

export const state = {
  status: null,
  pools: [],
  sagas: [],
  unknown: [],
  // Why the sagas and the records cannot be read; the last ones stay.
  storeError: null,
  check: null,
  events: [],
  interval: 5,
  newest: 0,
  newestAt: 0,
  // The process that the samples are of.
  epoch: null,
  routes: new Map(),
  nodes: new Map(),
  cache: { requests: [], hits: [] },
  isLive: false,
  // When the status was read last, and why it cannot be read now.
  readAt: null,
  error: null,
};

const listeners = new Set();
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
function changed() {
  for (const listener of listeners) listener(state);
}

const extend = (kept, more) => [...kept, ...more].slice(-KEPT);

function addSeries(map, name, more, found) {
  const kept = map.get(name) ?? { ...found, requests: [], errors: [], p50: [], p99: [] };
  for (const list of ["requests", "errors", "p50", "p99"]) kept[list] = extend(kept[list], more[list]);
  map.set(name, kept);
}

export const nodeKey = (pool, node) => JSON.stringify([pool, node]);

async function readHistory() {
  let more = await get(`/api/history?after=${state.newest}`);
  if (more.epoch !== state.epoch && state.epoch !== null) {
    // Another process has taken over.
    state.newest = 0;
    more = await get("/api/history?after=0");
  }
  state.epoch = more.epoch;
  const isAnew = state.newest === 0;
  if (isAnew) {
    state.routes.clear();
    state.nodes.clear();
    state.cache = { requests: [], hits: [] };
  }
  if (more.newest === state.newest && !isAnew) return;
  state.interval = more.interval_seconds;
  state.newest = more.newest;
  state.newestAt = Date.now();
  for (const it of more.routes) addSeries(state.routes, it.route, it, { route: it.route });
  for (const it of more.nodes) addSeries(state.nodes, nodeKey(it.pool, it.node), it, { pool: it.pool, node: it.node });
  for (const list of ["requests", "hits"]) state.cache[list] = extend(state.cache[list], more.cache[list]);
  const keep = (map, keys) => {
    for (const key of map.keys()) if (!keys.has(key)) map.delete(key);
  };
  keep(state.routes, new Set(more.routes.map((it) => it.route)));
  keep(state.nodes, new Set(more.nodes.map((it) => nodeKey(it.pool, it.node))));
}

async function readStatus() {
  [state.status, state.pools] = await Promise.all([get("/api/status"), get("/api/pools")]);
  state.readAt = Date.now();
}

async function readSlowly() {
  if (state.status?.idempotency) {
    try {
      [state.sagas, state.unknown] = await Promise.all([get("/api/sagas?state=stuck"), get("/api/idempotency?state=unknown")]);
      state.storeError = null;
    } catch (error) {
      state.storeError = error.message;
    }
  }
  state.check = await get("/api/check").catch(() => state.check);
}

// The faults of the readings: each ends with the next success of the same one.
const faults = new Map();
async function attempt(work) {
  try {
    await work();
    faults.delete(work);
  } catch (error) {
    faults.set(work, error.message);
  }
  state.error = faults.get(readStatus) ?? faults.get(readHistory) ?? null;
  changed();
}

function repeat(work, milliseconds) {
  const turn = async () => {
    if (!document.hidden) await attempt(work);
    setTimeout(turn, milliseconds);
  };
  turn();
}

// Reads again what is read seldom.
export const refreshAll = () => attempt(readSlowly);

let isAsked = false;
// Reads the state again soon, as something has changed.
export function refresh() {
  if (isAsked) return;
  isAsked = true;
  setTimeout(async () => {
    isAsked = false;
    await attempt(readStatus);
  }, 100);
}

function onEvent(name, event) {
  state.events.push(event);
  if (state.events.length > MAX_EVENTS) state.events.shift();
  if (event.kind === "reload") attempt(readSlowly);
  refresh();
  changed();
}

export function start() {
  repeat(readStatus, 2000);
  repeat(readHistory, 2500);
  setTimeout(() => repeat(readSlowly, 15000), 300);
  follow();
  document.addEventListener("visibilitychange", follow);
}

// Follows the events while the page is seen: a browser opens few connections to a host, for all of its tabs.
const position = { last: null };
let following = null;
function follow() {
  following?.abort();
  following = null;
  if (document.hidden) return;
  following = new AbortController();
  stream("/api/events", {
    onEvent,
    onState: (word) => {
      state.isLive = word === "open";
      changed();
    },
    signal: following.signal,
    position,
  });
}

// The time of a sample, counted from the newest one.
export const timeOf = (back) => new Date(state.newestAt - back * state.interval * 1000);

const sum = (list) => list.reduce((all, value) => all + value, 0);
export const last = (list, count) => list.slice(-count);

// Requests per second over the last samples.
export function rateOf(list, samples = 3) {
  const recent = last(list, samples);
  return recent.length ? sum(recent) / (recent.length * state.interval) : null;
}

export function errorShare(series, samples = 12) {
  const requests = sum(last(series.requests, samples));
  return requests ? sum(last(series.errors, samples)) / requests : null;
}

// The value of the last sample that had requests.
export function recentOf(list, samples = 6) {
  const known = last(list, samples).filter((value) => value !== null);
  return known.length ? known[known.length - 1] : null;
}

export function totals() {
  const all = { requests: [], errors: [] };
  const length = Math.max(0, ...[...state.routes.values()].map((series) => series.requests.length));
  for (let at = 0; at < length; at += 1) {
    let [requests, errors] = [0, 0];
    for (const series of state.routes.values()) {
      const place = series.requests.length - length + at;
      requests += series.requests[place] ?? 0;
      errors += series.errors[place] ?? 0;
    }
    all.requests.push(requests);
    all.errors.push(errors);
  }
  return all;
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : null;
};

// Since when a slow node is slow, in words.
export function slowSince({ since, isOlder }) {
  const seconds = (Date.now() - since) / 1000;
  return isOlder ? `for over ${span(seconds)}` : `since ${clock(since)} (${span(seconds)})`;
}

// How much slower than usual a node must be to count as slow, and how many samples must say so.
const [FACTOR, LEAST_MS, LEAST_SAMPLES] = [3, 20, 3];
// Samples without a slow request after which a slow time has ended, and before which it is not over.
const MOST_GAP = 4;

// The nodes that are clearly slower than the others of their pool, or than they were themselves, with the time since
// when.
export function slowNodes() {
  const found = [];
  const at = (list, back) => list[list.length - 1 - back] ?? null;
  for (const series of state.nodes.values()) {
    const peers = [...state.nodes.values()].filter((other) => other.pool === series.pool && other !== series);
    const before = median(series.p50.slice(0, -12).filter((value) => value !== null));
    // Of the others, in the samples around it: one alone may be of few requests.
    const usual = (back) => {
      const near = peers.flatMap((peer) => [back, back + 1, back + 2].map((place) => at(peer.p50, place)));
      return median(near.filter((value) => value !== null)) ?? before;
    };
    const isSlow = (back) => {
      const [value, base] = [at(series.p50, back), usual(back)];
      return value !== null && base !== null && value > base * FACTOR && value - base > LEAST_MS;
    };
    let [since, count, gap] = [null, 0, 0];
    for (let back = 0; back < series.p50.length && gap < MOST_GAP; back += 1) {
      if (isSlow(back)) [since, count, gap] = [back, count + 1, 0];
      else gap += since === null && at(series.p50, back) !== null ? MOST_GAP : 1;
    }
    if (count < LEAST_SAMPLES) continue;
    // It may have been slow before the first sample, too.
    const isOlder = since >= series.p50.length - MOST_GAP;
    found.push({ pool: series.pool, node: series.node, p50: recentOf(series.p50), base: usual(0), since: timeOf(since + 1), isOlder });
  }
  return found;
}
