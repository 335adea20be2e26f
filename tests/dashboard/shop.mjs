// A shop: two pools, routes with and without a cache, payments that run once.

export const names = ["app-1", "app-2", "app-3", "app-4", "app-5"];

export function shop(nodes, { more = "", only = names, extra = [] } = {}) {
  const line = (id, port) => `      - { id: ${id}, address: "127.0.0.1:${port}" }`;
  const app = only.map((id) => line(id, nodes[names.indexOf(id)].port)).concat(extra.map((id) => line(id, nodes[0].port)));
  return `listeners: [{ name: http, address: "127.0.0.1:0" }]
admin: { address: "127.0.0.1:0" }
access_log: { format: "off" }
idempotency_store: { kind: memory }
pools:
  app:
    nodes:
${app.join("\n")}
    health_check: { interval: 500ms, timeout: 400ms, unhealthy_after: 2, healthy_after: 1 }
  payments:
    nodes:
${line("pay-1", nodes[5].port)}
${line("pay-2", nodes[6].port)}
routes:
  - { name: payments, path_prefix: /payments, pool: payments, hash_on: ["header:x-customer"], idempotency: { scope: [] } }
  - { name: catalogue, path_prefix: /shop, pool: app, hash_on: [uri], cache: { ignore_query: [] } }
  - { name: account, path_prefix: /account, pool: app, hash_on: ["cookie:session"] }
  - { name: health, path: /healthz, respond: { status: 200, body: ok } }
${more}`.replace("cache: { ignore_query: [] }", "cache: {}");
}

export function shopper(number) {
  const choice = Math.random();
  if (choice < 0.55) return { path: `/shop/${Math.floor(Math.random() ** 3 * 60)}?page=${number % 3}` };
  if (choice < 0.85) return { path: "/account", headers: { cookie: `session=${number % 80}` } };
  if (choice < 0.97) return { method: "POST", path: "/payments/charge", headers: { "x-customer": `c${number % 40}`, "idempotency-key": `k-${number % 900}` } };
  return { path: "/missing" };
}
