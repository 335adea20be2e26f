//! Parts of stored responses (RFC 9110 14).

use crate::support::{Barrier, Origin, eventually, warm};

const BODY: &str = "0123456789";

#[test]
fn ranges_are_cut_from_the_whole() {
    let origin = Origin::telling(&[(200, "cache-control: max-age=60 | content-type: text/plain", BODY)]);
    let proxy = origin.cached("");
    warm(&proxy, "/");
    for (clause, range, status, content_range, body) in [
        ("14.1.2 first to last", "bytes=2-4", 206, Some("bytes 2-4/10"), "234"),
        ("14.1.2 to the end", "bytes=7-", 206, Some("bytes 7-9/10"), "789"),
        ("14.1.2 beyond the end", "bytes=7-99", 206, Some("bytes 7-9/10"), "789"),
        ("14.1.2 a suffix", "bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("14.1.2 a suffix longer than the whole", "bytes=-99", 206, Some("bytes 0-9/10"), BODY),
        ("15.5.17 unsatisfiable", "bytes=10-", 416, Some("bytes */10"), ""),
        ("15.5.17 an empty suffix", "bytes=-0", 416, Some("bytes */10"), ""),
        ("14.2 not understood", "items=0-1", 200, None, BODY),
        ("14.2 not valid", "bytes=4-2", 200, None, BODY),
        ("17.15 more than the whole", "bytes=0-9,0-9", 200, None, BODY),
    ] {
        let answer = proxy.get_with("/", &format!("range: {range}"));
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{clause}: {answer:?}");
        assert_eq!(answer.field("content-range").as_deref(), content_range, "{clause}");
        assert!(answer.field("cache-status").unwrap().contains("; hit"), "{clause}");
    }
    let head = proxy.send("HEAD", "/", "range: bytes=0-1");
    assert_eq!((head.status, head.field("content-length").as_deref()), (200, Some("10")), "14.2: for GET");
    assert_eq!(origin.asked(), 1);
}

#[test]
fn several_ranges_are_parts_of_a_multipart_body() {
    let origin = Origin::telling(&[(200, "cache-control: max-age=60 | content-type: text/plain", BODY)]);
    let proxy = origin.cached("");
    warm(&proxy, "/");
    let answer = proxy.get_with("/", "range: bytes=0-1, -2");
    assert_eq!((answer.status, answer.field("content-range")), (206, None));
    let media_type = answer.field("content-type").unwrap();
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, body: &str| {
        format!("--{boundary}\r\ncontent-type: text/plain\r\ncontent-range: bytes {range}/10\r\n\r\n{body}\r\n")
    };
    assert_eq!(answer.text(), format!("{}{}--{boundary}--\r\n", part("0-1", "01"), part("8-9", "89")));
}

#[test]
fn if_range_takes_strong_validators_only() {
    let modified = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (clause, etag, condition, status) in [
        ("13.1.5 the same tag", "\"e\"", "\"e\"", 206),
        ("13.1.5 another tag", "\"e\"", "\"f\"", 200),
        ("13.1.5 a weak tag", "W/\"e\"", "W/\"e\"", 200),
        ("13.1.5 the same date", "\"e\"", modified, 206),
        ("13.1.5 another date", "\"e\"", "Mon, 07 Nov 1994 08:49:37 GMT", 200),
    ] {
        let fields = format!("cache-control: max-age=60 | etag: {etag} | last-modified: {modified}");
        let origin = Origin::telling(&[(200, &fields, BODY)]);
        let proxy = origin.cached("");
        warm(&proxy, "/");
        let answer = proxy.get_with("/", &format!("range: bytes=0-1 | if-range: {condition}"));
        assert_eq!(answer.status, status, "{clause}");
    }
}

#[test]
fn a_range_that_is_missed_fetches_the_whole_and_streams_the_part() {
    let gate = Barrier::default();
    let open = gate.clone();
    let origin = Origin::start(move |ask, peer| {
        assert_eq!(ask.field("range"), None);
        peer.send("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\n01234");
        open.wait();
        peer.send("56789");
    });
    let proxy = origin.cached("");
    // The part is here although the whole is not.
    let answer = proxy.get_with("/", "range: bytes=1-3");
    assert_eq!((answer.status, answer.text().as_str()), (206, "123"));
    assert_eq!(answer.field("content-range").as_deref(), Some("bytes 1-3/10"));
    assert_eq!(answer.field("cache-status").as_deref(), Some("ringway; fwd=uri-miss; stored"));
    gate.open();
    eventually("a hit", || proxy.get("/").field("age").is_some());
    assert_eq!((proxy.get("/").text().as_str(), origin.asked()), (BODY, 1));
}

#[test]
fn a_range_of_what_is_not_stored_comes_from_the_origin() {
    let origin = Origin::start(|ask, peer| match ask.field("range") {
        Some("bytes=1-3") => peer.reply(206, "cache-control: no-store | content-range: bytes 1-3/10", "123"),
        _ => peer.reply(200, "cache-control: no-store", BODY),
    });
    let proxy = origin.cached("");
    for _ in 0..2 {
        let answer = proxy.get_with("/", "range: bytes=1-3");
        assert_eq!((answer.status, answer.text().as_str()), (206, "123"));
    }
}

#[test]
fn large_bodies_are_cut_across_their_pieces() {
    let body: String = (0..200_000).map(|number| format!("{number:06} ")).collect();
    let whole = body.clone();
    let origin = Origin::start(move |_, peer| peer.reply(200, "cache-control: max-age=60", &whole));
    let proxy = origin.cached("");
    warm(&proxy, "/");
    assert!(proxy.get("/").text() == body);
    for (from, end) in [(0, 1), (262_143, 262_145), (262_144, 524_288), (1_000_000, 1_400_000)] {
        let answer = proxy.get_with("/", &format!("range: bytes={from}-{}", end - 1));
        assert!(answer.status == 206 && answer.text() == body[from..end], "{from}..{end}");
    }
}
