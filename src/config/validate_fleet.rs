//! The rules of the block `fleet`.

use super::diagnostics::{Diagnostics, Span};
use super::model::{Fleet, FleetRedis, FormerRedis};
use super::read::Spanned;

/// The longest name of a fleet or of one of its nodes.
const MAX_NAME: usize = 64;
/// The most nodes.
const MAX_NODES: usize = 64;
/// The most nodes that hold the stream.
const MAX_REPLICAS: u32 = 9;

pub(super) fn fleet(fleet: &Fleet, diagnostics: &mut Diagnostics) {
    name("id", &fleet.id, diagnostics);
    if let Some(redis) = &fleet.redis {
        nodes(&fleet.id, redis, diagnostics);
    }
}

/// Reports a name that cannot be a part of a key.
fn name(key: &str, name: &Spanned<String>, diagnostics: &mut Diagnostics) {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
        let message = format!("`{key}` takes 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, like `edge-eu`");
        diagnostics.error(name.span, message);
    }
}

fn nodes(fleet: &Spanned<String>, redis: &FleetRedis, diagnostics: &mut Diagnostics) {
    if !cfg!(feature = "redis") {
        diagnostics.error(fleet.span, "this Ringway was built without Redis (the feature `redis`)");
    }
    let nodes = &redis.nodes;
    let at = nodes.first().map_or(fleet.span, |node| node.id.span);
    if nodes.is_empty() && !diagnostics.has_errors() {
        diagnostics.error(at, "`fleet.redis` needs `nodes`, like `- { id: r1, address: \"10.0.0.1:6379\" }`");
        return;
    }
    if nodes.len() > MAX_NODES {
        diagnostics.error(at, format!("`fleet.redis.nodes` takes at most {MAX_NODES} nodes"));
    }
    nodes.iter().for_each(|node| name("id", &node.id, diagnostics));
    diagnostics.unique("store node", nodes.iter().map(|node| (node.id.as_str(), node.id.span)));
    // Two nodes at one address would count one acknowledgement twice.
    let addresses: Vec<(String, Span)> =
        nodes.iter().map(|node| (node.address.to_string(), node.address.span)).collect();
    diagnostics.unique("address of a store node", addresses.iter().map(|(text, span)| (text.as_str(), *span)));
    quorum(redis, at, diagnostics);
    if let Some(old) = &redis.former {
        former(redis, old, at, diagnostics);
    }
    if let Some(username) = redis.username.as_ref().filter(|_| redis.password_file.is_none()) {
        diagnostics.error(username.span, "`username` needs `password_file`");
    }
}

/// Reports numbers of nodes that do not fit each other.
fn quorum(redis: &FleetRedis, at: Span, diagnostics: &mut Diagnostics) {
    let found = redis.quorum();
    let span = |value: &Option<Spanned<u32>>| value.as_ref().map_or(at, |value| value.span);
    let nodes = redis.nodes.len();
    if found.replicas == 0 || found.replicas > nodes || found.replicas > MAX_REPLICAS as usize {
        let most = nodes.min(MAX_REPLICAS as usize);
        let message = format!("expected `replicas` from 1 to {most}, as there are {nodes} nodes");
        diagnostics.error(span(&redis.replicas), message);
        return;
    }
    for (key, value, given) in [("write", found.write, &redis.write), ("read", found.read, &redis.read)] {
        if value == 0 || value > found.replicas {
            let message = format!("expected `{key}` from 1 to {}, the number of `replicas`", found.replicas);
            diagnostics.error(span(given), message);
        }
    }
    if !found.overlaps() {
        let message = format!(
            "`write` ({}) and `read` ({}) together do not exceed `replicas` ({}): each node that is away has every stored \
             response validated",
            found.write, found.read, found.replicas
        );
        diagnostics.warning(span(&redis.read), message);
    }
}

/// Reports a block `former` that cannot have been in force, or that names a node anew.
fn former(redis: &FleetRedis, former: &FormerRedis, at: Span, diagnostics: &mut Diagnostics) {
    let (found, count) = (former.quorum(), former.nodes.len());
    let is_in = |value: usize| (1..=found.replicas).contains(&value);
    let at = former.nodes.first().map_or(at, |node| node.id.span);
    if found.replicas == 0 || found.replicas > count || !is_in(found.write) || !is_in(found.read) || !found.overlaps() {
        let message = "`former` takes the nodes and numbers that were in force: `write` and `read` together exceed \
                       `replicas`, which does not exceed the nodes";
        diagnostics.error(at, message);
    }
    former.nodes.iter().for_each(|node| name("id", &node.id, diagnostics));
    diagnostics.unique("node id", former.nodes.iter().map(|node| (node.id.value.as_str(), node.id.span)));
    let addresses: Vec<String> = former.nodes.iter().map(|node| node.address.value.to_string()).collect();
    let placed = addresses.iter().zip(&former.nodes).map(|(address, node)| (address.as_str(), node.address.span));
    diagnostics.unique("node address", placed);
    let known = |node: &super::model::FleetNode| redis.nodes.iter().find(|known| known.id.value == node.id.value);
    for node in &former.nodes {
        let is_taken = |known: &super::model::FleetNode| {
            known.id.value != node.id.value && known.address.to_string() == node.address.to_string()
        };
        let moved = known(node).is_some_and(|known| known.address.to_string() != node.address.to_string());
        if moved || redis.nodes.iter().any(is_taken) {
            let message = format!("the node `{}` has one address in `nodes` and another one here", node.id.value);
            diagnostics.error(node.id.span, message);
        }
    }
    let new = former.nodes.iter().filter(|node| known(node).is_none()).count();
    if redis.nodes.len() + new > MAX_NODES {
        diagnostics.error(at, format!("`nodes` and `former` take at most {MAX_NODES} different nodes together"));
    }
}
