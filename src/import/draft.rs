//! The Ringway file that an import builds: listeners, pools and routes with their comments, and the remarks.

use super::yaml::{self, Comments, Entries, Item, Value, entries};
use super::{Import, Note, Place};
use crate::http::{fields, target};
use http::{HeaderName, HeaderValue};
use std::collections::HashSet;
use std::net::SocketAddr;

/// A Ringway file in the making.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) workers: Option<u64>,
    /// The networks of `trusted_proxies`.
    pub(super) trusted: Vec<String>,
    pub(super) listeners: Vec<Listener>,
    pub(super) limits: Entries,
    pub(super) access_log: Option<Value>,
    pub(super) pools: Vec<Pool>,
    pub(super) routes: Vec<Route>,
    lost: Vec<Note>,
    differing: Vec<Note>,
}

/// An address that clients connect to.
pub(super) struct Listener {
    pub(super) comment: String,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Tls>,
    /// The networks that send PROXY protocol headers.
    pub(super) proxy_protocol: Option<Vec<String>>,
}

/// TLS of a listener.
#[derive(Default)]
pub(super) struct Tls {
    /// The files of chains and keys.
    pub(super) certificates: Vec<(String, String)>,
    pub(super) min_version: Option<&'static str>,
    pub(super) client_ca_file: Option<String>,
    pub(super) is_client_auth_optional: bool,
}

/// A pool of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) comments: Comments,
    pub(super) name: String,
    pub(super) nodes: Vec<Node>,
    /// The keys besides `nodes`.
    pub(super) entries: Entries,
}

/// A node of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) address: String,
    pub(super) weight: u64,
    pub(super) is_down: bool,
}

/// A route; what it matches stands apart, as the order follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Route {
    pub(super) comments: Comments,
    pub(super) name: String,
    pub(super) hosts: Vec<String>,
    pub(super) path: Option<PathMatch>,
    pub(super) methods: Vec<String>,
    pub(super) scheme: Option<&'static str>,
    pub(super) headers: Entries,
    /// The action and the other keys.
    pub(super) entries: Entries,
}

/// The path of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathMatch {
    Exact(String),
    Prefix(String),
}

impl PathMatch {
    /// Returns the text of the path.
    pub(super) fn text(&self) -> &str {
        match self {
            PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
        }
    }
}

impl Route {
    /// Sets a key.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        set(&mut self.entries, key, value);
    }

    /// Sets the changes of `request_headers` or `response_headers`.
    pub(super) fn change_fields(&mut self, key: &str, sets: Entries, removes: Vec<String>) {
        let mut block = Entries::new();
        if !sets.is_empty() {
            block.push(("set".to_owned(), Value::Map(sets)));
        }
        if !removes.is_empty() {
            block.push(("remove".to_owned(), Value::texts(removes)));
        }
        if !block.is_empty() {
            self.set(key, Value::Map(block));
        }
    }

    /// Sets the fixed response of a route that must not be answered by a node.
    pub(super) fn refuse(&mut self, status: u16, body: &str) {
        let mut response = entries([("status", Value::plain(status))]);
        if !body.is_empty() {
            response.push(("body".to_owned(), Value::text(format!("{body}\n"))));
        }
        self.entries.clear();
        self.set("respond", Value::Map(response));
    }
}

/// Sets a key in place of its earlier value.
pub(super) fn set(entries: &mut Entries, key: &str, value: Value) {
    match entries.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => entries.push((key.to_owned(), value)),
    }
}

impl Draft {
    /// Lists a directive that could not be translated.
    pub(super) fn lose(&mut self, place: &Place, directive: impl Into<String>, remark: impl Into<String>) {
        add(&mut self.lost, place, directive.into(), remark.into());
    }

    /// Lists a directive that was translated and behaves differently.
    pub(super) fn differ(&mut self, place: &Place, directive: impl Into<String>, remark: impl Into<String>) {
        add(&mut self.differing, place, directive.into(), remark.into());
    }

    /// Returns the listener of an address, which is new without a comment of its own.
    pub(super) fn listener(&mut self, address: SocketAddr, comment: String) -> &mut Listener {
        let found = self.listeners.iter().position(|listener| listener.address == address);
        let index = found.unwrap_or_else(|| {
            self.listeners.push(Listener { comment, address, tls: None, proxy_protocol: None });
            self.listeners.len() - 1
        });
        &mut self.listeners[index]
    }

