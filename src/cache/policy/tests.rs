use super::*;
use http::HeaderValue;
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000;
const TIMING: Timing = Timing { requested: 0, received: 0, received_at: NOW };

pub(in crate::cache) fn policy() -> CachePolicy {
    CachePolicy { stale_if_error: 3_600_000, ..CachePolicy::plain() }
}

/// Returns fields from lines; `@` stands for a date that many seconds from now.
fn fields(lines: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines.split(" | ").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        let value = match value.strip_prefix('@') {
            Some(offset) => date::format(NOW + offset.parse::<i64>().unwrap()).unwrap(),
            None => HeaderValue::from_str(value).unwrap(),
        };
        fields.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
    fields
}

fn judge(traits: RequestTraits, status: u16, lines: &str) -> Result<Terms, Refusal> {
    let status = StatusCode::from_u16(status).unwrap();
    storable(traits, status, &fields(lines), TIMING, &policy()).map(|(terms, _)| terms)
}

/// Returns the seconds of freshness left at arrival; `None` where the response is not stored.
fn fresh_for(status: u16, lines: &str) -> Option<i64> {
    judge(RequestTraits::default(), status, lines).ok().map(|terms| (terms.born + terms.lifetime).max(0) / 1000)
}

#[test]
fn freshness_comes_from_where_the_rfc_says() {
    for (section, status, lines, expected) in [
        ("4.2.1 s-maxage first", 200, "cache-control: s-maxage=5, max-age=9 | expires: @99", Some(5)),
        ("4.2.1 then max-age", 200, "cache-control: max-age=9 | expires: @-5 | date: @0", Some(9)),
        ("4.2.1 then Expires minus Date", 200, "expires: @60 | date: @10", Some(50)),
        ("4.2.1 Date missing or no date", 200, "expires: @60 | date: foo", Some(60)),
        ("5.3 Expires that is no date", 200, "expires: 0 | etag: \"x\"", Some(0)),
        ("5.3 several Expires", 200, "expires: @60 | expires: @70 | etag: \"x\"", Some(0)),
        ("4.2.1 max-age=0 beats Expires", 200, "cache-control: max-age=0 | expires: @60 | etag: \"x\"", Some(0)),
        ("4.2.3 Age", 200, "cache-control: max-age=60 | age: 20", Some(40)),
        ("5.1 the first Age of a list", 200, "cache-control: max-age=60 | age: 20, 0", Some(40)),
        ("5.1 the first Age line", 200, "cache-control: max-age=60 | age: 0 | age: 50", Some(60)),
        ("5.1 an Age that is no number", 200, "cache-control: max-age=60 | age: 20.5", Some(60)),
        ("5.1 a negative Age", 200, "cache-control: max-age=60 | age: -20", Some(60)),
        ("5.1 a huge Age", 200, "cache-control: max-age=60 | age: 99999999999999999999 | etag: \"x\"", Some(0)),
        ("4.2.3 Date in the past", 200, "cache-control: max-age=60 | date: @-20", Some(40)),
        ("4.2.3 Date in the future", 200, "cache-control: max-age=60 | date: @20", Some(60)),
        ("4.2.3 the larger of both", 200, "cache-control: max-age=60 | date: @-20 | age: 30", Some(30)),
        ("4.2.2 a tenth of its age", 200, "last-modified: @-1000 | date: @0", Some(100)),
        ("4.2.2 not for 201", 201, "last-modified: @-1000 | date: @0", None),
        ("4.2.2 unless public", 599, "last-modified: @-1000 | date: @0 | cache-control: public", Some(100)),
        ("4.2.2 not without Last-Modified", 200, "date: @0", None),
        ("9213 2.2 targeted first", 200, "cdn-cache-control: max-age=7 | cache-control: max-age=9", Some(7)),
        ("9213 2.2 Expires does not count", 200, "cdn-cache-control: public | expires: @60", None),
        ("3 any final status with freshness", 599, "cache-control: max-age=9", Some(9)),
        ("3 not 206", 206, "cache-control: max-age=9", None),
        ("3 not 304", 304, "cache-control: max-age=9", None),
        ("5.2.2.3 an unknown status", 599, "cache-control: max-age=9, must-understand", None),
        ("5.2.2.3 a known status", 200, "cache-control: max-age=9, no-store, must-understand", Some(9)),
        ("5.2.2.5", 200, "cache-control: max-age=9, no-store", None),
        ("5.2.2.7", 200, "cache-control: max-age=9, private", None),
        ("5.2.2.7 with names", 200, "cache-control: max-age=9, private=\"x\"", Some(9)),
        ("5.2.2.4 with a validator", 200, "cache-control: no-cache, max-age=9 | etag: \"x\"", Some(9)),
        ("5.2.2.4 without", 200, "cache-control: no-cache, max-age=9", None),
        ("7.3 Set-Cookie", 200, "cache-control: max-age=9 | set-cookie: a=b", None),
        (
            "5.2.2.7 Set-Cookie withheld",
            200,
            "cache-control: max-age=9, private=\"set-cookie\" | set-cookie: a=b",
            Some(9),
        ),
    ] {
        assert_eq!(fresh_for(status, lines), expected, "{section}: {lines}");
    }
}

