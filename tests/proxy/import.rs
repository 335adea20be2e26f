//! `ringway import`: files of nginx and HAProxy, and the Ringway files that come of them.
//!
//! `tests/import/NAME.conf` (nginx) and `NAME.cfg` (HAProxy) stand beside the result, `NAME.yaml`, and the list of what
//! could not be translated, `NAME.txt`. After a change that is meant: `RINGWAY_BLESS=1 cargo test --test proxy import`.

use crate::support::{Authority, Nginx, Origin, Proxy, eventually, have};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn ringway(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway")).args(arguments).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_example_becomes_the_file_beside_it_which_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
    let is_blessed = std::env::var_os("RINGWAY_BLESS").is_some();
    let (mut count, authority) = (0, Authority::new());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let kind = match path.extension().unwrap().to_str().unwrap() {
            "conf" => "nginx",
            "cfg" => "haproxy",
            _ => {
                let is_beside = ["conf", "cfg"].iter().any(|kind| path.with_extension(kind).exists());
                assert!(is_beside, "{name} stands alone");
                continue;
            }
        };
        let output = ringway(&folder, &["import", kind, &name]);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        for (found, extension) in [(&output.stdout, "yaml"), (&output.stderr, "txt")] {
            let golden = path.with_extension(extension);
            if is_blessed {
                std::fs::write(&golden, found).unwrap();
            }
            let expected = std::fs::read_to_string(&golden).unwrap_or_default();
            assert_eq!(text(found), expected, "{name}: see tests/proxy/import.rs");
        }
        let made = tempfile::tempdir().unwrap();
        let yaml = text(&output.stdout);
        authority.provide(made.path(), &yaml);
        if kind == "haproxy" && yaml.contains("certs/edge.pem") {
            // One file has the chain and the key.
            let pair = authority.issue("edge", &["shop.example"]);
            let both = [pair.chain, pair.key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
            std::fs::write(made.path().join("certs/edge.pem"), both).unwrap();
        }
        std::fs::write(made.path().join("ringway.yaml"), yaml).unwrap();
        let checked = ringway(made.path(), &["check"]);
        assert!(checked.status.success(), "{name}: {}", text(&checked.stdout));
        count += 1;
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn includes_are_followed_and_what_nginx_prints_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    };
    let (main, site) = (
        "events {}\nhttp { include mime.types; include sites/*.conf; include none/*.conf; }\n",
        "server {\n  listen 81;\n  location / { include snippets/pass; }\n}\n",
    );
    write("nginx.conf", main);
    write("sites/a.conf", site);
    write("sites/.b.conf", "broken {");
    write("snippets/pass", "proxy_pass http://10.0.0.1;\n");
    let output = ringway(folder.path(), &["import", "nginx", "nginx.conf", "--output", "ringway.yaml"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let yaml = std::fs::read_to_string(folder.path().join("ringway.yaml")).unwrap();
    assert!(yaml.contains("  # sites/a.conf:2: listen 81\n  - { name: http, address: 0.0.0.0:81 }\n"), "{yaml}");
    assert!(yaml.contains("{ id: 10.0.0.1:80, address: 10.0.0.1:80 }"), "{yaml}");
    assert!(ringway(folder.path(), &["check"]).status.success());
    // A file that is there is not overwritten.
    let again = ringway(folder.path(), &["import", "nginx", "nginx.conf", "--output", "ringway.yaml"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).starts_with("ringway: ringway.yaml is there already, and is kept"), "{again:?}");

    let dump = format!(
        "nginx: configuration file /etc/nginx/nginx.conf test is successful\n# configuration file /etc/nginx/nginx.conf:\n{main}\n# configuration file /etc/nginx/mime.types:\ntypes {{ }}\n# configuration file /etc/nginx/sites/a.conf:\n{site}\n# configuration file /etc/nginx/snippets/pass:\nproxy_pass http://10.0.0.1;\n"
    );
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["import", "nginx", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let yaml = text(&output.stdout);
    assert!(yaml.contains("  # /etc/nginx/sites/a.conf:2: listen 81\n"), "{yaml}");
    assert!(yaml.contains("{ id: 10.0.0.1:80, address: 10.0.0.1:80 }"), "{yaml}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, content, expected) in [
        ("nginx", "http {\n  server { listen 80; }\n", "a:3: a block is not closed: expected `}`"),
        ("nginx", "http { }\n}", "a:2: unexpected `}`"),
        ("nginx", "server {\n listen 80\n}", "a:2: `listen` is not ended by `;` or a block"),
        ("nginx", "server { return 200 \"x; }\n", "a:1: a quote is not closed: expected `\"`"),
        ("nginx", "server { include gone; }", "a:1: cannot read the included file gone"),
        ("nginx", "events {}", "a:1: there is no `server` block to translate"),
        ("haproxy", "bind :80\n", "a:1: expected a section like `frontend`, found `bind`"),
        ("haproxy", "frontend a\n  bind \"x\n", "a:2: a quote is not closed"),
        ("haproxy", "frontend a\n  bind :80\n", "a:1: there is no HTTP `frontend` or `listen` to translate"),
    ] {
        std::fs::write(folder.path().join("a"), content).unwrap();
        let output = ringway(folder.path(), &["import", kind, "a"]);
        assert_eq!(output.status.code(), Some(1), "{content}");
        assert_eq!(text(&output.stderr), format!("ringway: {expected}\n"), "{content}");
        assert!(output.stdout.is_empty());
    }
    // A file that includes itself.
    std::fs::write(folder.path().join("a"), "include a;").unwrap();
    let output = ringway(folder.path(), &["import", "nginx", "a"]);
    assert!(text(&output.stderr).contains("nested too deeply"), "{output:?}");
}

/// The answers of a proxy to some requests: status, `Location`, and the target that the node received.
fn answers(address: SocketAddr, requests: &[(&str, &str, &str)]) -> Vec<(u16, Option<String>, String)> {
    let of = |(method, host, path): &(&str, &str, &str)| {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = std::io::Read::read_to_string(&mut socket, &mut answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {answer:?}"));
        let location = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let target = match (status, body.find("HTTP/1.")) {
            (200, Some(end)) => body[body[..end].rfind(['\n', '\r']).map_or(0, |at| at + 1)..end].trim().to_owned(),
            (200, None) => body.trim().to_owned(),
            _ => String::new(),
        };
        (status, location, target)
    };
    requests.iter().map(of).collect()
}

/// Starts a proxy of the file that comes of another one's, on any port.
fn imported(kind: &str, content: &str, listen: SocketAddr) -> Proxy {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("source"), content).unwrap();
    let output = ringway(folder.path(), &["import", kind, "source"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let yaml = text(&output.stdout).replace(&format!("address: {listen} }}"), "address: \"127.0.0.1:0\" }");
    assert!(yaml.contains("127.0.0.1:0"), "{yaml}");
    Proxy::start_whole(&format!("{yaml}\nadmin: {{ address: \"127.0.0.1:0\" }}\n"))
}

#[test]
fn an_imported_nginx_file_answers_as_nginx_does() {
    let (origin, other) = (Origin::echo(), Origin::echo());
    let (node, second) = (origin.address, other.address);
    let server = format!(
        "server_name shop.example;
        location / {{ proxy_pass http://{node}; proxy_set_header Host $host; }}
        location /api/ {{ proxy_pass http://{second}/; }}
        location /strip/ {{ rewrite ^/strip/(.*)$ /$1 break; proxy_pass http://{node}; }}
        location = /exact {{ return 200 \"exact\"; }}
        location /gone/ {{ return 410; }}
        location /gone/not/ {{ proxy_pass http://{second}; }}
        location /moved/ {{ return 301 http://$host/new$request_uri; }}
        location ~ ^/reg/x/ {{ proxy_pass http://{second}; }}
        location /reg/ {{ return 403; }}
        location ^~ /reg/x/strong/ {{ return 204; }}
        location /closed/ {{ deny all; proxy_pass http://{node}; }}
        location /inner/ {{ internal; proxy_pass http://{node}; }}
        if ($request_method = DELETE) {{ return 405; }}"
    );
    let Some(nginx) = Nginx::start("", &server) else { return };
    let source = format!("server {{ listen {}; {server} }}", nginx.address);
    let proxy = imported("nginx", &source, nginx.address);
    let paths = [
        "/",
        "/a?b=c",
        "/api/x/y?z=1",
        "/api/",
        "/strip/a/b",
        "/exact",
        "/exact/",
        "/gone/a",
        "/gone/not/a",
        "/moved/a?b",
        "/reg/x/y",
        "/reg/y",
        "/reg/x/strong/z",
        "/closed/a",
        "/inner/a",
        "/api/%41",
    ];
    let mut requests: Vec<_> = paths.iter().map(|path| ("GET", "shop.example", *path)).collect();
    requests.push(("DELETE", "shop.example", "/api/x"));
    requests.push(("POST", "shop.example", "/api/x"));
    let (expected, found) = (answers(nginx.address, &requests), answers(proxy.address, &requests));
    for ((request, expected), found) in requests.iter().zip(expected).zip(found) {
        assert_eq!(found, expected, "{request:?}");
    }
}

/// A HAProxy, ended when dropped.
struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_imported_haproxy_file_answers_as_haproxy_does() {
    if !have("haproxy", "haproxy") {
        return;
    }
    let (origin, other) = (Origin::echo(), Origin::echo());
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = format!(
        "defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
frontend www
  bind {address}
  acl api path_beg /api/
  acl blog hdr(host) -i blog.example
  acl safe method GET HEAD
  http-request return status 200 content-type text/plain string fine if {{ path /healthz }}
  http-request deny if {{ path_beg /admin/ }}
  http-request redirect location http://new.example/ code 301 if {{ path /old }} or {{ path /older }}
  redirect prefix http://archive.example code 302 if {{ path_beg /archive/ }}
  use_backend second if api safe
  use_backend second if blog !{{ always_false }}
  use_backend second if {{ path_beg /b/ /c/ }} || {{ req.hdr(X-Second) yes }}
  default_backend first
backend first
  server a {}
backend second
  server a {}
",
        origin.address, other.address
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    std::fs::write(&file, &source).unwrap();
    let started = Command::new("haproxy").arg("-db").arg("-f").arg(&file).stderr(Stdio::null()).spawn().unwrap();
    let _haproxy = Haproxy(started);
    eventually("haproxy", || TcpStream::connect(address).is_ok());
    let proxy = imported("haproxy", &source, address);
    let requests = [
        ("GET", "shop.example", "/"),
        ("GET", "shop.example", "/healthz"),
        ("GET", "shop.example", "/admin/x"),
        ("GET", "shop.example", "/old"),
        ("GET", "shop.example", "/older"),
        ("GET", "shop.example", "/archive/a?b=c"),
        ("GET", "shop.example", "/api/x"),
        ("POST", "shop.example", "/api/x"),
        ("GET", "blog.example", "/x"),
        ("GET", "Blog.Example", "/c/x"),
        ("GET", "shop.example", "/b/x"),
    ];
    let asked = |proxy: SocketAddr| {
        let before = (origin.asked(), other.asked());
        let answers = answers(proxy, &requests);
        (answers, origin.asked() - before.0, other.asked() - before.1)
    };
    let (expected, found) = (asked(address), asked(proxy.address));
    assert_eq!((found.1, found.2), (expected.1, expected.2), "requests of each backend");
    for ((request, expected), found) in requests.iter().zip(expected.0).zip(found.0) {
        assert_eq!(found, expected, "{request:?}");
    }
}

/// The decision for a request by the file that comes of another one's: `pool NAME`, a status, or `none`.
fn decision(kind: &str, content: &str, method: &str, url: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("source"), content).unwrap();
    let output = ringway(folder.path(), &["import", kind, "source", "--output", "ringway.yaml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let yaml = std::fs::read_to_string(folder.path().join("ringway.yaml")).unwrap();
    Authority::new().provide(folder.path(), &yaml);
    let output = ringway(folder.path(), &["explain", "--config", "ringway.yaml", method, url]);
    let explained = text(&output.stdout);
    let line = |key: &str| explained.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    match (line("pool "), line("answer ")) {
        (Some(pool), _) => format!("pool {}", pool.split(':').next().unwrap()),
        (None, Some(answer)) => answer.split(' ').next().unwrap().to_owned(),
        (None, None) => "none".to_owned(),
    }
}

#[test]
fn what_a_source_kept_from_its_nodes_does_not_reach_them() {
    let upstreams = "upstream app { server 10.0.0.1; } upstream other { server 10.0.0.2; }\n";
    for (server, method, url, expected) in [
        // A server for the machine itself, and one for any host on it.
        (
            "server { listen 80; server_name a.test; location / { proxy_pass http://app; } } server { listen 127.0.0.1:81; server_name b.test; location / { proxy_pass http://other; } }",
            "GET",
            "http://b.test/",
            "403",
        ),
        (
            "server { listen 80; server_name a.test; location / { proxy_pass http://app; } } server { listen 127.0.0.1:81; location / { proxy_pass http://other; } }",
            "GET",
            "http://c.test/",
            "403",
        ),
        // All servers are for the machine itself.
        (
            "server { listen 127.0.0.1:80; server_name a.test; location / { proxy_pass http://app; } } server { listen 127.0.0.1:81; server_name b.test; location / { proxy_pass http://other; } }",
            "GET",
            "http://b.test/",
            "pool other",
        ),
        // Client certificates of another port.
        (
            "ssl_certificate a.pem; ssl_certificate_key a.key; server { listen 443 ssl; server_name a.test; location / { proxy_pass http://app; } } server { listen 444 ssl; server_name b.test; ssl_client_certificate ca.pem; ssl_verify_client on; location / { proxy_pass http://other; } }",
            "GET",
            "https://b.test/",
            "403",
        ),
        // Rules of a named location.
        (
            "server { location / { try_files $uri @app; } location @app { auth_basic x; proxy_pass http://app; } }",
            "GET",
            "http://h/",
            "403",
        ),
        (
            "server { location / { try_files $uri @app; } location @app { if ($http_x_key != s) { return 403; } proxy_pass http://app; } }",
            "GET",
            "http://h/",
            "501",
        ),
        // The longest prefix wins over a shorter one with a mark.
        (
            "server { location ^~ /a/ { proxy_pass http://app; } location /a/admin/ { deny all; } location ~ ^/x/ { proxy_pass http://other; } }",
            "GET",
            "http://h/a/admin/x",
            "403",
        ),
        // The rest of a server does not reach another one.
        (
            "server { listen 80 default_server; location / { proxy_pass http://app; } } server { listen 80; server_name b.test; location /api/ { proxy_pass http://other; } }",
            "GET",
            "http://b.test/x",
            "404",
        ),
        (
            "server { listen 80 default_server; location / { proxy_pass http://app; } } server { listen 80; server_name b.test; auth_basic x; location /api/ { proxy_pass http://other; } }",
            "GET",
            "http://b.test/x",
            "403",
        ),
        // A server whose names are all expressions.
        (
            "server { listen 80; server_name ~^(.+)\\.users\\.test$; location / { proxy_pass http://other; } } server { listen 80; server_name _; return 404; }",
            "GET",
            "http://h/",
            "404",
        ),
        // Other modules that check.
        ("server { location / { auth_pam x; proxy_pass http://app; } }", "GET", "http://h/", "403"),
        (
            "server { location / { access_by_lua_block { ngx.exit(403) } proxy_pass http://app; } }",
            "GET",
            "http://h/",
            "403",
        ),
        (
            "server { location / { if ($http_authorization = \"\") { return 401; } proxy_pass http://app; } }",
            "GET",
            "http://h/",
            "401",
        ),
        (
            "server { location / { if ($request_method !~ ^(GET|HEAD)$) { return 405; } proxy_pass http://app; } }",
            "DELETE",
            "http://h/",
            "405",
        ),
        // Names of a default server, and wildcards of others.
        (
            "server { listen 80 default_server; server_name www.x.test; location / { proxy_pass http://app; } } server { listen 80; server_name *.x.test; location / { proxy_pass http://other; } }",
            "GET",
            "http://www.x.test/",
            "pool app",
        ),
        (
            "server { listen 80; server_name *.x.test; location / { proxy_pass http://other; } } server { listen 80; server_name *.a.x.test; location / { proxy_pass http://app; } }",
            "GET",
            "http://b.a.x.test/",
            "pool app",
        ),
        // A file that is served where no location matches goes to the application with `try_files`.
        (
            "server { try_files $uri @app; location @app { proxy_pass http://app; } location /up/ { root /x; } }",
            "GET",
            "http://h/x",
            "pool app",
        ),
        (
            "server { try_files $uri @app; location @app { proxy_pass http://app; } location /up/ { root /x; } }",
            "GET",
            "http://h/up/x",
            "404",
        ),
    ] {
        assert_eq!(decision("nginx", &format!("{upstreams}{server}"), method, url), expected, "{server} {url}");
    }
    let rest = "backend app\n server a 10.0.0.1:80\nbackend other\n server a 10.0.0.2:80\n";
    for (rules, method, url, expected) in [
        // The default stands first, and counts last.
        ("default_backend app\n use_backend other if { path_beg /api/ }", "GET", "http://h/api/x", "pool other"),
        ("default_backend app\n http-request deny if { path_beg /api/ }", "GET", "http://h/api/x", "403"),
        // An unknown converter makes its test unknown.
        (
            "use_backend other if { req.hdr(host),map(/x) -m str h }\n default_backend app",
            "GET",
            "http://h/",
            "pool app",
        ),
        // `redirect` comes after `http-request`.
        (
            "redirect location /new if { path_beg /a/ }\n http-request deny if { path_beg /a/b/ }\n default_backend app",
            "GET",
            "http://h/a/b/",
            "403",
        ),
        // A counter does not refuse all requests.
        (
            "acl fast sc_http_req_rate(0) gt 10\n http-request deny if { path_beg /login/ } fast\n default_backend app",
            "GET",
            "http://h/login/",
            "pool app",
        ),
        ("http-request auth unless { http_auth(people) }\n default_backend app", "GET", "http://h/", "403"),
    ] {
        let source = format!("defaults\n mode http\nfrontend www\n bind :80\n {rules}\n{rest}");
        assert_eq!(decision("haproxy", &source, method, url), expected, "{rules} {url}");
    }
    // The scheme by a load balancer is one that Ringway decides on, and timeouts are the longest.
    let folder = tempfile::tempdir().unwrap();
    let source = format!(
        "defaults\n mode http\nfrontend a\n bind :80\n timeout client 5s\n redirect scheme https if {{ hdr(X-Forwarded-Proto) http }}\n default_backend app\nfrontend b\n bind :443 ssl crt x.pem\n timeout client 9s\n default_backend app\n{rest}"
    );
    std::fs::write(folder.path().join("source"), source).unwrap();
    let yaml = text(&ringway(folder.path(), &["import", "haproxy", "source"]).stdout);
    assert!(yaml.contains("scheme: http, redirect: ") && yaml.contains("  body_idle_timeout: 9s\n"), "{yaml}");
    // Statistics before the site, and a backend that is disabled.
    let source = format!(
        "defaults\n mode http\nfrontend stats\n bind :81\n stats enable\nfrontend www\n bind :80\n use_backend gone if {{ path_beg /gone/ }}\n default_backend app\nbackend gone\n disabled\n server a 10.0.0.9:80\n{rest}"
    );
    assert_eq!(decision("haproxy", &source, "GET", "http://h/x"), "pool app");
    // A client does not choose a field that the source has set from what it knew.
    for (kind, source) in [
        (
            "nginx",
            format!(
                "{upstreams}server {{ location / {{ proxy_set_header X-Verified $ssl_client_verify; proxy_pass http://app; }} }}"
            ),
        ),
        (
            "haproxy",
            format!(
                "defaults\n mode http\nfrontend www\n bind :80\n http-request set-header X-Verified %[ssl_c_verify]\n default_backend app\n{rest}"
            ),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("source"), source).unwrap();
        let output = ringway(folder.path(), &["import", kind, "source"]);
        assert!(text(&output.stdout).contains("request_headers: { remove: [x-verified] }"), "{output:?}");
    }
}
