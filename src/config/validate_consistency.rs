//! The rules of the block `consistency` of a route.

use super::diagnostics::{Diagnostics, Span};
use super::model::{Consistency, Level, OnConcurrentWrite, Route, Settings, Verify};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The times that `settle` may have.
const SETTLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
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
        Level::Strong => strong(settings, route, rules, diagnostics),
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
    if !rules.is_by_quorum() {
        let given = [
            ("reads", rules.reads.as_ref().map(|it| it.span)),
            ("on_quorum_loss", rules.on_quorum_loss.as_ref().map(|it| it.span)),
            ("on_write_quorum_loss", rules.on_write_quorum_loss.as_ref().map(|it| it.span)),
            ("settle", rules.settle.as_ref().map(|it| it.span)),
        ];
        for (key, span) in given.into_iter().filter_map(|(key, span)| Some((key, span?))) {
            let message = format!("`{key}` needs `verify: quorum`, which the route `{name}` does not have");
            diagnostics.error(span, message);
        }
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
    free_groups(rules, diagnostics);
}

/// Warns of groups that clients choose freely.
fn free_groups(rules: &Consistency, diagnostics: &mut Diagnostics) {
    for group in &rules.groups {
        if let Some(field) = group.headers().next() {
            let message = format!(
                "clients choose `{field}` freely: a client that sends another `{field}` with a write leaves readers of this group behind (unless a proxy in front sets it)"
            );
            diagnostics.warning(group.span, message);
        }
    }
}

fn strong(settings: &Settings, route: &Route, rules: &Consistency, diagnostics: &mut Diagnostics) {
    let name = &route.name.value;
    match &rules.verify {
        None => {
            let message = format!("`level: strong` of the route `{name}` needs `verify: origin` or `verify: quorum`");
            diagnostics.error(rules.level.span, message);
        }
        Some(verify) if verify.value == Verify::Quorum => quorum(settings, route, verify.span, diagnostics),
        Some(_) => {}
    }
    if rules.is_by_quorum() {
        free_groups(rules, diagnostics);
    }
    if let Some(settle) = rules.settle.as_ref().filter(|settle| !SETTLE.contains(&settle.value)) {
        let message = format!("expected a `settle` from 100ms to 1h on the route `{name}`");
        diagnostics.error(settle.span, message);
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

/// Reports nodes and numbers by which no quorum can verify a read.
fn quorum(settings: &Settings, route: &Route, at: Span, diagnostics: &mut Diagnostics) {
    let name = &route.name.value;
    let Some(redis) = settings.fleet.as_ref().and_then(|fleet| fleet.redis.as_ref()) else {
        let message = format!(
            "`verify: quorum` of the route `{name}` needs `fleet: {{ redis: {{ nodes: [...] }} }}`, whose nodes hold the stamps"
        );
        diagnostics.error(at, message);
        return;
    };
    let found = redis.quorum();
    let (replicas, write, read) = (found.replicas, found.write, found.read);
    if !found.overlaps() {
        let message = format!(
            "`verify: quorum` of the route `{name}` needs `write` + `read` above `replicas` in `fleet.redis`: with {write} and {read} of {replicas} a read may ask none of the nodes that a write has marked, which is `eventual`"
        );
        diagnostics.error(at, message);
    } else if replicas == 1 {
        let message = format!(
            "`verify: quorum` of the route `{name}` has one node: while it is away, no write is marked and no hit is verified; three nodes lose one without harm"
        );
        diagnostics.warning(at, message);
    }
}