#[test]
fn configured_lifetimes_stand_in_where_nothing_is_said() {
    let policy = CachePolicy { default_ttl: 5000, negative_ttl: 2000, ..policy() };
    let lifetime = |traits, status, lines: &str| {
        storable(traits, StatusCode::from_u16(status).unwrap(), &fields(lines), TIMING, &policy)
            .ok()
            .map(|(terms, _)| terms.lifetime)
    };
    let anyone = RequestTraits::default();
    assert_eq!(lifetime(anyone, 200, ""), Some(5000));
    assert_eq!(lifetime(anyone, 404, ""), Some(2000));
    assert_eq!(lifetime(anyone, 201, ""), None);
    assert_eq!(lifetime(anyone, 500, ""), None);
    assert_eq!(lifetime(anyone, 200, "cache-control: max-age=1"), Some(1000));
    assert_eq!(lifetime(anyone, 200, "last-modified: @-100 | date: @0"), Some(10_000));
    assert_eq!(lifetime(anyone, 200, "cache-control: no-cache | etag: \"x\""), Some(0));
    let with_cookie = RequestTraits { has_cookie: true, ..anyone };
    assert_eq!(lifetime(with_cookie, 200, ""), None);
    assert_eq!(lifetime(with_cookie, 200, "last-modified: @-100 | date: @0"), None);
    assert_eq!(lifetime(with_cookie, 200, "last-modified: @-100 | date: @0 | cache-control: public"), Some(0));
    assert_eq!(lifetime(with_cookie, 200, "etag: \"x\""), None);
    assert_eq!(lifetime(with_cookie, 200, "cache-control: max-age=1"), Some(1000));
}

#[test]
fn what_is_guessed_is_bounded_and_can_be_turned_off() {
    let lifetime = |policy: &CachePolicy, lines: &str| {
        storable(RequestTraits::default(), StatusCode::OK, &fields(lines), TIMING, policy)
            .ok()
            .map(|(terms, _)| terms.lifetime)
    };
    let old = "last-modified: @-1000000000 | date: @0";
    assert_eq!(lifetime(&policy(), old), Some(86_400_000));
    assert_eq!(lifetime(&CachePolicy { heuristic_max: 5000, ..policy() }, old), Some(5000));
    assert_eq!(lifetime(&CachePolicy { heuristic_max: 0, ..policy() }, old), Some(0), "kept to be validated");
    assert_eq!(lifetime(&CachePolicy { heuristic_max: 0, default_ttl: 7000, ..policy() }, old), Some(7000));
    assert_eq!(lifetime(&CachePolicy { heuristic_max: 5000, ..policy() }, "cache-control: max-age=9"), Some(9000));
}

