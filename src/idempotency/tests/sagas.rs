//! The promises of the stores that keep sagas, from the factory of all stores.

use super::conformance::{Kit, SqliteKit, kits};
use super::*;
use crate::idempotency::record::Record;
use crate::idempotency::saga::{Append, Appended, LASTING, NO_OWNER, NewSaga, SagaEnd, SagaQuery, SagaRow, Seen};
use crate::saga::log::Standing;

const MINE: Token = Token { holder: 1, number: 1 };
const OTHER: Token = Token { holder: 1, number: 2 };

fn new_saga() -> NewSaga {
    let (definition, inputs) = ("{\"d\":\"\u{fc}\"}".to_owned(), "{\"request.body.a\":1}".to_owned());
    NewSaga { seed: [7; 16], definition, inputs, ttl: TTL }
}

fn saga_claim(number: u8, token: Token) -> NewClaim {
    NewClaim { saga: Some(Box::new(new_saga())), ttl: LASTING, ..new_claim(number, token, 0, HOUR) }
}

fn append_of(number: u8, token: Token, epoch: u64, sequence: u64, entries: &str) -> Append {
    let entries = Some(entries.to_owned());
    let (standing, gives_up, lease, end) = (Standing::Running, false, HOUR, None);
    Append { id: id(number), token, epoch, sequence, entries, standing, gives_up, lease, end }
}

fn append(store: &dyn Store, append: Append) -> Option<Appended> {
    call(|done| store.append(append, done)).unwrap()
}

fn sagas(store: &dyn Store, query: SagaQuery) -> Vec<SagaRow> {
    read(|done| store.sagas(query, done))
}

fn saga(store: &dyn Store, number: u8) -> Option<SagaRow> {
    sagas(store, SagaQuery::One(id(number))).pop()
}

fn take_over(store: &dyn Store, number: u8, epoch: u64) -> Option<SagaRow> {
    call(|done| store.take_over(Seen { id: id(number), epoch }, done)).unwrap()
}

fn record(store: &dyn Store, number: u8) -> Option<Record> {
    read(|done| store.look_up(id(number), done)).map(|found| found.record)
}

/// Runs a test over every kind of store that keeps sagas.
fn over_stores(test: impl Fn(&dyn Kit, &dyn Store)) {
    let mut ran = 0;
    for kit in kits() {
        let store = kit.open(1);
        if store.keeps_sagas() {
            test(&*kit, &*store);
            ran += 1;
        }
    }
    assert!(ran > 0);
}

#[test]
fn a_saga_begins_with_its_claim() {
    over_stores(|_, store| {
        let reply = call(|done| store.claim(saga_claim(0, MINE), done)).unwrap();
        assert_eq!(reply.claimed, Claimed::First);
        let row = saga(store, 0).unwrap();
        assert!(row.created.abs_diff(reply.began.unwrap()) < 1000 && row.now >= row.created);
        assert_eq!((row.token, row.owner, row.epoch, row.sequence), (MINE, 1, 0, 0));
        assert_eq!((row.seed, row.standing, row.log.as_str()), ([7; 16], Standing::Running, ""));
        assert_eq!((row.definition, row.inputs), (new_saga().definition, new_saga().inputs));
        assert_eq!(row.subject, Some(subject(0)));
        // Its reply was lost; and another one with the same key.
        let again = call(|done| store.claim(saga_claim(0, MINE), done)).unwrap();
        assert_eq!((again.claimed, again.began.is_some()), (Claimed::First, true));
        let found = call(|done| store.claim(saga_claim(0, OTHER), done)).unwrap();
        assert!(matches!(found.claimed, Claimed::Found(Found { record, .. }) if record.state == State::Saga));
        assert_eq!(found.began, None);
        assert_eq!(sagas(store, SagaQuery::Standing(None)).len(), 1);
        assert_eq!(call(|done| store.claim(new_claim(1, OTHER, 0, HOUR), done)).unwrap().began, None);
        assert_eq!(saga(store, 1), None, "a request without a saga");
    });
}

