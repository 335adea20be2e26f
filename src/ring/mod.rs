//! The consistent-hash ring: pure data, no I/O, no clock.
//!
//! Every node owns `virtual_nodes` points per unit of weight on a circle of 64-bit hashes; a key belongs to the node of
//! the first point clockwise from the key's own hash (Karger et al., 1997). A point depends only on the pool's seed,
//! the node's id and the point's number, so a node that leaves removes only its own points: no other key changes its
//! owner.
//!
//! Both kinds of hash are SipHash-2-4 with keys derived from the seed: proxies with the same file agree, and a client
//! that does not know the seed cannot choose a key for a node.

mod plan;
mod walk;

pub use plan::{Change, Transfer};
pub use walk::Walk;

use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher24;
use std::hash::Hasher;

/// A member of the ring: its identity and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The identity of the node; its position in a list and its address do not matter.
    pub id: &'a str,
    /// A multiple of `virtual_nodes` points; 0 means no keys.
    pub weight: u32,
}

/// The two SipHash keys that are derived from a seed.
///
/// Points and keys are hashed with different ones, so that no key can be chosen that falls exactly on a known node's
/// point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    points: (u64, u64),
    keys: (u64, u64),
}

impl Seed {
    /// Derives both hash keys from the seed's text.
    pub fn new(text: &str) -> Seed {
        let digest = Sha256::digest(text.as_bytes());
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&digest[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Seed { points: (word(0), word(8)), keys: (word(16), word(24)) }
    }

    /// Returns the position of a key on the circle.
    pub fn hash_key(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.keys.0, self.keys.1);
        hasher.write(key);
        hasher.finish()
    }

    fn hash_point(&self, id: &str, number: u32) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.points.0, self.points.1);
        hasher.write(id.as_bytes());
        hasher.write(&number.to_le_bytes());
        hasher.finish()
    }
}

/// The ring of one pool: built once, then only read. It takes at most 16 bytes per point.
#[derive(Clone, Debug)]
pub struct Ring {
    seed: Seed,
    /// Sorted; `owners[i]` is the member whose point `hashes[i]` is.
    hashes: Box<[u64]>,
    owners: Box<[u32]>,
    /// For each slice of the circle, the first point at or after its start, from which a look-up begins instead of
    /// searching the whole ring.
    slices: Box<[u32]>,
    /// The bits by which a hash is shifted right to give its slice.
    shift: u32,
    members: usize,
}

impl Ring {
    /// Returns the ring of these members. Their order has no influence on the owners of keys, and owners are indices
    /// into this slice.
    ///
    /// `virtual_nodes` times the sum of the weights must fit into 32 bits; the configuration bounds it far below that.
    pub fn build(seed: Seed, virtual_nodes: u32, members: &[Member<'_>]) -> Ring {
        let mut by_id: Vec<u32> = (0..members.len() as u32).collect();
        by_id.sort_unstable_by_key(|&member| members[member as usize].id);

        // Two points with the same hash are ordered by id, so that the result does not depend on the order of the file.
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (rank, &member) in by_id.iter().enumerate() {
            let Member { id, weight } = members[member as usize];
            let count = virtual_nodes.saturating_mul(weight);
            points.extend((0..count).map(|number| (seed.hash_point(id, number), rank as u32)));
        }
        points.sort_unstable();

        let hashes: Box<[u64]> = points.iter().map(|&(hash, _)| hash).collect();
        let owners = points.iter().map(|&(_, rank)| by_id[rank as usize]).collect();
        let (slices, shift) = slice_starts(&hashes);
        Ring { seed, hashes, owners, slices, shift, members: members.len() }
    }

    /// Returns the position of a key on the circle.
    pub fn hash_key(&self, key: &[u8]) -> u64 {
        self.seed.hash_key(key)
    }

    /// Returns the member that owns the keys with this hash; `None` on a ring without points.
    pub fn owner(&self, hash: u64) -> Option<usize> {
        self.point_at_or_after(hash).map(|point| self.owners[point] as usize)
    }

    /// Returns the distinct members clockwise from a hash: its owner, then the next ones for its keys.
    pub fn walk(&self, hash: u64) -> Walk<'_> {
        Walk::new(self, self.point_at_or_after(hash))
    }

    /// Returns the exact share of all keys of each member, in the order of the members.
    pub fn shares(&self) -> Vec<f64> {
        let mut arcs = vec![0u128; self.members];
        for (point, &owner) in self.owners.iter().enumerate() {
            arcs[owner as usize] += u128::from(self.arc_before(point));
        }
        if let [only] = *self.owners {
            arcs[only as usize] = 1 << 64;
        }
        arcs.into_iter().map(|arc| arc as f64 / 2f64.powi(64)).collect()
    }

    /// Returns a digest of the points and of the names of their owners: two rings with the same one assign every key
    /// alike.
    pub fn digest<'a>(&self, name: impl Fn(usize) -> &'a str) -> u64 {
        let mut hasher = SipHasher24::new();
        for (hash, &owner) in self.hashes.iter().zip(&self.owners) {
            hasher.write_u64(*hash);
            hasher.write(name(owner as usize).as_bytes());
            hasher.write_u8(0xff);
        }
        // Points alone do not tell the position of a key.
        hasher.write_u64(self.hash_key(b"ringway"));
        hasher.finish()
    }

    /// Returns the number of points.
    pub fn points(&self) -> usize {
        self.hashes.len()
    }

    /// Returns the memory of the points and their index, in bytes.
    pub fn size(&self) -> usize {
        self.hashes.len() * 8 + self.owners.len() * 4 + self.slices.len() * 4
    }

    /// Returns the length of the arc that ends in a point, without its start.
    fn arc_before(&self, point: usize) -> u64 {
        let before = if point == 0 { self.hashes.len() - 1 } else { point - 1 };
        self.hashes[point].wrapping_sub(self.hashes[before])
    }

    fn point_at_or_after(&self, hash: u64) -> Option<usize> {
        let start = *self.slices.get((hash >> self.shift) as usize)? as usize;
        let past = self.hashes[start..].iter().position(|&point| point >= hash);
        Some(past.map_or(0, |offset| start + offset))
    }
}

/// Returns the index of slices: the circle is divided into a power of two of them, at most one per point, each with its
/// first position among the sorted hashes.
fn slice_starts(hashes: &[u64]) -> (Box<[u32]>, u32) {
    if hashes.is_empty() {
        return (Box::default(), 63);
    }
    // At least two slices, so that the shift stays below the width of a hash.
    let bits = hashes.len().ilog2().max(1);
    let shift = 64 - bits;
    let mut starts = Vec::with_capacity(1 << bits);
    let mut point = 0;
    for slice in 0..1u64 << bits {
        while point < hashes.len() && hashes[point] < slice << shift {
            point += 1;
        }
        starts.push(point as u32);
    }
    (starts.into_boxed_slice(), shift)
}

#[cfg(test)]
mod tests;
