//! Session tickets: encrypted sessions that clients keep, which any proxy with the same secret can resume.
//!
//! Keys change every twelve hours: each is derived from a secret, the number of the half day, and the domain. Tickets
//! of the previous half day are accepted, and those of the next one, as clocks differ. The domain includes all that a
//! resumption would skip, above all the requirement of a client certificate: a ticket of one listener is never accepted
//! by another one with more requirements.

use crate::clock;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rustls::server::ProducesTickets;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::OnceLock;

/// The time for which a key encrypts, in seconds.
const HALF_A_DAY: u64 = 12 * 3600;
const NONCE: usize = 24;

/// The keys of the session tickets of one listener.
pub(super) struct Tickets {
    /// The newest first; older ones still decrypt.
    secrets: Vec<Vec<u8>>,
    domain: Vec<u8>,
    now: fn() -> u64,
}

/// Returns a secret for a process that shares its tickets with no other; `None` where the system has no randomness.
pub(super) fn process_secret() -> Option<Vec<u8>> {
    static SECRET: OnceLock<Option<[u8; 32]>> = OnceLock::new();
    let secret = SECRET.get_or_init(|| {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).ok().map(|()| secret)
    });
    secret.map(|secret| secret.to_vec())
}

impl Tickets {
    pub(super) fn new(secrets: Vec<Vec<u8>>, domain: Vec<u8>) -> Tickets {
        Tickets { secrets, domain, now: clock::unix_seconds }
    }

    fn period(&self) -> u64 {
        (self.now)() / HALF_A_DAY
    }

    fn cipher(&self, secret: &[u8], period: u64) -> XChaCha20Poly1305 {
        let mut digest = Sha256::new();
        digest.update(b"ringway session tickets ");
        digest.update(period.to_be_bytes());
        digest.update(Sha256::digest(&self.domain));
        digest.update(secret);
        let key: [u8; 32] = digest.finalize().into();
        XChaCha20Poly1305::new(&key.into())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.secrets.is_empty()
    }

    fn lifetime(&self) -> u32 {
        HALF_A_DAY as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let period = self.period();
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let cipher = self.cipher(self.secrets.first()?, period);
        let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: &[] }).ok()?;
        Some([&period.to_be_bytes(), &nonce[..], &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (period, rest) = ticket.split_at_checked(8)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let period = u64::from_be_bytes(period.try_into().ok()?);
        if period.abs_diff(self.period()) > 1 {
            return None;
        }
        let nonce = XNonce::try_from(nonce).ok()?;
        let open =
            |secret: &Vec<u8>| self.cipher(secret, period).decrypt(&nonce, Payload { msg: sealed, aad: &[] }).ok();
        self.secrets.iter().find_map(open)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(secrets: &[&[u8]], domain: &[u8], now: fn() -> u64) -> Tickets {
        Tickets { secrets: secrets.iter().map(|&secret| secret.into()).collect(), domain: domain.into(), now }
    }

    const NOON: fn() -> u64 = || 1_000 * HALF_A_DAY;

    #[test]
    fn a_ticket_opens_where_the_secret_and_the_domain_are_the_same() {
        let ticket = tickets(&[b"one"], b"https", NOON).encrypt(b"session").unwrap();
        let opens = |other: Tickets| other.decrypt(&ticket).is_some();
        assert_eq!(tickets(&[b"one"], b"https", NOON).decrypt(&ticket).unwrap(), b"session");
        assert!(opens(tickets(&[b"two", b"one"], b"https", NOON)), "older secrets still open");
        assert!(!opens(tickets(&[b"two"], b"https", NOON)));
        assert!(!opens(tickets(&[b"one"], b"clients", NOON)), "another listener asks for more");
    }

    #[test]
    fn keys_change_by_the_clock() {
        let ticket = tickets(&[b"one"], b"d", NOON).encrypt(b"session").unwrap();
        let opens = |now| tickets(&[b"one"], b"d", now).decrypt(&ticket).is_some();
        assert!(opens(|| 1_001 * HALF_A_DAY) && opens(|| 999 * HALF_A_DAY), "clocks differ");
        assert!(!opens(|| 1_002 * HALF_A_DAY) && !opens(|| 998 * HALF_A_DAY));
    }

    #[test]
    fn what_was_changed_or_cut_does_not_open() {
        let tickets = tickets(&[b"one"], b"d", NOON);
        let ticket = tickets.encrypt(b"session").unwrap();
        for at in 0..ticket.len() {
            assert!(tickets.decrypt(&ticket[..at]).is_none());
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert!(tickets.decrypt(&forged).is_none(), "byte {at}");
        }
    }
}
