//! The members clockwise from a key: each once, in the order in which the key would move to them.

use super::Ring;
use smallvec::SmallVec;

/// An iterator over the distinct members of a ring, as indices, the owner first.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    ring: &'a Ring,
    point: usize,
    points_left: usize,
    members_left: usize,
    /// A bit for each member that was yielded; without an allocation up to 256 members.
    seen: SmallVec<[u64; 4]>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(ring: &'a Ring, start: Option<usize>) -> Walk<'a> {
        Walk {
            ring,
            point: start.unwrap_or(0),
            points_left: if start.is_some() { ring.points() } else { 0 },
            members_left: ring.members,
            seen: SmallVec::new(),
        }
    }

    fn first_time(&mut self, member: usize) -> bool {
        let words = self.ring.members.div_ceil(64);
        if self.seen.len() < words {
            self.seen.resize(words, 0);
        }
        let bit = 1 << (member % 64);
        let word = &mut self.seen[member / 64];
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while self.points_left > 0 && self.members_left > 0 {
            let member = self.ring.owners[self.point] as usize;
            self.points_left -= 1;
            self.point += 1;
            if self.point == self.ring.owners.len() {
                self.point = 0;
            }
            if self.first_time(member) {
                self.members_left -= 1;
                return Some(member);
            }
        }
        None
    }
}
