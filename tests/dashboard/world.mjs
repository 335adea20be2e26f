// A proxy, its nodes and its clients, for tests and screenshots: all on loopback, on free ports.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
const PROGRAM = resolve(ROOT, process.env.RINGWAY ?? "target/debug/ringway");
const PATIENCE = 20000;

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Waits until a condition holds.
export async function eventually(what, holds, within = PATIENCE) {
  const deadline = Date.now() + within;
  for (;;) {
    if (await holds()) return;
    if (Date.now() > deadline) throw new Error(`${what} did not happen`);
    await sleep(50);
  }
}

// A node that can be slow, fail or end.
export class Node {
  constructor(delay = 2) {
    this.delay = delay;
    this.status = 200;
    this.server = http.createServer((request, response) => {
      request.resume();
      setTimeout(() => {
        const fields = { "content-type": "text/plain" };
        if (request.url.startsWith("/shop")) fields["cache-control"] = "max-age=30";
        response.writeHead(this.status, fields);
        response.end("x".repeat(600));
      }, this.delay * (0.6 + Math.random() * 0.8));
    });
    this.server.keepAliveTimeout = 60000;
  }

  async start(port = 0) {
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    return this;
  }

  end() {
    this.server.close();
    this.server.closeAllConnections();
  }
}

export const startNodes = (count) => Promise.all(Array.from({ length: count }, (_, at) => new Node(3 + at).start()));

// A running proxy, with the file that it follows.
export class Proxy {
  constructor(text) {
    this.folder = mkdtempSync(join(tmpdir(), "ringway-dashboard-"));
    this.file = join(this.folder, "ringway.yaml");
    this.write(text);
  }

  write(text) {
    writeFileSync(this.file, text);
  }

  async start() {
    this.child = spawn(PROGRAM, ["run", "--config", this.file], { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env, RUST_LOG: "info" } });
    this.log = "";
    this.child.stderr.on("data", (data) => { this.log += data; });
    await eventually("the start of the proxy", () => {
      if (this.child.exitCode !== null) throw new Error(this.log);
      return /admin=\S+/.test(this.log);
    });
    this.admin = `http://${/admin=(\S+)/.exec(this.log)[1]}`;
    this.address = `http://${/address=(\S+)/.exec(this.log)[1]}`;
    return this;
  }

  async get(path, more = {}) {
    return (await fetch(`${this.admin}${path}`, more)).json();
  }

  end() {
    this.child?.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

async function freePort() {
  const server = http.createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

// The engines of a fleet, which end with `end`; null where one is not installed.
export async function engines() {
  const folder = mkdtempSync(join(tmpdir(), "ringway-engines-"));
  const [redis, client, peer] = await Promise.all([freePort(), freePort(), freePort()]);
  const of = (port) => `http://127.0.0.1:${port}`;
  const commands = [
    ["redis-server", "--port", redis, "--bind", "127.0.0.1", "--save", "", "--dir", folder],
    ["etcd", "--data-dir", join(folder, "etcd"), "--listen-client-urls", of(client), "--advertise-client-urls", of(client),
      "--listen-peer-urls", of(peer), "--initial-advertise-peer-urls", of(peer), "--initial-cluster", `default=${of(peer)}`],
  ];
  let isWhole = true;
  const children = commands.map(([program, ...args]) => {
    const child = spawn(program, args.map(String), { stdio: "ignore" });
    child.on("error", () => { isWhole = false; });
    return child;
  });
  const end = () => {
    children.forEach((child) => child.kill("SIGKILL"));
    rmSync(folder, { recursive: true, force: true });
  };
  await sleep(100);
  if (isWhole) return { redis, etcd: of(client), end };
  end();
  return null;
}

// Sends requests at a steady rate until it is stopped.
export function traffic(proxy, perSecond, pick) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 40 });
  let number = 0;
  const timer = setInterval(() => {
    number += 1;
    const { method = "GET", path, headers = {} } = pick(number);
    const request = http.request(`${proxy.address}${path}`, { agent, method, headers: { host: "shop.example", ...headers } }, (response) => response.resume());
    request.on("error", () => {});
    request.end();
  }, 1000 / perSecond);
  return () => {
    clearInterval(timer);
    agent.destroy();
  };
}

export const BROWSER = [
  "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
