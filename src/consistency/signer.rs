//! Session tokens as text: signed, so that no client can make one up, and bounded in length.
//!
//! A token is base64url of a version byte, flags, the time of issue (seconds since 1970, 4 bytes), the digest of the
//! group templates (4 bytes), the processes (their number, and 8 bytes each), the groups (their number, and for each 8
//! bytes, its dots and its writes: their number, and for each the place of its process and its number as a varint), and
//! 16 bytes of HMAC-SHA-256. Numbers are big-endian.

use super::token::{Dots, Seen, Token};
use super::vector::Dot;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Buf as _;
use smallvec::SmallVec;

const VERSION: u8 = 1;
const FOLDED: u8 = 1;
const MAC: usize = 16;
/// The largest token in bytes; its text has a third more.
const MAX_BYTES: usize = 300;
/// The longest text that is read.
const MAX_TEXT: usize = MAX_BYTES.div_ceil(3) * 4;
/// The time for which a token counts, in seconds. No response is served unvalidated for half of it, so that each one is
/// newer than all that an older token could demand.
const LIFE: u64 = 24 * 3600;

/// Signs tokens by the newest secret, and verifies them by any.
pub(crate) struct Signer {
    keys: Vec<hmac::Key>,
    /// The digest of the group templates.
    digest: u32,
}

/// The result of reading a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Token(Token),
    /// It is older than tokens live: it demands nothing any more.
    Expired,
    /// It was made under other group templates.
    OtherTemplates,
    /// It is forged, cut or of another version.
    Bad,
}

impl Signer {
    /// Returns the signer with these secrets, the newest first.
    pub(crate) fn new(secrets: &[String], digest: u32) -> Signer {
        let key = |secret: &String| {
            let derived = hmac::sign(&hmac::Key::new(HMAC_SHA256, b"ringway session token"), secret.as_bytes());
            hmac::Key::new(HMAC_SHA256, derived.as_ref())
        };
        Signer { keys: secrets.iter().map(key).collect(), digest }
    }

