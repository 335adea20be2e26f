//! Purges: each is a rule in a list, in force at once, whatever the size of the store.
//!
//! Every rule has a number, its epoch. A response carries the epoch at which its request began, and a later rule that
//! matches it wins: over stored responses, arriving ones, and those under validation. A sweep removes the purged
//! responses later; a rule is dropped once a sweep has run and no fetch is left that began before it.

use super::key::hash_text;
use std::collections::HashMap;

/// The most rules, each found by its hash; more become one rule for everything. A burst of purges is within it.
const MAX_RULES: usize = 65_536;
/// The most rules by prefix, which are compared one by one.
const MAX_PREFIXES: usize = 1024;
/// The most bytes of URIs and prefixes.
const MAX_BYTES: usize = 16 << 20;

/// The position of a fetch or a change in their common order.
pub(super) type Turn = u64;

/// The position of a purge in the order of purges; fetches carry the epoch of their begin.
pub(crate) type Epoch = u64;

/// The responses that an operator purges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purge {
    /// All variants of a URI, for any scheme. Several spellings may be given, as routes ignore different parts of a
    /// query. Without a host (`/a`): the path on every host.
    Url(Vec<String>),
    /// The responses whose URI has this prefix.
    Prefix(String),
    /// The responses with this surrogate key or cache tag.
    Tag(String),
    All,
}

impl Purge {
    /// Returns the label in metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Purge::Url(_) => "url",
            Purge::Prefix(_) => "prefix",
            Purge::Tag(_) => "tag",
            Purge::All => "all",
        }
    }
}

/// The epochs of the last purges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PurgeEpochs {
    /// The last hard purge: the response is removed.
    hard: Epoch,
    /// The last soft purge: the response is stale.
    soft: Epoch,
}

impl PurgeEpochs {
    fn record(&mut self, epoch: Epoch, soft: bool) {
        *(if soft { &mut self.soft } else { &mut self.hard }) = epoch;
    }

    fn max(self, other: PurgeEpochs) -> PurgeEpochs {
        PurgeEpochs { hard: self.hard.max(other.hard), soft: self.soft.max(other.soft) }
    }

    fn last(&self) -> Epoch {
        self.hard.max(self.soft)
    }
}

/// The effect of the purges on a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Untouched,
    /// Stale from now on.
    Stale,
    Gone,
}

/// The rules that are in force.
#[derive(Clone, Debug, Default)]
pub(super) struct PurgeRules {
    /// The epoch of the last rule; it never decreases.
    pub(super) epoch: Epoch,
    all: PurgeEpochs,
    /// By the URI without its scheme.
    urls: HashMap<String, PurgeEpochs>,
    /// By path and query, on every host.
    paths: HashMap<String, PurgeEpochs>,
    /// By the prefix of either.
    prefixes: Vec<(String, PurgeEpochs)>,
    tags: HashMap<u64, PurgeEpochs>,
    /// The epoch of the last purge by tag.
    pub(super) last_tag: Epoch,
    /// The epoch at which events of the fleet may have been missed: earlier responses are validated.
    pub(super) doubt: Epoch,
    /// The bytes of all URIs and prefixes.
    bytes: usize,
}

impl PurgeRules {
    /// Returns the rules with a further one.
    pub(super) fn with(&self, purge: &Purge, soft: bool) -> PurgeRules {
        let mut rules = self.clone();
        rules.add(purge, soft);
        rules
    }

