//! The promises of a store, over every kind of them, from a factory.

use super::*;
#[cfg(feature = "redis")]
use crate::engines::Redis;
#[cfg(feature = "postgres")]
use crate::engines::{PgBouncer, Postgres};
#[cfg(feature = "postgres")]
use std::sync::OnceLock;

/// A kind of store under test.
pub(super) trait Kit {
    /// Opens the store for a process.
    fn open(&self, holder: u64) -> Box<dyn Store>;
    /// Lets the store's clock go on.
    fn pass(&self, by: Duration);
    /// Returns whether several processes share it.
    fn is_shared(&self) -> bool;
    /// Returns whether the store's clock stands still between the steps of a test.
    fn is_exact(&self) -> bool {
        true
    }
    /// Returns whether the store detects the death of a process at once, not by its silence.
    fn notices_deaths(&self) -> bool {
        true
    }
    /// Returns the lease of a claim whose holder is silent from the first moment.
    fn ended_lease(&self) -> Duration {
        Duration::ZERO
    }
    /// Ends the lease of such a claim, where the store does not take one that has ended.
    fn end_lease(&self, _token: Token) {}
    /// Has an owner of sagas be silent for longer than their leases, where the store does not see its death.
    fn silence(&self, _owner: u64) {}
}

struct MemoryKit(Arc<AtomicU64>);

impl Kit for MemoryKit {
    fn open(&self, holder: u64) -> Box<dyn Store> {
        Box::new(memory::Memory::new(holder, Clock::set_by(Arc::clone(&self.0)), usize::MAX))
    }

    fn pass(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    fn is_shared(&self) -> bool {
        false
    }
}

pub(super) struct SqliteKit {
    folder: tempfile::TempDir,
    time: Arc<AtomicU64>,
}

impl SqliteKit {
    pub(super) fn start() -> SqliteKit {
        SqliteKit { folder: tempfile::tempdir().unwrap(), time: Arc::new(AtomicU64::new(1_000_000)) }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("store.db")
    }
}

impl Kit for SqliteKit {
    fn open(&self, holder: u64) -> Box<dyn Store> {
        let path = self.folder.path().join("store.db");
        Box::new(Sqlite::open(&path, holder, Clock::set_by(Arc::clone(&self.time))).unwrap())
    }

