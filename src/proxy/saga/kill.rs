//! Ends the process at a boundary of a saga's log, where a test of a debug build says so: `RINGWAY_SAGA_KILL=before:2`,
//! before the second append of the process, or `after:2`.

/// A side of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

#[cfg(not(debug_assertions))]
pub(super) fn at(_: Side) {}

#[cfg(debug_assertions)]
pub(super) use debug::at;

#[cfg(debug_assertions)]
mod debug {
    use super::Side;
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: LazyLock<Option<(Side, u32)>> = LazyLock::new(|| read(&std::env::var("RINGWAY_SAGA_KILL").ok()?));
    static APPENDS: AtomicU32 = AtomicU32::new(0);

    fn read(text: &str) -> Option<(Side, u32)> {
        let (side, number) = text.split_once(':')?;
        let side = match side {
            "before" => Side::Before,
            "after" => Side::After,
            _ => return None,
        };
        Some((side, number.parse().ok()?))
    }

    /// Notes that an append is made, or was.
    pub(in crate::proxy::saga) fn at(side: Side) {
        let Some(wanted) = *WANTED else { return };
        let number = match side {
            Side::Before => APPENDS.fetch_add(1, Ordering::Relaxed) + 1,
            Side::After => APPENDS.load(Ordering::Relaxed),
        };
        if wanted == (side, number) {
            let _ = kill_process(getpid(), Signal::KILL);
            std::thread::park();
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_boundary_has_a_side_and_a_number() {
            assert_eq!(read("before:2"), Some((Side::Before, 2)));
            assert_eq!(read("after:10"), Some((Side::After, 10)));
            assert_eq!([read("within:1"), read("before"), read("before:x")], [None; 3]);
        }
    }
}
