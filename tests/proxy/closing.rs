//! The end of a connection that its client has asked for, over TCP and TLS.

use crate::support::{Authority, Client, Proxy, eventually};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// The time for which a closing connection is read from, where its client may still send.
const LINGER: Duration = Duration::from_secs(5);
const ROUTE: &str = "routes:\n  - { name: fixed, path_prefix: /, respond: { status: 200, body: hello } }\n";
const LAST_REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn open(proxy: &Proxy, listener: &str) -> f64 {
    proxy.metric(&format!("ringway_connections{{listener=\"{listener}\"}}"))
}

/// The proxy lets go of a connection with its last response, although the client keeps its side open.
#[test]
fn a_client_that_asks_for_the_end_is_not_waited_for() {
    let proxy = Proxy::start(ROUTE);
    for request in [LAST_REQUEST, "POST / HTTP/1.1\r\nhost: a\r\nconnection: Close\r\ncontent-length: 2\r\n\r\nhi"] {
        let began = Instant::now();
        let mut client = proxy.connect();
        assert_eq!(client.request(request).text(), "hello");
        assert!(client.is_closed());
        eventually("the connection's end", || open(&proxy, "http") == 0.0);
        assert!(began.elapsed() < LINGER, "{request:?}: the proxy has waited for its client");
    }
}

/// The same over TLS, where the proxy says that it closes.
#[test]
fn a_tls_client_that_asks_for_the_end_is_not_waited_for() {
    let authority = Authority::new();
    let pair = authority.issue("edge", &["a"]);
    let proxy = Proxy::start_both(&pair, ROUTE);
    let began = Instant::now();
    let mut stream = authority.client(None).connect(proxy.address_of("https"), "a").unwrap();
    stream.write_all(LAST_REQUEST.as_bytes()).unwrap();
    let mut answer = String::new();
    // Without the alert that the connection closes, this would be an error.
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("hello"), "{answer:?}");
    eventually("the connection's end", || open(&proxy, "https") == 0.0);
    assert!(began.elapsed() < LINGER, "the proxy has waited for its client");
}

/// Bytes behind the last request, which no client should send, do not reset the connection under its response.
#[test]
fn bytes_behind_the_last_request_do_not_take_its_response() {
    let proxy = Proxy::start(ROUTE);
    for behind in [&b"x"[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &[b'x'; 300_000]] {
        let stream = TcpStream::connect(proxy.address).unwrap();
        let (mut sends, bytes) = (stream.try_clone().unwrap(), [LAST_REQUEST.as_bytes(), behind].concat());
        let mut client = Client::over(stream);
        // The proxy may close before it has taken all of it.
        let sending = std::thread::spawn(move || drop(sends.write_all(&bytes)));
        assert_eq!(client.answer().text(), "hello", "{} bytes behind it", behind.len());
        assert!(client.is_closed());
        sending.join().unwrap();
    }
}

/// A request in pieces has its response, whenever the pieces come; so has one whose client closes its side at once.
#[test]
fn a_new_connection_may_begin_anyhow() {
    let proxy = Proxy::start(ROUTE);
    let half = LAST_REQUEST.len() / 2;
    for cuts in [&[0, 1, half][..], &[half], &[LAST_REQUEST.len() - 1]] {
        let mut client = proxy.connect();
        let mut from = 0;
        for &cut in cuts {
            client.send(&LAST_REQUEST[from..cut]);
            from = cut;
            assert!(client.is_open());
        }
        assert_eq!(client.request(&LAST_REQUEST[from..]).text(), "hello");
    }
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.write_all(LAST_REQUEST.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Client::over(stream).answer().text(), "hello");
    let kept = LAST_REQUEST.replace("close", "keep-alive");
    let mut client = proxy.connect();
    for _ in 0..3 {
        assert_eq!(client.request(&kept).text(), "hello");
    }
}
