// The client of the admin API. The token is kept for the tab alone, and asked for when the API wants one.

import { h } from "./dom.js";

const KEY = "ringway-token";
let asking = null;

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function fields(more = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

// Asks for the token, once for all calls that wait for it.
function askToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
    const dialog = h(
      "dialog",
      { "aria-labelledby": "token-title" },
      h("h2", { id: "token-title" }, "Token of the admin listener"),
      h("p", {}, wasWrong ? "That token is not the right one." : "This proxy shows itself to those who have the token."),
      h("label", { for: "token" }, "Token"),
      input,
      h("p", { class: "hint" }, "It is the content of admin.token_file, and is kept until this tab closes."),
      h("div", { class: "buttons" }, h("button", { class: "primary", type: "button", on: { click: () => close() } }, "Show")),
    );
    const close = () => {
      if (!input.value.trim()) return input.focus();
      sessionStorage.setItem(KEY, input.value.trim());
      asking = null;
      dialog.close();
      dialog.remove();
      resolve();
    };
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") close(); });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

// The longest time that a reading may take, and anything else: a proxy that hangs is not one that answers.
const [READING, CHANGING] = [8000, 60000];
// The longest silence of a stream: the proxy gives a sign of life every 15 seconds.
const SILENCE = 40000;

async function send(method, path, body) {
  for (;;) {
    const had = sessionStorage.getItem(KEY);
    const signal = AbortSignal.timeout(method === "GET" ? READING : CHANGING);
    const options = { method, signal, cache: "no-store", headers: fields(body === undefined ? {} : { "content-type": "application/json" }) };
    if (body !== undefined) options.body = JSON.stringify(body);
    const response = await fetch(path, options).catch((error) => {
      throw error.name === "TimeoutError" ? new Error("the proxy does not answer") : error;
    });
    if (response.status !== 401) return response;
    // Another call may have got a token meanwhile.
    if (sessionStorage.getItem(KEY) === had) await askToken(had !== null);
  }
}

// Makes a call; a problem document becomes an error with its detail.
export async function call(method, path, body) {
  const response = await send(method, path, body);
  const text = await response.text();
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {
    content = null;
  }
  if (!response.ok) throw new ApiError(response.status, content?.detail ?? `the proxy answered ${response.status}`);
  return content;
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);

// Reads server-sent events until the signal ends it, and connects again where the stream ends.
// `position` keeps the last id, for another stream after this one.
export async function stream(path, { onEvent, onState = () => {}, signal, position = { last: null } }) {
  let delay = 500;
  while (!signal.aborted) {
    try {
      const options = { signal, cache: "no-store", headers: fields(position.last === null ? {} : { "last-event-id": position.last }) };
      const response = await fetch(path, options);
      if (response.status === 401) {
        await askToken(sessionStorage.getItem(KEY) !== null);
        continue;
      }
      if (!response.ok) {
        const problem = await response.json().catch(() => null);
        throw new ApiError(response.status, problem?.detail ?? `the proxy answered ${response.status}`);
      }
      onState("open");
      delay = 500;
      await read(response.body, (event) => {
        if (event.id !== null) position.last = event.id;
        onEvent(event.name, event.data);
      });
      onState("closed");
    } catch (error) {
      if (signal.aborted) return;
      onState("failed", error);
      if (error instanceof ApiError && error.status < 500) return;
    }
    await new Promise((resolve) => setTimeout(resolve, delay));
    delay = Math.min(delay * 2, 8000);
  }
}

// Splits a body into events (WHATWG HTML 9.2.6).
async function read(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { id: null, name: "message", data: "" };
  for (;;) {
    const timer = setTimeout(() => reader.cancel(), SILENCE);
    const { done, value } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data) onEvent({ ...event, data: JSON.parse(event.data) });
        event = { id: null, name: "message", data: "" };
        continue;
      }
      const at = line.indexOf(":");
      const name = at < 0 ? line : line.slice(0, at);
      const content = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (name === "id") event.id = content;
      if (name === "event") event.name = content;
      if (name === "data") event.data += content;
    }
  }
}
