//! A session: the dots that it has of each group.

use super::group::GroupId;
use super::vector::Dot;
use smallvec::SmallVec;

/// The most dots of a group; a group with more is folded.
const MAX_DOTS: usize = 8;

/// The dots that a session has seen and written, by group. Groups that are not named are unknown where `is_folded` says
/// so, and untouched otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Token {
    /// The group that was touched last stands at the end.
    pub(super) groups: Vec<Seen>,
    /// `*`: dots of further groups have been forgotten, and no tag covers them.
    pub(super) is_folded: bool,
}

pub(super) type Dots = SmallVec<[Dot; 2]>;

/// The dots that a session has of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) group: GroupId,
    /// The answers that it has got.
    pub(super) dots: Dots,
    /// The writes that these include, the last one of each process; only where a route refuses concurrent writes.
    pub(super) writes: Dots,
}

impl Seen {
    fn add_write(&mut self, write: Dot) {
        match self.writes.iter_mut().find(|known| known.process == write.process) {
            Some(known) => known.number = known.number.max(write.number),
            None => self.writes.push(write),
        }
    }

    fn add_dot(&mut self, dot: Dot) {
        if !self.dots.contains(&dot) {
            self.dots.push(dot);
        }
    }

    fn is_small(&self) -> bool {
        self.dots.len() <= MAX_DOTS && self.writes.len() <= MAX_DOTS
    }

    fn is_same_as(&self, other: &Seen) -> bool {
        let are_same =
            |ours: &Dots, theirs: &Dots| ours.len() == theirs.len() && ours.iter().all(|dot| theirs.contains(dot));
        are_same(&self.dots, &other.dots) && are_same(&self.writes, &other.writes)
    }
}

impl Token {
    /// Returns a token whose dots are all unknown: of a session that has shown a forged or damaged one.
    pub(crate) fn unknown() -> Token {
        Token { groups: Vec::new(), is_folded: true }
    }

    pub(super) fn of(&self, group: GroupId) -> Option<&Seen> {
        self.groups.iter().find(|seen| seen.group == group)
    }

    /// Returns the dots that the session has of these groups.
    pub(crate) fn dots(&self, groups: &[GroupId]) -> impl Iterator<Item = Dot> {
        groups.iter().filter_map(|group| self.of(*group)).flat_map(|seen| &seen.dots).copied()
    }

    /// Returns the writes that the session knows of these groups, in no order.
    pub(crate) fn writes(&self, groups: &[GroupId]) -> impl Iterator<Item = Dot> {
        groups.iter().filter_map(|group| self.of(*group)).flat_map(|seen| &seen.writes).copied()
    }

    /// Returns whether a response of these groups is no older than what the session has seen of them. `covers` tells of
    /// each dot whether it is.
    pub(crate) fn is_covered(&self, groups: &[GroupId], covers: impl Fn(Dot) -> bool) -> bool {
        groups.iter().all(|group| match self.of(*group) {
            Some(seen) => seen.dots.iter().all(|dot| covers(*dot)),
            None => !self.is_folded,
        })
    }

    /// Returns whether the session has this dot of a group, and no other one.
    pub(super) fn has_only(&self, group: GroupId, dot: Dot) -> bool {
        self.of(group).is_some_and(|seen| seen.dots[..] == [dot])
    }

    /// Returns whether the session has seen a write to one of these groups.
    pub(crate) fn has_seen(&self, write: Dot, groups: &[GroupId]) -> bool {
        groups.iter().filter_map(|group| self.of(*group)).any(|seen| {
            let is_later = |known: &Dot| known.process == write.process && known.number >= write.number;
            seen.writes.iter().any(is_later) || seen.dots.contains(&write)
        })
    }

    /// Notes an answer of these groups, which covers all that its request has carried: its dot takes the place of
    /// those, and stands beside what was handed out since. `included` are the writes of a group that it includes.
    pub(crate) fn answered(
        &mut self,
        groups: &[GroupId],
        carried: &Token,
        dot: Dot,
        included: impl Fn(GroupId) -> Vec<Dot>,
    ) {
        for group in groups {
            let mut seen = Seen { group: *group, ..Seen::default() };
            let before = carried.of(*group);
            if let Some(at) = self.groups.iter().position(|seen| seen.group == *group) {
                let now = self.groups.remove(at);
                let is_new = |dot: &Dot| before.is_none_or(|before| !before.dots.contains(dot));
                seen.dots.extend(now.dots.into_iter().filter(is_new));
                seen.writes = now.writes;
            }
            seen.add_dot(dot);
            included(*group).into_iter().for_each(|write| seen.add_write(write));
            match seen.is_small() {
                true => self.groups.push(seen),
                false => self.is_folded = true,
            }
        }
    }

    /// Joins what another token of the same session has. A group of which one of the two has forgotten dots is unknown.
    pub(crate) fn join(&mut self, other: &Token) {
        if other.is_folded {
            self.groups.retain(|seen| other.of(seen.group).is_some());
        }
        for theirs in &other.groups {
            match self.groups.iter_mut().find(|seen| seen.group == theirs.group) {
                Some(seen) => {
                    theirs.dots.iter().for_each(|dot| seen.add_dot(*dot));
                    theirs.writes.iter().for_each(|write| seen.add_write(*write));
                }
                None if self.is_folded => {}
                None => self.groups.push(theirs.clone()),
            }
        }
        let before = self.groups.len();
        self.groups.retain(Seen::is_small);
        self.is_folded |= other.is_folded || self.groups.len() < before;
    }

