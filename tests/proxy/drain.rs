//! The way out: nothing that was asked is dropped.

use crate::support::{Origin, Proxy, eventually};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// A node that answers when it is told to.
fn patient_node() -> (Origin, Sender<()>) {
    let (go, wait) = channel();
    let wait = Mutex::new(wait);
    let node = Origin::by_connection(move |peer| {
        while peer.request().is_some() {
            let _ = wait.lock().unwrap().recv();
            peer.answer("at last");
        }
    });
    (node, go)
}

#[test]
fn a_request_in_flight_is_answered_and_told_to_close() {
    let (node, go) = patient_node();
    let mut proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request", || node.requests().len() == 1);
    proxy.signal("TERM");
    eventually("not being ready", || proxy.admin_get("/readyz").status == 503);
    assert_eq!(proxy.admin_get("/livez").status, 200);
    eventually("the end of listening", || TcpStream::connect(proxy.address).is_err());
    go.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.text().as_str(), answer.field("connection").as_deref()), ("at last", Some("close")));
    assert!(client.is_closed());
    eventually("the end of the process", || proxy.has_ended());
    proxy.logs("every request has ended");
}

#[test]
fn a_connection_without_a_request_gets_its_chance() {
    let node = Origin::echo();
    // A machine that is busy elsewhere may let the time for a last request pass; then it says nothing.
    let is_shown = (0..5).any(|_| {
        let mut proxy = Proxy::before(&[node.address]);
        let (mut fresh, mut kept, mut silent) = (proxy.connect(), proxy.connect(), proxy.connect());
        assert_eq!(kept.request("GET /before HTTP/1.1\r\nhost: a\r\n\r\n").field("connection"), None);
        eventually("three connections", || proxy.metric("ringway_connections{listener=\"http\"}") == 3.0);
        let began = Instant::now();
        proxy.signal("TERM");
        eventually("the end of listening", || TcpStream::connect(proxy.address).is_err());
        let request = "GET /after HTTP/1.1\r\nhost: a\r\n\r\n";
        fresh.send(request);
        kept.send(request);
        if began.elapsed() > Duration::from_millis(800) {
            return false;
        }
        for client in [&mut fresh, &mut kept] {
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("connection").as_deref()), (200, Some("close")));
        }
        assert!(silent.is_closed());
        eventually("the end of the process", || proxy.has_ended());
        true
    });
    assert!(is_shown, "the machine was too busy, five times");
}

#[test]
fn load_balancers_get_time_to_look_away() {
    let node = Origin::echo();
    let mut proxy = Proxy::start(&format!("limits: {{ drain_delay: 700ms }}\n{}", Proxy::pool(&[node.address], "")));
    proxy.signal("TERM");
    let started = Instant::now();
    eventually("not being ready", || proxy.admin_get("/readyz").status == 503);
    let answer = proxy.connect().request("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((answer.status, answer.field("connection")), (200, None));
    eventually("the end of the process", || proxy.has_ended());
    assert!(started.elapsed() >= Duration::from_millis(700));
}

#[test]
fn a_drain_ends_in_time() {
    let (node, _go) = patient_node();
    let mut proxy = Proxy::start(&format!("limits: {{ drain_timeout: 500ms }}\n{}", Proxy::pool(&[node.address], "")));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request", || node.requests().len() == 1);
    proxy.signal("TERM");
    eventually("the end of the process", || proxy.has_ended());
    proxy.logs("stopped with requests in flight");
}

#[test]
fn a_second_signal_ends_at_once() {
    let (node, _go) = patient_node();
    let mut proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request", || node.requests().len() == 1);
    let started = Instant::now();
    proxy.signal("INT");
    eventually("the drain", || proxy.log().contains("draining"));
    proxy.signal("INT");
    eventually("the end of the process", || proxy.has_ended());
    assert!(started.elapsed() < Duration::from_secs(10));
}
