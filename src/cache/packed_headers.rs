//! A stored response's fields in one piece of memory, a small body behind them, with the names that recur kept once for
//! all.
//!
//! A `HeaderMap` takes a hundred bytes a field; this takes eight. The names of the first thousand
//! different fields that any response brings are numbered; later ones are kept as text.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

const MAX_NAMES: usize = 1024;
/// Marks a name that is stored as text before its value.
const OWN_NAME: u16 = u16::MAX;
/// The bytes of the number of fields.
const HEAD: usize = 2;
/// The bytes of an entry: number of the name, length of its text, length of the value.
const ENTRY: usize = 8;

static NAMES: [OnceLock<HeaderName>; MAX_NAMES] = [const { OnceLock::new() }; MAX_NAMES];
static NUMBERS: LazyLock<Mutex<HashMap<HeaderName, u16>>> = LazyLock::new(Mutex::default);

/// Returns the number of a name; `None` where the table is full.
fn number(name: &HeaderName) -> Option<u16> {
    let mut numbers = NUMBERS.lock();
    if let Some(&known) = numbers.get(name) {
        return Some(known);
    }
    let next = numbers.len();
    NAMES.get(next)?.set(name.clone()).ok()?;
    let next = u16::try_from(next).ok()?;
    numbers.insert(name.clone(), next);
    Some(next)
}

/// Fields, in the order in which they came, and what stands behind them.
#[derive(Clone, Debug)]
pub(super) struct PackedHeaders {
    block: Bytes,
}

impl PackedHeaders {
    /// Returns the packed fields.
    pub(super) fn pack(fields: &HeaderMap) -> PackedHeaders {
        let count = fields.len();
        let text: usize = fields.iter().map(|(_, value)| value.len()).sum();
        let mut block = Vec::with_capacity(HEAD + count * ENTRY + text);
        block.extend_from_slice(&(count as u16).to_le_bytes());
        let numbers: Vec<Option<u16>> = fields.keys().map(number).collect();
        let numbered = || {
            fields
                .keys()
                .zip(&numbers)
                .flat_map(|(name, number)| fields.get_all(name).iter().map(move |value| (name, *number, value)))
        };
        for (name, number, value) in numbered() {
            let own = if number.is_none() { name.as_str().len() as u16 } else { 0 };
            block.extend_from_slice(&number.unwrap_or(OWN_NAME).to_le_bytes());
            block.extend_from_slice(&own.to_le_bytes());
            block.extend_from_slice(&(value.len() as u32).to_le_bytes());
        }
        for (name, number, value) in numbered() {
            if number.is_none() {
                block.extend_from_slice(name.as_str().as_bytes());
            }
            block.extend_from_slice(value.as_bytes());
        }
        block.shrink_to_fit();
        PackedHeaders { block: block.into() }
    }

    /// Adds the fields to the head of a message.
    pub(super) fn unpack(&self, head: &mut HeaderMap) {
        self.each(|name, value| {
            let name = match name {
                Name::Known(name) => name.clone(),
                Name::Own(text) => match HeaderName::from_lowercase(text) {
                    Ok(name) => name,
                    Err(_) => return,
                },
            };
            // The values share the allocation.
            if let Ok(value) = HeaderValue::from_maybe_shared(value) {
                head.append(name, value);
            }
        });
    }

    /// Returns the first value of a field.
    pub(super) fn get(&self, wanted: &HeaderName) -> Option<HeaderValue> {
        let mut found = None;
        self.each(|name, value| {
            let same = match name {
                Name::Known(name) => name == wanted,
                Name::Own(text) => text == wanted.as_str().as_bytes(),
            };
            if same && found.is_none() {
                found = HeaderValue::from_maybe_shared(value).ok();
            }
        });
        found
    }

    /// Returns the memory in bytes.
    pub(super) fn size(&self) -> usize {
        // The allocator rounds up.
        self.block.len() + self.block.len() / 16
    }

    pub(super) fn len(&self) -> usize {
        u16::from_le_bytes([self.block[0], self.block[1]]).into()
    }

    /// Returns the place behind the fields, and behind what was appended.
    pub(super) fn end(&self) -> u32 {
        u32::try_from(self.block.len()).unwrap_or(u32::MAX)
    }

    /// Moves a small body behind the fields. Returns its place there.
    pub(super) fn append(&mut self, body: &[u8]) -> u32 {
        let place = self.end();
        self.block = Bytes::from([&self.block, body].concat());
        place
    }

    /// Returns what stands behind the fields, from its place on.
    pub(super) fn behind(&self, place: u32) -> Bytes {
        self.block.slice(place as usize..)
    }

    fn each(&self, mut tell: impl FnMut(Name<'_>, Bytes)) {
        let mut at = HEAD + self.len() * ENTRY;
        for entry in self.block[HEAD..at].chunks_exact(ENTRY) {
            let number = u16::from_le_bytes([entry[0], entry[1]]);
            let own = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
            let length = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]) as usize;
            let text = at + own;
            let name = match NAMES.get(usize::from(number)).and_then(OnceLock::get) {
                Some(name) => Name::Known(name),
                None => Name::Own(&self.block[at..text]),
            };
            tell(name, self.block.slice(text..text + length));
            at = text + length;
        }
    }
}

enum Name<'a> {
    Known(&'static HeaderName),
    Own(&'a [u8]),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(lines in proptest::collection::vec(("[a-z]{1,3}", "[!-~]{0,20}"), 0..20)) {
            let mut fields = HeaderMap::new();
            for (name, value) in &lines {
                fields.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
            }
            let mut packed = PackedHeaders::pack(&fields);
            let place = packed.append(b"body");
            prop_assert_eq!(&packed.behind(place)[..], b"body");
            let mut unpacked = HeaderMap::new();
            packed.unpack(&mut unpacked);
            prop_assert_eq!(&unpacked, &fields);
            for name in fields.keys() {
                prop_assert_eq!(packed.get(name), fields.get(name).cloned());
            }
        }
    }
}
