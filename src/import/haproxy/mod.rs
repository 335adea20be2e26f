//! A HAProxy configuration as a Ringway file.
//!
//! Sections become: `frontend` listeners and routes (`frontend`, with the conditions of `acl`), `backend` a pool with
//! the rules of its routes (`backend`), `listen` both. Lines of `defaults` count for the sections after it.

mod acl;
mod backend;
mod fields;
mod frontend;
mod syntax;

use super::draft::{Draft, set};
use super::units::{haproxy_duration, shown_duration};
use super::yaml::Value;
use super::{Import, ImportError, Place};
use std::path::Path;
use std::time::Duration;
use syntax::{Line, Section};

/// Translates a HAProxy configuration.
///
/// # Errors
///
/// The first line that cannot be parsed.
pub(crate) fn import(file: &Path, text: &str) -> Result<Import, ImportError> {
    let sections = syntax::parse(file, text)?;
    let mut draft = Draft::default();
    let proxies = proxies(&mut draft, &sections);
    if !proxies.iter().any(|proxy| proxy.is_frontend()) {
        let place = Place { file: file.display().to_string().into(), line: 1 };
        return Err(ImportError { place, message: "there is no HTTP `frontend` or `listen` to translate".to_owned() });
    }
    global(&mut draft, &sections);
    let unread = frontend::translate(&mut draft, &proxies);
    let read = proxies.iter().map(|proxy| proxy.section).filter(|section| !unread.contains(&section.place));
    for section in sections.iter().filter(|section| section.kind() == "defaults").chain(read) {
        list_untranslated(&mut draft, section);
    }
    Ok(draft.finish(&format!("the HAProxy configuration {}", file.display())))
}

/// A `frontend`, `backend` or `listen` of HTTP, with its defaults.
struct Proxy<'a> {
    section: &'a Section,
    /// The lines of its `defaults`, then its own: the last one counts.
    lines: Vec<&'a Line>,
}

impl<'a> Proxy<'a> {
    fn is_frontend(&self) -> bool {
        self.section.kind() != "backend"
    }

    fn is_backend(&self) -> bool {
        self.section.kind() != "frontend"
    }

    /// Returns the last line that begins with these words.
    fn find(&self, words: &[&str]) -> Option<&'a Line> {
        self.all(words).last().copied()
    }

    /// Returns the lines that begin with these words.
    fn all(&self, words: &[&str]) -> Vec<&'a Line> {
        let fits = |line: &&&Line| words.iter().enumerate().all(|(index, word)| line.word(index) == *word);
        self.lines.iter().filter(fits).copied().collect()
    }

    /// Returns whether an option is set, and not taken back by `no option`.
    fn has_option(&self, name: &str) -> bool {
        self.find(&["option", name]).is_some() && self.find(&["no", "option", name]).is_none()
    }

    /// Returns a duration of `timeout NAME`.
    fn timeout(&self, name: &str) -> Option<Duration> {
        self.find(&["timeout", name]).and_then(|line| haproxy_duration(line.word(2)))
    }
}

/// Returns the sections of HTTP with their defaults, and lists the others.
fn proxies<'a>(draft: &mut Draft, sections: &'a [Section]) -> Vec<Proxy<'a>> {
    let mut proxies = Vec::new();
    let mut defaults: Option<&Section> = None;
    for section in sections {
        match section.kind() {
            "global" => {}
            "defaults" => defaults = Some(section),
            "frontend" | "backend" | "listen" => {
                let from =
                    section.words.iter().position(|word| word == "from").and_then(|at| section.words.get(at + 1));
                let named =
                    |name: &String| sections.iter().find(|other| other.kind() == "defaults" && other.name() == name);
                let inherited = from.map_or(defaults, named);
                let lines = inherited.iter().flat_map(|section| &section.lines).chain(&section.lines).collect();
                let proxy = Proxy { section, lines };
                let is_http = proxy.find(&["mode"]).is_some_and(|mode| mode.word(1) == "http");
                let is_statistics = !proxy.all(&["stats"]).is_empty() && proxy.all(&["server"]).is_empty();
                let is_routed = !proxy.all(&["use_backend"]).is_empty() || !proxy.all(&["default_backend"]).is_empty();
                let is_statistics = is_statistics && (section.kind() == "listen" || !is_routed);
                if section.lines.iter().any(|line| line.word(0) == "disabled") {
                    draft.lose(&section.place, section.shown(), "it is disabled");
                } else if is_statistics && section.kind() != "backend" {
                    let remark = "the admin listener has the dashboard, at /, and the metrics, at /metrics";
                    draft.lose(&section.place, section.shown(), remark);
                } else if is_http {
                    proxies.push(proxy);
                } else {
                    draft.lose(&section.place, section.shown(), "Ringway proxies HTTP only: `mode http`");
                }
            }
            _ => draft.lose(&section.place, section.shown(), "the section has no counterpart in Ringway"),
        }
    }
    proxies
}

