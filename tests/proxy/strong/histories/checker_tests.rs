//! The checker of linearizability on histories that are right and wrong, and beside one that tries all orders.

use super::checker::{Action, INITIAL, Operation, is_linearizable, shortest};
use proptest::prelude::*;

fn read(process: usize, call: u64, end: u64, value: u64) -> Operation {
    Operation::new(process, call, Some(end), Action::Read(value))
}

fn write(process: usize, call: u64, end: u64, value: u64) -> Operation {
    Operation::new(process, call, Some(end), Action::Write(value))
}

/// A write without an answer.
fn attempt(process: usize, call: u64, value: u64) -> Operation {
    Operation::new(process, call, None, Action::Write(value))
}

#[test]
fn histories_that_are_right_pass() {
    for (why, history) in [
        ("nothing has happened", vec![]),
        ("the initial value", vec![read(1, 0, 1, INITIAL)]),
        ("a write that has ended", vec![write(1, 0, 1, 7), read(2, 2, 3, 7)]),
        ("a read beside a write has either value", vec![write(1, 0, 9, 7), read(2, 1, 2, INITIAL), read(2, 3, 4, 7)]),
        (
            "writes beside each other take effect in either order",
            vec![write(1, 0, 5, 7), write(2, 0, 5, 8), read(1, 6, 7, 7), read(2, 6, 7, 7)],
        ),
        ("a write that is seen before it ends", vec![write(1, 0, 9, 7), read(2, 1, 2, 7), read(3, 3, 4, 7)]),
        ("an unknown write that never took effect", vec![attempt(1, 0, 7), read(2, 1, 2, INITIAL), write(2, 3, 4, 8)]),
        (
            "an unknown write that took effect late",
            vec![
                attempt(1, 0, 7),
                read(2, 1, 2, INITIAL),
                write(2, 3, 4, 8),
                read(2, 5, 6, 8),
                read(2, 7, 8, 7),
                read(3, 9, 10, 7),
            ],
        ),
        (
            "a value that is written again",
            vec![write(1, 0, 1, 7), write(1, 2, 3, 8), attempt(2, 2, 7), read(3, 4, 5, 8), read(3, 6, 7, 7)],
        ),
        ("an end and a call at one time overlap", vec![write(1, 0, 5, 7), read(2, 5, 6, INITIAL)]),
    ] {
        assert!(is_linearizable(&history), "{why}");
    }
}

#[test]
fn histories_that_are_wrong_fail() {
    for (why, history) in [
        ("a value from nowhere", vec![read(1, 0, 1, 7)]),
        ("a stale read after a write that has ended", vec![write(1, 0, 1, 7), read(2, 2, 3, INITIAL)]),
        ("a stale read of the writer", vec![write(1, 0, 1, 7), write(1, 2, 3, 8), read(1, 4, 5, 7)]),
        ("reads that go back", vec![write(1, 0, 9, 7), read(2, 1, 2, 7), read(3, 3, 4, INITIAL)]),
        ("reads that go back after an unknown write", vec![attempt(1, 0, 7), read(2, 1, 2, 7), read(3, 3, 4, INITIAL)]),
        (
            "a lost write that was read and vanishes",
            vec![write(1, 0, 1, 7), attempt(2, 2, 8), read(3, 3, 4, 8), read(3, 5, 6, 7)],
        ),
        ("a read before the write", vec![read(1, 0, 1, 7), write(2, 2, 3, 7)]),
        ("a read before the unknown write", vec![read(1, 0, 1, 7), attempt(2, 2, 7)]),
        (
            "two readers see two writes in two orders",
            vec![write(1, 0, 9, 7), write(2, 0, 9, 8), read(3, 1, 2, 7), read(3, 3, 4, 8), read(4, 5, 6, 7)],
        ),
        (
            "an unknown write takes effect once",
            vec![attempt(1, 0, 7), read(2, 1, 2, 7), write(2, 3, 4, 8), read(2, 5, 6, 8), read(2, 7, 8, 7)],
        ),
        (
            "a write that has ended takes effect by then",
            vec![write(1, 0, 1, 7), write(1, 2, 3, 8), read(2, 4, 5, 8), read(2, 6, 7, 7)],
        ),
    ] {
        assert!(!is_linearizable(&history), "{why}");
    }
}

#[test]
fn a_violation_is_cut_to_what_shows_it() {
    let history = vec![
        write(1, 0, 1, 1),
        read(2, 2, 3, 1),
        attempt(3, 2, 9),
        write(1, 4, 5, 2),
        read(2, 6, 7, 2),
        read(3, 8, 9, 1),
        write(1, 10, 11, 3),
        read(2, 12, 13, 3),
    ];
    assert_eq!(shortest(&history), [write(1, 0, 1, 1), write(1, 4, 5, 2), read(3, 8, 9, 1)]);
}

#[test]
fn a_long_history_with_many_unknown_writes_is_judged_at_once() {
    // Each write beside two others, one of them unknown and read late; then one read that is wrong.
    let mut history = Vec::new();
    for round in 0..100 {
        let (begin, value) = (round * 100, round * 10 + 1);
        history.push(write(1, begin, begin + 50, value));
        history.push(write(2, begin + 1, begin + 51, value + 1));
        history.push(attempt(3, begin + 2, value + 2));
        history.push(read(4, begin + 52, begin + 60, value + 1));
        if round % 10 == 9 {
            history.push(read(5, begin + 61, begin + 70, value + 2 - 50));
        }
    }
    assert!(is_linearizable(&history));
    history.push(read(5, 10_000, 10_001, 1));
    assert!(!is_linearizable(&history));
}

/// Tries all orders of the operations, without and with each unknown write.
fn fits_some_order(operations: &[Operation]) -> bool {
    fn extend(left: &[Operation], value: u64) -> bool {
        if left.iter().all(|it| it.end.is_none()) {
            return true;
        }
        (0..left.len()).any(|at| {
            let chosen = &left[at];
            let comes_first = left.iter().all(|other| other.end.is_none_or(|end| end >= chosen.call));
            let after = match chosen.action {
                Action::Read(read) if read != value => return false,
                Action::Read(_) => value,
                Action::Write(written) => written,
            };
            let rest = [&left[..at], &left[at + 1..]].concat();
            comes_first && extend(&rest, after)
        })
    }
    extend(operations, INITIAL)
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = (0_u64..12, 0_u64..6, 0_u64..3, 0_u8..5).prop_map(|(call, length, value, kind)| match kind {
        0 | 1 => write(0, call, call + length, value + 1),
        2 => attempt(0, call, value + 1),
        _ => read(0, call, call + length, value),
    });
    prop::collection::vec(operation, 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_search_finds_an_order_where_there_is_one(history in operations()) {
        prop_assert_eq!(is_linearizable(&history), fits_some_order(&history));
    }
}
