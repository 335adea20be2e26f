//! The route of a request: the first in the file that matches, found without a scan of all.
//!
//! Routes are indexed by their host pattern and then by their path. A look-up collects the few routes for the request's
//! host and path, and returns the first that also matches method and fields.

use crate::config::values::HostPattern;
use crate::config::{self};
use crate::http::head::RequestFields;
use http::{HeaderName, HeaderValue, Method};
use std::collections::HashMap;

type Map<V> = HashMap<String, V, foldhash::fast::RandomState>;

/// The parts of a request by which a route is found; host and path in their normal form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    /// Without the port; empty where the request names no host.
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) method: &'a Method,
    pub(crate) fields: &'a RequestFields,
}

/// The routes of one configuration, as indices in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Table {
    any_host: Paths,
    exact_hosts: Map<Paths>,
    /// By the name below which the wildcard matches.
    wildcard_hosts: Map<Paths>,
    conditions: Vec<Conditions>,
}

/// The routes of one host pattern.
#[derive(Debug, Default)]
struct Paths {
    any: Vec<usize>,
    exact: Map<Vec<usize>>,
    /// By the prefix without its last `/`.
    prefixes: Map<Vec<usize>>,
    /// The number of segments of the longest prefix: further ones of a path do not matter.
    deepest: usize,
}

/// The conditions of a route beside host and path.
#[derive(Debug)]
struct Conditions {
    methods: Vec<Method>,
    /// The client must use TLS (`true`) or must not (`false`).
    secure: Option<bool>,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// The prefix was written with a `/` at its end, so that the bare path does not match.
    below_only: Option<usize>,
}

impl Table {
    pub(crate) fn new(routes: &[config::Route]) -> Table {
        let mut table = Table::default();
        for (index, route) in routes.iter().enumerate() {
            table.conditions.push(Conditions::of(route));
            match route.hosts.is_empty() {
                true => table.any_host.file(index, route),
                false => {
                    for host in &route.hosts {
                        table.paths_of(host).file(index, route);
                    }
                }
            }
        }
        table
    }

    fn paths_of(&mut self, host: &HostPattern) -> &mut Paths {
        match host {
            HostPattern::Any => &mut self.any_host,
            HostPattern::Exact(name) => self.exact_hosts.entry(name.clone()).or_default(),
            HostPattern::Below(name) => self.wildcard_hosts.entry(name.clone()).or_default(),
        }
    }

    /// Returns the index of the first route that matches.
    pub(crate) fn find(&self, query: Query<'_>) -> Option<usize> {
        let mut best = self.any_host.find(query, &self.conditions, usize::MAX);
        if !self.exact_hosts.is_empty()
            && let Some(paths) = self.exact_hosts.get(query.host)
        {
            best = best.min(paths.find(query, &self.conditions, best));
        }
        if !self.wildcard_hosts.is_empty() {
            let mut rest = query.host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(paths) = self.wildcard_hosts.get(parent) {
                    best = best.min(paths.find(query, &self.conditions, best));
                }
                rest = parent;
            }
        }
        (best != usize::MAX).then_some(best)
    }
}

impl Paths {
    fn file(&mut self, index: usize, route: &config::Route) {
        if let Some(path) = &route.path {
            self.exact.entry(path.0.clone()).or_default().push(index);
            return;
        }
        match route.path_prefix.as_ref().map(|prefix| prefix.0.strip_suffix('/').unwrap_or(&prefix.0)) {
            None | Some("") => self.any.push(index),
            Some(prefix) => {
                self.deepest = self.deepest.max(prefix.matches('/').count());
                self.prefixes.entry(prefix.to_owned()).or_default().push(index);
            }
        }
    }

    /// Returns the first match before `best`, or `usize::MAX`.
    fn find(&self, query: Query<'_>, conditions: &[Conditions], mut best: usize) -> usize {
        let mut consider = |filed: &[usize]| {
            // Filed in the order of the file: the first that agrees is the first of these.
            let agrees = |&&index: &&usize| conditions[index].agree(query);
            if let Some(&index) = filed.iter().take_while(|&&index| index < best).find(agrees) {
                best = index;
            }
        };
        consider(&self.any);
        if !self.exact.is_empty()
            && let Some(filed) = self.exact.get(query.path)
        {
            consider(filed);
        }
        if !self.prefixes.is_empty() {
            let ends = query.path.match_indices('/').map(|(at, _)| at).skip(1).chain([query.path.len()]);
            for end in ends.take(self.deepest) {
                if let Some(filed) = self.prefixes.get(&query.path[..end]) {
                    consider(filed);
                }
            }
        }
        best
    }
}