#[test]
fn the_record_under_a_saga_ends_with_it_alone() {
    over_stores(|kit, store| {
        claim_with(store, saga_claim(0, MINE)).unwrap();
        append(store, append_of(0, MINE, 0, 0, "one\n")).unwrap();
        for way in [ReleaseWay::Plain, ReleaseWay::Entombed, ReleaseWay::Retaken] {
            for of_saga in [false, true] {
                let release = Release { of_saga, ..release_of(0, MINE, way) };
                assert_eq!(call(|done| store.release(release, done)), Ok(false), "{way:?}");
            }
        }
        for finish in [Finish::Done, Finish::DoneWithoutBody, Finish::Unknown] {
            assert_eq!(call(|done| store.complete(completion(0, MINE, finish), done)), Ok(false));
        }
        assert_eq!(call(|done| store.authorise(id(0), done)), Ok(Authorised::Running));
        assert_eq!(call(|done| store.running(done)), Ok(Vec::new()), "no request holds it");
        kit.pass(Duration::from_secs(365 * 86_400));
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 0);
        let retake = NewClaim { retake: true, ..saga_claim(0, OTHER) };
        assert!(matches!(claim_with(store, retake), Ok(Claimed::Found(_))));
        // Its owner is dead, and others look after what it left.
        kit.silence(1);
        let other = kit.open(2);
        call(|done| other.tend(done)).unwrap();
        assert!(matches!(claim_with(&*other, new_claim(0, OTHER, 0, HOUR)), Ok(Claimed::Found(_))));
        assert_eq!(call(|done| other.authorise(id(0), done)), Ok(Authorised::Running));
        assert_eq!(record(store, 0).unwrap().state, State::Saga);
        assert_eq!(saga(store, 0).unwrap().log, "one\n");
    });
}

#[test]
fn an_append_is_made_once_by_the_owner() {
    over_stores(|_, store| {
        claim_with(store, saga_claim(0, MINE)).unwrap();
        let first = append(store, append_of(0, MINE, 0, 0, "one\n")).unwrap();
        assert!(first.now >= saga(store, 0).unwrap().created);
        assert!(append(store, append_of(0, MINE, 0, 0, "one\n")).is_some(), "sent again");
        assert!(append(store, append_of(0, MINE, 0, 1, "two: \u{fc}'\"\\\n")).is_some());
        assert_eq!(append(store, append_of(0, MINE, 0, 0, "one\n")), None, "a late copy");
        assert_eq!(append(store, append_of(0, MINE, 1, 2, "three\n")), None, "another epoch");
        assert_eq!(append(store, append_of(1, MINE, 0, 0, "one\n")), None, "no saga");
        let renewal = Append { entries: None, ..append_of(0, MINE, 0, 2, "") };
        assert!(append(store, renewal.clone()).is_some() && append(store, renewal).is_some());
        let turned = Append { standing: Standing::Compensating, ..append_of(0, MINE, 0, 2, "three\n") };
        assert!(append(store, turned).is_some());
        let row = saga(store, 0).unwrap();
        assert_eq!((row.sequence, row.log.as_str()), (3, "one\ntwo: \u{fc}'\"\\\nthree\n"));
        assert_eq!((row.standing, row.owner), (Standing::Compensating, 1));
    });
}

#[test]
fn the_record_gets_its_answer_with_the_end_of_the_saga() {
    over_stores(|kit, store| {
        claim_with(store, saga_claim(0, MINE)).unwrap();
        let end = Some(SagaEnd { finish: Finish::Done, response: Some(response("answer")) });
        let ended = Append { standing: Standing::Succeeded, end, ..append_of(0, MINE, 0, 0, "end\n") };
        assert!(append(store, ended.clone()).is_some());
        assert!(append(store, ended).is_some(), "sent again");
        let found = read(|done| store.look_up(id(0), done)).unwrap();
        assert_eq!((found.record.state, found.response), (State::Done, Some(response("answer"))));
        let row = saga(store, 0).unwrap();
        assert_eq!((row.standing, row.owner, row.log.as_str()), (Standing::Succeeded, NO_OWNER, "end\n"));
        assert_eq!(take_over(store, 0, 0), None, "it is over");
        // It lives as long as its record, and the next saga with the key has a row of its own.
        kit.pass(TTL);
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 0);
        assert!(saga(store, 0).is_some());
        kit.pass(TTL);
        assert_eq!(claim_with(store, saga_claim(0, OTHER)), Ok(Claimed::First));
        call(|done| store.tend(done)).unwrap();
        let row = saga(store, 0).unwrap();
        assert_eq!((row.token, row.standing, row.sequence, row.log.as_str()), (OTHER, Standing::Running, 0, ""));
        let large = Some(SagaEnd { finish: Finish::DoneWithoutBody, response: None });
        let ended = Append { standing: Standing::Succeeded, end: large, ..append_of(0, OTHER, 0, 0, "end\n") };
        assert!(append(store, ended).is_some());
        assert_eq!(record(store, 0).unwrap().state, State::DoneWithoutBody);
        kit.pass(2 * TTL);
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 1);
        assert_eq!(saga(store, 0), None);
    });
}

