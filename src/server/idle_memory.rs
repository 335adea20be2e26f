//! Gives the memory that idle connections have let go of back to the system.
//!
//! The allocator defers this while more is freed, and then does it only when it frees something near by. After a burst
//! of connections that become idle nothing does: 2,000 of them held 24 KiB each, of which they used less than 4.

use std::cell::Cell;

/// With fewer connections it is not worth it.
const LEAST: u64 = 256;
/// The bytes that a connection lets go of.
const FREED: u64 = 20 << 10;
/// The allocator visits each of its pages for it, which takes about a millisecond for each GiB: what is freed is to be
/// at least this part of what is held.
const WORTHWHILE: u64 = 16;
/// The seconds for which it waits at most for the end of a burst.
const PATIENCE: u32 = 10;

thread_local! {
    // The heap is the thread's, too.
    static PARKED: Cell<u64> = const { Cell::new(0) };
}

/// Notes that a connection has become idle, and has let go of its buffers.
pub(super) fn parked() {
    PARKED.set(PARKED.get() + 1);
}

/// When memory is given back.
#[derive(Debug, Default)]
pub(super) struct IdleMemory {
    /// The number a second ago of the connections that became idle since memory was given back last.
    before: u64,
    /// The seconds since the first of them.
    seconds: u32,
}

impl IdleMemory {
    /// Gives memory back, where it is due. Called once a second; `held` are the bytes that the process holds for long.
    pub(super) fn look(&mut self, held: u64) {
        let parked = PARKED.get();
        if self.is_due(parked, held) {
            PARKED.set(0);
            let begin = std::time::Instant::now();
            collect();
            tracing::debug!(connections = parked, took = ?begin.elapsed(), "gave memory back");
        }
    }

    fn is_due(&mut self, parked: u64, held: u64) -> bool {
        let is_burst_over = parked == std::mem::replace(&mut self.before, parked) || self.seconds >= PATIENCE;
        self.seconds = if parked == 0 { 0 } else { self.seconds + 1 };
        let is_due = is_burst_over && parked >= LEAST && parked * FREED >= held / WORTHWHILE;
        if is_due {
            *self = IdleMemory::default();
        }
        is_due
    }
}

/// Has the allocator give back the free pages of this thread.
#[allow(
    unsafe_code,
    reason = "the allocator's crate has no safe name for it; the first lines of this file say what it brings"
)]
fn collect() {
    // SAFETY: the function has no conditions. It visits the calling thread's own heap, and what all threads share under
    // the allocator's own locks; no block that is in use is moved or freed.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: u64 = 0;
    const GIB: u64 = 1 << 30;

    #[test]
    fn it_waits_for_the_end_of_a_burst_but_not_for_ever() {
        for (parked, held, expected) in [
            // A burst that ends.
            (vec![0, 300, 2000, 2000], NONE, Some(3)),
            // Too few.
            (vec![0, 200, 200, 200], NONE, None),
            // One that does not end.
            ((0..20).map(|second| second * 500).collect(), NONE, Some(11)),
            // Much is held, and little was freed.
            (vec![0, 300, 2000, 2000], GIB, None),
            (vec![0, 300, 4000, 4000], GIB, Some(3)),
        ] {
            let mut memory = IdleMemory::default();
            let due = parked.iter().position(|&parked| memory.is_due(parked, held));
            assert_eq!(due, expected, "{parked:?}");
        }
    }
}
