//! The plan of a request, in stages: `route`, its keys, and its choice of a node. Each stage is pure, but for the
//! random key of a new soft cookie, and computed when its step is reached: a hit picks no node. The pipeline carries
//! the plan out, and `ringway explain` prints it.

use super::affinity::{Affinity, Session};
use super::hash_key::KeySource;
use super::request::Form;
use super::route::{Query, Table};
use crate::cache::{BypassCookies, TargetUri};
use crate::config::OnGone;
use crate::http::head::{RequestFields, RequestHead};
use crate::idempotency::Subject;
use crate::ring::Ring;
use crate::upstream::NodePreference;
use http::HeaderValue;

/// Returns the place of a request's route in the order of the file; `None` where no route matches.
pub(crate) fn route(table: &Table, head: &RequestHead, form: &Form<'_>) -> Option<usize> {
    table.find(Query { host: &form.host, path: &form.path, method: &head.method, fields: &head.fields })
}

/// Returns the subject of an idempotency key; with the caller's scope it is the identity of a record.
pub(crate) fn subject(namespace: &str, head: &RequestHead, form: &Form<'_>, key: String) -> Subject {
    Subject {
        namespace: namespace.to_owned(),
        method: head.method.as_str().to_owned(),
        authority: form.authority.to_string(),
        path: form.path.to_string(),
        key,
    }
}

/// Returns the parts of a request that its cache key is made of.
pub(crate) fn cache_target<'a>(form: &'a Form<'_>, fields: &RequestFields) -> TargetUri<'a> {
    TargetUri {
        scheme: fields.facts.scheme(),
        authority: &form.authority,
        path: &form.path,
        query: form.query.as_deref(),
    }
}

/// Why a read passes the cache by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheBypass {
    /// It has a body, which is not a part of the key.
    Body,
    /// It has a cookie of `bypass_cookies`.
    Cookie,
}

/// Returns why a read is neither answered from the cache nor stored; `None` where it may be.
pub(crate) fn cache_bypass(form: &Form<'_>, fields: &RequestFields, cookies: &BypassCookies) -> Option<CacheBypass> {
    if form.has_body {
        return Some(CacheBypass::Body);
    }
    cookies.are_in(fields.plain()).then_some(CacheBypass::Cookie)
}

/// The nodes of a pool and the affinity of a route, as far as a choice needs them.
pub(crate) struct Candidates<'a> {
    pub(crate) pool: &'a str,
    pub(crate) ring: &'a Ring,
    pub(crate) affinity: Option<&'a Affinity>,
    /// Returns a node's place in the pool's list by its id.
    pub(crate) find: &'a dyn Fn(&str) -> Option<usize>,
}

/// The nodes of a request in order, and the affinity cookie of the response.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) wanted: NodePreference,
    pub(crate) by: ChosenBy,
    /// The end of the strict session that the request came with, in seconds since 1970.
    pub(super) session_end: Option<u64>,
    pub(super) cookie: CookieRule,
}

/// The rule that has found the place on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChosenBy {
    /// The key in the request's soft affinity cookie.
    AffinityCookie,
    /// The first source of `hash_on` that the request has.
    HashKey,
    /// Chance; a soft cookie may keep its result.
    Random,
}

/// The affinity cookie that a response brings.
#[derive(Clone, Debug)]
pub(super) enum CookieRule {
    Nothing,
    Soft(HeaderValue),
    /// One for the node that answered.
    Strict {
        secure: bool,
    },
    /// The same, where that is not the pinned one.
    IfMoved {
        secure: bool,
    },
}

impl Choice {
    fn of(hash: u64, by: ChosenBy, cookie: CookieRule) -> Choice {
        Choice { wanted: NodePreference { hash, pinned: None, may_leave: true }, by, session_end: None, cookie }
    }
}