#[test]
fn the_saga_of_a_dead_owner_is_taken_over_once() {
    for kit in kits() {
        let owner = kit.open(1);
        if !owner.keeps_sagas() {
            continue;
        }
        claim_with(&*owner, saga_claim(0, MINE)).unwrap();
        append(&*owner, append_of(0, MINE, 0, 0, "one\n")).unwrap();
        let (second, third) = (kit.open(2), kit.open(3));
        assert_eq!(sagas(&*second, SagaQuery::Orphaned), [], "its owner lives");
        assert_eq!(take_over(&*second, 0, 0), None);
        assert_eq!(sagas(&*owner, SagaQuery::Owned).len(), 1);
        let owner = match kit.notices_deaths() {
            true => {
                drop(owner);
                None
            }
            false => {
                kit.silence(1);
                Some(owner)
            }
        };
        assert_eq!(sagas(&*second, SagaQuery::Orphaned).len(), 1);
        let taken = take_over(&*second, 0, 0).unwrap();
        assert_eq!((taken.owner, taken.epoch, taken.sequence, taken.log.as_str()), (2, 1, 1, "one\n"));
        assert_eq!(take_over(&*second, 0, 0).unwrap().epoch, 1, "its reply was lost");
        assert_eq!(take_over(&*third, 0, 0), None, "it is another epoch");
        assert_eq!(take_over(&*third, 0, 1), None, "its owner lives");
        if let Some(owner) = &owner {
            assert_eq!(append(&**owner, append_of(0, MINE, 0, 1, "two\n")), None, "it is back, and not the owner");
            let end = Some(SagaEnd { finish: Finish::Done, response: Some(response("late")) });
            let ended = Append { standing: Standing::Succeeded, end, ..append_of(0, MINE, 0, 1, "end\n") };
            assert_eq!(append(&**owner, ended), None);
        }
        assert!(append(&*second, append_of(0, MINE, 1, 1, "two\n")).is_some());
        assert_eq!(record(&*second, 0).unwrap().state, State::Saga);
        // Left to others, it is theirs at once.
        let left = Append { entries: None, gives_up: true, ..append_of(0, MINE, 1, 2, "") };
        assert!(append(&*second, left).is_some());
        assert_eq!(sagas(&*third, SagaQuery::Orphaned).len(), 1);
        let taken = take_over(&*third, 0, 1).unwrap();
        assert_eq!((taken.owner, taken.epoch, taken.log.as_str()), (3, 2, "one\ntwo\n"));
        assert_eq!(append(&*second, append_of(0, MINE, 1, 2, "three\n")), None);
    }
}

#[test]
fn a_stuck_saga_has_no_owner_and_is_found_by_its_state() {
    over_stores(|_, store| {
        for number in 0..3 {
            claim_with(store, saga_claim(number, Token { holder: 1, number: number.into() })).unwrap();
        }
        let stuck =
            Append { standing: Standing::Stuck, ..append_of(1, Token { holder: 1, number: 1 }, 0, 0, "stuck\n") };
        assert!(append(store, stuck).is_some());
        let found = sagas(store, SagaQuery::Standing(Some(Standing::Stuck)));
        assert_eq!(found.iter().map(|row| (row.id, row.owner)).collect::<Vec<_>>(), [(id(1), NO_OWNER)]);
        assert_eq!(sagas(store, SagaQuery::Standing(Some(Standing::Running))).len(), 2);
        assert_eq!(sagas(store, SagaQuery::Standing(Some(Standing::Compensating))), []);
        assert_eq!(sagas(store, SagaQuery::Orphaned), [], "it waits for a person");
        assert_eq!(sagas(store, SagaQuery::Standing(None)).len(), 3);
        let taken = take_over(store, 1, 0).unwrap();
        assert_eq!((taken.owner, taken.epoch, taken.standing), (1, 1, Standing::Stuck));
    });
}

#[test]
fn a_claim_that_is_released_takes_its_saga_along() {
    over_stores(|_, store| {
        for (number, way) in [(1, ReleaseWay::Plain), (2, ReleaseWay::Entombed)] {
            let token = Token { holder: 1, number };
            assert_eq!(claim_with(store, saga_claim(0, token)), Ok(Claimed::First));
            let release = Release { of_saga: true, ..release_of(0, token, way) };
            assert_eq!(call(|done| store.release(release, done)), Ok(true));
            assert_eq!((record(store, 0), saga(store, 0)), (None, None));
        }
        let late = claim_with(store, saga_claim(0, Token { holder: 1, number: 2 }));
        assert_eq!(late, Err(StoreError::Released), "a late copy");
        assert_eq!(saga(store, 0), None);
        assert_eq!(claim_with(store, saga_claim(0, Token { holder: 1, number: 3 })), Ok(Claimed::First));
        assert!(saga(store, 0).is_some(), "in the place of a tombstone");
    });
}

