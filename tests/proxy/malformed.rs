//! Requests that are wrong: each as raw bytes, with its answer and what becomes of the connection.
//! Nothing of them, and nothing hidden in them, reaches a node.

use crate::support::{Client, Origin, Proxy, eventually};

/// What would be forwarded if a request could be hidden in another one.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: example.com\r\n\r\n";

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    status: u16,
}

fn case(name: &'static str, bytes: impl AsRef<[u8]>, status: u16) -> Case {
    Case { name, bytes: bytes.as_ref().to_vec(), status }
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}")
}

/// The same wherever the request is cut, and behind another one.
#[test]
fn malformed_chunks_are_found_wherever_they_are_cut() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            peer.body_of(&head);
            peer.answer("ok");
        }
    });
    let proxy = Proxy::before(&[node.address]);
    let good = "GET /good HTTP/1.1\r\nhost: a\r\n\r\n";
    let bad = chunked("5;a=b\r\nhello\r\n0\r\nx: 1\n\r\n");
    let head = bad.find("5;a").unwrap();
    for cut in [head, head + 3, head + 8, bad.len() - 6, bad.len() - 3] {
        let mut client = proxy.connect();
        client.send(format!("{good}{}", &bad[..cut]));
        assert_eq!(client.answer().status, 200, "{cut}");
        client.send(format!("{}{HIDDEN}", &bad[cut..]));
        assert_eq!(client.answer().status, 400, "cut at {cut}");
        assert!(client.is_closed(), "cut at {cut}");
    }
    let fine = chunked("5;a=\"b;\\\"\" ; c\r\nhello\r\n0\r\nx: 1\r\n\r\n");
    let mut client = proxy.connect();
    assert_eq!(client.request(format!("{fine}{good}")).status, 200);
    assert_eq!(client.answer().status, 200);
    assert!(node.requests().iter().all(|head| !head.contains("/hidden")));
}

