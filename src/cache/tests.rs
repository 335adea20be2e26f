//! Random interleavings of requests, changes of the origin, purges and time, checked against RFC 9111 by a log of all
//! events.

use super::*;
use crate::cache::policy::tests::policy;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use proptest::prelude::*;
use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;

const URI: &str = "http://a/b";

/// The responses of the origin: status and directives, with the seconds of freshness and of stale-while-revalidate.
const SAYINGS: [Saying; 10] = [
    (200, "max-age=10", Some((10, 0))),
    (200, "max-age=3", Some((3, 0))),
    (200, "max-age=3, stale-while-revalidate=5", Some((3, 5))),
    (200, "max-age=3, must-revalidate, stale-while-revalidate=5", Some((3, 0))),
    (200, "no-cache", Some((0, 0))),
    (200, "no-store", None),
    (200, "private, max-age=10", None),
    (404, "", None),
    (503, "max-age=3", Some((3, 0))),
    (503, "", None),
];

type Saying = (u16, &'static str, Option<(i64, i64)>);

/// Added to the versions of errors.
const ERROR: u32 = 1_000_000;

#[derive(Clone, Debug)]
enum Event {
    Request,
    /// The body of a running fetch arrives.
    Arrival(prop::sample::Index),
    Change,
    Say(usize),
    Purge {
        by_tag: bool,
        soft: bool,
    },
    /// The resource has changed by a write.
    Invalidation,
    /// Events of the fleet may have been missed.
    Doubt,
    /// The response to a HEAD, with a validator or without.
    Head {
        has_tag: bool,
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
        1 => Just(Event::Invalidation),
        1 => Just(Event::Doubt),
        2 => any::<bool>().prop_map(|has_tag| Event::Head { has_tag }),
        1 => Just(Event::Sweep),
        3 => (1..5i64).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 1..60)
}

/// An entry of the log.
#[derive(Clone, Copy, Debug)]
enum Happened {
    /// The origin has sent, or confirmed, a version.
    Answer {
        version: u32,
        confirmed: bool,
        saying: usize,
        at: i64,
    },
    /// A HEAD has named a version by its tag.
    Head {
        version: u32,
        saying: usize,
        at: i64,
    },
    Purge {
        soft: bool,
    },
    Doubt,
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

impl FetchOrigin for Scripted<'_> {
    type Body = Full<Bytes>;
    type Error = Infallible;

    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<Full<Bytes>>, Infallible> {
        let world = &mut *self.world;
        let mut request = HeaderMap::new();
        let (status, directives, _) = SAYINGS[world.saying];
        let version = world.version_now();
        let tag = format!("\"{version}\"");
        let asks = validated.is_some_and(|stored| stored.add_conditions(&mut request));
        let confirmed = status < 400 && asks && request[http::header::IF_NONE_MATCH] == tag.as_str();
        let at = world.cache.now() / 1000;
        world.log.push(Happened::Answer { version, confirmed, saying: world.saying, at });
        let response = Response::builder()
            .status(if confirmed { 304 } else { status })
            .header("cache-control", directives)
            .header("cache-tag", "tag");
        let response = if status == 404 { response } else { response.header("etag", tag) };
        let body = if confirmed { String::new() } else { version.to_string() };
        Ok(response.body(Full::from(body)).unwrap())
    }
}

fn order() -> Order {
    Order {
        key: KeyRules::default()
            .key(TargetUri { scheme: "http", authority: "a", path: "/b", query: None }, &HeaderMap::new().into()),
        uri: URI.to_owned(),
        has_parts: false,
        request: HeaderMap::new().into(),
        traits: RequestTraits::default(),
        policy: Arc::new(policy()),
        requester: None,
        base: None,
    }
}

fn version_of(stored: &Stored) -> u32 {
    stored.field(&http::header::ETAG).unwrap().to_str().unwrap().trim_matches('"').parse().unwrap()
}

impl World {
    fn now(&self) -> i64 {
        self.cache.now() / 1000
    }

    fn version_now(&self) -> u32 {
        self.version + if SAYINGS[self.saying].0 >= 500 { ERROR } else { 0 }
    }

    /// Forwards a HEAD.
    fn head(&mut self, has_tag: bool) {
        let (order, token) = (order(), self.cache.begin(&order()));
        let (status, directives, _) = SAYINGS[self.saying];
        let mut answer = Response::builder().status(status).header("cache-control", directives);
        if has_tag {
            answer = answer.header("etag", format!("\"{}\"", self.version_now()));
            let (version, saying, at) = (self.version_now(), self.saying, self.now());
            self.log.push(Happened::Head { version, saying, at });
        }
        let (answer, ()) = answer.body(()).unwrap().into_parts();
        self.cache.learn_from_head(&order, &answer, self.cache.now(), &token);
    }

    /// Sends one request, as the proxy does, and checks that a response from the store is allowed.
    async fn request(&mut self) {
        let order = order();
        let cache = Arc::clone(&self.cache);
        if let Known::Response(hit) = cache.look_up(order.key, &order.request) {
            let reuse = hit.reuse(cache.now(), None);
            if reuse != Reuse::AfterValidation {
                let (version, as_fresh) = (version_of(&hit), matches!(reuse, Reuse::Yes { .. }));
                assert!(self.may_serve(version, as_fresh), "{version} at {}: {:?}", self.now(), self.log);
                assert!(self.is_beyond_doubt(version), "{version} in doubt: {:?}", self.log);
                if as_fresh {
                    return;
                }
            }
        }
        // A running fetch would be joined, which this test does not need.
        if let Joined::Leader(leader) = cache.join(cache.group(&order), &order) {
            let (result, arriving) = cache.fetch(leader, &order, &mut Scripted { world: self }, false).await;
            if let LeaderResult::Confirmed { stored, validated: false } = &result {
                assert!(self.is_beyond_doubt(version_of(stored)), "after waiting: {:?}", self.log);
            }
            if let LeaderResult::StandIn(stored) = result {
                let version = version_of(&stored);
                assert!(self.is_beyond_doubt(version), "{version} stands in, in doubt: {:?}", self.log);
                assert!(version < ERROR, "an error stands in");
                assert!(self.is_good(version), "{version} stands in: {:?}", self.log);
            }
            self.arriving.extend(arriving);
        }
    }

    /// Returns whether a version was fetched or validated since the last doubt.
    fn is_beyond_doubt(&self, version: u32) -> bool {
        let since = self.log.iter().rposition(|event| matches!(event, Happened::Doubt)).unwrap_or(0);
        let is_answer =
            |event: &Happened| matches!(event, Happened::Answer { version: given, .. } if *given == version);
        self.log[since..].iter().any(is_answer)
    }

    fn was_purged_after(&self, index: usize, counts: fn(bool) -> bool) -> bool {
        self.log[index..].iter().any(|event| matches!(event, Happened::Purge { soft } if counts(*soft)))
    }

    /// Returns whether a later response that may not be stored replaced a version. A server error says nothing about
    /// other responses.
    fn was_superseded_after(&self, index: usize, version: u32) -> bool {
        self.log[index + 1..].iter().any(|event| match *event {
            Happened::Answer { saying, .. } => {
                let (status, _, stored) = SAYINGS[saying];
                stored.is_none() && (status < 500 || version >= ERROR)
            }
            _ => false,
        })
    }

    /// Returns whether the body of a version may be served at all.
    fn is_good(&self, version: u32) -> bool {
        self.log.iter().enumerate().any(|(index, event)| match *event {
            Happened::Answer { version: given, confirmed: false, saying, .. } => {
                given == version
                    && SAYINGS[saying].2.is_some()
                    && !self.was_purged_after(index, |soft| !soft)
                    && !self.was_superseded_after(index, version)
            }
            _ => false,
        })
    }

    /// Returns whether a version may be served now without validation.
    fn may_serve(&self, version: u32, as_fresh: bool) -> bool {
        // A HEAD does not end a purge.
        let is_untouched = self.log.iter().enumerate().any(|(index, event)| match *event {
            Happened::Answer { version: given, .. } => given == version && !self.was_purged_after(index, |_| true),
            _ => false,
        });
        let head_is_good = self.log.iter().any(|event| match *event {
            Happened::Answer { version: given, saying, at, .. } | Happened::Head { version: given, saying, at }
                if given == version =>
            {
                let Some((fresh, stale)) = SAYINGS[saying].2 else { return false };
                // A soft purge makes the response stale, so it may be served during validation.
                let limit = if as_fresh { fresh } else { fresh + stale };
                (!as_fresh || is_untouched) && self.now() - at <= limit
            }
            _ => false,
        });
        self.is_good(version) && head_is_good
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
                Event::Request => runtime.block_on(world.request()),
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
                    drop(world.cache.purge(&purge, soft));
                    world.log.push(Happened::Purge { soft });
                }
                Event::Invalidation => {
                    world.cache.invalidate(order().key, URI, None);
                    world.log.push(Happened::Purge { soft: false });
                }
                Event::Doubt => {
                    world.cache.doubt();
                    world.log.push(Happened::Doubt);
                }
                Event::Head { has_tag } => world.head(has_tag),
                Event::Sweep => drop(world.cache.store.sweep()),
                Event::Wait(seconds) => drop(world.cache.advanced.fetch_add(seconds * 1000, Relaxed)),
            }
        }
    }
}