#[test]
fn stores_that_keep_no_sagas_say_so() {
    for kit in kits() {
        let store = kit.open(1);
        if store.keeps_sagas() {
            continue;
        }
        let refused = claim_with(&*store, saga_claim(0, MINE)).unwrap_err();
        assert!(refused.to_string().contains("keeps no sagas"), "{refused}");
        assert_eq!(record(&*store, 0), None, "nothing is claimed");
        assert!(call(|done| store.append(append_of(0, MINE, 0, 0, "one\n"), done)).is_err());
        assert!(call(|done| store.sagas(SagaQuery::Standing(None), done)).is_err());
        assert!(call(|done| store.take_over(Seen { id: id(0), epoch: 0 }, done)).is_err());
    }
}

#[test]
fn a_copy_takes_sagas_that_have_ended_and_refuses_those_that_are_open() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let kinds = [0, 1].map(|at: usize| Kind::Sqlite(folders[at].path().join("store.db")));
    let path = folders[0].path().join("store.db");
    let store = sqlite(&path, 1);
    claim_with(&store, saga_claim(0, MINE)).unwrap();
    drop(store);
    let refused = copy(&kinds[0], &kinds[1], |_, _| {}).unwrap_err();
    assert!(refused.contains("1 sagas are open"), "{refused}");
    let store = sqlite(&path, 2);
    let end = Some(SagaEnd { finish: Finish::Done, response: Some(response("answer")) });
    let ended = Append { standing: Standing::Succeeded, end, ..append_of(0, MINE, 1, 0, "end\n") };
    take_over(&store, 0, 0).unwrap();
    assert!(append(&store, ended).is_some());
    let row = saga(&store, 0).unwrap();
    drop(store);
    copy(&kinds[0], &kinds[1], |_, _| {}).unwrap();
    let target = sqlite(&folders[1].path().join("store.db"), 3);
    let copied = saga(&target, 0).unwrap();
    assert_eq!(SagaRow { now: 0, ..copied }, SagaRow { now: 0, ..row });
    assert_eq!(record(&target, 0).unwrap().state, State::Done);
}

#[test]
fn a_file_of_an_earlier_version_gets_the_table_of_sagas() {
    let kit = SqliteKit::start();
    drop(kit.open(1));
    let path = kit.path();
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute_batch("DROP TABLE sagas; PRAGMA user_version = 2").unwrap();
    drop(file);
    let store = kit.open(2);
    assert_eq!(claim_with(&*store, saga_claim(0, MINE)), Ok(Claimed::First));
    assert!(saga(&*store, 0).is_some());
}

#[cfg(feature = "postgres")]
#[test]
fn a_database_of_the_version_before_gets_the_table_of_sagas() {
    let Some(kit) = super::conformance::PostgresKit::start(None) else { return };
    let before = kit.open(1);
    assert_eq!(claim_with(&*before, new_claim(1, OTHER, 0, HOUR)), Ok(Claimed::First));
    kit.execute("DROP TABLE ringway_sagas; UPDATE ringway_store SET version = 1");
    let store = kit.open(2);
    let theirs = Token { holder: 2, number: 1 };
    assert_eq!(claim_with(&*store, saga_claim(0, theirs)), Ok(Claimed::First));
    assert!(saga(&*store, 0).is_some());
    assert_eq!(record(&*store, 1).unwrap().token, OTHER, "its records stay");
    // A process of the version before goes on with the connection that it has.
    assert_eq!(claim_with(&*before, new_claim(2, MINE, 0, HOUR)), Ok(Claimed::First));
}

#[test]
fn every_saga_without_an_owner_is_offered_in_the_end() {
    over_stores(|kit, store| {
        for number in 0..100 {
            let token = Token { holder: 1, number: u64::from(number) + 1 };
            claim_with(store, saga_claim(number, token)).unwrap();
            let left = Append { entries: None, gives_up: true, ..append_of(number, token, 0, 0, "") };
            assert!(append(store, left).is_some());
        }
        // Those that a process cannot go on with must not hide the others from it.
        let other = kit.open(2);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            seen.extend(sagas(&*other, SagaQuery::Orphaned).into_iter().map(|row| row.id));
        }
        assert_eq!(seen.len(), 100);
    });
}
