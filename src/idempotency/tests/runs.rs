//! Runs, against nodes of every kind and stores that fail.

use super::*;
use crate::clock::BootTime;

fn policy() -> Policy {
    Policy {
        ttl: HOUR,
        lease: Duration::from_millis(300),
        wait: None,
        retries_unknown: false,
        forwards_without_store: false,
        release_on: vec![StatusCode::TOO_MANY_REQUESTS],
        max_response: 100,
    }
}

fn asked(number: u8) -> KeyedRequest {
    KeyedRequest { id: id(number), subject: Arc::new(subject(number)), fingerprint: Fingerprint([0; 32]) }
}

fn records(kind: Kind) -> Arc<Records> {
    let options = prometheus::HistogramOpts::new("d", "d");
    let family = |labels| prometheus::HistogramVec::new(options.clone(), labels).unwrap();
    Records::open(kind, &family(&["op"]), &family(&["store", "op"]), &crate::control::Events::new()).unwrap()
}

async fn first(records: &Arc<Records>, number: u8) -> Claim {
    match records.claim(&asked(number), &policy(), None).await {
        Ok(Turn::First(claim)) => claim,
        Ok(Turn::Found(found)) => panic!("not the first: {found:?}"),
        Err(error) => panic!("{error}"),
    }
}

async fn state(records: &Arc<Records>, number: u8) -> Option<State> {
    let listed = records.find(&subject(number).key).await.unwrap();
    listed.iter().find(|listed| listed.id == id(number)).map(|listed| listed.record.state)
}

/// A node with one answer.
struct Scripted(Option<Sent<Full<Bytes>, &'static str>>);

impl Scripted {
    fn answering(status: u16, length: usize, whole: bool) -> Scripted {
        let response = Response::builder().status(status).body(Full::new(Bytes::from(vec![b'x'; length]))).unwrap();
        Scripted(Some(Sent::Answer { response, whole }))
    }
}

impl Origin for Scripted {
    type Body = Full<Bytes>;
    type Error = &'static str;

    async fn send(&mut self, _by: BootTime) -> Sent<Full<Bytes>, &'static str> {
        self.0.take().expect("a request is sent once")
    }
}

