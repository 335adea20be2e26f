// The dashboard in a browser: `npm test` here. It drives Debian's Chromium against a proxy of its own, and ends with an
// exit code other than 0 at the first part that does not hold.

import violations from "./axe.mjs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { BROWSER, Proxy, engines, eventually, sleep, startNodes, traffic } from "./world.mjs";
import { names, shop, shopper } from "./shop.mjs";

const begun = Date.now();
const nodes = await startNodes(7);
const proxy = await new Proxy(shop(nodes)).start();
const stop = traffic(proxy, 60, shopper);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: BROWSER });

const assert = (holds, text) => {
  if (!holds) throw new Error(text);
};

// Opens a page that fails the test for an error in the console, or a request to another place.
const faults = [];
async function open(path, { width = 1600, height = 1000, scheme = "light", of = proxy } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
  const page = await context.newPage();
  page.on("console", (message) => {
    // A refusal that a test provokes is an error of the network for Chromium.
    const isExpected = page.expected?.test(message.text());
    if (["error", "warning"].includes(message.type()) && !isExpected) faults.push(`${path}: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`${path}: ${error.stack}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(of.admin) && !request.url().startsWith("data:")) faults.push(`${path}: a request to ${request.url()}`);
  });
  await page.goto(`${of.admin}/${path}`);
  return page;
}

const sees = (page, text, within = 30000) => page.locator("main").getByText(text).first().waitFor({ timeout: within });
const parts = [];
const part = (name, work) => parts.push([name, work]);

part("every view loads, in both schemes, at 360 and 1600 pixels, and axe finds nothing serious", async () => {
  const views = ["#/", "#/pools/app?key=/shop/7", "#/traffic", "#/live", "#/cache", "#/once?key=k-7", "#/fleet", "#/config"];
  for (const [width, scheme] of [[1600, "light"], [1600, "dark"], [360, "light"], [360, "dark"]]) {
    const page = await open("#/", { width, height: 800, scheme });
    for (const view of views) {
      await page.evaluate((hash) => { location.hash = hash; }, view);
      await page.locator("main h2:visible, main .empty:visible").first().waitFor();
      await sleep(250);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert(wide <= 0, `${view} is ${wide} pixels too wide at ${width}`);
      // The narrow page has the elements of the wide one: once is enough.
      if (width === 360 && scheme === "dark") continue;
      const found = await violations(page);
      assert(found.length === 0, `axe at ${view}, ${width}, ${scheme}: ${JSON.stringify(found, null, 1)}`);
    }
    await page.context().close();
  }
});

