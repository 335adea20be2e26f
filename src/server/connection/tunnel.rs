//! A connection after its 101: bytes both ways until both sides have ended or nothing moves.

use crate::proxy::Tunnel;
use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

const BUFFER: usize = 16 << 10;

/// Carries bytes between the client and the node, until the tunnel ends.
pub(super) async fn run(client: impl AsyncRead + AsyncWrite, tunnel: Tunnel) {
    let Tunnel { node, in_flight: _in_flight, record, idle, half_closed_idle } = tunnel;
    let life = Life { moved: Cell::new(Instant::now()), limit: Cell::new(idle), changed: Notify::new() };
    let (client_read, client_write) = tokio::io::split(client);
    let (node_read, node_write) = tokio::io::split(node);
    let up = carry(client_read, node_write, &life, half_closed_idle, record.request_bytes());
    let down = carry(node_read, client_write, &life, half_closed_idle, record.response_bytes());
    // If one side fails, the other one is closed too.
    let both = async {
        let up = async { up.await.map_err(|_| "client") };
        let down = async { down.await.map_err(|_| "upstream") };
        tokio::try_join!(up, down).map_or_else(|failed| failed, |_| "completed")
    };
    let ended_by = tokio::select! {
        ended_by = both => ended_by,
        () = life.is_over() => "timeout",
    };
    record.ended(ended_by);
}

/// The time of the last byte in a tunnel, and the longest time without one.
struct Life {
    moved: Cell<Instant>,
    /// Zero for no limit.
    limit: Cell<Duration>,
    changed: Notify,
}

impl Life {
    /// One side has ended: from now on the other one has a shorter limit.
    fn half_close(&self, limit: Duration) {
        self.moved.set(Instant::now());
        if !limit.is_zero() && (self.limit.get().is_zero() || limit < self.limit.get()) {
            self.limit.set(limit);
            self.changed.notify_one();
        }
    }

    /// Resolves when nothing has moved for too long.
    async fn is_over(&self) {
        loop {
            let limit = self.limit.get();
            if limit.is_zero() {
                self.changed.notified().await;
                continue;
            }
            let deadline = self.moved.get() + limit;
            if deadline <= Instant::now() {
                return;
            }
            // Whichever comes first: it is looked again.
            let _ = tokio::time::timeout_at(deadline.into(), self.changed.notified()).await;
        }
    }
}

/// Copies one direction to its end, and then ends the other side's.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    life: &Life,
    half_closed_idle: Duration,
    count: &Cell<u64>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            life.half_close(half_closed_idle);
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        life.moved.set(Instant::now());
        count.set(count.get() + length as u64);
    }
}
