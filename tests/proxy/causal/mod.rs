//! Causal routes: a session never sees an older version than one that it has seen or written, on any proxy.

mod bus;
mod concurrent;
mod histories;
mod tokens;

use crate::support::{Answer, Barrier, Origin, Proxy, eventually, warm, write_private};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Proxies that share a secret and no bus, before one origin.
pub struct Proxies {
    pub origin: Origin,
    pub proxies: Vec<Proxy>,
    _folder: TempDir,
}

/// The first two segments of a path: what changes together.
fn resource(path: &str) -> String {
    path.split('/').take(3).collect::<Vec<_>>().join("/")
}

/// An origin whose resources have versions: reads get `v1`, `v2` and so on with a validator, other methods make the next
/// version.
pub fn versions() -> Origin {
    let versions: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
    Origin::start(move |ask, peer| {
        let version = {
            let mut versions = versions.lock().unwrap();
            let version = versions.entry(resource(ask.path())).or_insert(1);
            *version += u64::from(!matches!(ask.method(), "GET" | "HEAD"));
            *version
        };
        let tag = format!("\"{version}\"");
        let fields = format!("cache-control: public, max-age=600 | etag: {tag}");
        match ask.field("if-none-match") {
            Some(known) if known == tag => peer.reply(304, &fields, ""),
            _ => peer.reply(200, &fields, &format!("v{version}")),
        }
    })
}

/// The configuration of a proxy before an origin, with the settings of `consistency`.
pub fn configuration(origin: &Origin, secret: &std::path::Path, settings: &str) -> String {
    let route = format!("cache: {{}}, consistency: {{ {settings} }} }}");
    let text = Proxy::pool(&[origin.address], "").replace("hash_on: [uri] }", &format!("hash_on: [uri], {route}"));
    format!("fleet: {{ secret_file: {} }}\n{text}", secret.display())
}

impl Proxies {
    pub fn start(count: usize, settings: &str) -> Proxies {
        Proxies::before(versions(), count, settings)
    }

    fn before(origin: Origin, count: usize, settings: &str) -> Proxies {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("fleet.key");
        write_private(&secret, SECRET);
        let text = configuration(&origin, &secret, settings);
        let proxies = (0..count).map(|_| Proxy::start(&text)).collect();
        Proxies { origin, proxies, _folder: folder }
    }

    pub fn causal(count: usize) -> Proxies {
        Proxies::start(count, "level: causal, groups: [\"{host}/{path:2}\"]")
    }
}

/// A client that keeps its cookie.
#[derive(Clone, Default)]
pub struct Session {
    pub token: Option<String>,
}

impl Session {
    pub fn send(&mut self, proxy: &Proxy, method: &str, path: &str) -> Answer {
        let cookie = self.token.as_ref().map(|token| format!("cookie: ringway-session={token}")).unwrap_or_default();
        let answer = proxy.send(method, path, &cookie);
        if let Some(token) = token_of(&answer) {
            self.token = Some(token);
        }
        answer
    }

    pub fn get(&mut self, proxy: &Proxy, path: &str) -> Answer {
        self.send(proxy, "GET", path)
    }

    pub fn post(&mut self, proxy: &Proxy, path: &str) -> Answer {
        self.send(proxy, "POST", path)
    }
}

/// The token in an answer's cookie.
pub fn token_of(answer: &Answer) -> Option<String> {
    let cookie = answer.field("set-cookie")?;
    let rest = cookie.split('|').find_map(|cookie| cookie.trim().strip_prefix("ringway-session="))?;
    Some(rest.split(';').next()?.to_owned())
}

fn status(answer: &Answer) -> String {
    answer.field("cache-status").unwrap_or_default()
}

