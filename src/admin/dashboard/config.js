// The configuration: reloads with their errors, what check says, certificates, and the settings in force.

import { get } from "./api.js";
import { reload } from "./actions.js";
import { certificates } from "./overview.js";
import { badge, empty, h, section, setText, show } from "./dom.js";
import { clock, day, plural, span } from "./format.js";
import { state } from "./state.js";

function reloadLine(event) {
  const time = new Date(event.time);
  const place = event.line ? `line ${event.line}, column ${event.column}` : "";
  return h("li", { class: "reload" },
    h("p", {}, h("time", { datetime: event.time }, `${day(time)} ${clock(time)}`), badge(event.success ? "good" : "bad", event.success ? "in force" : "refused"), place ? h("b", {}, place) : ""),
    event.error ? h("pre", {}, event.error) : null,
    event.needs_restart?.length ? h("p", { class: "hint" }, `A restart is needed for ${event.needs_restart.join(", ")}.`) : null);
}

export function configView() {
  const file = h("p", { class: "headline" }, "");
  const last = h("p", { class: "hint" }, "");
  const reloads = h("ol", { class: "reloads" });
  const findings = h("ul", { class: "findings" });
  const list = h("ul", { class: "certificates" });
  const effective = h("pre", { class: "effective", tabindex: "0" }, "");
  const details = h("details", {}, h("summary", {}, "All settings with their defaults; secrets are hidden"), effective);
  let readOf = null;
  const readSettings = async () => {
    readOf = state.status?.last_reload.time ?? null;
    try {
      setText(effective, JSON.stringify(await get("/api/config"), null, 2));
    } catch (error) {
      readOf = null;
      setText(effective, error.message);
    }
  };
  details.addEventListener("toggle", () => { if (details.open) readSettings(); });
  const element = h("div", { class: "stack" },
    section("File", file, last, h("div", { class: "buttons left" }, h("button", { type: "button", on: { click: reload } }, "Reload…"))),
    h("div", { class: "split" }, section("Last ten reloads", reloads), h("div", { class: "stack" }, section("What check says of the file now", findings), section("Certificates", list))),
    section("Settings in force", details));
  return {
    title: "Configuration",
    element,
    update() {
      const { status, check } = state;
      if (!status) return;
      setText(file, status.config.file);
      const it = status.last_reload;
      setText(last, `${plural(status.config.routes, "route")}, ${plural(status.config.pools, "pool")}. Read ${it.time}; ${plural(it.reloads, "reload")}, ${plural(it.failures, "failure")}.`);
      if (details.open && readOf !== null && readOf !== it.time) readSettings();
      const recent = status.reloads;
      show(reloads, recent.map((event) => event.sequence), () => (recent.length ? recent.map(reloadLine) : [h("li", {}, empty("None since the start. A change of the file is one."))]));
      show(findings, check, () => {
        if (!check) return [h("li", {}, empty("Not read yet."))];
        if (!check.findings.length) return [h("li", {}, badge("good", "valid"), " No errors, no warnings.")];
        return check.findings.map((found) => h("li", {}, badge(found.severity === "error" ? "bad" : "warn", found.severity), found.line ? h("b", {}, ` line ${found.line}, column ${found.column} `) : " ", found.message));
      });
      const known = certificates();
      show(list, known.map((one) => [one.name, one.file, one.ends, Math.round(one.left / 3600)]), () => (known.length
        ? known.map((one) => h("li", {}, badge(one.left < 0 ? "bad" : one.left < 14 * 86400 ? "warn" : "good", one.left < 0 ? "expired" : `${span(one.left)} left`), h("b", {}, ` ${one.name}`), h("small", {}, ` until ${day(one.ends)}, ${one.file}`)))
        : [h("li", {}, empty("No listener uses TLS."))]));
    },
  };
}
