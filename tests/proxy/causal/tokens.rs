//! Session tokens: forged, cut, expired, of other secrets, in cookies and in fields.

use super::{Proxies, SECRET, Session, configuration, status, token_of, versions, warm};
use crate::support::{Proxy, eventually, write_private};

#[test]
fn a_forged_token_costs_a_validation_and_is_counted() {
    let fleet = Proxies::causal(1);
    let proxy = &fleet.proxies[0];
    let mut session = Session::default();
    session.get(proxy, "/articles/7");
    let good = session.token.clone().unwrap();
    let (cut, longer) = (good[..good.len() - 4].to_owned(), format!("{good}AAAA"));
    for (count, token) in ["", "x", "AAAA", &cut, &longer, &"A".repeat(5000)].into_iter().enumerate() {
        warm(proxy, "/articles/7");
        let mut forger = Session { token: Some(token.to_owned()) };
        let answer = forger.get(proxy, "/articles/7");
        assert_eq!(answer.status, 200);
        assert!(status(&answer).contains("detail=causal"), "{token:.20}: {answer:?}");
        assert_eq!(proxy.metric("ringway_session_tokens_total{result=\"bad\"}"), (count + 1) as f64);
        // The client gets a good one, whose group is known now.
        assert_ne!(forger.token.as_deref(), Some(token));
        assert!(status(&forger.get(proxy, "/articles/7")).starts_with("ringway; hit"));
    }
}

#[test]
fn a_token_may_be_repeated_and_demands_no_more_than_it_did() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    let mut session = Session::default();
    session.post(here, "/articles/7");
    let old = session.clone();
    session.post(here, "/articles/7");
    assert_eq!(old.clone().get(there, "/articles/7").text(), "v3");
    session.post(here, "/articles/7");
    assert_eq!(old.clone().get(there, "/articles/7").text(), "v3", "it has seen the first write alone");
    assert_eq!(session.get(there, "/articles/7").text(), "v4");
}

#[test]
fn a_field_carries_the_token_of_clients_without_cookies() {
    let fleet = Proxies::causal(2);
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(there, "/articles/7");
    let posted = here.send("POST", "/articles/7", "ringway-session: ");
    assert_eq!(posted.field("set-cookie"), None);
    let token = posted.field("ringway-session").unwrap();
    let read = there.get_with("/articles/7", &format!("ringway-session: {token}"));
    assert_eq!((read.text().as_str(), read.field("set-cookie")), ("v2", None));
    let first = here.get("/articles/7");
    assert_eq!(token_of(&first), first.field("ringway-session"), "a new client may take either");
}

#[test]
fn secrets_rotate_and_other_secrets_count_for_nothing() {
    let (origin, folder) = (versions(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let settings = "level: causal, groups: [\"{host}/{path:2}\"]";
    let proxy = Proxy::start(&configuration(&origin, &secret, settings));
    let mut session = Session::default();
    session.get(&proxy, "/articles/7");
    let old = session.clone();
    let rotated = folder.path().join("rotated");
    write_private(&rotated, &format!("{}\n{SECRET}", SECRET.replace('0', "z")));
    proxy.reconfigure(&configuration(&origin, &rotated, settings));
    assert!(status(&session.get(&proxy, "/articles/7")).starts_with("ringway; hit"), "the old secret verifies");
    let other = folder.path().join("other");
    write_private(&other, &SECRET.replace('0', "y"));
    proxy.reconfigure(&configuration(&origin, &other, settings));
    assert!(status(&old.clone().get(&proxy, "/articles/7")).contains("detail=causal"));
    assert_eq!(proxy.metric("ringway_session_tokens_total{result=\"bad\"}"), 1.0);
    // Other templates: the token's groups are not these.
    write_private(&secret, SECRET);
    proxy.reconfigure(&configuration(&origin, &secret, "level: causal, groups: [\"{host}\"]"));
    assert!(status(&old.clone().get(&proxy, "/articles/7")).contains("detail=causal"));
    assert_eq!(proxy.metric("ringway_session_tokens_total{result=\"other_templates\"}"), 1.0);
}

/// A client that has seen more than a token holds: the oldest groups are forgotten, and cost validations.
#[test]
fn a_token_stays_short() {
    let fleet = Proxies::causal(1);
    let proxy = &fleet.proxies[0];
    let mut session = Session::default();
    for number in 0..60 {
        session.post(proxy, &format!("/articles/{number}"));
        assert!(session.token.as_ref().unwrap().len() <= 400);
    }
    for number in [0, 59] {
        assert_eq!(session.get(proxy, &format!("/articles/{number}")).text(), "v2");
    }
    warm(proxy, "/articles/99");
    assert!(status(&session.get(proxy, "/articles/99")).contains("detail=causal"), "a group that may be forgotten");
}

#[test]
fn the_log_says_why_a_response_was_validated() {
    let (origin, folder) = (versions(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("key");
    write_private(&secret, SECRET);
    let text = configuration(&origin, &secret, "level: causal, groups: [\"{host}/{path:2}\"]");
    let proxy =
        Proxy::start(&("workers: 1\naccess_log: { format: json, fields: [uri, consistency] }\n".to_owned() + &text));
    warm(&proxy, "/articles/7");
    let mut session = Session { token: Some("forged".to_owned()) };
    session.get(&proxy, "/articles/7");
    session.get(&proxy, "/articles/7");
    proxy.get("/articles/8");
    let lines = ["session", "fresh"].map(|word| format!("{{\"uri\":\"/articles/7\",\"consistency\":\"{word}\"}}"));
    let end = [&lines[..], &["{\"uri\":\"/articles/8\",\"consistency\":null}".to_owned()]].concat().join("\n");
    eventually("the lines", || proxy.output().contains(&end));
}