#[test]
fn an_override_stands_before_what_is_said() {
    let with = |policy: CachePolicy, traits, status, lines: &str| {
        let status = StatusCode::from_u16(status).unwrap();
        storable(traits, status, &fields(lines), TIMING, &policy).map(|(terms, _)| terms.lifetime / 1000)
    };
    let anyone = RequestTraits::default();
    let (caller, user) =
        (RequestTraits { has_authorization: true, ..anyone }, RequestTraits { has_cookie: true, ..anyone });
    let ttl = || CachePolicy { ttl: Some(7000), ..policy() };
    let ignoring = || CachePolicy { ignored: Ignored { private: true, no_cache: true, no_store: true }, ..policy() };
    for (policy, traits, status, lines, expected) in [
        (ttl(), anyone, 200, "cache-control: max-age=1", Ok(7)),
        (ttl(), anyone, 302, "", Ok(7)),
        (ttl(), anyone, 200, "expires: 0", Ok(7)),
        (ttl(), anyone, 404, "cache-control: max-age=1", Ok(1)),
        (ttl(), anyone, 500, "", Err(Refusal::NeverUsable)),
        (ttl(), anyone, 200, "cache-control: private", Err(Refusal::Private)),
        (ttl(), caller, 200, "", Err(Refusal::Authorization)),
        (ttl(), user, 200, "", Ok(7)),
        (ignoring(), anyone, 200, "cache-control: private, no-store, no-cache, max-age=3", Ok(3)),
        (ignoring(), caller, 200, "cache-control: private, max-age=3", Err(Refusal::Authorization)),
        (ignoring(), anyone, 200, "cache-control: private, max-age=3 | set-cookie: a=b", Err(Refusal::SetCookie)),
    ] {
        assert_eq!(with(policy, traits, status, lines), expected, "{status} {lines}");
    }
}

#[test]
fn s_maxage_forbids_less_where_the_route_allows_it() {
    let with = |directives: &str| {
        let policy = CachePolicy { allows_stale_with_s_maxage: true, stale_while_revalidate: 60_000, ..policy() };
        let lines = fields(&format!("cache-control: {directives} | etag: \"x\""));
        let (terms, _) = storable(RequestTraits::default(), StatusCode::OK, &lines, TIMING, &policy).unwrap();
        (terms.stale_while_revalidate, terms.stale_if_error)
    };
    for (directives, expected) in [
        ("s-maxage=1, stale-while-revalidate=9", (9, 0)),
        ("s-maxage=1, stale-if-error=9", (0, 9)),
        ("s-maxage=1", (0, 0)),
        ("s-maxage=1, must-revalidate, stale-while-revalidate=9", (0, 0)),
        ("max-age=1", (60, 3600)),
    ] {
        assert_eq!(with(directives), expected, "{directives}");
    }
}

/// For all requesters, statuses and refusals: a response that is specific to its requester invalidates nothing.
#[test]
fn only_answers_that_others_would_get_end_what_is_stored() {
    let refusals = [
        Refusal::Status,
        Refusal::NoStore,
        Refusal::Private,
        Refusal::Authorization,
        Refusal::SetCookie,
        Refusal::Vary,
        Refusal::NeverUsable,
        Refusal::TooLarge,
    ];
    for status in (200..600).map(|status| StatusCode::from_u16(status).unwrap()) {
        for refusal in refusals {
            for flags in 0..8u8 {
                let traits = RequestTraits {
                    is_post: false,
                    has_authorization: flags & 1 > 0,
                    has_cookie: flags & 2 > 0,
                    no_store: flags & 4 > 0,
                };
                let credentials = flags & 3 > 0;
                let own = match status.as_u16() {
                    400 | 402 | 405..=409 | 411..=429 | 431 => true,
                    401 | 403 => credentials,
                    _ => false,
                };
                let own = own
                    || traits.no_store
                    || (refusal == Refusal::Authorization && status.is_success())
                    || (credentials && matches!(refusal, Refusal::Private | Refusal::SetCookie))
                    || (traits.has_cookie && refusal == Refusal::NeverUsable && status.is_success());
                let ends = supersedes(traits, status, refusal, StatusCode::OK);
                assert_eq!(ends, !own && status.as_u16() < 500, "{traits:?} {status} {refusal:?}");
                let ends = supersedes(traits, status, refusal, StatusCode::BAD_GATEWAY);
                assert_eq!(ends, !own, "{traits:?} {status} {refusal:?}");
            }
        }
    }
}

