//! Session affinity by a cookie: soft (a random key that is hashed like any other) or strict (the node itself,
//! encrypted so that no client can choose one).
//!
//! A strict cookie is base64url of a version byte, a nonce of 24 bytes and the encrypted expiry (seconds since 1970,
//! big-endian) and node id, by XChaCha20-Poly1305 with the pool's name as associated data.

use super::hash_key::cookies;
use crate::config::{AffinityCookie, AffinityMode, OnGone, Secrets};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

const VERSION: u8 = 1;
const NONCE: usize = 24;
/// The bytes of randomness in a soft key.
const SOFT_KEY: usize = 16;

/// A route's affinity cookie.
pub(crate) struct Affinity {
    name: String,
    /// In seconds.
    pub(super) ttl: u64,
    pub(super) on_gone: OnGone,
    /// Empty for a soft cookie; the first one seals, all of them open.
    keys: Vec<XChaCha20Poly1305>,
}

/// The session that a request's affinity cookie names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// No cookie, or no valid one.
    None,
    /// The key to hash.
    Soft(Vec<u8>),
    /// The node, the end of the session (seconds since 1970), and whether more than half of its time is left.
    Strict { node: String, end: u64, fresh: bool },
}

impl Affinity {
    pub(crate) fn new(cookie: &AffinityCookie, secrets: &Secrets) -> Affinity {
        let lines = match (cookie.mode, &cookie.secret_file) {
            (AffinityMode::Strict, Some(file)) => secrets.affinity.get(&file.value).map_or(&[][..], Vec::as_slice),
            _ => &[],
        };
        let key = |line: &String| {
            let digest: [u8; 32] = Sha256::digest([b"ringway affinity ", line.as_bytes()].concat()).into();
            XChaCha20Poly1305::new(&digest.into())
        };
        Affinity {
            name: cookie.name.value.clone(),
            ttl: cookie.ttl.as_secs(),
            on_gone: cookie.on_gone,
            keys: lines.iter().map(key).collect(),
        }
    }

    pub(super) fn is_strict(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns the session of a request's cookie; of several the first valid one counts. `now` is in seconds since
    /// 1970.
    pub(crate) fn read(&self, fields: &HeaderMap, pool: &str, now: u64) -> Session {
        let mut found = cookies(fields, &self.name);
        let session = match self.is_strict() {
            true => found.find_map(|value| self.open(value, pool, now)),
            false => found.find(|value| is_soft_key(value)).map(|value| Session::Soft(value.to_vec())),
        };
        session.unwrap_or(Session::None)
    }

    fn open(&self, value: &[u8], pool: &str, now: u64) -> Option<Session> {
        let bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let nonce = XNonce::try_from(nonce).ok()?;
        let payload = || Payload { msg: sealed, aad: pool.as_bytes() };
        let plain = self.keys.iter().find_map(|key| key.decrypt(&nonce, payload()).ok())?;
        let (expiry, node) = plain.split_at_checked(8)?;
        let expiry = u64::from_be_bytes(expiry.try_into().ok()?);
        let left = expiry.checked_sub(now).filter(|&left| left > 0)?;
        let node = String::from_utf8(node.to_vec()).ok()?;
        Some(Session::Strict { node, end: expiry, fresh: left > self.ttl / 2 })
    }

    /// Returns the value of a strict cookie for this node.
    fn seal(&self, node: &str, pool: &str, now: u64) -> Option<String> {
        let plain = [&(now + self.ttl).to_be_bytes(), node.as_bytes()].concat();
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let sealed =
            self.keys.first()?.encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: pool.as_bytes() }).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&[VERSION], &nonce[..], &sealed].concat()))
    }

    /// Returns the `Set-Cookie` of a strict session with this node.
    pub(super) fn strict_cookie(&self, node: &str, pool: &str, secure: bool, now: u64) -> Option<HeaderValue> {
        self.set_cookie(&self.seal(node, pool, now)?, secure)
    }

    /// Returns a new soft key with its `Set-Cookie`.
    pub(super) fn soft_cookie(&self, secure: bool) -> Option<(Vec<u8>, HeaderValue)> {
        let mut random = [0; SOFT_KEY];
        getrandom::fill(&mut random).ok()?;
        let value = URL_SAFE_NO_PAD.encode(random);
        let field = self.set_cookie(&value, secure)?;
        Some((value.into_bytes(), field))
    }

    fn set_cookie(&self, value: &str, secure: bool) -> Option<HeaderValue> {
        let secure = if secure { "; Secure" } else { "" };
        let text = format!("{}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", self.name, self.ttl);
        HeaderValue::try_from(text).ok()
    }
}