#[test]
fn a_client_reads_its_own_write_on_another_proxy() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(there, "/articles/7");
    let mut writer = Session::default();
    assert_eq!(writer.post(here, "/articles/7").text(), "v2");
    // Another client knows nothing of the write, and neither does that proxy.
    assert_eq!(Session::default().get(there, "/articles/7").text(), "v1");
    let read = writer.get(there, "/articles/7");
    assert_eq!((read.text().as_str(), status(&read).as_str()), ("v2", "ringway; fwd=request; stored; detail=causal"));
    // From then on the stored response serves all.
    let hit = writer.get(there, "/articles/7");
    assert!(hit.text() == "v2" && status(&hit).starts_with("ringway; hit"), "{hit:?}");
    assert_eq!(Session::default().get(there, "/articles/7").text(), "v2");
}

#[test]
fn a_client_does_not_go_back_in_time_on_another_proxy() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(there, "/articles/7");
    Session::default().post(here, "/articles/7");
    let mut reader = Session::default();
    assert_eq!(reader.get(here, "/articles/7").text(), "v2");
    let read = reader.get(there, "/articles/7");
    assert_eq!(read.text(), "v2", "it has seen the second version: {read:?}");
    assert_eq!(Session::default().get(there, "/articles/7").text(), "v2", "what it has fetched is stored");
}

#[test]
fn what_has_not_changed_is_confirmed_and_not_fetched() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(here, "/articles/7");
    warm(there, "/articles/7");
    let mut reader = Session::default();
    reader.get(here, "/articles/7");
    let read = reader.get(there, "/articles/7");
    assert_eq!(status(&read), "ringway; fwd=request; fwd-status=304; detail=causal");
    let hit = reader.get(there, "/articles/7");
    assert!(status(&hit).starts_with("ringway; hit"), "{hit:?}");
    assert_eq!(token_of(&hit), None, "the token is the same");
}

/// A write to one resource of a group concerns the others, on the proxy that it went through and for its session.
/// A HEAD of a session that has written may find the validators unchanged, where they are weak: the stored body is not
/// newer for it.
#[test]
fn a_head_makes_no_stored_body_newer() {
    let version = AtomicUsize::new(1);
    let origin = Origin::start(move |ask, peer| {
        let made = usize::from(ask.method() == "POST");
        let version = version.fetch_add(made, Ordering::SeqCst) + made;
        peer.reply(200, "cache-control: public, max-age=600 | etag: W/\"same\"", &format!("v{version}"));
    });
    let fleet = Proxies::before(origin, 2, "level: causal");
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(there, "/a");
    let mut writer = Session::default();
    assert_eq!(writer.post(here, "/a").text(), "v2");
    // On another connection of the same client.
    assert_eq!(writer.clone().send(there, "HEAD", "/a").status, 200);
    assert_eq!(writer.get(there, "/a").text(), "v2");
}

#[test]
fn a_group_changes_together() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    for path in ["/articles/7", "/articles/8"] {
        warm(here, path);
        warm(there, path);
    }
    let mut writer = Session::default();
    writer.post(here, "/articles/7/comments");
    assert_eq!(Session::default().get(here, "/articles/7").text(), "v2", "for everybody there");
    assert_eq!(writer.get(there, "/articles/7").text(), "v2");
    let other = writer.get(there, "/articles/8");
    assert!(status(&other).starts_with("ringway; hit"), "another group: {other:?}");
}

#[test]
fn other_caches_and_nodes_see_nothing_of_it() {
    let fleet = Proxies::causal(1);
    let proxy = &fleet.proxies[0];
    let first = proxy.get_with("/articles/7", "cookie: ringway-session=x");
    assert_eq!(first.field("cache-control").as_deref(), Some("max-age=600, private, no-cache"));
    assert_eq!(first.field("etag").as_deref(), Some("\"1\""));
    let asked = fleet.origin.last();
    assert!(asked.field("cookie").is_none() && asked.field("ringway-session").is_none(), "{}", asked.head);
    let mut session = Session::default();
    session.get(proxy, "/articles/7");
    let cookie = format!("cookie: a=1; ringway-session={}; b=2", session.token.clone().unwrap());
    proxy.get_with("/articles/9", &format!("{cookie} | ringway-session: y"));
    let asked = fleet.origin.last();
    assert_eq!(asked.field("cookie"), Some("a=1; b=2"), "{}", asked.head);
    assert!(asked.field("ringway-session").is_none());
    // What is stored has no cookie of anybody.
    let hit = Session::default().get(proxy, "/articles/7");
    assert_ne!(token_of(&hit), None);
    assert_eq!(hit.field("set-cookie").unwrap().matches("ringway-session").count(), 1);
}