#[test]
fn what_answers_one_caller_is_kept_from_the_others() {
    let caller = RequestTraits { has_authorization: true, ..RequestTraits::default() };
    for (directives, stored) in
        [("max-age=9", false), ("public, max-age=9", true), ("must-revalidate, max-age=9", true), ("s-maxage=9", true)]
    {
        let judged = judge(caller, 200, &format!("cache-control: {directives}"));
        assert_eq!(judged.is_ok(), stored, "3.5 {directives}");
    }
    let quiet = RequestTraits { no_store: true, ..RequestTraits::default() };
    assert_eq!(judge(quiet, 200, "cache-control: max-age=9").unwrap_err(), Refusal::NoStore);
    let post = RequestTraits { is_post: true, ..RequestTraits::default() };
    assert!(judge(post, 200, "cache-control: max-age=9").is_ok());
    assert_eq!(judge(post, 200, "last-modified: @-1000 | date: @0").unwrap_err(), Refusal::NeverUsable);
}

fn terms(directives: &str) -> Terms {
    judge(RequestTraits::default(), 200, &format!("cache-control: {directives} | etag: \"x\"")).unwrap()
}

fn asking(directives: &str) -> RequestDirectives {
    RequestDirectives::of(&fields(&format!("cache-control: {directives}")))
}

#[test]
fn reuse_is_decided_by_age_and_by_what_both_sides_say() {
    let (fresh, stale) = (Reuse::Yes { stale: false }, Reuse::Yes { stale: true });
    for (section, directives, requested, seconds, expected) in [
        ("4.2 fresh", "max-age=10", "", 9, fresh),
        ("4.2 not at the end", "max-age=10", "", 10, Reuse::AfterValidation),
        ("5.2.2.4 no-cache", "max-age=10, no-cache", "", 0, Reuse::AfterValidation),
        ("5861 3 inside", "max-age=10, stale-while-revalidate=5", "", 14, Reuse::WhileValidating),
        ("5861 3 outside", "max-age=10, stale-while-revalidate=5", "", 15, Reuse::AfterValidation),
        (
            "4.2.4 must-revalidate",
            "max-age=10, must-revalidate, stale-while-revalidate=5",
            "",
            12,
            Reuse::AfterValidation,
        ),
        ("4.2.4 s-maxage", "s-maxage=10, stale-while-revalidate=5", "", 12, Reuse::AfterValidation),
        ("5.2.1.1 max-age", "max-age=10", "max-age=5", 5, fresh),
        ("5.2.1.1 max-age exceeded", "max-age=10", "max-age=5", 6, Reuse::AfterValidation),
        ("5.2.1.2 max-stale", "max-age=10", "max-stale=5", 15, stale),
        ("5.2.1.2 max-stale exceeded", "max-age=10", "max-stale=5", 16, Reuse::AfterValidation),
        ("5.2.1.2 however stale", "max-age=10", "max-stale", 10_000, stale),
        ("5.2.1.2 forbidden", "max-age=10, must-revalidate", "max-stale", 11, Reuse::AfterValidation),
        ("5.2.1.3 min-fresh", "max-age=10", "min-fresh=4", 6, fresh),
        ("5.2.1.3 min-fresh missed", "max-age=10", "min-fresh=4", 7, Reuse::AfterValidation),
        ("5.2.1.4 no-cache", "max-age=10", "no-cache", 0, Reuse::AfterValidation),
    ] {
        let decision = reuse(&terms(directives), seconds * 1000, false, Some(&asking(requested)));
        assert_eq!(decision, expected, "{section}: {directives}, requested {requested}, at {seconds} s");
    }
    assert_eq!(reuse(&terms("max-age=10"), 0, true, None), Reuse::AfterValidation);
    assert_eq!(reuse(&terms("max-age=10, stale-while-revalidate=5"), 0, true, None), Reuse::WhileValidating);
}

