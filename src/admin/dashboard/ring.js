// The ring of a pool, drawn as a ring: an arc for each node, as wide as its share of the keys; inside it a bar for its
// load; outside it the true places of the chosen node's keys, and of a key with the way to its nodes.

import { h, setText, show, svg } from "./dom.js";
import { milliseconds, percent, rate } from "./format.js";

const SIZE = 440;
const MIDDLE = SIZE / 2;
const [OUTER, INNER] = [166, 128];
const [LOAD_OUTER, LOAD_INNER] = [122, 92];
const [TRACK_OUTER, TRACK_INNER] = [186, 174];
// Above so many nodes no names stand around the ring.
const NAMED = 14;

const at = (angle, radius) => [MIDDLE + radius * Math.sin(angle), MIDDLE - radius * Math.cos(angle)];
const point = ([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`;

function arc(from, to, outer, inner) {
  const end = Math.min(to, from + 2 * Math.PI - 0.0001);
  const isLarge = end - from > Math.PI ? 1 : 0;
  return `M${point(at(from, outer))}A${outer} ${outer} 0 ${isLarge} 1 ${point(at(end, outer))}`
    + `L${point(at(end, inner))}A${inner} ${inner} 0 ${isLarge} 0 ${point(at(from, inner))}Z`;
}

// The kind of a node's arc, and the words for it.
export function standing(node) {
  if (node.state === "down") return ["off", "out"];
  if (node.unresolved) return ["bad", "not resolved"];
  if (node.ejected_for_seconds !== null) return ["bad", node.ejected_for_seconds > 0 ? "ejected" : "on trial"];
  if (!node.healthy) return ["bad", "unhealthy"];
  if (node.state === "drain") return ["warn", node.drain?.done ? "drained" : "draining"];
  if (node.slow_start < 1) return ["info", `slow start ${percent(node.slow_start, 0)}`];
  return ["good", "up"];
}

export function ring({ onChoose }) {
  const hatch = svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 6, height: 6, class: "hatch-ground" }), svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch-line" }));
  const arcs = svg("g");
  const loads = svg("g");
  const track = svg("g", { class: "track" });
  const names = svg("g", { class: "names", "aria-hidden": "true" });
  const way = svg("g", { class: "way" });
  const middle = [-18, 6, 28, 48].map((y, line) => svg("text", { x: MIDDLE, y: MIDDLE + y, class: `middle line-${line}` }));
  const description = svg("title");
  const drawing = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, class: "ring", role: "img" },
    description, svg("defs", {}, hatch), track, arcs, loads, way, names, ...middle);
  const element = h("div", { class: "ring-box" }, drawing);
  let nodes = [];
  let chosen = null;
  let hovered = null;
  let found = null;
  let slices = null;

  const places = () => {
    const all = nodes.reduce((sum, node) => sum + node.share, 0) || 1;
    const gap = nodes.length > 1 && nodes.length <= 60 ? 0.012 : 0;
    let angle = 0;
    return nodes.map((node) => {
      const width = (node.share / all) * 2 * Math.PI;
      const place = { node, from: angle + gap / 2, to: Math.max(angle + gap / 2, angle + width - gap / 2), middle: angle + width / 2 };
      angle += width;
      return place;
    });
  };

  function describe() {
    const node = nodes.find((it) => it.id === (hovered ?? chosen));
    const lines = node
      ? [node.id, `${percent(node.share)} of the keys`, `${standing(node)[1]} · ${rate(node.rate)}`, `p99 ${milliseconds(node.p99)} · errors ${percent(node.errors)}`]
      : [`${nodes.length}`, nodes.length === 1 ? "node" : "nodes", "", ""];
    lines.forEach((text, line) => setText(middle[line], text.length > 30 ? `${text.slice(0, 29)}…` : text));
    setText(description, `The ring: ${nodes.length > 20 ? `${nodes.length} nodes` : nodes.map((it) => `${it.id} ${percent(it.share)} ${standing(it)[1]}`).join(", ")}. The table below has all of it.`);
  }

  function drawNodes() {
    const most = Math.max(...nodes.map((node) => (node.share > 0 ? (node.rate ?? 0) / node.share : 0)), 0.0001);
    const all = places();
    show(arcs, all.map(({ node, from, to }) => [node.id, from.toFixed(4), to.toFixed(4), standing(node)[0], node.id === chosen]), () =>
      all.map(({ node, from, to }) => svg("path", {
        d: arc(from, to, OUTER, INNER),
        class: `arc ${standing(node)[0]}${node.id === chosen ? " chosen" : ""}`,
        on: {
          click: () => onChoose(node.id),
          pointerenter: () => { hovered = node.id; describe(); },
          pointerleave: () => { hovered = null; describe(); },
        },
      })));
    show(loads, all.map(({ node, from, to }) => [from.toFixed(3), to.toFixed(3), Math.round(((node.rate ?? 0) / most / (node.share || 1)) * 50)]), () =>
      all.map(({ node, from, to }) => {
        const part = node.share > 0 ? (node.rate ?? 0) / node.share / most : 0;
        return part > 0.01 ? svg("path", { d: arc(from, to, LOAD_INNER + (LOAD_OUTER - LOAD_INNER) * part, LOAD_INNER), class: "load" }) : null;
      }));
    const named = nodes.length <= NAMED ? all : all.filter(({ node }) => node.id === chosen);
    show(names, named.map(({ node, middle: angle }) => [node.id, angle.toFixed(3), standing(node)]), () =>
      named.map(({ node, middle: angle }) => {
        const [x, y] = at(angle, TRACK_OUTER + 9);
        const anchor = Math.abs(Math.sin(angle)) < 0.25 ? "middle" : Math.sin(angle) > 0 ? "start" : "end";
        const short = node.id.length > 12 ? `${node.id.slice(0, 11)}…` : node.id;
        return svg("text", { x, y: y + 4, "text-anchor": anchor, class: standing(node)[0] }, short);
      }));
  }

  function drawTrack() {
    const owner = slices ? slices.nodes.indexOf(found ? found.order[0] : chosen) : -1;
    show(track, [owner, slices?.slices.length, owner < 0 ? 0 : slices.slices.filter((it) => it === owner).length], () => {
      const parts = [svg("circle", { cx: MIDDLE, cy: MIDDLE, r: (TRACK_OUTER + TRACK_INNER) / 2, class: "rail" })];
      if (owner < 0) return parts;
      const step = (2 * Math.PI) / slices.slices.length;
      let text = "";
      slices.slices.forEach((it, slice) => {
        if (it === owner) text += arc(slice * step, (slice + 1) * step, TRACK_OUTER, TRACK_INNER);
      });
      return [...parts, svg("path", { d: text, class: "owned" })];
    });
  }

  function drawWay() {
    show(way, [found?.hash, found?.order.slice(0, 5), found?.takes, nodes.map((node) => node.share.toFixed(4))], () => {
      if (!found) return [];
      const angle = (Number(BigInt(`0x${found.hash}`) >> 11n) / 2 ** 53) * 2 * Math.PI;
      const all = places();
      const [x, y] = at(angle, (TRACK_OUTER + TRACK_INNER) / 2);
      const parts = [svg("circle", { cx: x, cy: y, r: 7, class: "key" })];
      found.order.slice(0, 5).forEach((id, step) => {
        const place = all.find(({ node }) => node.id === id);
        if (!place) return;
        const [nx, ny] = at(place.middle, (OUTER + INNER) / 2);
        if (step === 0) parts.push(svg("line", { x1: x, y1: y, x2: nx, y2: ny, class: "path" }));
        parts.push(svg("circle", { cx: nx, cy: ny, r: 11, class: id === found.takes ? "stop takes" : "stop" }));
        parts.push(svg("text", { x: nx, y: ny + 4, class: "step" }, String(step + 1)));
      });
      return parts;
    });
  }

  function draw() {
    drawNodes();
    drawTrack();
    drawWay();
    describe();
  }

  return {
    element,
    update(given) { nodes = given; draw(); },
    choose(id) { chosen = id; draw(); },
    show(key) { found = key; draw(); },
    slices(given) { slices = given; draw(); },
  };
}