    /// Returns the text of a token; groups that do not fit are folded. `now` is in seconds since 1970.
    pub(crate) fn seal(&self, token: &mut Token, now: u64) -> String {
        token.fold_until(|token| self.encode(token, now).is_some());
        let mut bytes = self.encode(token, now).unwrap_or_default();
        if let Some(key) = self.keys.first() {
            let mac = hmac::sign(key, &bytes);
            bytes.extend_from_slice(&mac.as_ref()[..MAC]);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token from its text.
    pub(crate) fn open(&self, text: &[u8], now: u64) -> Opened {
        if text.len() > MAX_TEXT {
            return Opened::Bad;
        }
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) else { return Opened::Bad };
        let Some((bytes, mac)) = bytes.len().checked_sub(MAC).map(|at| bytes.split_at(at)) else { return Opened::Bad };
        if !self.keys.iter().any(|key| is_mac(key, bytes, mac)) {
            return Opened::Bad;
        }
        let mut bytes = bytes;
        let (Ok(VERSION), Ok(flags)) = (bytes.try_get_u8(), bytes.try_get_u8()) else { return Opened::Bad };
        let (Ok(issued), Ok(digest)) = (bytes.try_get_u32(), bytes.try_get_u32()) else { return Opened::Bad };
        if now > u64::from(issued) + LIFE {
            return Opened::Expired;
        }
        if digest != self.digest {
            return Opened::OtherTemplates;
        }
        match groups(&mut bytes) {
            Some(groups) if bytes.is_empty() => Opened::Token(Token { groups, is_folded: flags & FOLDED != 0 }),
            _ => Opened::Bad,
        }
    }

    /// Returns the bytes of a token without its signature; `None` where they are too many.
    fn encode(&self, token: &Token, now: u64) -> Option<Vec<u8>> {
        let mut processes: SmallVec<[u64; 8]> =
            token.groups.iter().flat_map(|seen| seen.dots.iter().chain(&seen.writes)).map(|dot| dot.process).collect();
        processes.sort_unstable();
        processes.dedup();
        let mut bytes = vec![VERSION, if token.is_folded { FOLDED } else { 0 }];
        bytes.extend_from_slice(&u32::try_from(now).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&self.digest.to_be_bytes());
        bytes.push(u8::try_from(processes.len()).ok()?);
        processes.iter().for_each(|process| bytes.extend_from_slice(&process.to_be_bytes()));
        bytes.push(u8::try_from(token.groups.len()).ok()?);
        for seen in &token.groups {
            bytes.extend_from_slice(&seen.group.to_be_bytes());
            for dots in [&seen.dots, &seen.writes] {
                bytes.push(u8::try_from(dots.len()).ok()?);
                for dot in dots {
                    bytes.push(u8::try_from(processes.binary_search(&dot.process).ok()?).ok()?);
                    put_varint(&mut bytes, dot.number);
                }
            }
            if bytes.len() > MAX_BYTES - MAC {
                return None;
            }
        }
        (bytes.len() <= MAX_BYTES - MAC).then_some(bytes)
    }
}

fn is_mac(key: &hmac::Key, bytes: &[u8], mac: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(&hmac::sign(key, bytes).as_ref()[..MAC], mac).into()
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads any bytes: as a token with and without a good signature, and as a write.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_any(bytes: &[u8]) {
    let signer = Signer::new(&["0123456789abcdef0123456789abcdef".to_owned()], 5);
    let _ = signer.open(bytes, 1000);
    let mac = hmac::sign(&signer.keys[0], bytes);
    let signed = URL_SAFE_NO_PAD.encode([bytes, &mac.as_ref()[..MAC]].concat());
    if let Opened::Token(mut token) = signer.open(signed.as_bytes(), 1000) {
        let text = signer.seal(&mut token, 1000);
        assert!(text.len() <= MAX_TEXT);
        assert_eq!(signer.open(text.as_bytes(), 1000), Opened::Token(token));
    }
    if let Some(write) = super::Write::decode(bytes) {
        assert_eq!(super::Write::decode(&write.encode()), Some(write));
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn dots(bytes: &mut &[u8], processes: &[u64]) -> Option<Dots> {
    let count = bytes.try_get_u8().ok()?;
    let mut dot = || {
        let process = *processes.get(usize::from(bytes.try_get_u8().ok()?))?;
        Some(Dot { process, number: varint(bytes)? })
    };
    (0..count).map(|_| dot()).collect()
}

fn groups(bytes: &mut &[u8]) -> Option<Vec<Seen>> {
    let count = bytes.try_get_u8().ok()?;
    let processes: Vec<u64> = (0..count).map(|_| bytes.try_get_u64().ok()).collect::<Option<_>>()?;
    let count = bytes.try_get_u8().ok()?;
    let mut seen = || {
        let group = bytes.try_get_u64().ok()?;
        Some(Seen { group, dots: dots(bytes, &processes)?, writes: dots(bytes, &processes)? })
    };
    (0..count).map(|_| seen()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn signer(secrets: &[&str], digest: u32) -> Signer {
        Signer::new(&secrets.iter().map(|secret| (*secret).to_owned()).collect::<Vec<_>>(), digest)
    }

    fn session() -> Token {
        let mut token = Token::default();
        token.answered(&[7, 8], &Token::default(), Dot { process: 3, number: 1 << 40 }, |_| Vec::new());
        token.answered(&[8], &Token::default(), Dot { process: u64::MAX, number: 1 }, |_| {
            vec![Dot { process: 9, number: 2 }]
        });
        token
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let signer = signer(&[SECRET], 5);
        for mut token in [Token::default(), Token::unknown(), session()] {
            let text = signer.seal(&mut token, 1000);
            assert_eq!(signer.open(text.as_bytes(), 1000 + LIFE), Opened::Token(token));
            assert_eq!(signer.open(text.as_bytes(), 1001 + LIFE), Opened::Expired);
        }
    }

    #[test]
    fn secrets_rotate() {
        let (old, new) = (signer(&[SECRET], 5), signer(&["another secret, which is as long as this", SECRET], 5));
        let text = old.seal(&mut session(), 1000);
        assert_eq!(new.open(text.as_bytes(), 1000), Opened::Token(session()));
        let text = new.seal(&mut session(), 1000);
        assert_eq!(old.open(text.as_bytes(), 1000), Opened::Bad, "proxies need the new secret before one signs by it");
        assert_eq!(new.open(text.as_bytes(), 1000), Opened::Token(session()));
    }

    #[test]
    fn a_token_of_other_templates_is_not_understood() {
        let text = signer(&[SECRET], 5).seal(&mut session(), 1000);
        assert_eq!(signer(&[SECRET], 6).open(text.as_bytes(), 1000), Opened::OtherTemplates);
    }

    #[test]
    fn any_change_of_a_token_is_found() {
        let signer = signer(&[SECRET], 5);
        let text = signer.seal(&mut session(), 1000).into_bytes();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            // The last character has bits that stand for nothing.
            let is_same =
                URL_SAFE_NO_PAD.decode(&changed).is_ok_and(|bytes| Ok(bytes) == URL_SAFE_NO_PAD.decode(&text));
            assert!(is_same || signer.open(&changed, 1000) == Opened::Bad, "at {at}");
            assert_eq!(signer.open(&text[..at], 1000), Opened::Bad, "cut at {at}");
        }
        assert_eq!(signer.open(&[b'A'; 10_000], 1000), Opened::Bad);
    }

    #[test]
    fn a_token_of_many_groups_stays_short() {
        let signer = signer(&[SECRET], 5);
        let mut token = Token::default();
        for group in 0..1000 {
            token.answered(&[group], &Token::default(), Dot { process: group % 5, number: u64::MAX }, |_| Vec::new());
        }
        let text = signer.seal(&mut token, 1000);
        assert!(text.len() <= 400, "{}", text.len());
        let Opened::Token(read) = signer.open(text.as_bytes(), 1000) else { panic!("not read") };
        assert!(read.is_folded && read.groups.len() >= 10, "{read:?}");
        assert_eq!(read.groups.last().unwrap().group, 999, "the oldest were forgotten");
    }

    proptest! {
        /// Whatever is signed can be read or is refused.
        #[test]
        fn bytes_behind_a_good_signature_are_no_danger(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let signer = signer(&[SECRET], 5);
            let mut signed = bytes.clone();
            signed.extend_from_slice(&hmac::sign(&signer.keys[0], &bytes).as_ref()[..MAC]);
            let _ = signer.open(URL_SAFE_NO_PAD.encode(signed).as_bytes(), 1000);
            let _ = signer.open(&bytes, 1000);
        }
    }
}
