//! A connection after its 101: bytes both ways until both sides have ended or nothing moves.

use crate::proxy::Tunnel;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const BUFFER: usize = 16 << 10;

/// Carries bytes between the client and the node, until the tunnel ends.
pub(super) async fn run(client: impl AsyncRead + AsyncWrite, tunnel: Tunnel) {
    let Tunnel { node, in_flight: _in_flight, exchange, idle } = tunnel;
    let moved = Rc::new(Cell::new(Instant::now()));
    let (client_read, client_write) = tokio::io::split(client);
    let (node_read, node_write) = tokio::io::split(node);
    let up = carry(client_read, node_write, &moved, &exchange.request_bytes);
    let down = carry(node_read, client_write, &moved, &exchange.response_bytes);
    // A side that fails takes the other one with it: there is nobody left to talk to.
    let both = async {
        let up = async { up.await.map_err(|_| "client") };
        let down = async { down.await.map_err(|_| "upstream") };
        tokio::try_join!(up, down).map_or_else(|failed| failed, |_| "completed")
    };
    let ended_by = tokio::select! {
        ended_by = both => ended_by,
        () = stillness(&moved, idle) => "timeout",
    };
    exchange.ended(ended_by);
}

/// One direction, to its end; then the other side is told.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &Cell<Instant>,
    count: &Cell<u64>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        moved.set(Instant::now());
        count.set(count.get() + length as u64);
    }
}

/// Ends when nothing has moved for that long; never for zero.
async fn stillness(moved: &Cell<Instant>, limit: Duration) {
    if limit.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let deadline = moved.get() + limit;
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline.into()).await;
    }
}