fn global(draft: &mut Draft, sections: &[Section]) {
    for line in sections.iter().filter(|section| section.kind() == "global").flat_map(|section| &section.lines) {
        match line.word(0) {
            "nbthread" => draft.workers = line.word(1).parse().ok().filter(|count| (1..=1024).contains(count)),
            "maxconn" => {
                if let Ok(count) = line.word(1).parse::<u64>() {
                    set(&mut draft.limits, "connections", Value::plain(count.clamp(1, 10_000_000)));
                }
            }
            "lua-load" | "lua-prepend-path" | "lua-load-per-thread" | "spoe-agent" | "wasm-load" => {
                draft.lose(&line.place, line.shown(), "Ringway runs no scripts");
            }
            // Processes, logs and defaults of TLS.
            _ => {}
        }
    }
}

/// Returns the remark on the lines of a section that have no counterpart and are read by no other file.
fn list_untranslated(draft: &mut Draft, section: &Section) {
    for line in &section.lines {
        let remark = match (line.word(0), line.word(1)) {
            ("compression" | "filter", _) => "Ringway does not compress or filter responses: leave that to the nodes",
            ("errorfile" | "errorfiles" | "http-error" | "errorloc" | "errorloc302" | "errorloc303", _) => {
                "errors of Ringway are problem documents (RFC 9457)"
            }
            ("stats", _) if section.kind() != "defaults" => {
                "the admin listener has the dashboard, at /, and the metrics, at /metrics"
            }
            ("tcp-request" | "tcp-response", _) => {
                "Ringway has no rules for connections: what it refused is let through"
            }
            (
                "use-server"
                | "dispatch"
                | "http-after-response"
                | "capture"
                | "declare"
                | "force-persist"
                | "ignore-persist",
                _,
            ) => "it has no counterpart in Ringway",
            ("log-format" | "log-format-sd", _) => {
                "the access log is JSON with the fields that `access_log.fields` names"
            }
            (
                "acl" | "bind" | "server" | "mode" | "timeout" | "option" | "no" | "balance" | "hash-type" | "cookie",
                _,
            ) => continue,
            ("use_backend" | "default_backend" | "redirect" | "http-request" | "http-response" | "http-check", _) => {
                continue;
            }
            (
                "default-server" | "server-template" | "retries" | "retry-on" | "stick" | "stick-table" | "maxconn",
                _,
            ) => continue,
            ("log" | "log-tag" | "description" | "id" | "enabled" | "fullconn" | "http-reuse", _) => {
                continue;
            }
            ("unique-id-format" | "unique-id-header" | "backlog" | "grace" | "load-server-state-from-file", _) => {
                continue;
            }
            ("stats" | "email-alert" | "rate-limit" | "guid" | "bind-process", _) => continue,
            ("block" | "reqdeny" | "reqideny" | "reqtarpit" | "reqitarpit", _) => "what it refused is let through",
            _ => "it has no counterpart in Ringway",
        };
        draft.lose(&line.place, line.shown(), remark);
    }
}

/// Returns a duration as a Ringway file writes it, up to a number of seconds.
fn shown(duration: Duration, most: u64) -> Value {
    Value::plain(shown_duration(duration, Duration::from_millis(1), Duration::from_secs(most)))
}