    /// Adds a rule. Beyond the bounds it is one for everything: too much is purged rather than too little.
    pub(super) fn add(&mut self, purge: &Purge, soft: bool) {
        self.epoch += 1;
        let epoch = self.epoch;
        match if self.has_room() { purge } else { &Purge::All } {
            Purge::All if soft => self.all.record(epoch, soft),
            // A purge of everything includes all other rules.
            Purge::All => {
                let mut all = self.all;
                all.record(epoch, soft);
                let doubt = self.doubt;
                *self = PurgeRules { epoch, all, last_tag: epoch, doubt, ..PurgeRules::default() };
            }
            Purge::Url(urls) => urls.iter().for_each(|url| self.add_url(url, soft)),
            Purge::Prefix(prefix) => {
                let prefix = without_scheme(prefix);
                match self.prefixes.iter_mut().find(|(known, _)| known == prefix) {
                    Some((_, strokes)) => strokes.record(epoch, soft),
                    None => {
                        let mut strokes = PurgeEpochs::default();
                        strokes.record(epoch, soft);
                        self.bytes += prefix.len();
                        self.prefixes.push((prefix.to_owned(), strokes));
                    }
                }
            }
            Purge::Tag(tag) => {
                self.tags.entry(hash_text(tag.as_bytes())).or_default().record(epoch, soft);
                self.last_tag = epoch;
            }
        }
    }

    fn add_url(&mut self, url: &str, soft: bool) {
        let (table, url) = match url.starts_with('/') {
            true => (&mut self.paths, url),
            false => (&mut self.urls, without_scheme(url)),
        };
        if !table.contains_key(url) {
            self.bytes += url.len();
        }
        table.entry(url.to_owned()).or_default().record(self.epoch, soft);
    }

    /// Returns whether a further rule is within the bounds.
    fn has_room(&self) -> bool {
        self.len() < MAX_RULES && self.prefixes.len() < MAX_PREFIXES && self.bytes < MAX_BYTES
    }

    /// Returns the rules without those up to an epoch.
    pub(super) fn after(&self, epoch: Epoch) -> PurgeRules {
        let mut rules = self.clone();
        let stays = |strokes: &PurgeEpochs| strokes.last() > epoch;
        rules.urls.retain(|_, strokes| stays(strokes));
        rules.paths.retain(|_, strokes| stays(strokes));
        rules.prefixes.retain(|(_, strokes)| stays(strokes));
        rules.tags.retain(|_, strokes| stays(strokes));
        let texts = rules.urls.keys().chain(rules.paths.keys()).chain(rules.prefixes.iter().map(|(prefix, _)| prefix));
        rules.bytes = texts.map(String::len).sum();
        rules
    }

    /// Returns the number of rules, without the one for everything.
    pub(super) fn len(&self) -> usize {
        self.urls.len() + self.paths.len() + self.prefixes.len() + self.tags.len()
    }

    /// Returns the effect on a response with a URI and tags, whose fetch began at an epoch.
    pub(super) fn judge(&self, uri: &str, tags: &[u64], since: Epoch) -> Verdict {
        let uri = without_scheme(uri);
        let path = &uri[uri.find('/').unwrap_or(0)..];
        let mut strokes = self.all;
        for found in [self.urls.get(uri), self.paths.get(path)].into_iter().flatten() {
            strokes = strokes.max(*found);
        }
        for (prefix, found) in &self.prefixes {
            if uri.starts_with(prefix.as_str()) || (prefix.starts_with('/') && path.starts_with(prefix.as_str())) {
                strokes = strokes.max(*found);
            }
        }
        for found in tags.iter().filter_map(|tag| self.tags.get(tag)) {
            strokes = strokes.max(*found);
        }
        match strokes {
            PurgeEpochs { hard, .. } if hard > since => Verdict::Gone,
            PurgeEpochs { soft, .. } if soft > since => Verdict::Stale,
            _ => Verdict::Untouched,
        }
    }
}

