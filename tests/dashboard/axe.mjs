// axe-core in a page. The page's policy allows no script of others, so the driver evaluates it.

import axe from "axe-core";

// Returns the serious and critical violations, with the elements that have them.
export default async function violations(page) {
  await page.evaluate(axe.source);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const grave = found.violations.filter((it) => ["serious", "critical"].includes(it.impact));
  return grave.map((it) => ({ rule: it.id, help: it.help, at: it.nodes.slice(0, 4).map((node) => `${node.target} ${node.failureSummary}`) }));
}
