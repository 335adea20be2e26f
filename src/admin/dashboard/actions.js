// What an operator can do. What will happen is said first; what was done is said after, with a way back where there is
// one.

import { call, post } from "./api.js";
import { h } from "./dom.js";
import { refresh } from "./state.js";

const LASTS = 12000;

export function toast(kind, text, undo = null) {
  const list = document.getElementById("toasts");
  const item = h("div", { class: `toast ${kind}` }, h("p", {}, text));
  const close = () => item.remove();
  if (undo) item.append(h("button", { type: "button", on: { click: () => { close(); undo(); } } }, "Undo"));
  item.append(h("button", { type: "button", class: "plain", "aria-label": "Close this message", on: { click: close } }, "✕"));
  list.append(item);
  while (list.children.length > 4) list.firstElementChild.remove();
  if (kind !== "bad") setTimeout(() => { if (!item.matches(":hover, :focus-within")) close(); }, LASTS);
}

// Says what will happen, and waits for the decision.
export function confirm({ title, says, button, isGrave = false }) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "confirm-title", "aria-describedby": "confirm-text" });
    const end = (decision) => {
      dialog.close();
      dialog.remove();
      resolve(decision);
    };
    dialog.append(
      h("h2", { id: "confirm-title" }, title),
      h("div", { id: "confirm-text" }, says.map((text) => h("p", {}, text))),
      h("div", { class: "buttons" },
        h("button", { type: "button", on: { click: () => end(false) } }, "Cancel"),
        h("button", { type: "button", class: isGrave ? "grave" : "primary", on: { click: () => end(true) } }, button)),
    );
    dialog.addEventListener("cancel", (event) => { event.preventDefault(); end(false); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

async function carryOut(work, undo = null) {
  try {
    toast("good", await work(), undo);
  } catch (error) {
    toast("bad", `Not done: ${error.message}`);
  }
  refresh();
}

const WORDS = {
  drain: (node) => [
    `${node.id} gets no new keys and no new sessions. Its keys go to the next nodes of the ring; sessions that hold a strict cookie stay with it.`,
    "Requests in flight end as they would.",
  ],
  down: (node) => [`${node.id} gets no requests at all, sessions included. Requests in flight end as they would.`],
  up: (node) => [`${node.id} takes its keys again, as far as its health and its slow start allow.`],
};

const setState = (pool, id, word) =>
  post(`/api/pools/${encodeURIComponent(pool)}/nodes/${encodeURIComponent(id)}/${word}`);

export async function nodeState(pool, node, word) {
  const stays = "The state stays until the file's own state of the node changes, also over reloads and upgrades.";
  const title = { drain: `Drain ${node.id}?`, down: `Take ${node.id} out?`, up: `Bring ${node.id} back?` }[word];
  const button = { drain: "Drain", down: "Take out", up: "Bring back" }[word];
  if (!(await confirm({ title, says: [...WORDS[word](node), stays], button, isGrave: word === "down" }))) return;
  const before = node.state;
  const undo = before === word ? null : () => carryOut(async () => {
    await setState(pool, node.id, before);
    return `${node.id} is ${before} again.`;
  });
  await carryOut(async () => {
    await setState(pool, node.id, word);
    return `${node.id} is ${word} now.`;
  }, undo);
}

export async function reload() {
  const says = [
    "The file is read, validated and, if it is valid, put in force at once. Connections, the cache and the health of nodes stay.",
    "A file with an error changes nothing.",
  ];
  if (!(await confirm({ title: "Reload the configuration?", says, button: "Reload" }))) return;
  await carryOut(async () => (await post("/api/reload")).detail);
}

export async function purge(order, words) {
  const says = [
    order.soft
      ? `${words} become stale: the next request for each asks a node whether it is still good.`
      : `${words} are removed. The next request for each goes to a node.`,
    "This cannot be undone.",
  ];
  if (!(await confirm({ title: "Purge the cache?", says, button: "Purge", isGrave: !order.soft }))) return false;
  await carryOut(async () => (await post("/api/cache/purge", order)).detail);
  return true;
}

export async function release(record) {
  const says = [
    `The record of ${record.method} ${record.path} (${record.state}) is removed: the next request with its key runs.`,
    "If its first request did run, it runs a second time. Look at the node's own records first. This cannot be undone.",
  ];
  if (!(await confirm({ title: "Release the record?", says, button: "Release", isGrave: true }))) return false;
  await carryOut(async () => {
    await call("DELETE", `/api/idempotency/${encodeURIComponent(record.id)}`);
    return "The record is released.";
  });
  return true;
}

const DECISIONS = {
  retry: ["Let the saga go on?", "It goes on where it was: the step that is open is tried again.", "Retry", undefined],
  succeeded: ["Resolve as succeeded?", "You say that every step is done. The proxy believes you, and does nothing more.", "Resolve", { outcome: "succeeded" }],
  compensated: ["Resolve as compensated?", "You say that what was open is undone or was never done. The proxy believes you, and undoes what is left.", "Resolve", { outcome: "compensated" }],
};

export async function decide(saga, word) {
  const [title, says, button, body] = DECISIONS[word];
  if (!(await confirm({ title, says: [says, "This cannot be undone."], button, isGrave: true }))) return;
  const verb = word === "retry" ? "retry" : "resolve";
  await carryOut(async () => (await post(`/api/sagas/${encodeURIComponent(saga.id)}/${verb}`, body)).detail);
}