    fn pass(&self, by: Duration) {
        self.time.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// A database of its own on the server that tests share.
#[cfg(feature = "postgres")]
pub(super) struct PostgresKit {
    server: &'static Postgres,
    database: String,
    url: String,
    folder: tempfile::TempDir,
}

#[cfg(feature = "postgres")]
impl PostgresKit {
    pub(super) fn start(pooler: Option<&PgBouncer>) -> Option<PostgresKit> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let server = Postgres::shared()?;
        let database = format!("conformance{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let direct = server.database(&database);
        let url = pooler.map_or(direct, |pooler| pooler.url(&database));
        Some(PostgresKit { server, database, url, folder: tempfile::tempdir().unwrap() })
    }

    pub(super) fn execute(&self, statement: &str) {
        self.server.execute(&self.database, statement);
    }
}

#[cfg(feature = "postgres")]
impl Kit for PostgresKit {
    fn open(&self, holder: u64) -> Box<dyn Store> {
        let settings = postgres::settings(&self.url, None, &self.folder.path().join("store.id")).unwrap();
        let store = postgres::start(&settings, holder).unwrap();
        crate::engines::until("a connection", || store.is_up() == Some(true));
        Box::new(store)
    }

    fn pass(&self, by: Duration) {
        let by = format!("interval '{} milliseconds'", by.as_millis());
        let times = format!("SET created = created - {by}, touched = touched - {by}, expires = expires - {by}");
        self.server.execute(&self.database, &format!("UPDATE ringway_records {times}; UPDATE ringway_sagas {times}"));
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn notices_deaths(&self) -> bool {
        false
    }

    /// A lease is the patience with the server, too.
    fn ended_lease(&self) -> Duration {
        HOUR
    }

    fn end_lease(&self, token: Token) {
        let (holder, number) = (token.holder.cast_signed(), token.number.cast_signed());
        let statement = format!("UPDATE ringway_records SET lease = 0 WHERE (holder, number) = ({holder}, {number})");
        self.server.execute(&self.database, &statement);
    }

    fn silence(&self, owner: u64) {
        let statement = format!(
            "UPDATE ringway_holders SET beat = beat - interval '2 hours' WHERE holder = {}",
            owner.cast_signed()
        );
        self.server.execute(&self.database, &statement);
    }
}

/// A prefix of its own on the server that tests share.
#[cfg(feature = "redis")]
struct RedisKit {
    server: &'static Redis,
    settings: RedisSettings,
    _folder: tempfile::TempDir,
}

#[cfg(feature = "redis")]
impl RedisKit {
    fn start() -> Option<RedisKit> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let server = Redis::shared()?;
        let folder = tempfile::tempdir().unwrap();
        let settings = RedisSettings {
            addresses: vec![format!("127.0.0.1:{}", server.port)],
            login: Default::default(),
            replicas: 0,
            fleet: format!("conformance{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            identity_file: folder.path().join("store.id"),
        };
        Some(RedisKit { server, settings, _folder: folder })
    }
}

#[cfg(feature = "redis")]
impl Kit for RedisKit {
    fn open(&self, holder: u64) -> Box<dyn Store> {
        let store = redis::start(&self.settings, holder).unwrap();
        crate::engines::until("a connection", || store.is_up() == Some(true));
        Box::new(store)
    }

    fn pass(&self, by: Duration) {
        self.server.pass(&format!("ringway:{}:", self.settings.fleet), by.as_millis());
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_exact(&self) -> bool {
        false
    }
}

/// Returns the kits of the engines that are on this machine.
pub(super) fn kits() -> Vec<Box<dyn Kit>> {
    local_kits().into_iter().chain(remote_kits()).collect()
}

fn local_kits() -> Vec<Box<dyn Kit>> {
    vec![Box::new(MemoryKit(Arc::new(AtomicU64::new(1_000_000)))), Box::new(SqliteKit::start())]
}

fn remote_kits() -> Vec<Box<dyn Kit>> {
    #[allow(unused_mut, reason = "without features there are no remote stores")]
    let mut kits: Vec<Box<dyn Kit>> = Vec::new();
    #[cfg(feature = "postgres")]
    kits.extend(postgres_kits());
    #[cfg(feature = "redis")]
    kits.extend(RedisKit::start().map(|kit| Box::new(kit) as Box<dyn Kit>));
    kits
}

/// PostgreSQL, with and without a pooler.
#[cfg(feature = "postgres")]
fn postgres_kits() -> Vec<Box<dyn Kit>> {
    static POOLER: OnceLock<Option<PgBouncer>> = OnceLock::new();
    let pooler = POOLER.get_or_init(|| Postgres::shared().and_then(PgBouncer::before));
    let direct = PostgresKit::start(None);
    let pooled = pooler.as_ref().and_then(|pooler| PostgresKit::start(Some(pooler)));
    direct.into_iter().chain(pooled).map(|kit| Box::new(kit) as Box<dyn Kit>).collect()
}

const fn mine(number: u64) -> Token {
    Token { holder: 1, number }
}

const fn theirs(number: u64) -> Token {
    Token { holder: 2, number }
}

fn state_of(store: &dyn Store, number: u8) -> Option<State> {
    read(|done| store.look_up(id(number), done)).map(|found| found.record.state)
}

fn release(store: &dyn Store, number: u8, token: Token, way: ReleaseWay) -> bool {
    call(|done| store.release(release_of(number, token, way), done)).unwrap()
}

fn complete(store: &dyn Store, number: u8, token: Token, finish: Finish) -> bool {
    call(|done| store.complete(completion(number, token, finish), done)).unwrap()
}

fn claim(store: &dyn Store, number: u8, token: Token) -> Result<Claimed, StoreError> {
    claim_with(store, new_claim(number, token, 0, HOUR))
}

fn retake(store: &dyn Store, number: u8, token: Token) -> Result<Claimed, StoreError> {
    claim_with(store, NewClaim { retake: true, ..new_claim(number, token, 0, HOUR) })
}

#[test]
fn a_claim_that_is_sent_again_is_granted_again_until_it_is_released() {
    for kit in kits() {
        let store = kit.open(1);
        let store = &*store;
        assert_eq!(claim(store, 0, mine(1)), Ok(Claimed::First));
        assert_eq!(claim(store, 0, mine(1)), Ok(Claimed::First), "its reply was lost");
        assert!(matches!(claim(store, 0, mine(2)), Ok(Claimed::Found(_))));
        // Entombed by others while its copy was in transit.
        assert!(complete(store, 0, mine(1), Finish::Unknown));
        assert_eq!(claim(store, 0, mine(1)), Ok(Claimed::First), "nothing was sent");
        assert_eq!(state_of(store, 0), Some(State::Running));
        assert!(release(store, 0, mine(1), ReleaseWay::Entombed));
        assert_eq!(state_of(store, 0), None);
        if kit.is_exact() {
            assert_eq!(store.count(), Some(0), "a tombstone is no record");
        }
        assert_eq!(claim(store, 0, mine(1)), Err(StoreError::Released), "a late copy");
        assert!(!release(store, 0, mine(1), ReleaseWay::Entombed), "once more");
        assert_eq!(call(|done| store.authorise(id(0), done)), Ok(Authorised::Absent));
        assert_eq!(claim(store, 0, mine(2)), Ok(Claimed::First), "to others it is absent");
        assert!(!release(store, 0, mine(1), ReleaseWay::Entombed), "never in the place of another's record");
        assert_eq!(state_of(store, 0), Some(State::Running));
        assert!(complete(store, 0, mine(2), Finish::Done));
    }
}

#[test]
fn a_tombstone_comes_before_the_claim_that_it_buries_and_goes_after_a_minute() {
    for kit in kits() {
        let store = kit.open(1);
        let store = &*store;
        assert!(!release(store, 0, mine(1), ReleaseWay::Entombed));
        assert_eq!(claim(store, 0, mine(1)), Err(StoreError::Released));
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 0);
        kit.pass(Duration::from_secs(59));
        assert_eq!(claim(store, 0, mine(1)), Err(StoreError::Released));
        kit.pass(Duration::from_secs(2));
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 1);
        assert_eq!(claim(store, 0, mine(2)), Ok(Claimed::First));
    }
}

#[test]
fn a_retaken_claim_is_released_to_unknown_and_its_token_is_dead() {
    for kit in kits() {
        let store = kit.open(1);
        let store = &*store;
        assert_eq!(claim(store, 0, mine(1)), Ok(Claimed::First));
        assert!(complete(store, 0, mine(1), Finish::Unknown));
        assert!(matches!(claim(store, 0, mine(2)), Ok(Claimed::Found(_))));
        assert_eq!(retake(store, 0, mine(2)), Ok(Claimed::Again));
        assert_eq!(retake(store, 0, mine(2)), Ok(Claimed::Again), "sent again, it may have been one");
        assert!(release(store, 0, mine(2), ReleaseWay::Retaken));
        assert_eq!(state_of(store, 0), Some(State::Unknown));
        assert!(matches!(retake(store, 0, mine(2)), Ok(Claimed::Found(_))), "a late copy");
        assert!(!complete(store, 0, mine(2), Finish::Done), "released for good");
        assert_eq!(state_of(store, 0), Some(State::Unknown));
        assert_eq!(retake(store, 0, mine(3)), Ok(Claimed::Again), "another one may");
        assert!(complete(store, 0, mine(3), Finish::Unknown));
        // One that was never granted.
        assert!(!release(store, 0, mine(4), ReleaseWay::Retaken));
        assert!(matches!(retake(store, 0, mine(4)), Ok(Claimed::Found(_))));
        assert_eq!(retake(store, 0, mine(5)), Ok(Claimed::Again));
    }
}

#[test]
fn records_live_from_their_end_and_running_ones_do_not_expire() {
    for kit in kits() {
        let store = kit.open(1);
        let store = &*store;
        assert_eq!(claim(store, 0, mine(1)), Ok(Claimed::First));
        kit.pass(Duration::from_secs(3600));
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 0);
        assert!(matches!(claim(store, 0, mine(2)), Ok(Claimed::Found(_))));
        assert!(complete(store, 0, mine(1), Finish::Done));
        kit.pass(TTL);
        let listed = read(|done| store.find(subject(0).key, done));
        assert_eq!(listed.len(), 1);
        assert!(listed[0].age >= HOUR && listed[0].expires_in.unwrap() <= TTL);
        assert!(matches!(claim(store, 0, mine(2)), Ok(Claimed::Found(found)) if found.response.is_some()));
        // Completed again, its time begins anew.
        assert!(complete(store, 0, mine(1), Finish::Done));
        kit.pass(TTL);
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 0);
        kit.pass(TTL);
        assert_eq!(call(|done| store.tend(done)).unwrap().expired, 1);
        assert_eq!(claim(store, 0, mine(2)), Ok(Claimed::First));
    }
}

#[test]
fn running_lists_the_claims_of_this_process() {
    for kit in kits() {
        let store = kit.open(1);
        let store = &*store;
        for number in 0..3 {
            assert_eq!(claim(store, number, mine(number.into())), Ok(Claimed::First));
        }
        assert!(complete(store, 1, mine(1), Finish::Done));
        let other = kit.is_shared().then(|| kit.open(2));
        if let Some(other) = &other {
            assert_eq!(claim(&**other, 3, theirs(1)), Ok(Claimed::First));
        }
        let mut running = call(|done| store.running(done)).unwrap();
        running.sort_by_key(|(_, token)| token.number);
        assert_eq!(running, [(id(0), mine(0)), (id(2), mine(2))]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Claim { id: u8, number: u64, print: u8, retake: bool },
    Complete { id: u8, number: u64, finish: Finish },
    Release { id: u8, number: u64, way: ReleaseWay },
    Authorise { id: u8 },
    Tend,
    Pass { seconds: u64 },
}

fn steps() -> impl Strategy<Value = Step> {
    let (id, number) = (0..3u8, 1..4u64);
    let way = prop_oneof![Just(ReleaseWay::Plain), Just(ReleaseWay::Entombed), Just(ReleaseWay::Retaken)];
    prop_oneof![
        4 => (id.clone(), number.clone(), 0..2u8, any::<bool>())
            .prop_map(|(id, number, print, retake)| Step::Claim { id, number, print, retake }),
        3 => (id.clone(), number.clone(), finishes())
            .prop_map(|(id, number, finish)| Step::Complete { id, number, finish }),
        2 => (id.clone(), number, way).prop_map(|(id, number, way)| Step::Release { id, number, way }),
        1 => id.prop_map(|id| Step::Authorise { id }),
        1 => Just(Step::Tend),
        1 => prop_oneof![Just(0), Just(25), Just(61), Just(95)].prop_map(|seconds| Step::Pass { seconds }),
    ]
}

/// Returns all replies of a store to a step.
fn take(kit: &dyn Kit, store: &dyn Store, step: &Step) -> String {
    match *step {
        Step::Claim { id, number, print, retake } => {
            let claim = NewClaim { retake, ..new_claim(id, mine(number), print, HOUR) };
            match claim_with(store, claim) {
                Ok(Claimed::Found(found)) => format!("{:?} {:?}", timeless(found.record), found.response),
                claimed => format!("{claimed:?}"),
            }
        }
        Step::Complete { id, number, finish } => format!("{:?}", complete(store, id, mine(number), finish)),
        Step::Release { id, number, way } => format!("{:?}", release(store, id, mine(number), way)),
        Step::Authorise { id: of } => format!("{:?}", call(|done| store.authorise(id(of), done))),
        Step::Tend => format!("{:?}", call(|done| store.tend(done))),
        Step::Pass { seconds } => {
            kit.pass(Duration::from_secs(seconds));
            String::new()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The memory store follows the rule by construction; this test compares all others with it.
    #[test]
    fn every_local_store_does_what_the_memory_does(steps in proptest::collection::vec(steps(), 0..60)) {
        agree(&local_kits(), &steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn every_remote_store_does_what_the_memory_does(steps in proptest::collection::vec(steps(), 40..80)) {
        let kits: Vec<_> = local_kits().into_iter().take(1).chain(remote_kits()).collect();
        agree(&kits, &steps)?;
    }
}

/// Takes steps in all stores, whose replies must be equal.
fn agree(kits: &[Box<dyn Kit>], steps: &[Step]) -> Result<(), TestCaseError> {
    let stores: Vec<_> = kits.iter().map(|kit| kit.open(1)).collect();
    for step in steps {
        let expected = take(&*kits[0], &*stores[0], step);
        for (kit, store) in kits.iter().zip(&stores).skip(1) {
            prop_assert_eq!(&take(&**kit, &**store, step), &expected, "{:?}", step);
            if kit.is_exact() {
                prop_assert_eq!(store.count(), stores[0].count());
            }
            for number in 0..3 {
                prop_assert_eq!(seen(&**store, number), seen(&*stores[0], number));
            }
        }
    }
    for key in ["key-0", "key-1", "key-2"] {
        let listed = |store: &dyn Store| {
            let mut listed = read(|done| store.find(key.to_owned(), done));
            listed.sort_by_key(|record| record.id);
            let seen = listed.into_iter().map(|it| (it.id, it.subject, timeless(it.record), it.status));
            seen.collect::<Vec<_>>()
        };
        for store in &stores[1..] {
            prop_assert_eq!(listed(&**store), listed(&*stores[0]));
        }
    }
    Ok(())
}

/// Returns a record without its times, which differ where the store's clock goes on.
fn timeless(record: record::Record) -> record::Record {
    record::Record { created: 0, expires: 0, ..record }
}

/// Returns the result of a look-up of a record.
fn seen(store: &dyn Store, number: u8) -> Option<Found> {
    let found = read(|done| store.look_up(id(number), done));
    found.map(|found| Found { record: timeless(found.record), response: found.response })
}
