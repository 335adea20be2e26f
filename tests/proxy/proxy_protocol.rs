//! The PROXY protocol: who is believed, and what is understood.

use crate::support::{Client, Origin, Proxy};
use std::io::Write;

fn start(node: &Origin, trusted: &str) -> Proxy {
    Proxy::start_whole(&format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\", proxy_protocol: {{ trusted: [{trusted}] }} }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\nlimits: {{ header_timeout: 1s }}\n{}",
        Proxy::pool(&[node.address], "")
    ))
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = (addresses.len() as u16).to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, addresses].concat()
}

#[test]
fn the_source_becomes_the_peer() {
    let node = Origin::echo();
    let proxy = start(&node, "127.0.0.0/8");
    let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x34, 0, 80];
    let v6 = [[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], [0; 16]].concat();
    let v6 = [&v6[..], &[0, 1, 0, 2]].concat();
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 80\r\n".to_vec(), "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 80\r\n".to_vec(), "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (binary(0x21, 0x11, &v4), "192.0.2.7"),
        (binary(0x21, 0x11, &[&v4[..], b"\x04\0\x03abc"].concat()), "192.0.2.7"),
        (binary(0x21, 0x21, &v6), "2001:db8::9"),
        (binary(0x20, 0, &[]), "127.0.0.1"),
    ] {
        // Together with the request, and byte by byte.
        let forwarded = format!("x-forwarded-for: {client}");
        let answer = proxy.connect().request([&header[..], GET.as_bytes()].concat());
        assert!(answer.text().contains(&forwarded), "{answer:?}");
        let mut connection = proxy.connect();
        for byte in header.iter().chain(GET.as_bytes()) {
            connection.stream.write_all(&[*byte]).unwrap();
        }
        assert!(connection.answer().text().contains(&forwarded));
    }
}

/// The address that it names, and not the load balancer's, is looked up among the trusted proxies.
#[test]
fn a_source_that_is_trusted_may_forward() {
    let node = Origin::echo();
    let proxy = Proxy::start_whole(&format!(
        "trusted_proxies: [192.0.2.0/24]\nlisteners: [{{ name: http, address: \"127.0.0.1:0\", proxy_protocol: {{ trusted: [127.0.0.1] }} }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\n{}",
        Proxy::pool(&[node.address], "")
    ));
    let ask = |source: &str| {
        let get = "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.5\r\n\r\n";
        proxy.connect().request(format!("PROXY TCP4 {source} 198.51.100.1 1 80\r\n{get}")).text()
    };
    assert!(ask("192.0.2.1").contains("x-forwarded-for: 203.0.113.5, 192.0.2.1"));
    let stranger = ask("198.51.100.9");
    assert!(stranger.contains("x-forwarded-for: 198.51.100.9") && !stranger.contains("203.0.113.5"), "{stranger}");
}

#[test]
fn strangers_and_nonsense_are_refused() {
    let node = Origin::echo();
    let proxy = start(&node, "127.0.0.0/8");
    for bytes in [
        GET.as_bytes().to_vec(),
        format!("PROXY TCP4 nonsense\r\n{GET}").into_bytes(),
        format!("PROXY TCP4 {}\r\n{GET}", "1".repeat(200)).into_bytes(),
        [binary(0x21, 0x11, &[1, 2, 3]), GET.into()].concat(),
        [binary(0x23, 0x11, &[0; 12]), GET.into()].concat(),
        [binary(0x21, 0x11, &[0; 12])[..14].to_vec(), vec![0xff, 0xff]].concat(),
        b"PROXY TCP4 192.0.2.1 198.51".to_vec(),
        Vec::new(),
    ] {
        let mut client = Client::connect(proxy.address);
        client.send(&bytes);
        assert!(client.has_ended(), "{:?}", String::from_utf8_lossy(&bytes));
    }
    // Nobody but those named may connect at all, header or not.
    let proxy = start(&node, "10.0.0.0/8");
    let mut client = proxy.connect();
    client.send(format!("PROXY TCP4 192.0.2.1 198.51.100.1 1 80\r\n{GET}"));
    assert!(client.has_ended());
    assert_eq!(node.requests().len(), 0);
}
