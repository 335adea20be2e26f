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
    assert!(text(&again.stderr).starts_with("ringway: cannot write ringway.yaml: File exists"), "{again:?}");

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