/// Returns the choice of a node: by the affinity cookie, else by the hash key, else at random. `now` is in seconds
/// since 1970; `random` returns a position on the ring.
pub(crate) fn choice(
    candidates: &Candidates<'_>,
    fields: &RequestFields,
    key: Option<&KeySource<'_>>,
    now: u64,
    random: impl FnOnce() -> u64,
) -> Choice {
    let secure = fields.facts.is_secure;
    let hash_of = |key: &[u8]| candidates.ring.hash_key(key);
    let hash = key.map(|found| hash_of(&found.key));
    let by_hash = |cookie| match hash {
        Some(hash) => Choice::of(hash, ChosenBy::HashKey, cookie),
        None => Choice::of(random(), ChosenBy::Random, cookie),
    };
    let Some(affinity) = candidates.affinity else { return by_hash(CookieRule::Nothing) };
    match affinity.read(fields.plain(), candidates.pool, now) {
        Session::Soft(key) => Choice::of(hash_of(&key), ChosenBy::AffinityCookie, CookieRule::Nothing),
        Session::Strict { node, end, fresh } => match (candidates.find)(&node) {
            None => by_hash(CookieRule::Strict { secure }),
            Some(index) => {
                let choice =
                    by_hash(if fresh { CookieRule::IfMoved { secure } } else { CookieRule::Strict { secure } });
                let may_leave = affinity.on_gone == OnGone::Next;
                let wanted = NodePreference { pinned: Some(index), may_leave, ..choice.wanted };
                Choice { wanted, session_end: Some(end), ..choice }
            }
        },
        Session::None if affinity.is_strict() => by_hash(CookieRule::Strict { secure }),
        Session::None => match (hash, affinity.soft_cookie(secure)) {
            (None, Some((key, cookie))) => Choice::of(hash_of(&key), ChosenBy::Random, CookieRule::Soft(cookie)),
            _ => by_hash(CookieRule::Nothing),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::values::HashSource;
    use crate::ring::{Member, Seed};
    use http::HeaderMap;
    use http::header::COOKIE;

    const NOW: u64 = 1_800_000_000;
    const CHANCE: u64 = 7;

    fn affinity(settings: &str) -> Affinity {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "0123456789abcdef0123456789abcdef").unwrap();
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:1 }}]
pools: {{ p: {{ nodes: [{{ id: n, address: 127.0.0.1:2 }}] }} }}
routes: [{{ name: r, pool: p, affinity_cookie: {{ ttl: 1h, {settings} }} }}]"
        );
        let (config, _) =
            Config::parse(&folder.path().join("c.yaml"), &text, &|_| None).unwrap_or_else(|report| panic!("{report}"));
        Affinity::new(config.settings.routes[0].affinity_cookie.as_ref().unwrap(), &config.secrets)
    }

    /// The position of the node or of the hash; the rule; whether the request may leave its node; and the cookie.
    #[test]
    fn a_cookie_goes_before_the_key_and_the_key_before_chance() {
        let ring = Ring::build(Seed::new("s"), 10, &[Member { id: "a", weight: 1 }, Member { id: "b", weight: 1 }]);
        let find = |id: &str| ["a", "b"].iter().position(|known| *known == id);
        let choose = |affinity: Option<&Affinity>, cookie: &str, key: Option<&str>, now: u64| {
            let mut fields = HeaderMap::new();
            fields.insert(COOKIE, HeaderValue::from_str(cookie).unwrap());
            let source = HashSource::Host;
            let key = key.map(|key| KeySource { source: &source, key: key.as_bytes().into() });
            let candidates = Candidates { pool: "p", ring: &ring, affinity, find: &find };
            choice(&candidates, &RequestFields::from(fields), key.as_ref(), now, || CHANCE)
        };
        let value = |set: &HeaderValue| set.to_str().unwrap().split(';').next().unwrap().to_owned();
        let hash = |key: &str| ring.hash_key(key.as_bytes());
        let none = choose(None, "", None, NOW);
        assert_eq!((none.wanted.hash, none.by), (CHANCE, ChosenBy::Random));
        let keyed = choose(None, "", Some("k"), NOW);
        assert_eq!((keyed.wanted.hash, keyed.by, keyed.wanted.may_leave), (hash("k"), ChosenBy::HashKey, true));

        let soft = affinity("mode: soft");
        let first = choose(Some(&soft), "", None, NOW);
        let CookieRule::Soft(set) = &first.cookie else { panic!("a new client gets a cookie: {first:?}") };
        let again = choose(Some(&soft), &value(set), Some("k"), NOW);
        assert_eq!((first.by, again.by), (ChosenBy::Random, ChosenBy::AffinityCookie));
        assert_eq!(again.wanted.hash, first.wanted.hash, "the key is in the cookie");
        assert!(matches!(choose(Some(&soft), "", Some("k"), NOW).cookie, CookieRule::Nothing));

        for (on_gone, may_leave) in [("reject", false), ("next", true)] {
            let strict = affinity(&format!("mode: strict, secret_file: key, on_gone: {on_gone}"));
            let cookie = |node: &str| value(&strict.strict_cookie(node, "p", false, NOW).unwrap());
            let held = choose(Some(&strict), &cookie("b"), Some("k"), NOW);
            assert_eq!((held.wanted.pinned, held.wanted.may_leave), (Some(1), may_leave), "{on_gone}");
            assert_eq!((held.wanted.hash, held.session_end), (hash("k"), Some(NOW + 3600)));
            assert!(matches!(held.cookie, CookieRule::IfMoved { .. }), "fresh");
            let late = choose(Some(&strict), &cookie("b"), None, NOW + 2000);
            assert!(matches!(late.cookie, CookieRule::Strict { .. }), "more than half of it is over");
            let gone = choose(Some(&strict), &cookie("c"), None, NOW);
            assert_eq!((gone.wanted.pinned, gone.session_end, gone.by), (None, None, ChosenBy::Random));
            assert!(matches!(gone.cookie, CookieRule::Strict { .. }));
        }
    }
}