#[test]
fn a_strong_route_asks_the_node_for_every_hit() {
    let fleet = Proxies::start(1, "level: strong, verify: origin");
    let proxy = &fleet.proxies[0];
    assert_eq!(proxy.get("/articles/7").text(), "v1");
    let confirmed = proxy.get("/articles/7");
    assert_eq!(status(&confirmed), "ringway; fwd=request; fwd-status=304; detail=strong");
    assert_eq!(confirmed.field("cache-control").as_deref(), Some("max-age=600, private, no-cache"));
    assert_eq!(confirmed.field("set-cookie"), None, "no session is needed");
    proxy.send("POST", "/articles/7/comments", "");
    assert_eq!(proxy.get("/articles/7").text(), "v2");
    assert_eq!(fleet.origin.asked(), 4);
}

/// No answer of another request's fetch, and no stale response in place of an error.
#[test]
fn a_strong_route_serves_nothing_that_it_has_not_verified() {
    let mut fleet = Proxies::start(1, "level: strong, verify: origin");
    let proxy = &fleet.proxies[0];
    assert_eq!(proxy.get("/articles/7").text(), "v1");
    fleet.origin.kill();
    let failed = fleet.proxies[0].get("/articles/7");
    assert_eq!(failed.status, 502, "{failed:?}");
}

#[test]
fn a_stale_response_stands_in_only_for_sessions_that_have_seen_no_newer_one() {
    let mut fleet = Proxies::causal(2);
    let mut writer = Session::default();
    warm(&fleet.proxies[1], "/articles/7");
    writer.post(&fleet.proxies[0], "/articles/7");
    fleet.origin.kill();
    let there = &fleet.proxies[1];
    assert_eq!(writer.get(there, "/articles/7").status, 502);
    assert_eq!(Session::default().get(there, "/articles/7").text(), "v1");
}

/// Another request's fetch may have asked the node before the session's write.
#[test]
fn a_session_does_not_wait_for_a_fetch_that_may_be_older_than_its_write() {
    let (gate, is_held) = (Barrier::default(), Arc::new(AtomicBool::new(true)));
    let (own, held) = (gate.clone(), Arc::clone(&is_held));
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::start(move |ask, peer| {
        if ask.method() == "POST" {
            version.fetch_add(1, Ordering::SeqCst);
            return peer.reply(200, "", "");
        }
        // The first read is answered late, with the version of its beginning.
        let read = version.load(Ordering::SeqCst);
        if held.swap(false, Ordering::SeqCst) {
            peer.note("held");
            own.wait();
        }
        peer.reply(200, "cache-control: max-age=600", &format!("v{read}"));
    });
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let text = configuration(&origin, &secret, "level: causal");
    let (here, there) = (Proxy::start(&text), Proxy::start(&text));
    let mut writer = Session::default();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| there.get("/a").text());
        eventually("the first read", || origin.requests().iter().any(|line| line == "held"));
        writer.post(&here, "/a");
        assert_eq!(writer.get(&there, "/a").text(), "v2");
        gate.open();
        assert_eq!(first.join().unwrap(), "v1");
    });
    // Nor is what the late answer has brought served to it.
    assert_eq!(writer.get(&there, "/a").text(), "v2");
}

