use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Sends a request with `Connection: close`, as a client without patience. Returns the head and the body of the answer;
/// nothing where the connection broke, or three seconds passed in silence.
pub fn ask_once(address: SocketAddr, request: &str) -> Option<(String, Vec<u8>)> {
    let answer = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(request.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let mut bytes = answer().ok()?;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let body = bytes.split_off(end + 4);
    bytes.truncate(end);
    Some((String::from_utf8_lossy(&bytes).into_owned(), body))
}