part("a drain is asked for, shown as it happens, and undone", async () => {
  const page = await open("#/pools/app");
  await page.getByRole("button", { name: "Drain: app-1" }).click();
  await page.getByRole("dialog").getByText("gets no new keys").waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  assert((await proxy.get("/api/pools"))[0].nodes[0].state === "up", "Cancel has drained the node");
  await page.getByRole("button", { name: "Drain: app-1" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Drain" }).click();
  await sees(page, /drain(ing|ed)$/);
  assert((await proxy.get("/api/pools"))[0].nodes[0].state === "drain", "the node does not drain");
  await page.getByRole("button", { name: "Undo" }).click();
  await eventually("the node to be up again", async () => (await proxy.get("/api/pools"))[0].nodes[0].state === "up");
  // Another client drains it: the page says so without being asked.
  const overview = await open("#/");
  await fetch(`${proxy.admin}/api/pools/app/nodes/app-5/drain`, { method: "POST" });
  await sees(overview, "app-5 of app was set to drain", 5000);
  await fetch(`${proxy.admin}/api/pools/app/nodes/app-5/up`, { method: "POST" });
  await page.context().close();
  await overview.context().close();
});

part("a dying node and a refused reload stand on the first page as they happen", async () => {
  const page = await open("#/");
  await sees(page, "all well");
  const { port } = nodes[1];
  nodes[1].end();
  await sees(page, /Node app-2 of the pool app is (unhealthy|ejected)/);
  nodes[1] = await new nodes[1].constructor(4).start(port);
  await eventually("the node to be well again", async () => (await page.locator(".attention").textContent()).includes("app-2") === false);
  proxy.write(shop(nodes, { more: "  - { name: broken, pool: nowhere }\n" }));
  await sees(page, /The file is not in force: .*there is no pool `nowhere`/);
  await page.getByRole("link", { name: /The file is not in force/ }).click();
  await sees(page, /line \d+, column \d+/);
  proxy.write(shop(nodes));
  await sees(page, "in force");
  await page.context().close();
  // For the last part: a slow time needs three samples of five seconds, and some before it for its begin to be known.
  const hasBefore = async () => (await proxy.get("/api/history?after=0")).newest >= 6;
  await eventually("samples of the time before", hasBefore, 40000);
  nodes[2].delay = 120;
});

part("a what-if says what the proxy says, and has a link", async () => {
  const page = await open("#/pools/app");
  await page.getByLabel("Take out app-3").check();
  await page.locator(".join input[type=text]").fill("app-9");
  await page.getByRole("button", { name: "Show what moves" }).first().click();
  await sees(page, "of the keys of app get another node.");
  const order = { pool: "app", without: ["app-3"], with: ["app-9=1"] };
  const said = await proxy.get("/api/plan", { method: "POST", body: JSON.stringify(order) });
  const share = `${(said.pools[0].change.moved * 100).toFixed(2)} %`;
  await sees(page, share);
  const again = await open(new URL(page.url()).hash);
  await sees(again, share);
  await again.getByText("Paste an edited file").click();
  await again.getByLabel("A whole configuration file").fill(shop(nodes, { only: names.slice(0, 3) }));
  await again.locator(".paste").getByRole("button", { name: "Show what moves" }).click();
  await sees(again, "pools: 1 changed (`app`)");
  await again.getByLabel("A whole configuration file").fill("listeners: 7\n");
  await again.locator(".paste").getByRole("button", { name: "Show what moves" }).click();
  await sees(again, "The file is not valid");
  await page.context().close();
  await again.context().close();
});

part("requests are read live, and the way of a key is shown from one", async () => {
  const page = await open("#/live");
  await page.getByLabel("Path begins with").fill("/account");
  await page.getByRole("button", { name: "Read" }).click();
  const first = page.locator(".tap tbody tr a").first();
  await first.waitFor();
  const uris = await page.locator(".tap tbody .uri").allTextContents();
  assert(uris.length && uris.every((text) => text.includes("/account")), `the filter let others pass: ${uris}`);
  await page.getByRole("button", { name: "Stop" }).click();
  await page.locator(".tap tbody tr a").first().click();
  await sees(page, "takes it now");
  await page.context().close();
});

part("everything can be reached by the keyboard", async () => {
  const page = await open("#/");
  await sees(page, "What happened");
  await page.keyboard.press("Tab");
  assert(await page.evaluate(() => document.activeElement.id) === "skip", "the first stop is no skip link");
  await page.keyboard.press("Enter");
  assert(await page.evaluate(() => document.activeElement.id) === "main", "the skip link does not skip");
  await page.locator("#views a", { hasText: "Pools" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("link", { name: /^app/ }).press("Enter");
  await page.getByRole("button", { name: "Drain: app-3" }).press("Enter");
  await page.getByRole("dialog").waitFor();
  assert(await page.evaluate(() => document.activeElement.textContent) === "Cancel", "the dialog does not begin with Cancel");
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  const sort = page.getByRole("button", { name: "Share" });
  await sort.press("Enter");
  assert(await page.locator("th[aria-sort=descending]").textContent() === "Share", "the table is not sorted");
  await page.getByLabel("Filter").fill("app-4");
  await eventually("one row", async () => (await page.locator("tbody tr").count()) === 1);
  await page.context().close();
});

part("nothing moves below the pointer", async () => {
  const page = await open("#/pools/app");
  await page.getByRole("button", { name: "Requests" }).click();
  const order = () => page.locator("tbody tr th").allTextContents();
  const row = page.locator("tbody tr").first();
  const before = await order();
  const deadline = Date.now() + 4000;
  while (Date.now() < deadline) {
    await row.hover({ position: { x: 30 + Math.random() * 20, y: 10 } });
    await sleep(150);
  }
  assert(JSON.stringify(await order()) === JSON.stringify(before), "rows have moved below the pointer");
  await page.context().close();
});

part("scripts in names are texts", async () => {
  const script = "<img/src=x/onerror=window.hit=1>";
  const evil = await new Proxy(shop(nodes)
    .replaceAll("name: account", `name: "${script}"`)
    .replaceAll("- { id: app-4,", `- { id: "${script}",`)).start().catch(() => null);
  const of = evil ?? proxy;
  assert(evil, "names of users may have such characters, and this proxy should have started");
  of.write(`${shop(nodes)}  - { name: "${script}", pool: "${script}" }\n`);
  const page = await open("#/live", { of });
  const send = traffic(of, 20, () => ({ path: `/shop/%3Cimg%20src=x%20onerror=window.hit=1%3E?${encodeURIComponent(script)}`, headers: { "user-agent": script, "x-customer": script } }));
  await page.getByRole("button", { name: "Read" }).click();
  await page.locator(".tap tbody tr").first().waitFor();
  for (const view of ["#/", "#/pools/app", `#/pools/${encodeURIComponent(script)}`, "#/traffic", "#/cache", "#/config", `#/${encodeURIComponent(script)}`]) {
    await page.evaluate((hash) => { location.hash = hash; }, view);
    await sleep(300);
    assert(!(await page.evaluate(() => window.hit)) && (await page.locator("main img").count()) === 0, `a script ran at ${view}`);
  }
  send();
  await page.context().close();
  evil?.end();
});

part("the token is asked for, kept for the tab alone, and sent", async () => {
  const closed = new Proxy(shop(nodes).replace('admin: { address: "127.0.0.1:0" }', 'admin: { address: "127.0.0.1:0", token_file: admin.token }'));
  const { writeFileSync } = await import("node:fs");
  const token = "0123456789abcdef0123456789abcdef";
  writeFileSync(`${closed.folder}/admin.token`, token, { mode: 0o600 });
  await closed.start();
  const page = await open("#/", { of: closed });
  page.expected = /401/;
  faults.length = 0;
  await page.getByLabel("Token", { exact: true }).fill("wrong-wrong-wrong-wrong");
  await page.keyboard.press("Enter");
  await page.getByText("That token is not the right one.").waitFor();
  await page.getByLabel("Token", { exact: true }).fill(token);
  await page.keyboard.press("Enter");
  await sees(page, "all well");
  const kept = await page.evaluate(() => [Object.keys(sessionStorage), Object.keys(localStorage), document.cookie]);
  assert(JSON.stringify(kept) === '[["ringway-token"],[],""]', `kept: ${JSON.stringify(kept)}`);
  await page.context().close();
  closed.end();
});

part("three nodes and three hundred are readable", async () => {
  const list = Array.from({ length: 300 }, (_, at) => `      - { id: node-${at}, address: "127.0.0.1:${nodes[at % 5].port}" }`).join("\n");
  const many = await new Proxy(shop(nodes).replace(/(  app:\n    nodes:\n)[^]*?(    health_check)/, `$1${list}\n$2`)).start();
  const page = await open("#/pools/app", { of: many });
  await page.locator(".arc").nth(299).waitFor();
  await page.getByLabel("Filter").fill("node-299");
  await page.getByRole("button", { name: "node-299", exact: true }).click();
  await eventually("the node in the ring", async () => (await page.locator(".ring .middle.line-0").textContent()) === "node-299");
  await page.context().close();
  many.end();
});

part("a slow node is named, with the time since when", async () => {
  const page = await open("#/");
  await sees(page, /Node app-3 of the pool app is slow: half of its requests take over \d+ ms, elsewhere .* since \d\d:\d\d:\d\d/, 30000);
  await sees(page, "app-3 is slow");
  assert(!(await page.locator(".attention").textContent()).match(/Node (?!app-3)\S+ of the pool \S+ is slow/), "another node is called slow");
  await page.context().close();
});

part("a fleet shows its members, its leader and its states of nodes", async () => {
  const found = await engines();
  if (!found) {
    assert(!process.env.RINGWAY_REQUIRE_TOOLS, "redis-server or etcd is missing");
    return console.log("skip  it needs redis-server and etcd");
  }
  const fleet = `fleet: { lease: 1s, redis: { nodes: [{ id: r1, address: "127.0.0.1:${found.redis}" }] }, etcd: { endpoints: ["${found.etcd}"] } }\n`;
  const members = [await new Proxy(fleet + shop(nodes)).start(), await new Proxy(fleet + shop(nodes)).start()];
  await eventually("a leader", async () => (await members[0].get("/api/fleet")).leader.process);
  await fetch(`${members[0].admin}/api/pools/app/nodes/app-2/drain?scope=fleet`, { method: "POST" });
  const page = await open("#/fleet", { of: members[1] });
  await page.locator("table tbody tr").nth(1).waitFor();
  await sees(page, "etcd answers");
  await sees(page, /(this process|another) leads/);
  await sees(page, /app-2 of app, by /);
  await sees(page, "all send a key to the same node");
  const wrong = await violations(page);
  assert(wrong.length === 0, `axe: ${JSON.stringify(wrong, null, 1)}`);
  await page.context().close();
  members.forEach((member) => member.end());
  found.end();
});

part("a proxy that hangs does not look ready", async () => {
  const own = await new Proxy(shop(nodes)).start();
  const page = await open("#/", { of: own });
  await sees(page, "all well");
  page.expected = /ERR_|timed out|Failed to load/;
  own.child.kill("SIGSTOP");
  await page.locator("#standing").getByText("no answer").waitFor({ timeout: 20000 });
  await page.locator("#standing").getByText(/as it was .* ago/).waitFor();
  own.child.kill("SIGCONT");
  await page.locator("#standing").getByText("ready").waitFor({ timeout: 20000 });
  await page.context().close();
  own.end();
});

let failed = 0;
const wanted = process.argv[2];
for (const [name, work] of parts) {
  if (wanted && !name.includes(wanted)) continue;
  const from = Date.now();
  faults.length = 0;
  try {
    await work();
    assert(faults.length === 0, faults.join("\n"));
    console.log(`ok    ${name} (${((Date.now() - from) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}\n      ${error.stack}`);
    for (const [number, context] of browser.contexts().entries()) {
      const file = join(tmpdir(), `ringway-dashboard-${failed}-${number}.png`);
      await context.pages()[0]?.screenshot({ path: file });
      console.log(`      what the page showed: ${file}`);
      await context.close();
    }
  }
}
await browser.close();
stop();
proxy.end();
nodes.forEach((node) => node.end());
console.log(`${failed ? `${failed} failed` : "all held"} in ${((Date.now() - begun) / 1000).toFixed(0)} s`);
process.exit(failed ? 1 : 0);