/// The requests of a saga go to no route: the groups that they change are those of `changes`.
#[test]
fn a_saga_changes_its_groups() {
    let (origin, folder) = (versions(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let saga = "  - name: order
    path: /orders
    methods: [POST]
    idempotency: { required: true, scope: [] }
    saga:
      changes: [\"example.com/articles/7\"]
      steps: [{ name: change, request: { pool: app, path: /articles/7 } }]
      respond: { status: 201 }
";
    let proxy = |number: u32| {
        let text = configuration(&origin, &secret, "level: causal, groups: [\"{host}/{path:2}\"]");
        let store = format!("idempotency_store: {{ path: {}/{number}.db }}\n", folder.path().display());
        Proxy::start(&(store + &text.replace("routes:\n", &format!("routes:\n{saga}"))))
    };
    let (here, there) = (proxy(0), proxy(1));
    for path in ["/articles/7/likes", "/articles/8"] {
        warm(&here, path);
        warm(&there, path);
    }
    let ordered = here.send("POST", "/orders", "idempotency-key: k | content-length: 0");
    assert_eq!(ordered.status, 201, "{ordered:?}");
    let mut customer = Session { token: token_of(&ordered) };
    assert_eq!(customer.get(&there, "/articles/7/likes").text(), "v2");
    assert!(status(&customer.get(&there, "/articles/8")).starts_with("ringway; hit"));
    assert_eq!(Session::default().get(&here, "/articles/7/likes").text(), "v2", "for everybody there");
}

/// A payment is repeated on another proxy: the client reads what it has changed.
#[test]
fn an_idempotent_write_and_its_replay_bring_a_token() {
    let (origin, folder) = (versions(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let text = configuration(&origin, &secret, "level: causal");
    let text = text.replace("cache: {}", "cache: {}, idempotency: { scope: [] }");
    let store = format!("idempotency_store: {{ path: {}/store.db }}\n", folder.path().display());
    let (here, there) =
        (Proxy::start(&(store + &text)), Proxy::start(&text.replace(", idempotency: { scope: [] }", "")));
    warm(&there, "/a");
    let pay = || here.send("POST", "/a", "idempotency-key: k | content-length: 0");
    let (first, replay) = (pay(), pay());
    assert_eq!(replay.field("idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(first.field("cache-control"), replay.field("cache-control"), "the stored fields stay as they are");
    for answer in [first, replay] {
        let mut payer = Session { token: token_of(&answer) };
        assert_eq!(payer.get(&there, "/a").text(), "v2");
    }
}

/// A stale response that others get while it is validated is not for a session that may have seen a newer one.
#[test]
fn nothing_stale_goes_to_a_session_that_has_written() {
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::start(move |ask, peer| {
        let write = usize::from(ask.method() == "POST");
        let version = version.fetch_add(write, Ordering::SeqCst) + write;
        let fields = format!("cache-control: max-age=0, stale-while-revalidate=600 | etag: \"{version}\"");
        peer.reply(200, &fields, &format!("v{version}"));
    });
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let text = configuration(&origin, &secret, "level: causal");
    let (here, there) = (Proxy::start(&text), Proxy::start(&text));
    let is_stale = || there.metric("ringway_cache_requests_total{result=\"stale\",route=\"site\"}") >= 1.0;
    eventually("a stale hit", || there.get("/a").status == 200 && is_stale());
    let mut writer = Session::default();
    assert_eq!(writer.post(&here, "/a").text(), "v2");
    let (reading, gone) = (writer.get(&there, "/a"), writer.send(&there, "HEAD", "/a"));
    assert_eq!((reading.text().as_str(), gone.status), ("v2", 200));
}

/// On one connection the proxy remembers what it has handed out.
#[test]
fn a_client_without_cookies_keeps_its_session_on_a_connection() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(here, "/articles/7");
    warm(there, "/articles/7");
    let mut client = here.connect();
    let posted = client.request("POST /articles/8 HTTP/1.1\r\nhost: example.com\r\ncontent-length: 0\r\n\r\n");
    let token = token_of(&posted).unwrap();
    // The next answer tells of the write, too.
    let read = client.request("GET /articles/7 HTTP/1.1\r\nhost: example.com\r\n\r\n");
    let mut session = Session { token: token_of(&read) };
    assert_ne!(session.token, Some(token));
    warm(there, "/articles/8");
    let told = session.get(there, "/articles/8");
    assert!(status(&told).contains("detail=causal"), "{told:?}");
}
