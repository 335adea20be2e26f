//! `http-request` and `http-response` rules that change fields.

use super::super::draft::{Draft, Route, is_field, set};
use super::super::yaml::{Entries, Value};
use super::Proxy;

/// The actions of these rules, with that of the cache.
pub(super) const FIELD_ACTIONS: [&str; 4] = ["set-header", "add-header", "del-header", "cache-use"];

/// The actions that need no counterpart.
pub(super) const NEEDLESS_ACTIONS: [&str; 6] =
    ["set-log-level", "capture", "normalize-uri", "wait-for-body", "disable-l7-retry", "set-nice"];

/// The changes of fields, and whether responses are cached.
#[derive(Clone, Default)]
pub(super) struct Fields {
    request: Changes,
    response: Changes,
    is_cached: bool,
}

#[derive(Clone, Default)]
struct Changes {
    sets: Entries,
    removes: Vec<String>,
}

impl Fields {
    /// Returns the changes of a section that hold for all its requests, and lists the others.
    pub(super) fn of(draft: &mut Draft, proxy: &Proxy<'_>) -> Fields {
        let mut fields = Fields::default();
        for line in &proxy.lines {
            let is_request = match line.word(0) {
                "http-request" => true,
                "http-response" => false,
                _ => continue,
            };
            let changes = if is_request { &mut fields.request } else { &mut fields.response };
            let (name, value) = (line.word(2).to_ascii_lowercase(), line.word(3));
            let is_conditional = line.has("if") || line.has("unless");
            match line.word(1) {
                "set-header" | "add-header" if is_request && is_default(&name) => {
                    // Of the connection it is what Ringway sets too; of a field it depends on the proxy in front.
                    if value.contains("hdr(") || (!is_conditional && !value.contains('%')) {
                        let remark = "Ringway sets it by the connection, or by a proxy that `trusted_proxies` names";
                        draft.differ(&line.place, line.shown(), remark);
                    }
                }
                "set-header" | "add-header" if !is_conditional && !value.contains('%') && is_field(&name, value) => {
                    if line.word(1) == "add-header" {
                        draft.differ(
                            &line.place,
                            line.shown(),
                            "a field is set: it takes the place of others of its name",
                        );
                    }
                    set(&mut changes.sets, &name, Value::text(value));
                }
                "del-header" if !is_conditional && is_field(&name, "") => changes.removes.push(name),
                "set-header" | "add-header" | "del-header" => {
                    let remark = "a field is set to a fixed value on all requests of a route";
                    draft.lose(&line.place, line.shown(), remark);
                    // A client must not choose what the proxy set.
                    if is_request
                        && line.word(1) == "set-header"
                        && is_field(&name, "")
                        && !changes.removes.contains(&name)
                    {
                        changes.removes.push(name);
                    }
                }
                "cache-use" | "cache-store" => fields.is_cached = true,
                _ if is_request => {}
                action if NEEDLESS_ACTIONS.contains(&action) => {}
                _ => draft.lose(&line.place, line.shown(), "it has no counterpart in Ringway"),
            }
        }
        fields
    }

    pub(super) fn add(&mut self, other: Fields) {
        for (own, other) in [(&mut self.request, other.request), (&mut self.response, other.response)] {
            other.sets.into_iter().for_each(|(name, value)| set(&mut own.sets, &name, value));
            own.removes.extend(other.removes);
        }
        self.is_cached |= other.is_cached;
    }

    pub(super) fn write(self, route: &mut Route) {
        route.change_fields("request_headers", self.request.sets, self.request.removes);
        route.change_fields("response_headers", self.response.sets, self.response.removes);
        if self.is_cached {
            route.set("cache", Value::Map(Entries::new()));
        }
    }
}

/// Returns whether Ringway sets a field of the request by itself.
fn is_default(name: &str) -> bool {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "connection", "upgrade"]
        .contains(&name)
}
