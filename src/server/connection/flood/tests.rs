use super::*;
use proptest::prelude::*;

fn frame(kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind.0, flags], &stream.to_be_bytes(), payload].concat()
}

fn odd(meter: &mut FloodMeter, bytes: &[u8]) -> Vec<Glitch> {
    let mut found = Vec::new();
    meter.inward(bytes, |glitch| found.push(glitch));
    found
}

/// A meter that has no credit left.
fn strict() -> FloodMeter {
    FloodMeter { credit: 0, ..FloodMeter::new(0, 0, 200) }
}

#[test]
fn each_frame_is_what_it_is() {
    let (update, tiny) = (4096u32.to_be_bytes(), 1u32.to_be_bytes());
    for (kind, flags, payload, expected) in [
        (FrameKind::HEADERS, Frame::END_HEADERS, &b"\x82"[..], None),
        (FrameKind::CONTINUATION, Frame::END_HEADERS, b"x", Some(Glitch::LongHead)),
        (FrameKind::CONTINUATION, 0, b"x", Some(Glitch::Continuation)),
        (FrameKind::CONTINUATION, 0, &[0; 2000], Some(Glitch::LongHead)),
        (FrameKind::RST_STREAM, 0, &[0, 0, 0, 8], Some(Glitch::Reset)),
        (FrameKind::PING, 0, &[0; 8], Some(Glitch::Ping)),
        (FrameKind::PING, 1, &[0; 8], Some(Glitch::Ping)),
        (FrameKind::SETTINGS, 0, b"", Some(Glitch::Settings)),
        (FrameKind::PRIORITY, 0, &[0; 5], Some(Glitch::Priority)),
        (FrameKind::PRIORITY_UPDATE, 0, &[0; 5], Some(Glitch::Priority)),
        (FrameKind::WINDOW_UPDATE, 0, &update, None),
        (FrameKind::WINDOW_UPDATE, 0, &tiny, Some(Glitch::WindowUpdate)),
        (FrameKind::WINDOW_UPDATE, 0, b"", Some(Glitch::WindowUpdate)),
        (FrameKind::DATA, 0, b"", Some(Glitch::EmptyData)),
        (FrameKind::DATA, 0, b"x", None),
        (FrameKind::DATA, Frame::END_STREAM, b"", None),
        (FrameKind::DATA, Frame::PADDED, b"\x02\0\0", Some(Glitch::EmptyData)),
        (FrameKind::DATA, Frame::PADDED, b"\x02x\0\0", None),
        (FrameKind(77), 0, b"?", Some(Glitch::Unknown)),
    ] {
        let found = odd(&mut strict(), &frame(kind, flags, 1, payload));
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{kind:?} {flags} {}", payload.len());
    }
}

#[test]
fn an_update_that_can_only_be_wrong_is_odd_whatever_was_paid() {
    for (stream, increment, is_odd) in
        [(1, 0u32, true), (1, 1 << 30, true), (1, (1 << 31) - 1, true), (1, 65_535, false), (0, (1 << 31) - 1, false)]
    {
        let found =
            odd(&mut FloodMeter::new(0, 0, 200), &frame(FrameKind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes()));
        assert_eq!(!found.is_empty(), is_odd, "{stream} {increment}");
    }
}