/// Fetches, changes and evictions of many URIs on several threads: stored responses are found by their URI, and changed
/// ones are gone.
#[test]
fn changes_find_what_is_stored_whatever_goes_on_beside_them() {
    // A small memory, so that many entries are evicted.
    let cache = Arc::new(Cache::new(200_000, &Budget::new(1 << 20), || {}));
    let order_of = |number: usize, country: usize| {
        let path = format!("/{number}");
        let target = TargetUri { scheme: "http", authority: "a", path: &path, query: None };
        let key = KeyRules::default().for_route_only(&country.to_string()).key(target, &HeaderMap::new().into());
        Order { key, uri: format!("http://a{path}"), has_parts: true, ..order() }
    };
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let cache = Arc::clone(&cache);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let mut random = fastrand::Rng::with_seed(thread);
                for _ in 0..3_000 {
                    // Each thread has URIs of its own, so that it knows the expected result; all share the table.
                    let number = random.usize(..100) * 4 + thread as usize;
                    let order = order_of(number, random.usize(..3));
                    if random.u8(..3) > 0 {
                        let answer = Response::builder().header("cache-control", "max-age=60");
                        let answer = answer.body(Full::from("x".repeat(random.usize(..2000)))).unwrap();
                        let token = cache.begin(&order);
                        let (_, arriving) = cache.adopt::<_, Infallible>(&order, answer, 0, token);
                        runtime.block_on(cache.receive(&order, arriving.unwrap()));
                    } else {
                        cache.invalidate(Key::from_bits(0), &order.uri, None);
                        for country in 0..3 {
                            let order = order_of(number, country);
                            let found = cache.look_up(order.key, &order.request);
                            assert!(matches!(found, Known::Nothing), "{} {country}", order.uri);
                        }
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let keys = cache.store.known_keys() as u64;
    assert_eq!(keys, cache.extent().0, "every entry is known by its URI, and nothing else is");
}

/// A hundred thousand changes a second for ten seconds: memory stays bounded, and other responses stay stored.
#[test]
fn a_million_changes_leave_nothing_behind() {
    let cache = Cache::new(1 << 20, &Budget::new(1 << 20), || {});
    let kept = Order { has_parts: true, ..order() };
    let answer = Response::builder().header("cache-control", "max-age=60").body(Full::from("kept")).unwrap();
    let (_, arriving) = cache.adopt::<_, Infallible>(&kept, answer, 0, cache.begin(&kept));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(cache.receive(&kept, arriving.unwrap()));
    for number in 0..1_000_000 {
        cache.invalidate(Key::from_bits(number), &format!("http://a/{number}"), None);
    }
    assert!(matches!(cache.look_up(kept.key, &kept.request), Known::Response(_)));
    assert_eq!((cache.store.known_keys(), cache.extent().0), (1, 1));
    cache.invalidate(Key::from_bits(0), &kept.uri, None);
    assert!(matches!(cache.look_up(kept.key, &kept.request), Known::Nothing));
}

#[test]
fn two_threads_never_bring_back_what_was_purged() {
    // The race of a lock-free look-up: a purge between the last look of a fetch and its end.
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
        drop(world.cache.purge(&Purge::Url(vec![URI.to_owned()]), false));
        world.cache.store.sweep();
        receiving.join().unwrap();
        assert!(matches!(world.cache.look_up(order().key, &HeaderMap::new().into()), Known::Nothing));
        world.cache.store.sweep();
        assert_eq!(world.cache.extent().0, 0);
    }
}

/// Stores a response under a path.
fn store(cache: &Cache, path: &str) -> Order {
    let target = TargetUri { scheme: "http", authority: "a", path, query: None };
    let rules = KeyRules::default();
    let order = Order { key: rules.key(target, &HeaderMap::new().into()), uri: rules.uri(target), ..order() };
    let answer = Response::builder().header("cache-control", "max-age=60").body(Full::from("x")).unwrap();
    let (_, arriving) = cache.adopt::<_, Infallible>(&order, answer, 0, cache.begin(&order));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(cache.receive(&order, arriving.unwrap()));
    order
}

#[test]
fn validations_of_a_store_in_doubt_begin_at_a_bounded_rate() {
    let cache = Cache::new(8 << 20, &Budget::new(1 << 20), || {});
    let orders: Vec<Order> = (0..VALIDATIONS + 10).map(|number| store(&cache, &format!("/{number}"))).collect();
    cache.doubt();
    let may = |order: &Order, at| match cache.look_up(order.key, &order.request) {
        Known::Response(hit) => {
            assert_eq!(hit.reuse(at, None), Reuse::AfterValidation);
            cache.may_validate(&hit, at)
        }
        _ => panic!("it is stored"),
    };
    let count = |at| orders.iter().filter(|order| may(order, at)).count();
    assert_eq!(count(5_000), VALIDATIONS as usize);
    // Those that have begun are joined, which costs nothing; the others wait for the next second.
    assert_eq!(count(5_999), VALIDATIONS as usize);
    assert_eq!(count(6_000), VALIDATIONS as usize + 10);
}

#[test]
fn events_of_other_proxies_remove_what_they_name() {
    let cache = Cache::new(1 << 20, &Budget::new(1 << 20), || {});
    let [a, b, c] = ["/a", "/b", "/c"].map(|path| store(&cache, path));
    let is_stored = |order: &Order| matches!(cache.look_up(order.key, &order.request), Known::Response(_));
    cache.invalidate_uri("http://a/a");
    cache.invalidate_uri("no URI");
    assert!(!is_stored(&a) && is_stored(&b) && is_stored(&c));
    cache.purge_many(&[(Purge::Url(vec!["http://a/b".to_owned()]), false), (Purge::Tag("t".to_owned()), false)]);
    assert!(!is_stored(&b) && is_stored(&c));
}

#[test]
fn what_is_kept_beside_a_response_is_small() {
    // By the weight that the table uses.
    let terms = policy::storable(
        RequestTraits::default(),
        StatusCode::OK,
        &HeaderMap::from_iter([(http::header::CACHE_CONTROL, http::HeaderValue::from_static("max-age=1"))]),
        policy::Timing { requested: 0, received: 0, received_at: 0 },
        &policy(),
    );
    let stored = Stored::new(StatusCode::OK, HeaderMap::new(), terms.unwrap(), &HeaderMap::new().into(), 0, (0, 0));
    assert!(std::mem::size_of_val(&stored) <= 152, "{}", std::mem::size_of_val(&stored));
    assert!(std::mem::size_of::<object::StoredEntry>() <= 192, "{}", std::mem::size_of::<object::StoredEntry>());
}