/// Returns whether a value has the form of the keys that Ringway issues.
fn is_soft_key(value: &[u8]) -> bool {
    URL_SAFE_NO_PAD.decode(value).is_ok_and(|bytes| bytes.len() == SOFT_KEY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use http::header::COOKIE;

    const NOW: u64 = 1_800_000_000;

    fn affinity(secrets: &[&str]) -> Affinity {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), secrets.join("\n")).unwrap();
        let text = "listeners: [{ name: l, address: 127.0.0.1:1 }]
pools: { p: { nodes: [{ id: n, address: 127.0.0.1:2 }] } }
routes: [{ name: r, pool: p, affinity_cookie: { mode: strict, secret_file: key, ttl: 1h } }]";
        let (config, _) =
            Config::parse(&folder.path().join("c.yaml"), text, &|_| None).unwrap_or_else(|report| panic!("{report}"));
        Affinity::new(config.settings.routes[0].affinity_cookie.as_ref().unwrap(), &config.secrets)
    }

    const OLD: &str = "old-old-old-old-old-old-old-old-old";
    const NEW: &str = "new-new-new-new-new-new-new-new-new";

    fn read(affinity: &Affinity, cookie: &str, pool: &str, now: u64) -> Session {
        let mut fields = HeaderMap::new();
        fields.insert(COOKIE, HeaderValue::from_str(cookie).unwrap());
        affinity.read(&fields, pool, now)
    }

    fn strict(node: &str, fresh: bool) -> Session {
        Session::Strict { node: node.into(), end: NOW + 3600, fresh }
    }

    #[test]
    fn a_strict_cookie_opens_where_it_was_sealed() {
        let affinity = affinity(&[NEW]);
        let value = affinity.seal("app-1", "app", NOW).unwrap();
        let cookie = format!("a=1; ringway={value}");
        assert_eq!(read(&affinity, &cookie, "app", NOW), strict("app-1", true));
        assert_eq!(read(&affinity, &cookie, "app", NOW + 2000), strict("app-1", false));
        assert_eq!(read(&affinity, &cookie, "app", NOW + 3600), Session::None, "expired");
        assert_eq!(read(&affinity, &cookie, "other", NOW), Session::None, "from another pool");
    }

    #[test]
    fn keys_rotate() {
        let (before, during, after) = (affinity(&[OLD]), affinity(&[NEW, OLD]), affinity(&[NEW]));
        let old = format!("ringway={}", before.seal("n", "p", NOW).unwrap());
        let new = format!("ringway={}", during.seal("n", "p", NOW).unwrap());
        assert_eq!(read(&during, &old, "p", NOW), strict("n", true));
        assert_eq!(read(&after, &new, "p", NOW), strict("n", true), "the newest key seals");
        assert_eq!(read(&after, &old, "p", NOW), Session::None, "an unknown key");
    }

    #[test]
    fn what_was_changed_does_not_open() {
        let affinity = affinity(&[NEW]);
        let value = affinity.seal("n", "p", NOW).unwrap();
        for cut in 0..value.len() {
            assert_eq!(read(&affinity, &format!("ringway={}", &value[..cut]), "p", NOW), Session::None, "cut at {cut}");
        }
        let bytes = URL_SAFE_NO_PAD.decode(&value).unwrap();
        for at in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            let cookie = format!("ringway={}", URL_SAFE_NO_PAD.encode(forged));
            assert_eq!(read(&affinity, &cookie, "p", NOW), Session::None, "byte {at}");
        }
    }

    #[test]
    fn of_two_cookies_the_first_that_holds_counts() {
        let affinity = affinity(&[NEW]);
        let [one, two] = ["one", "two"].map(|node| affinity.seal(node, "p", NOW).unwrap());
        assert_eq!(read(&affinity, &format!("ringway={one}; ringway={two}"), "p", NOW), strict("one", true));
        assert_eq!(read(&affinity, &format!("ringway=junk; ringway={two}"), "p", NOW), strict("two", true));
    }
}