#[tokio::test]
async fn every_end_of_a_run_is_what_the_store_knows() {
    let ends = [
        (Scripted::answering(201, 100, true), Some(State::Done)),
        (Scripted::answering(500, 0, false), Some(State::Done)),
        (Scripted::answering(408, 0, true), Some(State::Done)),
        (Scripted::answering(408, 0, false), None),
        (Scripted::answering(429, 0, true), None),
        (Scripted::answering(502, 0, true), Some(State::Unknown)),
        (Scripted::answering(504, 0, true), Some(State::Unknown)),
        (Scripted::answering(200, 101, true), Some(State::DoneWithoutBody)),
        (Scripted(Some(Sent::Nothing("refused"))), None),
        (Scripted(Some(Sent::NoAnswer("reset"))), Some(State::Unknown)),
    ];
    let records = records(Kind::Memory);
    let budget = Budget::new(1000);
    for (number, (mut node, expected)) in ends.into_iter().enumerate() {
        let number = number as u8;
        let claim = first(&records, number).await;
        assert_eq!(state(&records, number).await, Some(State::Running));
        let outcome = run(claim, &mut node, &policy(), &mut budget.nothing()).await;
        assert_eq!(state(&records, number).await, expected, "{number}");
        match expected {
            Some(State::Done) => assert!(matches!(outcome, Outcome::Answer { settled: Settled::Durable, .. })),
            Some(State::DoneWithoutBody) => assert!(matches!(outcome, Outcome::Large { .. })),
            Some(State::Unknown) => assert!(matches!(outcome, Outcome::Unknown)),
            _ => assert!(matches!(outcome, Outcome::Passed(_) | Outcome::NotSent("refused"))),
        }
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn an_answer_that_the_budget_never_holds_is_done_without_a_body() {
    let records = records(Kind::Memory);
    let (claim, budget) = (first(&records, 0).await, Budget::new(99));
    let mut node = Scripted::answering(200, 100, true);
    let outcome = run(claim, &mut node, &policy(), &mut budget.nothing()).await;
    assert!(matches!(outcome, Outcome::Large { beginning, .. } if beginning.len() == 100));
    assert_eq!(state(&records, 0).await, Some(State::DoneWithoutBody));
}

#[tokio::test]
async fn an_answer_waits_for_room_in_the_budget() {
    let records = records(Kind::Memory);
    let (claim, budget) = (first(&records, 0).await, Budget::new(100));
    let others = budget.share(50).unwrap();
    let mut node = Scripted::answering(200, 100, true);
    let (mut share, rules) = (budget.nothing(), policy());
    let (outcome, ()) = tokio::join!(run(claim, &mut node, &rules, &mut share), async {
        tokio::task::yield_now().await;
        drop(others);
    });
    assert!(matches!(outcome, Outcome::Answer { settled: Settled::Durable, .. }));
}

#[tokio::test]
async fn a_claim_that_is_let_go_is_free_until_something_was_sent() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [Kind::Memory, Kind::Sqlite(folder.path().join("store.db"))] {
        let records = records(kind);
        drop(first(&records, 0).await);
        // The store records it before it gets the next one.
        let mut claim = first(&records, 0).await;
        claim.sending();
        drop(claim);
        let found = records.claim(&asked(0), &policy(), None).await;
        assert!(matches!(found, Ok(Turn::Found(found)) if found.record.state == State::Unknown));
        // A claim whose caller does not wait is made, and released.
        let (other, rules) = (asked(2), policy());
        let mut unheard = Box::pin(records.claim(&other, &rules, None));
        let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(unheard.as_mut().poll(cx))).await;
        drop(unheard);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !matches!(records.claim(&other, &rules, None).await, Ok(Turn::First(_))) {
            assert!(std::time::Instant::now() < deadline, "nobody releases it");
        }
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_stored_leaves_unknown_once_the_store_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (path, away) = (folder.path().join("store.db"), folder.path().join("away.db"));
    let records = records(Kind::Sqlite(path.clone()));
    let claim = first(&records, 0).await;
    std::fs::rename(&path, &away).unwrap();
    let mut node = Scripted::answering(200, 5, true);
    let budget = Budget::new(1000);
    let outcome = run(claim, &mut node, &policy(), &mut budget.nothing()).await;
    assert!(matches!(outcome, Outcome::Answer { settled: Settled::Failed, .. }), "the true answer is passed on");
    std::fs::rename(&away, &path).unwrap();
    let found = records.claim(&asked(0), &policy(), None).await;
    assert!(
        matches!(found, Ok(Turn::Found(found)) if found.record.state == State::Unknown),
        "known here before the store has heard of it"
    );
    let upkeep = tokio::spawn(Arc::clone(&records).keep());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while state(&records, 0).await != Some(State::Unknown) {
        assert!(std::time::Instant::now() < deadline, "the store never hears of it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    upkeep.abort();
}

#[tokio::test]
async fn a_late_result_never_goes_over_another_run() {
    let records = records(Kind::Memory);
    let mut late = first(&records, 0).await;
    late.sending();
    let unknown =
        Completion { id: id(0), token: late_token(&records), finish: Finish::Unknown, response: None, ttl: HOUR };
    call(|done| records.store().complete(unknown, done)).unwrap();
    let retrying = Policy { retries_unknown: true, ..policy() };
    let Ok(Turn::First(second)) = records.claim(&asked(0), &retrying, None).await else {
        panic!("retry takes it over")
    };
    assert_eq!(late.settle(End::Done(response("late"))).await, Settled::Superseded);
    assert_eq!(second.settle(End::Done(response("second"))).await, Settled::Durable);
    let Ok(Turn::Found(found)) = records.claim(&asked(0), &policy(), None).await else { panic!("it has run") };
    assert_eq!(found.response, Some(response("second")));
}

fn late_token(records: &Records) -> Token {
    Token { holder: records.store().holder(), number: 1 }
}

#[tokio::test]
async fn who_waits_hears_of_the_end_at_once() {
    let records = records(Kind::Memory);
    let waiting = Policy { wait: Some(HOUR), ..policy() };
    let claim = first(&records, 0).await;
    let waiter = tokio::spawn({
        let records = Arc::clone(&records);
        async move { start(&records, &asked(0), &waiting, None).await }
    });
    tokio::task::yield_now().await;
    claim.settle(End::Done(response("here"))).await;
    assert!(matches!(waiter.await.unwrap(), Started::Replay(stored) if stored == response("here")));
    // And of a release: it is the waiter's turn.
    let waiting = Policy { wait: Some(HOUR), ..policy() };
    let claim = first(&records, 1).await;
    let waiter = tokio::spawn({
        let records = Arc::clone(&records);
        async move { start(&records, &asked(1), &waiting, None).await }
    });
    tokio::task::yield_now().await;
    claim.settle(End::Released).await;
    assert!(matches!(waiter.await.unwrap(), Started::First(_)));
    let short = Policy { wait: Some(Duration::from_millis(20)), ..policy() };
    let _running = first(&records, 2).await;
    assert!(matches!(start(&records, &asked(2), &short, None).await, Started::Refused(Refused::Running)));
}

#[tokio::test]
async fn a_running_record_that_no_request_holds_is_ended_by_upkeep() {
    let records = records(Kind::Memory);
    let held = first(&records, 0).await;
    let token = |number| Token { holder: records.store().holder(), number };
    // Late copies of claims: of one that was granted once, and of one that never was.
    records.claims.was_not_granted(token(1001));
    for (number, claimed) in [(1, 1000), (2, 1001)] {
        let claim = new_claim(number, token(claimed), 0, HOUR);
        assert_eq!(claim_with(records.store(), claim), Ok(Claimed::First));
    }
    records.end_lost_claims().await;
    assert_eq!(state(&records, 0).await, Some(State::Running), "a request works on it");
    assert_eq!(state(&records, 1).await, Some(State::Unknown));
    assert_eq!(state(&records, 2).await, None, "nothing was sent under it");
    held.settle(End::Released).await;
}