#[test]
fn a_stale_response_stands_in_only_where_nothing_forbids_it() {
    for (directives, seconds, expected) in [
        ("max-age=10", 10 + 3599, true),
        ("max-age=10", 10 + 3600, false),
        ("max-age=10, stale-if-error=5", 14, true),
        ("max-age=10, stale-if-error=5", 15, false),
        ("max-age=10, must-revalidate", 11, false),
        ("max-age=10, proxy-revalidate", 11, false),
        ("s-maxage=10", 11, false),
        ("max-age=10, no-cache", 11, false),
    ] {
        assert_eq!(stands_in(&terms(directives), seconds * 1000), expected, "{directives} at {seconds} s");
    }
}

const SAYINGS: [&str; 14] = [
    "max-age=7",
    "max-age=20",
    "s-maxage=3",
    "s-maxage=30",
    "no-store",
    "no-cache",
    "private",
    "public",
    "must-revalidate",
    "proxy-revalidate",
    "stale-while-revalidate=9",
    "stale-if-error=9",
    "max-age=x",
    "private=\"a\"",
];

proptest! {
    /// For any directives in any order: no response is used longer than the most restrictive one allows, and what must
    /// not be stored is not.
    #[test]
    fn no_directive_is_outweighed(
        directives in proptest::collection::vec(0..SAYINGS.len(), 0..6),
        age in 0..40u32,
        later in 0..60i64,
        authorized: bool,
    ) {
        let directives: Vec<&str> = directives.into_iter().map(|index| SAYINGS[index]).collect();
        let has = |name: &str| directives.contains(&name);
        let lines = format!("cache-control: {} | age: {age} | etag: \"x\"", directives.join(", "));
        let traits = RequestTraits { has_authorization: authorized, ..RequestTraits::default() };
        let judged = judge(traits, 200, &lines);
        if has("no-store") || has("private") {
            prop_assert!(judged.is_err());
        }
        let shared = has("public") || has("must-revalidate") || has("s-maxage=3") || has("s-maxage=30");
        if authorized && !shared {
            prop_assert!(judged.is_err());
        }
        let Ok(terms) = judged else { return Ok(()) };
        let limits = |names: &[(&str, i64)]| names.iter().filter(|(name, _)| has(name)).map(|(_, limit)| *limit).min();
        let allowed = limits(&[("s-maxage=3", 3), ("s-maxage=30", 30)])
            .or(limits(&[("max-age=x", 0), ("max-age=7", 7), ("max-age=20", 20)]))
            .unwrap_or(0);
        let total = i64::from(age) + later;
        match reuse(&terms, later * 1000, false, None) {
            Reuse::Yes { .. } => prop_assert!(total < allowed && !has("no-cache")),
            Reuse::WhileValidating => {
                prop_assert!(has("stale-while-revalidate=9") && total < allowed + 9);
                prop_assert!(!has("must-revalidate") && !has("proxy-revalidate") && !has("no-cache"));
                prop_assert!(!has("s-maxage=3") && !has("s-maxage=30"));
            }
            Reuse::AfterValidation => {}
        }
        if stands_in(&terms, later * 1000) && total >= allowed {
            let window = if has("stale-if-error=9") { 9 } else { 3600 };
            prop_assert!(total < allowed + window);
            prop_assert!(!has("must-revalidate") && !has("proxy-revalidate") && !has("no-cache"));
        }
    }
}
