//! Who is the same caller, and what is the same request.

use super::*;

fn with(lines: &str) -> String {
    request("POST", "/pay", &format!("idempotency-key: k\r\n{lines}"), "amount=5")
}

#[test]
fn equal_keys_of_two_callers_are_two_requests() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let callers = [
        "authorization: Bearer aaaa\r\n",
        "authorization: Bearer aaab\r\n",
        "authorization: Bearer aaa\r\n",
        "authorization: bearer aaaa\r\n",
        "authorization: Bearer aaaa\r\nauthorization: Bearer aaaa\r\n",
    ];
    let answers: Vec<Answer> = callers.iter().map(|lines| proxy.ask(with(lines))).collect();
    assert!(answers.iter().all(|answer| !is_replay(answer)));
    for (number, lines) in callers.iter().enumerate() {
        let again = proxy.ask(with(lines));
        assert_eq!((is_replay(&again), again.text()), (true, format!("charge {number}")), "{lines}");
    }
    assert_eq!(origin.asked(), callers.len());
    assert_eq!(proxy.records("k").len(), callers.len());
}

#[test]
fn a_caller_that_nothing_tells_apart_is_refused() {
    let origin = charging();
    let proxy = payments(&[origin.address], "scope: [\"header:x-tenant\", \"cookie:session\", \"query:t\"]");
    for lines in ["", "x-tenant:\r\n", "cookie: session=\r\n", "authorization: Bearer a\r\n"] {
        let answer = proxy.ask(with(lines));
        assert_eq!((answer.status, answer.problem().as_str()), (400, "scope-missing"), "{lines}");
    }
    let hidden = proxy.ask(with("x-tenant: a\r\nconnection: x-tenant\r\n"));
    assert_eq!(hidden.problem(), "scope-missing", "what goes no further tells nobody apart");
    for lines in ["x-tenant: a\r\n", "cookie: session=a\r\n", "cookie: a=b; session=b\r\n"] {
        assert_eq!(proxy.ask(with(lines)).status, 201, "{lines}");
        assert!(is_replay(&proxy.ask(with(lines))), "{lines}");
    }
    let queried = request("POST", "/pay?t=1", "idempotency-key: k\r\n", "");
    assert_eq!(proxy.ask(&queried).status, 201);
    assert!(is_replay(&proxy.ask(&queried)));
    assert_eq!(origin.asked(), 4);
}

#[test]
fn without_a_scope_all_callers_are_one() {
    let origin = charging();
    let proxy = payments(&[origin.address], "scope: []");
    assert_eq!(proxy.ask(with("authorization: Bearer a\r\n")).text(), "charge 0");
    assert!(is_replay(&proxy.ask(with("authorization: Bearer b\r\n"))));
    assert!(is_replay(&proxy.ask(with(""))));
}

#[test]
fn the_callers_address_may_be_the_scope() {
    let origin = charging();
    let settings = "scope: [client_ip]";
    let text = configuration(&[origin.address], settings, "timeouts: { first_byte: 10s }");
    let proxy = Proxy::start(&format!("trusted_proxies: [127.0.0.1]\n{text}"));
    for (number, address) in ["192.0.2.1", "192.0.2.2"].into_iter().enumerate() {
        let lines = format!("x-forwarded-for: {address}\r\n");
        assert_eq!(proxy.ask(with(&lines)).text(), format!("charge {number}"));
        assert!(is_replay(&proxy.ask(with(&lines))));
    }
}

#[test]
fn every_visible_character_is_a_key_of_its_own() {
    let origin = charging();
    let proxy = payments(&[origin.address], "");
    let mut client = proxy.connect();
    for byte in 0x20..=0x7eu8 {
        let escape = if matches!(byte, b'"' | b'\\') { "\\" } else { "" };
        let quoted = format!("\"{escape}{}\"", char::from(byte));
        let answer = client.request(charge("/", &quoted, ""));
        assert_eq!((answer.status, is_replay(&answer)), (201, false), "{quoted}");
        if byte > 0x20 && !matches!(byte, b'"' | b',' | b';') {
            let bare = client.request(charge("/", &char::from(byte).to_string(), ""));
            assert!(is_replay(&bare), "{quoted} and its bare form are one key");
            assert_eq!(bare.text(), answer.text());
        }
    }
    let longest = "k".repeat(255);
    assert_eq!(client.request(charge("/", &longest, "")).status, 201);
    assert!(is_replay(&client.request(charge("/", &format!("\"{longest}\""), ""))));
}

#[test]
fn method_host_and_path_are_part_of_what_is_asked() {
    let origin = charging();
    let proxy = payments(&[origin.address], "methods: [POST, PUT]");
    let send = |method: &str, host: &str, path: &str| {
        let lines = "authorization: Bearer a\r\nidempotency-key: k\r\n";
        proxy.ask(request(method, path, lines, "").replace("example.com", host))
    };
    let different = [("POST", "a.example", "/p"), ("PUT", "a.example", "/p"), ("POST", "b.example", "/p")];
    for (method, host, path) in
        different.into_iter().chain([("POST", "a.example", "/q"), ("POST", "a.example:81", "/p")])
    {
        assert!(!is_replay(&send(method, host, path)), "{method} {host} {path}");
        assert!(is_replay(&send(method, host, path)));
    }
    for (host, path) in [("A.EXAMPLE", "/p"), ("a.example.", "/p"), ("a.example:80", "/p"), ("a.example", "/x/../%70")]
    {
        assert!(is_replay(&send("POST", host, path)), "{host} {path}");
    }
    assert_eq!(origin.asked(), 5);
    assert!(!is_replay(&send("PATCH", "a.example", "/p")), "a method that is not listed is not concerned");
    assert!(!is_replay(&send("PATCH", "a.example", "/p")));
}

#[test]
fn namespaces_keep_routes_apart_or_together() {
    let origin = charging();
    let routes = "routes:
  - { name: a, path: /, headers: { x-route: a }, pool: app, idempotency: { namespace: one } }
  - { name: b, path: /, headers: { x-route: b }, pool: app, idempotency: { namespace: one } }
  - { name: c, path: /, headers: { x-route: c }, pool: app, idempotency: { namespace: two } }
";
    let text = Proxy::pool(&[origin.address], "");
    let proxy = Proxy::start(&format!("{}{routes}", text.split("routes:").next().unwrap()));
    let by = |route: &str| {
        let lines = format!("authorization: x\r\nidempotency-key: k\r\nx-route: {route}\r\n");
        proxy.ask(request("POST", "/", &lines, ""))
    };
    assert!(!is_replay(&by("a")));
    assert!(is_replay(&by("b")));
    assert!(!is_replay(&by("c")));
}
