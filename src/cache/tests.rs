//! Any interleaving of requests, changes of the origin, purges and time, against what RFC 9111
//! forbids, told by a log of what really happened.

use super::*;
use crate::cache::policy::tests::policy;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use proptest::prelude::*;
use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;

const URI: &str = "http://a/b";

/// What the origin may say, with the seconds that it allows: fresh, and stale while validating.
const SAYINGS: [(&str, Option<(i64, i64)>); 7] = [
    ("max-age=10", Some((10, 0))),
    ("max-age=3", Some((3, 0))),
    ("max-age=3, stale-while-revalidate=5", Some((3, 5))),
    ("max-age=3, must-revalidate, stale-while-revalidate=5", Some((3, 0))),
    ("no-cache", Some((0, 0))),
    ("no-store", None),
    ("private, max-age=10", None),
];

#[derive(Clone, Debug)]
enum Event {
    Request,
    /// The body of a fetch that runs has arrived.
    Arrival(prop::sample::Index),
    Change,
    Say(usize),
    Purge {
        by_tag: bool,
        soft: bool,
    },
    Sweep,
    Wait(i64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        5 => Just(Event::Request),
        3 => any::<prop::sample::Index>().prop_map(Event::Arrival),
        1 => Just(Event::Change),
        1 => (0..SAYINGS.len()).prop_map(Event::Say),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(by_tag, soft)| Event::Purge { by_tag, soft }),
        1 => Just(Event::Sweep),
        3 => (1..5i64).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 1..60)
}

/// What happened, in its order.
#[derive(Clone, Copy, Debug)]
enum Happened {
    /// The origin gave, or confirmed, a version.
    Answer {
        version: u32,
        confirmed: bool,
        saying: usize,
        at: i64,
    },
    Purge {
        soft: bool,
    },
}

struct World {
    cache: Arc<Cache>,
    version: u32,
    saying: usize,
    log: Vec<Happened>,
    arriving: Vec<Arriving<Full<Bytes>>>,
}

struct Scripted<'a> {
    world: &'a mut World,
}

impl Origin for Scripted<'_> {
    type Body = Full<Bytes>;
    type Failure = Infallible;

    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<Full<Bytes>>, Infallible> {
        let world = &mut *self.world;
        let mut request = HeaderMap::new();
        let tag = format!("\"{}\"", world.version);
        let asks = validated.is_some_and(|stored| stored.ask_whether_changed(&mut request));
        let confirmed = asks && request[http::header::IF_NONE_MATCH] == tag.as_str();
        let at = world.cache.now() / 1000;
        world.log.push(Happened::Answer { version: world.version, confirmed, saying: world.saying, at });
        let response = Response::builder()
            .status(if confirmed { StatusCode::NOT_MODIFIED } else { StatusCode::OK })
            .header("cache-control", SAYINGS[world.saying].0)
            .header("cache-tag", "tag")
            .header("etag", tag);
        let body = if confirmed { String::new() } else { world.version.to_string() };
        Ok(response.body(Full::from(body)).unwrap())
    }
}

fn order() -> Order {
    Order {
        key: KeyRules::default()
            .key(Target { scheme: "http", authority: "a", path: "/b", query: None }, &HeaderMap::new().into()),
        uri: URI.to_owned(),
        request: HeaderMap::new().into(),
        asker: Asker::default(),
        policy: Arc::new(policy()),
    }
}

fn version_of(stored: &Stored) -> u32 {
    stored.field(&http::header::ETAG).unwrap().to_str().unwrap().trim_matches('"').parse().unwrap()
}

impl World {
    fn now(&self) -> i64 {
        self.cache.now() / 1000
    }

    /// One request, as the proxy takes it. Gives the version that came from the store and whether it
    /// was taken for fresh.
    async fn request(&mut self) -> Option<(u32, bool)> {
        let order = order();
        let cache = Arc::clone(&self.cache);
        let found = match cache.look_up(order.key, &order.request) {
            Known::Response(held) => match held.reuse(cache.now(), None) {
                Reuse::Yes { .. } => return Some((version_of(&held), true)),
                Reuse::WhileValidating => Some((version_of(&held), false)),
                Reuse::AfterValidation => None,
            },
            Known::Others | Known::Nothing => None,
        };
        // A fetch that runs is waited with, which tells nothing new here.
        if let Joined::Lead(lead) = cache.join(cache.group(&order), &order) {
            let (led, arriving) = cache.fetch(lead, &order, &mut Scripted { world: self }, false).await;
            drop(led);
            self.arriving.extend(arriving);
        }
        found
    }