#[test]
fn half_of_the_limit_warns_and_the_limit_ends_it() {
    let mut meter = strict();
    let reset = frame(FrameKind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    odd(&mut meter, &reset.repeat(90));
    assert_eq!(meter.verdict(), Verdict::Fine);
    odd(&mut meter, &reset.repeat(20));
    assert_eq!(meter.verdict(), Verdict::Odd);
    odd(&mut meter, &reset.repeat(200));
    assert_eq!(meter.verdict(), Verdict::Hostile);
    let mut without_limit = FloodMeter::new(0, 0, 0);
    odd(&mut without_limit, &reset.repeat(10_000));
    assert_eq!(without_limit.verdict(), Verdict::Fine);
}

#[test]
fn time_and_good_answers_take_glitches_back() {
    let start = Instant::now();
    let mut meter = strict();
    // A client that cancels a few streams each second may do so forever.
    for second in 0..1000 {
        (0..15).for_each(|_| meter.note(Glitch::Reset, start + Duration::from_secs(second)));
    }
    assert_eq!(meter.verdict(), Verdict::Fine);
    // So may a busy one that cancels every third stream.
    let end = frame(FrameKind::DATA, Frame::END_STREAM, 1, b"x").repeat(2);
    for _ in 0..10_000 {
        meter.note(Glitch::Reset, start + Duration::from_secs(1000));
        meter.outward(&end, |glitch| panic!("{glitch:?}"));
    }
    assert_eq!(meter.verdict(), Verdict::Fine);
    (0..200).for_each(|_| meter.note(Glitch::Reset, start + Duration::from_secs(1001)));
    assert_eq!(meter.verdict(), Verdict::Hostile);
}

#[test]
fn answers_pay_for_control_frames() {
    let mut meter = strict();
    let update = frame(FrameKind::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes());
    meter.outward(&frame(FrameKind::DATA, 0, 1, b"x").repeat(3), |_| ());
    assert_eq!(odd(&mut meter, &update.repeat(6)), []);
    assert_eq!(odd(&mut meter, &update), [Glitch::WindowUpdate]);
    // A ping of the proxy will be acknowledged, and an acknowledgement of the proxy pays for nothing.
    meter.outward(&frame(FrameKind::PING, 0, 0, &[0; 8]), |_| ());
    meter.outward(&frame(FrameKind::PING, Frame::ACK, 0, &[0; 8]).repeat(5), |_| ());
    assert_eq!(odd(&mut meter, &frame(FrameKind::PING, Frame::ACK, 0, &[0; 8]).repeat(2)), [Glitch::Ping]);
    meter.outward(&frame(FrameKind::DATA, 0, 1, b"x").repeat(10_000), |_| ());
    assert_eq!(odd(&mut meter, &update.repeat(1000)).len(), 1000 - MOST_CREDIT as usize);
}

#[test]
fn resets_that_a_client_brings_about_are_its_own() {
    for (code, is_made) in [(0, false), (1, true), (2, false), (3, true), (5, true), (6, true), (7, false), (8, false)]
    {
        let mut made = 0;
        strict().outward(&frame(FrameKind::RST_STREAM, 0, 1, &[0, 0, 0, code]), |_| made += 1);
        assert_eq!(made == 1, is_made, "{code}");
    }
}

#[test]
fn what_waits_unread_is_known() {
    let piece = frame(FrameKind::DATA, 0, 1, b"x");
    let mut meter = strict();
    assert_eq!(odd(&mut meter, &piece.repeat(2000)), []);
    assert_eq!((meter.unread(0), meter.unread(1900)), (2000, 100));
    // Bytes that were dropped unread are known by the window updates.
    meter.outward(&frame(FrameKind::WINDOW_UPDATE, 0, 0, &1950u32.to_be_bytes()), |_| ());
    assert_eq!(meter.unread(1900), 50);
    // The first update only makes the window larger.
    let mut meter = FloodMeter::new(0, 1000, 200);
    odd(&mut meter, &piece.repeat(100));
    meter.outward(&frame(FrameKind::WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes()), |_| ());
    assert_eq!(meter.unread(0), 100);
}

#[test]
fn it_knows_where_frames_and_heads_end() {
    let mut meter = FloodMeter::new(3, 0, 200);
    let head = frame(FrameKind::HEADERS, 0, 7, b"abc");
    assert_eq!(meter.open_head(), None);
    odd(&mut meter, b"PRI");
    odd(&mut meter, &head[..5]);
    assert_eq!(meter.open_head(), None);
    odd(&mut meter, &head[5..10]);
    assert_eq!(meter.open_head(), Some(1));
    odd(&mut meter, &head[10..]);
    assert_eq!(meter.open_head(), Some(1), "its end is still to come");
    odd(&mut meter, &frame(FrameKind::CONTINUATION, Frame::END_HEADERS, 7, b""));
    assert_eq!(meter.open_head(), None);
    assert_eq!(meter.last_stream_at_boundary(), Some(7));
    meter.outward(&head[..11], |_| ());
    assert_eq!(meter.last_stream_at_boundary(), None);
    meter.outward(&head[11..], |_| ());
    assert_eq!(meter.last_stream_at_boundary(), Some(7));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn it_does_not_matter_how_bytes_are_cut(
        frames in prop::collection::vec((0u8..20, any::<u8>(), 0u32..9, prop::collection::vec(any::<u8>(), 0..20)), 0..20),
        cuts in prop::collection::vec(1usize..30, 1..200),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| frame(FrameKind(*kind), *flags, *stream, payload)).collect();
        let (mut whole, mut cut) = (strict(), strict());
        let expected = odd(&mut whole, &bytes);
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        for length in cuts.iter().cycle() {
            let length = (*length).min(rest.len());
            found.extend(odd(&mut cut, &rest[..length]));
            rest = &rest[length..];
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, expected);
        prop_assert!(cut.inward.is_at_boundary());
        prop_assert_eq!(cut.last_stream, whole.last_stream);
    }
}