    /// Returns whether it demands the same as another one. The order in which groups were touched does not count.
    pub(crate) fn is_same_as(&self, other: &Token) -> bool {
        self.is_folded == other.is_folded
            && self.groups.len() == other.groups.len()
            && self.groups.iter().all(|seen| other.of(seen.group).is_some_and(|theirs| seen.is_same_as(theirs)))
    }

    /// Forgets the groups that were touched longest ago, until the token fits.
    pub(super) fn fold_until(&mut self, fits: impl Fn(&Token) -> bool) {
        while !fits(self) && !self.groups.is_empty() {
            self.groups.remove(0);
            self.is_folded = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::Clock;
    use crate::consistency::tag::TagBase;

    fn dot(process: u64, number: u64) -> Dot {
        Dot { process, number }
    }

    fn none(_: GroupId) -> Vec<Dot> {
        Vec::new()
    }

    fn token(groups: &[(GroupId, &[Dot])], is_folded: bool) -> Token {
        let seen =
            |(group, dots): &(GroupId, &[Dot])| Seen { group: *group, dots: Dots::from_slice(dots), ..Seen::default() };
        Token { groups: groups.iter().map(seen).collect(), is_folded }
    }

    #[test]
    fn an_answer_takes_the_place_of_what_its_request_carried() {
        let carried = token(&[(1, &[dot(1, 1), dot(2, 1)]), (2, &[dot(1, 2)])], false);
        let mut session = carried.clone();
        // Another answer was handed out meanwhile.
        session.answered(&[1], &carried, dot(3, 1), none);
        session.answered(&[1, 3], &carried, dot(1, 9), none);
        let expected = token(&[(2, &[dot(1, 2)]), (1, &[dot(3, 1), dot(1, 9)]), (3, &[dot(1, 9)])], false);
        assert_eq!(session, expected);
    }

    #[test]
    fn what_was_forgotten_is_covered_by_nothing() {
        let clock = Clock::new(1);
        let tag = TagBase::begin(&clock, std::iter::empty()).tag(clock.next(), 0);
        let covers = |dot| tag.covers(dot);
        assert!(Token::default().is_covered(&[1], covers));
        assert!(!Token::unknown().is_covered(&[1], covers));
        let known = token(&[(1, &[dot(1, 1)])], true);
        assert!(known.is_covered(&[1], covers) && !known.is_covered(&[1, 2], covers));
        let mut folded = token(&[(1, &[dot(1, 1)]), (2, &[dot(1, 1)])], false);
        folded.fold_until(|token| token.groups.len() < 2);
        assert_eq!(folded, token(&[(2, &[dot(1, 1)])], true));
    }

    #[test]
    fn a_joined_token_demands_what_either_does() {
        let mut joined = token(&[(1, &[dot(1, 1)]), (2, &[dot(1, 2)])], false);
        joined.join(&token(&[(1, &[dot(2, 1)]), (3, &[dot(2, 3)])], false));
        assert_eq!(joined, token(&[(1, &[dot(1, 1), dot(2, 1)]), (2, &[dot(1, 2)]), (3, &[dot(2, 3)])], false));
        // The other one may have had dots of group 2 and 3, and has forgotten them.
        joined.join(&token(&[(1, &[dot(3, 1)])], true));
        assert_eq!(joined, token(&[(1, &[dot(1, 1), dot(2, 1), dot(3, 1)])], true));
        joined.join(&token(&[(4, &[dot(4, 1)])], false));
        assert_eq!(joined.of(4), None, "this one may have had dots of group 4");
    }

    #[test]
    fn a_group_with_many_dots_is_folded() {
        let mut session = Token::default();
        for number in 0..=MAX_DOTS as u64 {
            session.answered(&[1], &Token::default(), dot(number, 1), none);
        }
        assert_eq!(session, Token::unknown());
    }

    #[test]
    fn a_session_knows_the_writes_that_its_answers_include() {
        let mut session = Token::default();
        session.answered(
            &[1, 2],
            &Token::default(),
            dot(1, 5),
            |group| if group == 1 { vec![dot(2, 3)] } else { vec![] },
        );
        for (write, groups, has_seen) in [
            (dot(2, 3), &[1][..], true),
            (dot(2, 2), &[1, 3], true),
            (dot(2, 4), &[1], false),
            (dot(2, 3), &[2], false),
            (dot(1, 5), &[2], true),
            // An answer of its process does not include what that process has given out before.
            (dot(1, 4), &[1, 2], false),
        ] {
            assert_eq!(session.has_seen(write, groups), has_seen, "{write:?} {groups:?}");
        }
        let carried = session.clone();
        session.answered(&[1], &carried, dot(1, 6), |_| vec![dot(2, 7), dot(3, 1)]);
        assert_eq!(session.of(1).unwrap().writes[..], [dot(2, 7), dot(3, 1)]);
    }
}
