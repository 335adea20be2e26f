//! The dashboard's files, and the guards of what they show.

use crate::support::{Answer, Client, Origin, Proxy, write_private};

fn get(proxy: &Proxy, path: &str, host: &str, fields: &str) -> Answer {
    let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n");
    Client::connect(proxy.admin).request(text)
}

#[test]
fn the_page_has_a_strict_policy_and_all_of_its_files() {
    let node = Origin::echo();
    let proxy = Proxy::before(&[node.address]);
    let page = proxy.admin_get("/");
    assert_eq!((page.status, page.field("content-type").as_deref()), (200, Some("text/html; charset=utf-8")));
    let text = page.text();
    let files: Vec<&str> = text.split("\"/dashboard/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(files.contains(&"main.js") && files.contains(&"style.css"), "{files:?}");
    for path in std::iter::once("/".to_owned()).chain(files.iter().map(|file| format!("/dashboard/{file}"))) {
        let answer = proxy.admin_get(&path);
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.field("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ] {
            assert!(policy.split("; ").any(|found| found == part), "{path}: {policy}");
        }
        assert_eq!(answer.field("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
        let tag = answer.field("etag").unwrap();
        let again = get(&proxy, &path, &proxy.admin.to_string(), &format!("if-none-match: {tag}\r\n"));
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
    }
    assert_eq!(proxy.admin_get("/dashboard/none.js").status, 404);
    assert_eq!(proxy.admin_post("/", "").status, 404);
}

/// Without the token the page loads, and nothing of the proxy is shown.
#[test]
fn the_api_is_guarded_and_the_page_is_open() {
    let node = Origin::echo();
    let token = "0123456789abcdef0123456789abcdef";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("admin.token");
    write_private(&file, token);
    let text = format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\", token_file: \"{}\" }}\n{}",
        file.display(),
        Proxy::pool(&[node.address], "")
    );
    let proxy = Proxy::start_whole(&text);
    let own = proxy.admin.to_string();
    let reads = ["/api/tap", "/api/top", "/api/history", "/api/check", "/api/events", "/api/pools/app/ring?slices=9"];
    assert_eq!(get(&proxy, "/", &own, "").status, 200);
    for path in reads {
        assert_eq!(get(&proxy, path, &own, "").status, 401, "{path}");
    }
    let bearer = format!("authorization: Bearer {token}\r\n");
    for path in reads.iter().filter(|path| !matches!(**path, "/api/tap" | "/api/events")) {
        assert_eq!(get(&proxy, path, &own, &bearer).status, 200, "{path}");
    }
    for path in reads.iter().chain(&["/", "/dashboard/main.js"]) {
        assert_eq!(get(&proxy, path, "evil.example", &bearer).status, 421, "{path}");
        let crossed = get(&proxy, path, &own, &format!("origin: http://evil.example\r\n{bearer}"));
        assert_eq!(crossed.status, 403, "{path}");
    }
    let planned = Client::connect(proxy.admin).request(format!(
        "POST /api/plan HTTP/1.1\r\nhost: {own}\r\norigin: http://evil.example\r\n{bearer}content-length: 2\r\nconnection: close\r\n\r\n{{}}"
    ));
    assert_eq!(planned.status, 403);
}

/// Names of users and texts of clients come back as JSON alone, whose type no browser takes for a page.
#[test]
fn texts_of_users_come_back_as_json() {
    let node = Origin::echo();
    let script = "<script>alert(1)</script>";
    let text = format!(
        "pools:\n  \"{script}\":\n    nodes: [{{ id: \"{script}\", address: \"{}\" }}]\nroutes:\n  - {{ name: \"{script}\", path_prefix: /, pool: \"{script}\", hash_on: [uri] }}\n",
        node.address
    );
    let proxy = Proxy::start(&text);
    proxy.admin_get("/api/top?by=url");
    proxy.get_with(&format!("/{script}"), &format!("user-agent: {script}"));
    proxy.get(&format!("/a?{script}"));
    for path in ["/api/top?by=url", "/api/pools", "/api/history", "/api/status", "/api/config", "/api/check"] {
        let answer = proxy.admin_get(path);
        assert_eq!(answer.field("content-type").as_deref(), Some("application/json"), "{path}");
    }
    let refused = proxy.admin_get("/api/%3Cscript%3Ealert(1)%3C/script%3E");
    assert_eq!(refused.field("content-type").as_deref(), Some("application/problem+json"));
}