    /// Returns the name of a pool with these nodes and keys: an existing one, or a new one whose name begins with the
    /// given one.
    pub(super) fn pool(&mut self, pool: Pool) -> String {
        let base = pool.name.clone();
        let is_same = |other: &&Pool| {
            (other.nodes == pool.nodes && other.entries == pool.entries)
                && (other.name == base || other.name.strip_prefix(&*base).is_some_and(|rest| rest.starts_with('-')))
        };
        if let Some(known) = self.pools.iter().find(is_same) {
            return known.name.clone();
        }
        let name = unique(&base, |name| self.pools.iter().any(|pool| pool.name == name));
        self.pools.push(Pool { name: name.clone(), ..pool });
        name
    }

    /// Returns the result: the file with its remarks.
    ///
    /// `origin`: the name of the other proxy and of its file.
    pub(super) fn finish(mut self, origin: &str) -> Import {
        if self.listeners.is_empty() {
            let address = SocketAddr::from(([0, 0, 0, 0], 8080));
            self.listener(address, "No address could be translated: choose one.".to_owned());
        }
        self.lost.sort_by(|a, b| a.place.cmp(&b.place));
        self.differing.sort_by(|a, b| a.place.cmp(&b.place));
        let mut head: Comments = vec![
            format!("Made by `ringway import` from {origin}."),
            "Read it, then try it: `ringway check`, and `ringway explain GET URL` for a request.".to_owned(),
        ];
        for (title, notes) in [("Not translated:", &self.lost), ("Translated, with a difference:", &self.differing)] {
            if !notes.is_empty() {
                head.extend([String::new(), title.to_owned()]);
                head.extend(notes.iter().map(|note| format!("- {note}")));
            }
        }
        let mut text = String::new();
        yaml::write_comments(&mut text, 0, &head);
        text.push('\n');
        text.push_str(&yaml::file(&self.blocks()));
        Import { text, lost: self.lost, differing: self.differing }
    }

    fn blocks(&self) -> Vec<(Comments, String, Value)> {
        let mut blocks = Vec::new();
        let mut add = |key: &str, value: Value| blocks.push((Vec::new(), key.to_owned(), value));
        if let Some(workers) = self.workers {
            add("workers", Value::plain(workers));
        }
        if !self.trusted.is_empty() {
            add("trusted_proxies", Value::texts(&self.trusted));
        }
        add("listeners", Value::Items(self.listener_items()));
        if !self.limits.is_empty() {
            let limits = self.limits.iter().map(|(key, value)| (Vec::new(), key.clone(), value.clone()));
            add("limits", Value::Block(limits.collect()));
        }
        if let Some(log) = &self.access_log {
            add("access_log", log.clone());
        }
        if !self.pools.is_empty() {
            let pools = self.pools.iter().map(|pool| (pool.comments.clone(), pool.name.clone(), pool.value()));
            add("pools", Value::Block(pools.collect()));
        }
        match self.routes.is_empty() {
            true => add("routes", Value::List(Vec::new())),
            false => add("routes", Value::Items(self.route_items())),
        }
        blocks
    }

    fn listener_items(&self) -> Vec<Item> {
        let mut names = HashSet::new();
        let item = |listener: &Listener| {
            let base = if listener.tls.is_some() { "https" } else { "http" };
            let name = unique(base, |name| names.contains(name));
            names.insert(name.clone());
            let address = Value::text(listener.address.to_string());
            let mut keys = entries([("name", Value::text(name)), ("address", address)]);
            if let Some(tls) = &listener.tls {
                keys.push(("tls".to_owned(), Value::Block(tls.block())));
            }
            if let Some(trusted) = &listener.proxy_protocol {
                let trusted = entries([("trusted", Value::texts(trusted))]);
                keys.push(("proxy_protocol".to_owned(), Value::Map(trusted)));
            }
            Item { comments: vec![listener.comment.clone()], entries: keys }
        };
        self.listeners.iter().map(item).collect()
    }

    fn route_items(&self) -> Vec<Item> {
        let mut names = HashSet::new();
        let item = |route: &Route| {
            let name = unique(&route.name, |name| names.contains(name));
            names.insert(name.clone());
            let mut keys = entries([("name", Value::text(name))]);
            let mut add = |key: &str, value: Value| keys.push((key.to_owned(), value));
            if !route.hosts.is_empty() {
                add("hosts", Value::texts(&route.hosts));
            }
            match &route.path {
                Some(PathMatch::Exact(path)) => add("path", Value::text(path)),
                Some(PathMatch::Prefix(path)) => add("path_prefix", Value::text(path)),
                None => {}
            }
            if !route.methods.is_empty() {
                add("methods", Value::texts(&route.methods));
            }
            if let Some(scheme) = route.scheme {
                add("scheme", Value::text(scheme));
            }
            if !route.headers.is_empty() {
                add("headers", Value::Map(route.headers.clone()));
            }
            keys.extend(route.entries.iter().cloned());
            Item { comments: route.comments.clone(), entries: keys }
        };
        self.routes.iter().map(item).collect()
    }
}

