//! The `Idempotency-Key` of a step: HMAC-SHA-256 of the step and the direction under the saga's random seed, in hex.
//!
//! The key is the same on every attempt and after every takeover. It depends on no secret that rotates, and says
//! nothing of the client's own key.

use super::machine::Way;
use aws_lc_rs::hmac;

/// The random bits that the keys of a saga's steps are made of.
pub(crate) type Seed = [u8; 16];

/// Returns the key of a step.
pub(crate) fn step_key(seed: &Seed, step: usize, way: Way) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
    let way = match way {
        Way::Do => "do",
        Way::Undo => "undo",
    };
    let tag = hmac::sign(&key, format!("{step}/{way}").as_bytes());
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    tag.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_keyed_hash_of_its_step() {
        let seed: Seed = *b"0123456789abcdef";
        // printf 1/undo | openssl dgst -sha256 -hmac 0123456789abcdef
        let expected = "f97384cd1c50d7fd73e79756702bb40a6c87ac3483b7b79fd2e2b8b3de006ef0";
        assert_eq!(step_key(&seed, 1, Way::Undo), expected);
    }

    #[test]
    fn no_two_steps_share_a_key() {
        let keys = |seed: &Seed| {
            let both = (0..8).flat_map(|step| [Way::Do, Way::Undo].map(|way| (step, way)));
            both.map(|(step, way)| step_key(seed, step, way)).collect::<Vec<_>>()
        };
        let mut all = [keys(&[1; 16]), keys(&[2; 16])].concat();
        assert!(all.iter().all(|key| key.len() == 64));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 32);
    }
}