    /// Whether a version may be given out now without asking.
    fn may_serve(&self, version: u32, as_fresh: bool) -> bool {
        let purged_after = |index: usize, counts: fn(bool) -> bool| {
            self.log[index..].iter().any(|event| matches!(event, Happened::Purge { soft } if counts(*soft)))
        };
        let body_is_good = self.log.iter().enumerate().any(|(index, event)| match *event {
            Happened::Answer { version: given, confirmed: false, saying, .. } => {
                given == version && SAYINGS[saying].1.is_some() && !purged_after(index, |soft| !soft)
            }
            _ => false,
        });
        let head_is_good = self.log.iter().enumerate().any(|(index, event)| match *event {
            Happened::Answer { version: given, saying, at, .. } if given == version => {
                let Some((fresh, stale)) = SAYINGS[saying].1 else { return false };
                // A soft purge makes it stale; then it may be used while it is validated.
                let limit = if as_fresh { fresh } else { fresh + stale };
                let untouched = !as_fresh || !purged_after(index, |_| true);
                untouched && self.now() - at <= limit
            }
            _ => false,
        });
        body_is_good && head_is_good
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_served_that_the_rfc_forbids(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut world = World {
            cache: Arc::new(Cache::new(1 << 20, &Budget::new(1 << 20), || {})),
            version: 0,
            saying: 0,
            log: Vec::new(),
            arriving: Vec::new(),
        };
        for event in events {
            match event {
                Event::Request => {
                    if let Some((version, as_fresh)) = runtime.block_on(world.request()) {
                        prop_assert!(world.may_serve(version, as_fresh), "{version} at {}: {:?}", world.now(), world.log);
                    }
                }
                Event::Arrival(which) => {
                    if !world.arriving.is_empty() {
                        let arriving = world.arriving.swap_remove(which.index(world.arriving.len()));
                        runtime.block_on(world.cache.receive(&order(), arriving));
                    }
                }
                Event::Change => world.version += 1,
                Event::Say(saying) => world.saying = saying,
                Event::Purge { by_tag, soft } => {
                    let purge = if by_tag { Purge::Tag("tag".to_owned()) } else { Purge::Url(vec![URI.to_owned()]) };
                    world.cache.purge(&purge, soft);
                    world.log.push(Happened::Purge { soft });
                }
                Event::Sweep => drop(world.cache.store.sweep()),
                Event::Wait(seconds) => drop(world.cache.turned.fetch_add(seconds * 1000, Relaxed)),
            }
        }
    }
}

#[test]
fn two_threads_never_bring_back_what_was_purged() {
    // The race that a lock-free look must win: a purge between the last look of a fetch and its end.
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..300 {
        let mut world = World {
            cache: Arc::new(Cache::new(1 << 20, &Budget::new(1 << 20), || {})),
            version: 0,
            saying: 0,
            log: Vec::new(),
            arriving: Vec::new(),
        };
        runtime().block_on(world.request());
        let arriving = world.arriving.pop().unwrap();
        let cache = Arc::clone(&world.cache);
        let receiving = std::thread::spawn(move || runtime().block_on(cache.receive(&order(), arriving)));
        world.cache.purge(&Purge::Url(vec![URI.to_owned()]), false);
        world.cache.store.sweep();
        receiving.join().unwrap();
        assert!(matches!(world.cache.look_up(order().key, &HeaderMap::new().into()), Known::Nothing));
        world.cache.store.sweep();
        assert_eq!(world.cache.extent().0, 0);
    }
}

#[test]
fn what_is_kept_beside_a_response_is_small() {
    // Counted by the weight that the table goes by.
    let terms = policy::storable(
        Asker::default(),
        StatusCode::OK,
        &HeaderMap::from_iter([(http::header::CACHE_CONTROL, http::HeaderValue::from_static("max-age=1"))]),
        policy::Timing { asked: 0, came: 0, came_at: 0 },
        &policy(),
    );
    let stored = Stored::new(StatusCode::OK, HeaderMap::new(), terms.unwrap(), &HeaderMap::new().into(), 0, (0, 0));
    assert!(std::mem::size_of_val(&stored) <= 144, "{}", std::mem::size_of_val(&stored));
    assert!(std::mem::size_of::<object::Entry>() <= 176, "{}", std::mem::size_of::<object::Entry>());
}
