//! Stores against the rule, against each other, and with processes that die.

mod conformance;
mod histories;
mod runs;
mod sagas;

use super::claim::End;
use super::claim::Turn;
use super::clock::Clock;
use super::record::{Finish, ReleaseWay, State, Token};
use super::sqlite::Sqlite;
use super::store::*;
use super::*;
use crate::http::budget::Budget;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);
/// Kept for 100 s, and 10 s of grace.
const TTL: Duration = Duration::from_secs(100);

fn call<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, StoreError> {
    let (tell, told) = channel();
    ask(Box::new(move |result| tell.send(result).unwrap()));
    told.recv_timeout(Duration::from_secs(20)).unwrap()
}

/// Reads from a store, again where a server was silent for a moment: look-ups are not sent again by themselves.
fn read<T: Send + 'static>(ask: impl Fn(Done<T>)) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match call(&ask) {
            Ok(found) => return found,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn subject(number: u8) -> Subject {
    Subject {
        namespace: "default".into(),
        method: "POST".into(),
        authority: "a.example".into(),
        path: format!("/{number}"),
        key: format!("key-{}", number % 2),
    }
}

fn id(number: u8) -> Id {
    subject(number).identify(&Scope::default())
}

fn new_claim(number: u8, token: Token, print: u8, lease: Duration) -> NewClaim {
    let fingerprint = Fingerprint([print; 32]);
    let (id, subject) = (id(number), Arc::new(subject(number)));
    NewClaim { id, subject, fingerprint, token, retake: false, lease, ttl: TTL, saga: None }
}

/// Claims, and returns only the result.
fn claim_with(store: &dyn Store, claim: NewClaim) -> Result<Claimed, StoreError> {
    call(|done| store.claim(claim, done)).map(|reply| reply.claimed)
}

fn release_of(number: u8, token: Token, way: ReleaseWay) -> Release {
    Release { id: id(number), token, way, ttl: TTL, of_saga: false }
}

fn sqlite(path: &Path, holder: u64) -> Sqlite {
    Sqlite::open(path, holder, Clock::new()).unwrap()
}

fn response(text: &str) -> StoredResponse {
    let fields = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("\"e\""))]);
    StoredResponse::new(StatusCode::CREATED, &fields, Bytes::copy_from_slice(text.as_bytes()), None)
}

fn completion(number: u8, token: Token, finish: Finish) -> Completion {
    Completion { id: id(number), token, finish, response: response_of(finish, token), ttl: TTL }
}

fn response_of(finish: Finish, token: Token) -> Option<StoredResponse> {
    (finish == Finish::Done).then(|| response(&format!("by {}", token.number)))
}

fn finishes() -> impl Strategy<Value = Finish> {
    prop_oneof![Just(Finish::Done), Just(Finish::DoneWithoutBody), Just(Finish::Unknown)]
}

/// A claim whose record does not expire in a test.
fn lasting(claim: NewClaim) -> NewClaim {
    NewClaim { ttl: HOUR, ..claim }
}

