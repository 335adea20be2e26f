//! A client connection under every order of events: the client sends, in pieces as the network cuts them, and closes;
//! hyper reads, writes and flushes; the owner of the connection checks whether the client has left, or takes the socket
//! back and passes it on. For any order of polls, the bytes that are read are those that the client sent, in order,
//! once.
//!
//! Only compiled for tests and fuzzers. The sockets and the TLS session are real.

use super::http1_io::{Http1Io, Watch};
use crate::io::{Seen, Socket, Stream};
use crate::proxy::{Downstream, Phase};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;

/// More bytes than one peek reads from TLS, and fewer than the kernel buffers.
const MOST_BYTES: usize = 48 << 10;
/// Steps of one program.
const MOST_STEPS: usize = 200;

/// The configuration of both ends of a TLS connection.
static TLS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["edge.example".to_owned()]).expect("a certificate can be made");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("the key was just made");
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
        .expect("the pair was just made");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("the certificate was just made");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the versions are the provider's own")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
});

/// Runs a program. Its first byte chooses the transport, TLS or TCP that the reactor knows or does not know yet; each
/// further byte is a step: the low three bits say what happens, the others how much of it.
pub(crate) fn run(program: &[u8]) {
    let Some((transport, steps)) = program.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime can be made");
    runtime.block_on(async {
        let (stream, peer) = connect(transport & 1 == 1, transport & 2 == 2).await.expect("loopback connects");
        let mut connection = Connection::new(stream, peer);
        for step in steps.iter().take(MOST_STEPS) {
            connection.step(step & 7, usize::from(step >> 3)).await;
        }
        connection.finish().await;
    });
}

/// Returns a connection over loopback: the proxy's end and the client's.
async fn connect(is_tls: bool, is_apart: bool) -> io::Result<(Stream, Peer)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    let (client, (socket, _)) = (client?, accepted?);
    let peer = |socket: tokio::net::TcpStream, session| -> io::Result<Peer> {
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        Ok(Peer { socket, session, said: 0, pending: Vec::new(), has_ended: false })
    };
    if !is_tls {
        // A socket that has left the reactor is as one that was accepted beside it.
        let socket = if is_apart { Socket::Apart(Some(socket.into_std()?)) } else { Socket::Joined(socket) };
        return Ok((Stream::over_socket(socket), peer(client, None)?));
    }
    let (server_config, client_config) = &*TLS;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(server_config));
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client_config));
    let name = ServerName::try_from("edge.example").map_err(io::Error::other)?;
    let (client, session) = tokio::join!(connector.connect(name, client), acceptor.accept(socket));
    let (client, client_session) = client?.into_inner();
    Ok((Stream::tls(session?), peer(client, Some(client_session))?))
}

/// The client's end.
struct Peer {
    socket: TcpStream,
    session: Option<ClientConnection>,
    /// The number of bytes that it has sent.
    said: usize,
    /// The bytes in transit: sent and not delivered.
    pending: Vec<u8>,
    has_ended: bool,
}

/// Returns the byte at a position of the client's data.
fn byte_at(place: usize) -> u8 {
    (place ^ (place >> 8).wrapping_mul(37)) as u8
}

impl Peer {
    fn say(&mut self, length: usize) {
        if self.has_ended || self.said + length > MOST_BYTES {
            return;
        }
        let bytes: Vec<u8> = (self.said..self.said + length).map(byte_at).collect();
        self.said += length;
        match &mut self.session {
            None => self.pending.extend_from_slice(&bytes),
            Some(session) => {
                session.writer().write_all(&bytes).expect("a session takes so little");
                self.seal();
            }
        }
    }

    fn seal(&mut self) {
        if let Some(session) = &mut self.session {
            while session.wants_write() {
                session.write_tls(&mut self.pending).expect("memory takes everything");
            }
        }
    }

    fn deliver(&mut self, length: usize) {
        let length = length.min(self.pending.len());
        self.socket.write_all(&self.pending[..length]).expect("the kernel buffers so little");
        self.pending.drain(..length);
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true) {
            if let Some(session) = &mut self.session {
                session.send_close_notify();
                self.seal();
            }
            self.deliver(usize::MAX);
            self.socket.shutdown(Shutdown::Write).expect("the socket is open");
        }
    }
}

/// The proxy's end.
struct Connection {
    peer: Peer,
    downstream: Rc<Downstream>,
    /// Both are here but in the middle of a hand-over.
    wire: Option<(Http1Io, Watch)>,
    read: Vec<u8>,
    /// A peek has seen bytes that were not read since.
    promised: bool,
}

impl Connection {
    fn new(stream: Stream, peer: Peer) -> Connection {
        let address = (Ipv4Addr::LOCALHOST, 1).into();
        let downstream = Rc::new(Downstream::new(address, "http".into(), Rc::<Cell<bool>>::default(), None));
        let mut connection = Connection { peer, downstream, wire: None, read: Vec::new(), promised: false };
        connection.wrap(stream);
        connection
    }

    fn wrap(&mut self, stream: Stream) {
        let wire = Http1Io::new(stream, Rc::clone(&self.downstream));
        let watch = wire.watch();
        self.wire = Some((wire, watch));
    }