#[test]
fn what_is_refused_closes_and_reaches_no_node() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("limits: {{ request_body: 1KiB }}\n{}", Proxy::pool(&[node.address], "")));
    let long = "x".repeat(70_000);
    let fields: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases = [
        case("bad method", "G@T / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("no target", "GET HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("bad version", "GET / HTTP/1.7\r\nhost: a\r\n\r\n", 400),
        case("field without colon", "GET / HTTP/1.1\r\nhost a\r\n\r\n", 400),
        case("space before the colon", "GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        case(
            "space before the colon of Content-Length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
            400,
        ),
        case("NUL in a value", b"GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n", 400),
        case("NUL in the target", b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("obs-fold", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n", 400),
        case("bare CR in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n", 400),
        case("no Host", "GET / HTTP/1.1\r\n\r\n", 400),
        case("two Hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        case("the same Host twice", "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        case("empty Host", "GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
        case("Host with a path", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        case("Host with user information", "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", 400),
        case("Host with a bad port", "GET / HTTP/1.1\r\nhost: a:99999\r\n\r\n", 400),
        case("absolute form with user information", "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("authority form", "GET h:80 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("garbage for a target", "GET foo HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("a fragment", "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("a fragment behind a query", "GET /a?b#c HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("a fragment in absolute form", "GET http://a/b#c HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("a fragment behind empty lines", "\r\n\r\nGET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("absolute form of another scheme", "GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case("broken escape", "GET /%zz HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        case(
            "Content-Length with letters",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5x\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "Content-Length with a plus",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "negative Content-Length",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "Content-Length list",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0, 45\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "two Content-Lengths",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 45\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "huge Content-Length",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "chunked in HTTP/1.0",
            format!("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            400,
        ),
        case("unknown coding", format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n{HIDDEN}"), 501),
        case(
            "coding before chunked",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            501,
        ),
        case(
            "chunked twice",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            501,
        ),
        case(
            "chunked in two lines",
            format!(
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
            501,
        ),
        case(
            "coding behind chunked",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{HIDDEN}"),
            501,
        ),
        case(
            "obscured chunked",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n{HIDDEN}"),
            501,
        ),
        case(
            "obscured chunked with Content-Length",
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: x\r\n\r\n{HIDDEN}"),
            501,
        ),
        case(
            "bad chunk size",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{HIDDEN}"),
            400,
        ),
        case("bare LF in a trailer", chunked(&format!("0\r\nx: 1\n\r\n{HIDDEN}")), 400),
        case("bare LF ends the trailers", chunked(&format!("0\r\n\n{HIDDEN}")), 400),
        case("bare LF behind a size", chunked(&format!("5\nhello\r\n0\r\n\r\n{HIDDEN}")), 400),
        case("NUL in an extension", chunked(&format!("5;a=\0\r\nhello\r\n0\r\n\r\n{HIDDEN}")), 400),
        case("an empty extension", chunked(&format!("5;\r\nhello\r\n0\r\n\r\n{HIDDEN}")), 400),
        case("a folded trailer", chunked(&format!("0\r\nx: 1\r\n y\r\n\r\n{HIDDEN}")), 400),
        case(
            "chunk size with a sign",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "chunk longer than its size",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nhello\r\n0\r\n\r\n{HIDDEN}"),
            400,
        ),
        case(
            "overflowing chunk size",
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n11111111111111111\r\n{HIDDEN}"),
            400,
        ),
        case("Connection names Host", "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, host\r\n\r\n", 400),
        case(
            "Connection names Content-Length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nconnection: content-length\r\n\r\nx",
            400,
        ),
        case("Connection names Authorization", "GET / HTTP/1.1\r\nhost: a\r\nconnection: authorization\r\n\r\n", 400),
        case("Connection names Cookie", "GET / HTTP/1.1\r\nhost: a\r\nconnection: Cookie\r\n\r\n", 400),
        case(
            "Connection names X-Forwarded-For",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-forwarded-for\r\n\r\n",
            400,
        ),
        case(
            "unknown expectation",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nexpect: 200-maybe\r\n\r\n",
            417,
        ),
        case("announced body too large", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n", 413),
        case("CONNECT", "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n", 405),
        case("TRACE", "TRACE / HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        case("over-long target", format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), 414),
        case("over-long field", format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431),
        case("101 fields", format!("GET / HTTP/1.1\r\n{fields}\r\n"), 431),
        case("half an HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400),
        case("TLS on a cleartext port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ];
    let count = cases.len();
    for Case { name, bytes, status } in cases {
        let mut client = proxy.connect();
        let answer = client.request(&bytes);
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        answer.problem();
        assert_eq!(answer.field("connection").as_deref(), Some("close"), "{name}");
        assert!(answer.field("proxy-status").is_some_and(|value| value.starts_with("ringway; error=")), "{name}");
        assert!(client.is_closed(), "{name}: the connection stayed open");
    }
    let whole: Vec<String> = node.requests().into_iter().filter(|head| !head.starts_with("POST / ")).collect();
    assert_eq!(whole, [""; 0], "a refused or hidden request reached the node");

    let page = proxy.admin_get("/metrics").text();
    let counted: f64 = page
        .lines()
        .filter(|line| line.starts_with("ringway_requests_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(counted, count as f64, "every refused request is counted");
}

#[test]
fn a_body_that_grows_over_the_limit_is_refused() {
    let node = Origin::echo();
    let proxy = Proxy::start(&format!("limits: {{ request_body: 1KiB }}\n{}", Proxy::pool(&[node.address], "")));
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..5 {
        client.send(format!("100\r\n{}\r\n", "x".repeat(256)));
    }
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_str()), (413, "content-too-large"));
    assert!(client.is_closed());
}

/// RFC 9112 6.3: Transfer-Encoding overrides Content-Length; the connection is not used again.
#[test]
fn chunked_with_a_content_length_is_reframed_and_closed() {
    for lines in ["content-length: 3\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 3"]
    {
        let node = Origin::echo();
        let proxy = Proxy::before(&[node.address]);
        let mut client = proxy.connect();
        let answer =
            client.request(format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{HIDDEN}"));
        assert_eq!(answer.status, 200);
        assert!(answer.text().ends_with("hello"), "{}", answer.text());
        assert!(!answer.text().contains("content-length"), "{}", answer.text());
        assert!(client.is_closed());
        assert_eq!(node.requests().len(), 1);
    }
}

/// RFC 9112 2.2 lets a bare LF end a line. It is read like CRLF and forwarded as CRLF.
#[test]
fn a_bare_line_feed_is_a_line_end_and_nothing_else() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let answer = proxy.connect().request("GET /a HTTP/1.1\nhost: a\nx-one: 1\n\n");
    assert_eq!(answer.status, 200);
    let request = &node.requests()[0];
    assert!(request.contains("\r\nx-one: 1\r\n") && !request.replace("\r\n", "").contains('\n'), "{request:?}");
}

/// A method may have a `#`, and a fragment comes in pieces, too.
#[test]
fn a_fragment_is_one_wherever_it_is_cut() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let line = "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n";
    for cut in 1..12 {
        let mut client = proxy.connect();
        client.send(&line[..cut]);
        proxy.get("/between");
        let answer = client.request(&line[cut..]);
        assert_eq!(answer.status, 400, "cut at {cut}: {answer:?}");
    }
    assert_eq!(proxy.connect().request("G#T /a HTTP/1.1\r\nhost: a\r\nx: a#b\r\n\r\n").status, 200);
    assert!(node.requests().iter().all(|head| !head.contains("/a#") && !head.starts_with("GET /a ")));
}

/// Behind another request, too; and what only looks like one stays as it is.
#[test]
fn a_fragment_is_looked_for_in_targets_alone() {
    let node = Origin::by_connection(|peer| {
        while let Some(head) = peer.request() {
            let body = String::from_utf8(peer.body_of(&head)).unwrap();
            peer.answer(&format!("{head}|{body}"));
        }
    });
    let proxy = Proxy::before(&[node.address]);
    let good = "GET /good HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut client = proxy.connect();
    client.send(format!("{good}GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n{HIDDEN}"));
    assert_eq!((client.answer().status, client.answer().status), (200, 400));
    assert!(client.is_closed());
    // Heads and bodies that are cut behind another request.
    for (first, second, expected) in [
        ("POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n", "\r\nhello #1 & #2", "|hello #1 & #2"),
        ("GET /p HTTP/1.1\r\nhost: a\r\nx-a: hello", " w #1 thing\r\n\r\n", "x-a: hello w #1 thing"),
        ("GET /p HTTP/1.1\r\nhost: a\r\n", "referer: http://e/p#frag\r\n\r\n", "referer: http://e/p#frag"),
    ] {
        let mut client = proxy.connect();
        client.send(format!("{good}{first}"));
        assert_eq!(client.answer().status, 200);
        let answer = client.request(second);
        assert!(answer.status == 200 && answer.text().contains(expected), "{second:?}: {answer:?}");
    }
    assert!(node.requests().iter().all(|head| !head.contains("/hidden")));
}

/// RFC 9112 3.2.4: the last proxy before the node makes `*` of it.
#[test]
fn options_for_a_whole_server_go_on_as_such() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    for (target, expected) in
        [("http://a", "OPTIONS * "), ("*", "OPTIONS * "), ("http://a/", "OPTIONS / "), ("http://a/b", "OPTIONS /b ")]
    {
        let answer = proxy.connect().request(format!("OPTIONS {target} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(answer.text().starts_with(expected), "{target}: {}", answer.text());
    }
    for (target, expected) in [("http://a", "GET / "), ("http://a?b", "GET /?b "), ("http://a/?b", "GET /?b ")] {
        let get = proxy.connect().request(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(get.text().starts_with(expected), "{target}: {}", get.text());
    }
}

/// Characters beyond ASCII have one form, as everything else in a target.
#[test]
fn raw_characters_are_percent_encoded_everywhere() {
    let origin = crate::support::Origin::numbering("cache-control: max-age=60");
    let text = origin.configuration("").replace("path_prefix: /,", "path_prefix: \"/%C3%A4\",");
    let proxy = Proxy::start(&text);
    let raw = "GET /\u{e4}?q=\u{f6} HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(proxy.connect().request(raw).text(), "#0");
    assert!(origin.last().head.starts_with("GET /%C3%A4?q=%C3%B6 "), "{}", origin.last().head);
    assert_eq!(proxy.connect().request("GET /%c3%a4?q=%C3%B6 HTTP/1.1\r\nhost: a\r\n\r\n").text(), "#0", "one key");
    assert_eq!(proxy.purge("{\"url\": \"http://a/\u{e4}?q=\u{f6}\"}").status, 200);
    assert_eq!(proxy.connect().request(raw).text(), "#1");
}

/// `https:///` leads nowhere.
#[test]
fn a_redirection_that_needs_a_host_gets_one_or_400() {
    let proxy = Proxy::start("routes:\n  - { name: r, redirect: { to: \"https://{host}{uri}\", status: 308 } }\n");
    let without = proxy.connect().request("GET /a HTTP/1.0\r\n\r\n");
    assert_eq!((without.status, without.problem().as_str()), (400, "bad-host"));
    let with = proxy.connect().request("GET /a HTTP/1.0\r\nhost: b\r\n\r\n");
    assert_eq!((with.status, with.field("location").as_deref()), (308, Some("https://b/a")));
}

/// An HTTP/1.0 client that keeps its connection is told where an answer ends, or that the connection does.
#[test]
fn an_http_1_0_client_is_not_kept_waiting_for_a_length() {
    let node = Origin::saying("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let proxy = Proxy::before(&[node.address]);
    let answer = proxy.connect().request("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(answer.field("connection").as_deref(), Some("close"), "{answer:?}");
}

#[test]
fn the_authority_of_an_absolute_target_replaces_host() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let answer = proxy.connect().request("GET http://Real.Example:80/a?b HTTP/1.1\r\nhost: other.example\r\n\r\n");
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(text.starts_with("GET /a?b HTTP/1.1") && text.contains("\nhost: real.example"), "{text}");
    assert!(!text.contains("other.example"), "{text}");
}

#[test]
fn a_good_request_behind_a_bad_one_is_not_answered() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client = proxy.connect();
    let answer = client.request(format!("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n{HIDDEN}"));
    assert_eq!(answer.status, 400);
    assert!(client.is_closed());
    assert_eq!(node.requests().len(), 0);
}

#[test]
fn a_bad_request_behind_a_good_one_gets_its_own_answer() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let mut client: Client = proxy.connect();
    client.send("GET /good HTTP/1.1\r\nhost: a\r\n\r\nG@T / HTTP/1.1\r\n\r\n");
    let good = client.answer();
    assert_eq!(good.status, 200);
    let bad = client.answer();
    assert_eq!(bad.status, 400);
    assert!(client.is_closed());
    let bytes = (good.body.len() + bad.body.len()) as f64;
    eventually("the bytes of both answers", || proxy.metric("ringway_response_bytes_total") == bytes);
}