#[test]
fn a_silent_holder_is_unknown_until_it_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let (silent, other) = (sqlite(&path, 1), sqlite(&path, 2));
    let (mine, theirs) = (Token { holder: 1, number: 1 }, Token { holder: 2, number: 1 });
    let state = |lease| {
        let again = lasting(new_claim(0, theirs, 0, lease));
        match claim_with(&other, again).unwrap() {
            Claimed::First | Claimed::Again => panic!("a second run"),
            Claimed::Found(found) => found.record.state,
        }
    };
    // The lease of the claim itself counts for others, not their own.
    let lease = Duration::from_millis(200);
    claim_with(&silent, lasting(new_claim(0, mine, 0, lease))).unwrap();
    assert_eq!(state(Duration::ZERO), State::Running);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while state(Duration::ZERO) == State::Running {
        assert!(std::time::Instant::now() < deadline, "the lease does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(state(Duration::ZERO), State::Unknown);
    // Its completion comes late, and counts.
    assert!(call(|done| silent.complete(completion(0, mine, Finish::Done), done)).unwrap());
    assert_eq!(state(Duration::ZERO), State::Done);
}

#[test]
fn a_holder_that_had_nothing_to_do_is_not_silent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let (idle, other) = (sqlite(&path, 1), sqlite(&path, 2));
    let lease = Duration::from_millis(300);
    let (mine, theirs) = (Token { holder: 1, number: 1 }, Token { holder: 2, number: 1 });
    // Seen for longer than a lease, without a claim and then with one that has ended.
    for number in 0..2 {
        let began = std::time::Instant::now();
        while began.elapsed() < 2 * lease {
            call(|done| other.tend(done)).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        claim_with(&idle, lasting(new_claim(number, mine, 0, lease))).unwrap();
        call(|done| other.tend(done)).unwrap();
        let found = claim_with(&other, lasting(new_claim(number, theirs, 0, lease))).unwrap();
        assert!(matches!(found, Claimed::Found(found) if found.record.state == State::Running));
        call(|done| idle.complete(completion(number, mine, Finish::Done), done)).unwrap();
    }
}

#[test]
fn a_row_that_cannot_be_read_is_nobody_elses_misfortune() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = sqlite(&path, 1);
    let token = |number| Token { holder: 1, number };
    claim_with(&store, lasting(new_claim(0, token(1), 0, HOUR))).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute("UPDATE records SET state = 9", []).unwrap();
    let (tell, told) = channel();
    for number in 0..20 {
        let tell = tell.clone();
        let claim = lasting(new_claim(number % 10, token(u64::from(number) + 2), 0, HOUR));
        store.claim(claim, Box::new(move |claimed| tell.send((number % 10, claimed)).unwrap()));
    }
    for _ in 0..20 {
        let (number, claimed) = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(claimed.is_err(), number == 0, "{number}: {claimed:?}");
    }
}

#[test]
fn a_log_that_is_taken_away_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = sqlite(&path, 1);
    let claim = |number: u8| {
        let token = Token { holder: 1, number: number.into() };
        claim_with(&store, lasting(new_claim(number, token, 0, HOUR)))
    };
    assert_eq!(claim(1), Ok(Claimed::First));
    std::fs::remove_file(folder.path().join("store.db-wal")).unwrap();
    assert!(matches!(claim(2), Err(StoreError::Failed(_))), "what it takes would be gone with it");
}

#[test]
fn links_to_a_store_lead_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = sqlite(&path, 1);
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let other = sqlite(&link, 2);
    let (mine, theirs) = (Token { holder: 1, number: 1 }, Token { holder: 2, number: 1 });
    claim_with(&store, lasting(new_claim(0, mine, 0, HOUR))).unwrap();
    let found = claim_with(&other, lasting(new_claim(0, theirs, 0, HOUR))).unwrap();
    assert!(matches!(found, Claimed::Found(found) if found.record.state == State::Running));
}

#[test]
fn processes_may_make_the_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::thread::scope(|scope| {
        let opening: Vec<_> = (1..=4)
            .map(|holder| {
                scope.spawn({
                    let path = &path;
                    move || Sqlite::open(path, holder, Clock::new()).map(drop).map_err(|error| error.to_string())
                })
            })
            .collect();
        opening.into_iter().for_each(|opened| assert_eq!(opened.join().unwrap(), Ok(())));
    });
}

#[test]
fn a_heart_that_beats_keeps_its_claims() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let (working, other) = (sqlite(&path, 1), sqlite(&path, 2));
    let lease = Duration::from_millis(300);
    let (mine, theirs) = (Token { holder: 1, number: 1 }, Token { holder: 2, number: 1 });
    claim_with(&working, lasting(new_claim(0, mine, 0, lease))).unwrap();
    let began = std::time::Instant::now();
    while began.elapsed() < 3 * lease {
        call(|done| working.beat(done)).unwrap();
        call(|done| other.tend(done)).unwrap();
        let found = claim_with(&other, lasting(new_claim(0, theirs, 0, lease))).unwrap();
        assert!(matches!(found, Claimed::Found(found) if found.record.state == State::Running));
    }
}

#[test]
fn the_file_is_for_nobody_else_and_says_what_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data").join("store.db");
    drop(sqlite(&path, 1));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let error = |path: &Path| Sqlite::open(path, 1, Clock::new()).map(|_| ()).unwrap_err().to_string();

    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 4).unwrap();
    assert!(error(&path).contains("version 4"), "{}", error(&path));

    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(error(&foreign).contains("not one of Ringway's"));

    let text = folder.path().join("text.db");
    std::fs::write(&text, "no database at all, but long enough to be looked at".repeat(20)).unwrap();
    assert!(error(&text).contains("not a database"), "{}", error(&text));
    assert!(error(folder.path()).contains("unable to open"), "{}", error(folder.path()));
}