    async fn step(&mut self, step: u8, amount: usize) {
        match step {
            0 => self.peer.say(1 + amount * amount * 8),
            1 => self.peer.deliver(if amount == 31 { usize::MAX } else { 1 + amount * amount * 8 }),
            2 => self.read(1 + amount * 300).await,
            3 => self.look().await,
            4 => self.answer(amount).await,
            // The reactor is notified of arrived bytes.
            5 => tokio::task::yield_now().await,
            6 => self.hand_over(amount).await,
            _ if amount == 31 => self.peer.end(),
            _ => {
                self.peer.deliver(usize::MAX);
                tokio::task::yield_now().await;
                self.look().await;
            }
        }
    }

    fn wire(&mut self) -> &mut Http1Io {
        &mut self.wire.as_mut().expect("a step ends with the wire in place").0
    }

    async fn read(&mut self, length: usize) {
        let mut bytes = vec![0; length];
        let wire = self.wire();
        let read = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut *wire).poll_read(cx, &mut buffer);
            Poll::Ready(read.map_ok(|()| buffer.filled().len()))
        });
        match read.await {
            Poll::Pending => assert!(!self.promised, "a look has seen bytes, and a read finds none"),
            Poll::Ready(read) => {
                let length = read.expect("the client resets nothing");
                assert!(length > 0 || self.has_all(), "the end came before the last byte");
                self.read.extend_from_slice(&bytes[..length]);
                self.promised = false;
            }
        }
    }

    fn has_all(&self) -> bool {
        self.peer.has_ended && self.read.len() == self.peer.said
    }

    async fn look(&mut self) {
        let (_, watch) = self.wire.as_ref().expect("a step ends with the wire in place");
        match poll_fn(|cx| Poll::Ready(watch.poll_look(cx))).await {
            Poll::Pending => {}
            Poll::Ready(Seen::Bytes) => {
                assert!(self.read.len() < self.peer.said, "a look has seen what was never sent");
                self.promised = true;
            }
            Poll::Ready(Seen::End) => assert!(self.has_all(), "a client that is there was taken to have left"),
        }
    }

    /// An answer, from its head to the flush behind its last byte.
    async fn answer(&mut self, length: usize) {
        self.downstream.http1.phase.set(Phase::Request);
        let bytes = vec![b'x'; 1 + length];
        let wire = self.wire();
        poll_fn(|cx| {
            // The client reads nothing; the kernel takes it all.
            let _ = Pin::new(&mut *wire).poll_write(cx, &bytes);
            Poll::Ready(())
        })
        .await;
        self.downstream.http1.phase.set(Phase::Ending);
        let wire = self.wire();
        poll_fn(|cx| {
            let _ = Pin::new(&mut *wire).poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// hyper drops the socket and returns unused bytes; the next owner may peek at the beginning, and may be cancelled
    /// meanwhile.
    async fn hand_over(&mut self, unused: usize) {
        let (wire, watch) = self.wire.take().expect("a step ends with the wire in place");
        drop(wire);
        let mut stream = watch.into_stream().expect("the wire is gone");
        let unused = self.read.split_off(self.read.len() - unused.min(self.read.len()));
        stream.unread(&unused);
        let readable = poll_fn(|cx| Poll::Ready(stream.poll_readable(cx))).await;
        assert!(readable != Poll::Ready(false) || self.has_all(), "the end came before the last byte");
        self.promised |= !unused.is_empty();
        let next: Vec<u8> = (self.read.len()..self.read.len() + 24).map(byte_at).collect();
        let once = |cx: &mut Context<'_>, stream: &mut Stream| Poll::Ready(pin!(stream.begins_with(&next)).poll(cx));
        if let Poll::Ready(begins) = poll_fn(|cx| once(cx, &mut stream)).await {
            let is_short = self.peer.said - self.read.len() < next.len();
            assert!(begins || (is_short && self.peer.has_ended), "the next bytes are not those that come next");
        }
        let other = [next[0].wrapping_add(1), 0];
        let once = |cx: &mut Context<'_>, stream: &mut Stream| Poll::Ready(pin!(stream.begins_with(&other)).poll(cx));
        let begins = poll_fn(|cx| once(cx, &mut stream)).await;
        assert_ne!(begins, Poll::Ready(true), "bytes were seen that were never sent");
        self.wrap(stream);
    }

    async fn finish(mut self) {
        self.peer.end();
        let mut rest = vec![0; self.peer.said - self.read.len()];
        self.wire().read_exact(&mut rest).await.expect("the client has sent so much");
        self.read.extend_from_slice(&rest);
        let (_, watch) = self.wire.as_ref().expect("a step ends with the wire in place");
        // The reactor is notified of the end asynchronously.
        let end = poll_fn(|cx| watch.poll_look(cx)).await;
        assert_eq!(end, Seen::End, "bytes were seen that were never sent");
        let end = self.wire().read(&mut [0]).await.expect("the client ends well");
        assert_eq!(end, 0, "bytes were read that were never sent");
        let said: Vec<u8> = (0..self.peer.said).map(byte_at).collect();
        assert!(self.read == said, "read {} bytes of {}, or in another order", self.read.len(), said.len());
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn what_is_read_is_what_was_sent(program in prop::collection::vec(any::<u8>(), 0..120), transport in 0..4u8) {
            run(&[&[transport][..], &program].concat());
        }
    }
}