impl Conditions {
    fn of(route: &config::Route) -> Conditions {
        let fields = route.headers.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, value.clone()))
        });
        let below_only = route.path_prefix.as_ref().filter(|prefix| prefix.0.len() > 1 && prefix.0.ends_with('/'));
        Conditions {
            methods: route.methods.clone(),
            secure: route.scheme.map(|scheme| scheme == config::Scheme::Https),
            fields: fields.collect(),
            below_only: below_only.map(|prefix| prefix.0.len()),
        }
    }

    fn agree(&self, query: Query<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(query.method))
            && self.secure.is_none_or(|secure| secure == query.fields.facts.is_secure)
            && self.below_only.is_none_or(|length| query.path.len() >= length)
            && self.fields.iter().all(|(name, wanted)| {
                let mut values = query.fields.values(name);
                values.any(|value| wanted == "*" || wanted.as_bytes() == &*value)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use http::HeaderMap;
    use proptest::prelude::*;
    use std::path::Path;

    fn table(routes: &str) -> (Table, Vec<String>) {
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:1 }}]\npools: {{ p: {{ nodes: [] }} }}\nroutes:\n{routes}"
        );
        let (config, _) =
            Config::parse(Path::new("t.yaml"), &text, &|_| None).unwrap_or_else(|report| panic!("{report}"));
        let names = config.settings.routes.iter().map(|route| route.name.value.clone()).collect();
        (Table::new(&config.settings.routes), names)
    }

    fn find(table: &(Table, Vec<String>), method: &str, host: &str, path: &str, field: &str) -> String {
        let mut fields = HeaderMap::new();
        if let Some((name, value)) = field.split_once(": ") {
            fields.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut fields = RequestFields::from(fields);
        fields.facts.is_secure = host.ends_with(".tls");
        let found = table.0.find(Query { host, path, method: &method, fields: &fields });
        found.map_or("none".to_owned(), |index| table.1[index].clone())
    }

    #[test]
    fn the_first_route_in_the_file_wins() {
        let table = table(
            "
  - { name: exact, hosts: [api.example.com], path: /pay, pool: p }
  - { name: post, path_prefix: /pay, methods: [POST], pool: p }
  - { name: beta, headers: { x-beta: \"1\" }, path_prefix: /, pool: p }
  - { name: wild, hosts: [\"*.example.com\"], path_prefix: /pay, pool: p }
  - { name: below, path_prefix: /docs/, pool: p }
  - { name: deep, path_prefix: /a/b/c, pool: p }
  - { name: any, hosts: [\"*\", other.org], path_prefix: /a, pool: p }
  - { name: flagged, headers: { x-flag: \"*\" }, pool: p }
  - { name: home, hosts: [example.com], pool: p }
  - { name: secure, path: /s, scheme: https, pool: p }
  - { name: clear, path: /s, scheme: http, pool: p }
",
        );
        for (method, host, path, field, expected) in [
            ("GET", "api.example.com", "/pay", "", "exact"),
            ("POST", "api.example.com", "/pay", "", "exact"),
            ("POST", "api.example.com", "/pay/1", "", "post"),
            ("GET", "api.example.com", "/pay/1", "", "wild"),
            ("GET", "a.b.example.com", "/pay", "", "wild"),
            ("GET", "example.com", "/pay", "", "home"),
            ("GET", "api.example.com", "/payments", "", "none"),
            ("GET", "x.org", "/pay", "x-beta: 1", "beta"),
            ("GET", "x.org", "/pay", "x-beta: 2", "none"),
            ("GET", "x.org", "/docs", "", "none"),
            ("GET", "x.org", "/docs/", "", "below"),
            ("GET", "x.org", "/docs/x", "", "below"),
            ("GET", "x.org", "/a/b/c/d/e/f", "", "deep"),
            ("GET", "x.org", "/a/b/cd", "", "any"),
            ("GET", "x.org", "/zzz", "x-flag: whatever", "flagged"),
            ("GET", "", "/a", "", "any"),
            ("GET", "notexample.com", "/", "", "none"),
            ("GET", "x.tls", "/s", "", "secure"),
            ("GET", "x.org", "/s", "", "clear"),
        ] {
            assert_eq!(find(&table, method, host, path, field), expected, "{method} {host}{path} {field}");
        }
    }

    #[test]
    fn ten_thousand_routes_are_not_searched_one_by_one() {
        let routes: String = (0..10_000)
            .map(|n| format!("  - {{ name: r{n}, hosts: [h{n}.example.com], path_prefix: /p{n}, pool: p }}\n"))
            .collect();
        let table = table(&routes);
        let started = std::time::Instant::now();
        for n in (0..10_000).rev() {
            assert_eq!(find(&table, "GET", &format!("h{n}.example.com"), &format!("/p{n}/x"), ""), format!("r{n}"));
        }
        // A linear scan would compare 50 million routes.
        assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
    }

    /// The plain reading of the contract, to compare with.
    fn slow(routes: &[(Option<String>, String, bool)], host: &str, path: &str) -> Option<usize> {
        routes.iter().position(|(pattern, route_path, prefix)| {
            let host_fits = match pattern.as_deref() {
                None => true,
                Some(wild) if wild.starts_with("*.") => host.ends_with(&wild[1..]),
                Some(exact) => host == exact,
            };
            let path_fits = match prefix {
                false => path == route_path,
                true => route_path == "/" || path == route_path || path.starts_with(&format!("{route_path}/")),
            };
            host_fits && path_fits
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn the_index_agrees_with_a_scan(
            routes in prop::collection::vec((prop::option::of("(\\*\\.)?[ab]\\.(c|d)"), "(/[ab]{1,2}){1,3}|/", any::<bool>()), 1..20),
            host in "[ab]\\.[ab]\\.(c|d)|[ab]\\.(c|d)",
            path in "(/[ab]{1,2}){1,4}|/",
        ) {
            let text: String = routes.iter().enumerate().map(|(index, (host, path, prefix))| {
                let hosts = host.as_ref().map_or(String::new(), |host| format!("hosts: [\"{host}\"], "));
                let key = if *prefix { "path_prefix" } else { "path" };
                format!("  - {{ name: r{index}, {hosts}{key}: {path}, pool: p }}\n")
            }).collect();
            let expected = slow(&routes, &host, &path).map_or("none".to_owned(), |index| format!("r{index}"));
            prop_assert_eq!(find(&table(&text), "GET", &host, &path, ""), expected);
        }
    }
}
