//! The PROXY protocol, versions 1 and 2 (HAProxy's specification): a load balancer begins a connection with the address
//! of its client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub(crate) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const MAX_LINE: usize = 107;
/// The longest part of version 2 after its first sixteen bytes; addresses take up to 216.
const MAX_ADDRESSES: usize = 4096;

/// An invalid header.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum BadHeader {
    #[error("the connection does not begin with a PROXY protocol header")]
    Missing,
    #[error("the PROXY protocol header is malformed")]
    Malformed,
    #[error("the PROXY protocol header did not arrive: {0}")]
    Ended(#[from] io::Error),
}

/// Reads a header from a connection, and not one byte more. Returns the client's address; `None` for a connection of
/// the load balancer itself.
pub(in crate::server) async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, BadHeader> {
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == *SIGNATURE {
        return read_binary(stream).await;
    }
    if !first.starts_with(b"PROXY ") {
        return Err(BadHeader::Missing);
    }
    let mut line = first.to_vec();
    // Peeked before it is read, as the bytes after it are not part of it.
    while !line.ends_with(b"\n") {
        let mut next = [0; MAX_LINE];
        let room = MAX_LINE - line.len();
        let seen = stream.peek(&mut next[..room]).await?;
        if seen == 0 {
            return Err(BadHeader::Malformed);
        }
        let length = next[..seen].iter().position(|&byte| byte == b'\n').map_or(seen, |end| end + 1);
        stream.read_exact(&mut next[..length]).await?;
        line.extend_from_slice(&next[..length]);
    }
    parse_line(&line).ok_or(BadHeader::Malformed)
}

async fn read_binary(stream: &mut TcpStream) -> Result<Option<SocketAddr>, BadHeader> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if length > MAX_ADDRESSES {
        return Err(BadHeader::Malformed);
    }
    let mut addresses = vec![0; length];
    stream.read_exact(&mut addresses).await?;
    parse_binary(head[0], head[1], &addresses).ok_or(BadHeader::Malformed)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443` and an end of line.
pub(crate) fn parse_line(line: &[u8]) -> Option<Option<SocketAddr>> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?.strip_prefix("PROXY ")?;
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let words: Vec<&str> = text.split(' ').collect();
    let [family, source, destination, port, destination_port] = words[..] else { return None };
    let (source, _): (IpAddr, IpAddr) = match family {
        "TCP4" => (source.parse::<Ipv4Addr>().ok()?.into(), destination.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (source.parse::<Ipv6Addr>().ok()?.into(), destination.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    decimal(destination_port)?;
    Some(Some(SocketAddr::new(source, decimal(port)?)))
}

/// Returns a port without a sign or leading zeros.
fn decimal(text: &str) -> Option<u16> {
    let valid = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if valid { text.parse().ok() } else { None }
}

/// Returns the client's address from the command, the family and the addresses of version 2.
pub(crate) fn parse_binary(command: u8, family: u8, addresses: &[u8]) -> Option<Option<SocketAddr>> {
    match command {
        // LOCAL: the load balancer's own connection, a health check for one.
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    let port = |at: usize| Some(u16::from_be_bytes(addresses.get(at..at + 2)?.try_into().ok()?));
    match family {
        // TCP over IPv4 and IPv6: source and destination, then their ports.
        0x11 => {
            let source: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            port(10)?;
            Some(Some(SocketAddr::new(source.into(), port(8)?)))
        }
        0x21 => {
            let source: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            port(34)?;
            Some(Some(SocketAddr::new(source.into(), port(32)?)))
        }
        // Unspecified addresses, datagrams and Unix sockets have no client address.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let source = |text: &str| Some(Some(text.parse::<SocketAddr>().unwrap()));
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", source("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", source("[2001:db8::1]:1")),
            ("PROXY UNKNOWN\r\n", Some(None)),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Some(None)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 056 443\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 +56 443\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n", None),
            ("PROXY TCP4 2001:db8::1 198.51.100.1 1 443\r\n", None),
            ("PROXY TCP4  192.0.2.1 198.51.100.1 1 443\r\n", None),
            ("PROXY UDP4 192.0.2.1 198.51.100.1 1 443\r\n", None),
            ("PROXY UNKNOWNS\r\n", None),
            ("proxy TCP4 192.0.2.1 198.51.100.1 1 443\r\n", None),
        ] {
            assert_eq!(parse_line(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn binary() {
        let v4 = [&[192, 0, 2, 1, 198, 51, 100, 1][..], &[0x12, 0x34, 0, 80]].concat();
        let found = Some(Some("192.0.2.1:4660".parse().unwrap()));
        assert_eq!(parse_binary(0x21, 0x11, &v4), found);
        assert_eq!(parse_binary(0x21, 0x11, &[&v4[..], b"\x04\0\x01x"].concat()), found, "more behind it");
        assert_eq!(parse_binary(0x21, 0x11, &v4[..11]), None, "cut short");
        assert_eq!(parse_binary(0x20, 0x11, &v4), Some(None), "LOCAL");
        assert_eq!(parse_binary(0x20, 0x00, &[]), Some(None));
        assert_eq!(parse_binary(0x22, 0x11, &v4), None, "an unknown command");
        assert_eq!(parse_binary(0x11, 0x11, &v4), None, "an unknown version");
        assert_eq!(parse_binary(0x21, 0x41, &v4), None, "an unknown family");
        assert_eq!(parse_binary(0x21, 0x00, &v4), Some(None));
        let v6 = [[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [9; 16]].concat();
        let v6 = [&v6[..], &[0, 1, 0, 2]].concat();
        assert_eq!(parse_binary(0x21, 0x21, &v6), Some(Some("[2001:db8::1]:1".parse().unwrap())));
    }

    proptest! {
        #[test]
        fn strangers_cannot_make_it_panic(line in prop::collection::vec(any::<u8>(), 0..120), command: u8, family: u8) {
            let _ = parse_line(&line);
            let _ = parse_binary(command, family, &line);
        }
    }
}
