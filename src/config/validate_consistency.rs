//! The rules of the block `consistency` of a route.

use super::diagnostics::Diagnostics;
use super::model::{Consistency, Level, OnConcurrentWrite, Route, Settings};

/// The most templates of groups.
const MAX_GROUPS: usize = 4;

pub(super) fn validate(settings: &Settings, route: &Route, rules: &Consistency, diagnostics: &mut Diagnostics) {
    let (level, name) = (&rules.level, &route.name.value);
    if rules.groups.len() > MAX_GROUPS {
        let message = format!("`groups` of the route `{name}` takes at most {MAX_GROUPS} templates");
        diagnostics.error(rules.groups[MAX_GROUPS].span, message);
    }
    match level.value {
        Level::Eventual => {
            if let Some(group) = rules.groups.first() {
                let message = format!("`groups` of the route `{name}` changes nothing while its `level` is `eventual`");
                diagnostics.warning(group.span, message);
            }
        }
        Level::Causal => causal(settings, route, rules, diagnostics),
        Level::Strong => strong(route, rules, diagnostics),
    }
    if level.value != Level::Eventual && route.cache.is_none() {
        let word = level.value.word();
        let message = format!(
            "`level: {word}` needs `cache` on the route `{name}`: without one every read goes to a node, which is the newest anyway"
        );
        diagnostics.error(level.span, message);
    }
    if let (Some(verify), false) = (&rules.verify, level.value == Level::Strong) {
        let message =
            format!("`verify` is for `level: strong`, and the route `{name}` has `level: {}`", level.value.word());
        diagnostics.error(verify.span, message);
    }
    if rules.on_concurrent_write.value == OnConcurrentWrite::Reject && level.value != Level::Causal {
        let message =
            format!("`on_concurrent_write: reject` needs `level: causal`, which the route `{name}` does not have");
        diagnostics.error(rules.on_concurrent_write.span, message);
    }
}

fn causal(settings: &Settings, route: &Route, rules: &Consistency, diagnostics: &mut Diagnostics) {
    if settings.fleet.as_ref().is_none_or(|fleet| fleet.secret_file.is_none()) {
        let message = format!(
            "`level: causal` of the route `{}` needs `fleet: {{ secret_file: ... }}`, whose secret signs the sessions' tokens",
            route.name.value
        );
        diagnostics.error(rules.level.span, message);
    }
    for group in &rules.groups {
        if let Some(field) = group.headers().next() {
            let message = format!(
                "clients choose `{field}` freely: a client that sends another `{field}` with a write leaves readers of this group behind (unless a proxy in front sets it)"
            );
            diagnostics.warning(group.span, message);
        }
    }
}

fn strong(route: &Route, rules: &Consistency, diagnostics: &mut Diagnostics) {
    let name = &route.name.value;
    if rules.verify.is_none() {
        let message = format!("`level: strong` of the route `{name}` needs `verify: origin`");
        diagnostics.error(rules.level.span, message);
    }
    let Some(cache) = &route.cache else { return };
    let is_set = |time: std::time::Duration| !time.is_zero();
    for (key, given) in [
        ("stale_while_revalidate", is_set(cache.stale_while_revalidate)),
        ("stale_if_error", cache.stale_if_error.is_some_and(is_set)),
    ] {
        if given {
            let message = format!("`{key}` of the route `{name}` must be 0s: a strong route serves nothing stale");
            diagnostics.error(rules.level.span, message);
        }
    }
}