fn without_scheme(uri: &str) -> &str {
    uri.strip_prefix("http://").or(uri.strip_prefix("https://")).unwrap_or(uri)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn purges_mean_what_they_name() {
        let uri = "http://example.com/a/b?x=1";
        let tags = [hash_text(b"news")];
        for (purge, gone) in [
            (Purge::All, true),
            (Purge::Url(vec!["http://example.com/a/b?x=1".into()]), true),
            (Purge::Url(vec!["https://example.com/a/b?x=1".into()]), true),
            (Purge::Url(vec!["/a/b?x=1".into()]), true),
            (Purge::Url(vec!["http://example.com/a/b".into()]), false),
            (Purge::Url(vec!["http://example.org/a/b?x=1".into()]), false),
            (Purge::Prefix("http://example.com/a".into()), true),
            (Purge::Prefix("http://example.com".into()), true),
            (Purge::Url(vec!["http:///a/b?x=1".into()]), false),
            (Purge::Prefix("/a".into()), true),
            (Purge::Prefix("/b".into()), false),
            (Purge::Prefix("http://example.org/".into()), false),
            (Purge::Tag("news".into()), true),
            (Purge::Tag("new".into()), false),
        ] {
            let hard = PurgeRules::default().with(&purge, false);
            let verdict = if gone { Verdict::Gone } else { Verdict::Untouched };
            assert_eq!(hard.judge(uri, &tags, 0), verdict, "{purge:?}");
            assert_eq!(hard.judge(uri, &tags, 1), Verdict::Untouched, "{purge:?} came before");
            let soft = PurgeRules::default().with(&purge, true);
            assert_eq!(soft.judge(uri, &tags, 0) == Verdict::Stale, gone, "{purge:?}");
        }
    }

    #[test]
    fn rules_beyond_the_bounds_are_one_for_everything() {
        let judge = |rules: &PurgeRules| rules.judge("http://other/", &[], 0);
        let mut rules = PurgeRules::default();
        (0..10_000).for_each(|number| rules.add(&Purge::Url(vec![format!("http://a/{number}")]), false));
        assert_eq!((rules.len(), judge(&rules)), (10_000, Verdict::Untouched), "a burst is no purge of everything");
        let mut prefixes = PurgeRules::default();
        (0..MAX_PREFIXES).for_each(|number| prefixes.add(&Purge::Prefix(format!("/{number}")), false));
        assert_eq!(judge(&prefixes), Verdict::Untouched);
        prefixes.add(&Purge::Prefix("/a".to_owned()), false);
        assert_eq!((prefixes.len(), judge(&prefixes)), (0, Verdict::Gone));
        let mut long = PurgeRules::default();
        (0..17).for_each(|number| long.add(&Purge::Url(vec![format!("/{number}{}", "a".repeat(1 << 20))]), false));
        assert_eq!((long.len(), long.bytes, judge(&long)), (0, 0, Verdict::Gone));
    }

    proptest! {
        /// For any order of purges and fetches, a response is gone exactly where a hard purge came after the begin of
        /// its fetch, also once unneeded rules have been dropped.
        #[test]
        fn a_purge_beats_what_began_before_it(events in proptest::collection::vec((0..3u8, any::<bool>()), 1..30)) {
            let uri = "http://a/b";
            let mut rules = PurgeRules::default();
            // The epoch of each fetch's begin, and whether a purge has come since.
            let mut fetches: Vec<(Epoch, bool, bool)> = Vec::new();
            for (what, soft) in events {
                match what {
                    0 => fetches.push((rules.epoch, false, false)),
                    1 => {
                        rules = rules.with(&Purge::Url(vec![uri.into()]), soft);
                        for (_, hard_since, soft_since) in &mut fetches {
                            *(if soft { soft_since } else { hard_since }) = true;
                        }
                    }
                    _ => {
                        // A sweep: all fetches that began before the last rule have ended.
                        fetches.retain(|(began, _, _)| *began >= rules.epoch);
                        rules = rules.after(rules.epoch);
                    }
                }
                for (began, hard, soft) in &fetches {
                    let expected = match (hard, soft) {
                        (true, _) => Verdict::Gone,
                        (_, true) => Verdict::Stale,
                        _ => Verdict::Untouched,
                    };
                    prop_assert_eq!(rules.judge(uri, &[], *began), expected);
                }
            }
        }
    }
}
