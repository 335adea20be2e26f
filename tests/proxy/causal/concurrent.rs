//! Writes that do not know of each other, and the routes that refuse them.

use super::{Proxies, SECRET, Session, configuration, status, token_of, versions, warm};
use crate::support::{Proxy, write_private};

const REJECTING: &str = "level: causal, groups: [\"{host}/{path:2}\"], on_concurrent_write: reject";

#[test]
fn a_write_that_does_not_know_of_another_one_is_refused() {
    let fleet = Proxies::start(1, REJECTING);
    let proxy = &fleet.proxies[0];
    let (mut one, mut other) = (Session::default(), Session::default());
    assert_eq!(one.get(proxy, "/articles/7").text(), "v1");
    assert_eq!(other.get(proxy, "/articles/7").text(), "v1");
    assert_eq!(other.post(proxy, "/articles/7/comments").text(), "v2");
    let asked = fleet.origin.asked();
    let refused = one.post(proxy, "/articles/7");
    assert_eq!((refused.status, refused.problem().as_str()), (409, "concurrent-write"));
    assert_eq!(fleet.origin.asked(), asked, "no node was asked");
    assert_eq!(one.post(proxy, "/articles/7").status, 409, "a refusal is no reading");
    // Nor is a problem of the proxy's own.
    let cookie = format!("cookie: ringway-session={} | cache-control: only-if-cached", one.token.as_ref().unwrap());
    let absent = proxy.send("GET", "/articles/7", &cookie);
    assert_eq!(absent.problem(), "not-cached");
    one.token = token_of(&absent).or(one.token);
    assert_eq!(one.post(proxy, "/articles/7").status, 409);
    let problem = refused.json();
    let theirs = problem["concurrent"].as_object().unwrap();
    assert!(theirs.values().any(|number| number.as_u64() > Some(0)) && problem["yours"].is_object(), "{problem}");
    // The writer itself goes on, and so does the other one once it has read.
    assert_eq!(other.post(proxy, "/articles/7").text(), "v3");
    assert_eq!(one.get(proxy, "/articles/7").text(), "v3");
    assert_eq!(one.post(proxy, "/articles/7").text(), "v4");
    // A client without a session does not know of any.
    assert_eq!(Session::default().post(proxy, "/articles/7").status, 409);
    assert_eq!(Session::default().post(proxy, "/articles/8").text(), "v2", "nobody has written to that group");
}

/// Reads that pass the store know what the node knows.
#[test]
fn a_read_that_is_not_stored_makes_writes_known_too() {
    let fleet = Proxies::start(1, REJECTING);
    let proxy = &fleet.proxies[0];
    let mut one = Session::default();
    Session::default().post(proxy, "/articles/7");
    assert_eq!(one.post(proxy, "/articles/7").status, 409);
    let read = one.send(proxy, "OPTIONS", "/articles/7");
    assert_eq!(read.status, 200, "{read:?}");
    assert_eq!(one.post(proxy, "/articles/7").status, 200);
}

#[test]
fn the_clocks_of_a_group_can_be_read() {
    let fleet = Proxies::causal(1);
    let proxy = &fleet.proxies[0];
    warm(proxy, "/articles/7");
    let group = |name: &str| proxy.admin_get(&format!("/api/fleet/groups/{name}")).json();
    assert_eq!(group("example.com/articles/7")["writes"].as_array().unwrap().len(), 0);
    let mut session = Session::default();
    session.post(proxy, "/articles/7/comments");
    for name in ["example.com/articles/7", "example.com%2Farticles%2F7/comments"] {
        let found = group(name);
        let write = &found["writes"][0];
        let process = write["process"].as_str().unwrap();
        assert_eq!(process, proxy.admin_get("/api/fleet").json()["process"], "{found}");
        assert!(found["clock"][process].as_u64() >= write["number"].as_u64(), "{found}");
    }
    assert!(status(&session.get(proxy, "/articles/7")).contains("detail=causal"));
}

/// A repetition with a key gets the stored result of its own write, which the session has not seen; a new key of that
/// session is refused before anything is sent.
#[test]
fn a_repeated_write_with_a_key_is_no_concurrent_one() {
    let (origin, folder) = (versions(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let text = configuration(&origin, &secret, REJECTING).replace("cache: {}", "cache: {}, idempotency: { scope: [] }");
    let proxy = Proxy::start(&format!("idempotency_store: {{ path: {}/store.db }}\n{text}", folder.path().display()));
    let mut session = Session::default();
    session.get(&proxy, "/articles/7");
    let token = session.token.unwrap();
    let pay = |key: &str| {
        let fields = format!("cookie: ringway-session={token} | idempotency-key: {key} | content-length: 0");
        proxy.send("POST", "/articles/7", &fields)
    };
    assert_eq!(pay("k").text(), "v2");
    let again = pay("k");
    assert_eq!((again.text().as_str(), again.field("idempotent-replayed").as_deref()), ("v2", Some("true")));
    let asked = origin.asked();
    let refused = pay("other");
    assert_eq!((refused.status, refused.problem().as_str()), (409, "concurrent-write"));
    assert_eq!((origin.asked(), proxy.admin_get("/api/idempotency?key=other").text().trim()), (asked, "[]"));
}