#[test]
fn a_file_that_is_taken_away_fails_and_is_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = sqlite(&path, 1);
    let token = |number| Token { holder: 1, number };
    let claim = |number| claim_with(&store, lasting(new_claim(number as u8, token(number), 0, HOUR)));
    assert_eq!(claim(1), Ok(Claimed::First));
    let away = folder.path().join("away.db");
    std::fs::rename(&path, &away).unwrap();
    assert!(matches!(claim(2), Err(StoreError::Failed(_))));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(claim(2), Err(StoreError::Failed(_))), "another file is not the store");
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(claim(2), Ok(Claimed::First), "it works again");
    let another = claim_with(&store, lasting(new_claim(1, token(3), 0, HOUR)));
    assert!(matches!(another, Ok(Claimed::Found(_))), "and remembers");
}

#[test]
fn a_full_memory_takes_no_claims_and_forgets_nothing() {
    let time = Arc::new(AtomicU64::new(0));
    let store = memory::Memory::new(1, Clock::set_by(Arc::clone(&time)), 4000);
    let token = |number| Token { holder: 1, number };
    let claim = |number: u8| claim_with(&store, new_claim(number, token(u64::from(number)), 0, HOUR));
    let made = (0..50).take_while(|&number| claim(number) == Ok(Claimed::First)).count() as u8;
    assert!((2..20).contains(&made));
    assert_eq!(claim(made), Err(StoreError::Full));
    assert!(matches!(claim_with(&store, new_claim(0, token(99), 0, HOUR)), Ok(Claimed::Found(_))));
    assert_eq!(call(|done| store.complete(completion(0, token(0), Finish::Done), done)), Ok(true));
    assert_eq!(call(|done| store.complete(completion(1, token(1), Finish::Unknown), done)), Ok(true));
    time.store(110_000, Ordering::Relaxed);
    assert_eq!(call(|done| store.tend(done)), Ok(Tended { expired: 2, more: false }));
    assert_eq!(claim(made), Ok(Claimed::First), "expired records make room");
}

#[test]
fn a_file_of_the_version_before_opens_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let before = rusqlite::Connection::open(&path).unwrap();
    before.execute_batch(include_str!("tests/version_1.sql")).unwrap();
    let now = Clock::new().now().cast_signed();
    for (number, state) in [(0, 1), (1, 0)] {
        let (id, subject, stored) = (id(number), subject(number), response("before"));
        let Subject { namespace, method, authority, path, key } = subject;
        before
            .execute(
                "INSERT INTO records VALUES
                     (NULL, ?1, ?2, 9, 1, 10000, ?3, ?3 + 100000, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, x'')",
                rusqlite::params![
                    id.0,
                    state,
                    now,
                    [0u8; 32],
                    namespace,
                    method,
                    authority,
                    path,
                    key,
                    stored.status,
                    &stored.fields[..],
                    &stored.body[..]
                ],
            )
            .unwrap();
    }
    before.execute_batch("UPDATE extent SET records = 2; INSERT INTO holders VALUES (9, 0);").unwrap();
    let store = sqlite(&path, 1);
    let mine = |number| Token { holder: 1, number };
    let found = |number: u8| claim_with(&store, lasting(new_claim(number, mine(number.into()), 0, HOUR))).unwrap();
    assert!(matches!(found(0), Claimed::Found(found) if found.response == Some(response("before"))));
    assert!(
        matches!(found(1), Claimed::Found(found) if found.record.state == State::Unknown),
        "the process that ran it is gone"
    );
    assert_eq!(found(2), Claimed::First);
    assert_eq!(call(|done| store.tend(done)).map(|tended| tended.expired), Ok(0));
    assert_eq!(store.count(), Some(3));
    // The process before goes on with its statements until it has handed over.
    before
        .execute_batch(
            "INSERT INTO records (id, state, holder, number, lease, created, expires, fingerprint,
                                  namespace, method, authority, path, key)
             VALUES (x'0102', 0, 9, 1, 10000, 0, 1, x'00', 'n', 'POST', 'a', '/', 'k');
             UPDATE records SET state = 1, status = 200, fields = x'', body = x'', trailers = x'' WHERE id = x'0102';",
        )
        .unwrap();
}