impl Tls {
    fn block(&self) -> Vec<(Comments, String, Value)> {
        let file = |(chain, key): &(String, String)| {
            Value::Map(entries([("chain_file", Value::text(chain)), ("key_file", Value::text(key))]))
        };
        // A name to fill in, where the source had none.
        let missing = [("certificate.pem".to_owned(), "certificate.key".to_owned())];
        let certificates = if self.certificates.is_empty() { &missing[..] } else { &self.certificates };
        let certificates = Value::List(certificates.iter().map(file).collect());
        let mut block = vec![(Vec::new(), "certificates".to_owned(), certificates)];
        let mut add = |key: &str, value: Value| block.push((Vec::new(), key.to_owned(), value));
        if let Some(version) = self.min_version {
            // Without quotes YAML reads a number.
            add("min_version", Value::plain(format!("\"{version}\"")));
        }
        if let Some(file) = &self.client_ca_file {
            add("client_ca_file", Value::text(file));
            if self.is_client_auth_optional {
                add("client_auth", Value::text("optional"));
            }
        }
        block
    }
}

impl Pool {
    fn value(&self) -> Value {
        let mut ids = HashSet::new();
        let item = |node: &Node| {
            let id = unique(&node.id, |id| ids.contains(id));
            ids.insert(id.clone());
            let mut keys = entries([("id", Value::text(id)), ("address", Value::text(&node.address))]);
            if node.weight != 1 {
                keys.push(("weight".to_owned(), Value::plain(node.weight)));
            }
            if node.is_down {
                keys.push(("state".to_owned(), Value::text("down")));
            }
            Item { comments: Vec::new(), entries: keys }
        };
        let nodes: Vec<Item> = self.nodes.iter().map(item).collect();
        let mut block = Vec::new();
        if !nodes.is_empty() {
            block.push((Vec::new(), "nodes".to_owned(), Value::Items(nodes)));
        } else if !self.entries.iter().any(|(key, _)| key == "discovery") {
            block.push((Vec::new(), "nodes".to_owned(), Value::List(Vec::new())));
        }
        block.extend(self.entries.iter().map(|(key, value)| (Vec::new(), key.clone(), value.clone())));
        Value::Block(block)
    }
}

fn add(notes: &mut Vec<Note>, place: &Place, directive: String, remark: String) {
    let note = Note { place: place.clone(), directive, remark };
    if !notes.contains(&note) {
        notes.push(note);
    }
}

/// Returns the name, or the first of `NAME-2`, `NAME-3` that is not taken.
fn unique(base: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    std::iter::once(base.to_owned()).chain(numbered).find(|name| !is_taken(name)).unwrap_or_default()
}

/// Returns a name for metrics and logs from any text: `/static/*.js` becomes `static-js`.
pub(super) fn slug(text: &str) -> String {
    let mut name = String::new();
    for char in text.chars().take(80) {
        match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' => name.push(char),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "all".to_owned() } else { name.to_owned() }
}

/// Returns a host of a route, if the text is one.
pub(super) fn host(text: &str) -> Option<String> {
    target::is_host(text.strip_prefix("*.").unwrap_or(text)).then(|| text.to_ascii_lowercase())
}

/// Returns whether a route can match the path.
pub(super) fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
        && target::normalize_path(text).is_ok()
}

/// Returns whether a route can set a field to a value.
pub(super) fn is_field(name: &str, value: &str) -> bool {
    let settable = |name: HeaderName| !fields::is_hop_by_hop(&name) && name != http::header::CONTENT_LENGTH;
    HeaderName::from_bytes(name.as_bytes()).is_ok_and(settable) && HeaderValue::from_str(value).is_ok()
}

/// Returns whether a text is an address or a network.
pub(super) fn is_network(text: &str) -> bool {
    text.parse::<ipnet::IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok()
}

/// Returns whether a text is a token (RFC 9110 5.6.2), such as the name of a cookie.
pub(super) fn is_token(text: &str) -> bool {
    HeaderName::from_bytes(text.as_bytes()).is_ok()
}

/// Returns the address of a node with its port, if the text is one.
pub(super) fn node_address(text: &str, port: u16) -> Option<String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then(|| text.to_owned());
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return Some(SocketAddr::new(ip, port).to_string());
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (text, port),
    };
    (target::is_host(name) && port != 0).then(|| format!("{name}:{port}"))
}
