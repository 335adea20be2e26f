// Takes the screenshots of docs/dashboard.md: `npm run shots` here writes docs/images.

import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { BROWSER, Proxy, sleep, startNodes, traffic } from "./world.mjs";
import { shop, shopper } from "./shop.mjs";

const out = process.argv[2] ?? join(dirname(fileURLToPath(import.meta.url)), "../../docs/images");
const FOR = Number(process.env.SECONDS_OF_TRAFFIC ?? 240) * 1000;
mkdirSync(out, { recursive: true });

const nodes = await startNodes(7);
const proxy = await new Proxy(shop(nodes)).start();
const stop = traffic(proxy, 80, shopper);
await sleep(FOR * 0.6);
nodes[2].delay = 220;
await fetch(`${proxy.admin}/api/pools/app/nodes/app-4/drain`, { method: "POST" });
proxy.write(shop(nodes, { more: "  - { name: broken, pool: nowhere }\n" }));
await sleep(FOR * 0.4);

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: BROWSER });
async function shot(name, path, { width = 1280, height = 800, scheme = "light", of = null } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
  const page = await context.newPage();
  await page.goto(`${proxy.admin}/${path}`);
  await sleep(2500);
  await (of ? page.locator(of) : page).screenshot({ path: join(out, `${name}.png`) });
  await context.close();
  console.log(`${name}.png`);
}
await shot("overview", "#/");
await shot("pool", "#/pools/app?key=/shop/7", { height: 860 });
await shot("whatif", "#/pools/app?without=app-3&with=app-9=2", { of: "#what-if" });
await shot("phone", "#/", { width: 360, height: 700, scheme: "dark" });
await browser.close();
stop();
proxy.end();
process.exit(0);
