//! Strong routes with `verify: quorum`: the marks of writes to what they cache, and the rules of their reads.
//!
//! A write is marked on its way to the nodes (`marked`), whatever its route is and with an idempotency key or without one:
//! each request that is not safe is, where a strong route caches its target.

use super::groups::{GroupedRequest, uri_group};
use super::request::Form;
use super::route::{Query, Table};
use crate::config::{self, Config, OnQuorumLoss, OnWriteQuorumLoss};
use crate::consistency::quorum::{ALL, Outcome, Slots, slot_of};
use crate::consistency::{GroupId, GroupTemplate, Groups, group_id};
use crate::fleet::quorum::{Ending, Mark, MarkLost, QuorumClient, QuorumRules};
use crate::http::head::RequestFields;
use crate::http::problem::{Problem, ProblemKind};
use crate::telemetry::metrics::Metrics;
use http::Method;
use prometheus::IntCounter;
use smallvec::SmallVec;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The strong routes of a configuration that are verified by a quorum.
pub(crate) struct StrongRoutes {
    pub(crate) rules: Arc<QuorumRules>,
    routes: Vec<MarkedRoute>,
}

/// A route whose stored responses a write may change.
struct MarkedRoute {
    /// The route alone, by host and path.
    table: Table,
    templates: Vec<GroupTemplate>,
    settle: Duration,
    goes_on: bool,
    unmarked: IntCounter,
}

/// The mark that a write needs.
pub(crate) struct MarkOrder {
    rules: Arc<QuorumRules>,
    slots: Slots,
    settle: Duration,
    /// Every route that it concerns forwards writes without W nodes.
    goes_on: bool,
    unmarked: SmallVec<[IntCounter; 1]>,
}

/// The result of the check of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadResult {
    /// The stored response is the newest.
    Fresh,
    /// It may not be, or there is none.
    Changed,
    /// A write is under way.
    Marked,
    /// The nodes cannot tell.
    QuorumLost,
    /// They could not tell, and the stored response was served all the same.
    Unverified,
}

impl ReadResult {
    const ALL: [ReadResult; 5] =
        [ReadResult::Fresh, ReadResult::Changed, ReadResult::Marked, ReadResult::QuorumLost, ReadResult::Unverified];

    pub(super) fn label(self) -> &'static str {
        match self {
            ReadResult::Fresh => "fresh",
            ReadResult::Changed => "changed",
            ReadResult::Marked => "marked",
            ReadResult::QuorumLost => "quorum_lost",
            ReadResult::Unverified => "unverified",
        }
    }
}

/// The rules of a route's reads.
pub(crate) struct StrongReads {
    pub(super) rules: Arc<QuorumRules>,
    pub(super) on_quorum_loss: OnQuorumLoss,
    /// By [`ReadResult`].
    counters: [IntCounter; ReadResult::ALL.len()],
}

impl StrongReads {
    pub(super) fn build(route: &config::Route, rules: &Arc<QuorumRules>, metrics: &Metrics) -> StrongReads {
        let name = route.name.as_str();
        StrongReads {
            rules: Arc::clone(rules),
            on_quorum_loss: route.consistency.as_ref().map_or(OnQuorumLoss::Origin, |it| it.on_quorum_loss()),
            counters: ReadResult::ALL
                .map(|result| metrics.consistency_requests.with_label_values(&[name, result.label()])),
        }
    }

    pub(super) fn count(&self, result: ReadResult) {
        self.counters[result as usize].inc();
    }
}

/// Returns the slots of a read: those of its groups, and that of everything.
pub(super) fn slots_of(groups: &Groups) -> Slots {
    slots(groups.iter().copied(), true)
}

fn slots(groups: impl Iterator<Item = GroupId>, and_all: bool) -> Slots {
    let mut slots: Slots = groups.map(slot_of).chain(and_all.then_some(ALL)).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

impl StrongRoutes {
    /// Returns the routes of a configuration; `None` where none is verified by a quorum.
    pub(super) fn build(config: &Config, rules: Option<&Arc<QuorumRules>>, metrics: &Metrics) -> Option<StrongRoutes> {
        let rules = Arc::clone(rules?);
        let marked = |route: &config::Route| {
            let consistency = route.consistency.as_ref().filter(|consistency| consistency.is_by_quorum())?;
            let mut matching = route.clone();
            // A write may change what any method and any fields select.
            (matching.methods, matching.scheme) = (Vec::new(), None);
            matching.headers = Default::default();
            Some(MarkedRoute {
                table: Table::new(&[matching]),
                templates: consistency.groups.iter().map(|it| it.value.clone()).chain([uri_group()]).collect(),
                settle: consistency.settle(),
                goes_on: consistency.on_write_quorum_loss() == OnWriteQuorumLoss::Forward,
                unmarked: metrics.consistency_requests.with_label_values(&[route.name.as_str(), "unmarked_write"]),
            })
        };
        let routes: Vec<MarkedRoute> = config.settings.routes.iter().filter_map(marked).collect();
        (!routes.is_empty()).then_some(StrongRoutes { rules, routes })
    }

    /// Returns the mark that a request needs which may change its target.
    pub(super) fn mark(&self, form: &Form<'_>, fields: &RequestFields) -> Option<Rc<MarkOrder>> {
        let query = Query { host: &form.host, path: &form.path, method: &Method::GET, fields };
        let concerned: SmallVec<[&MarkedRoute; 4]> =
            self.routes.iter().filter(|route| route.table.find(query).is_some()).collect();
        if concerned.is_empty() {
            return None;
        }
        let concerned = || concerned.iter();
        let subject = GroupedRequest { form, fields };
        let groups = concerned().flat_map(|route| route.templates.iter().map(|template| template.group(&subject)));
        let slots = slots(groups, false);
        (!slots.is_empty()).then(|| {
            Rc::new(MarkOrder {
                rules: Arc::clone(&self.rules),
                slots,
                settle: concerned().map(|route| route.settle).max().unwrap_or_default(),
                goes_on: concerned().all(|route| route.goes_on),
                unmarked: concerned().map(|route| route.unmarked.clone()).collect(),
            })
        })
    }

    /// Returns the mark of a write to these groups by requests of the proxy's own.
    pub(super) fn mark_groups(&self, groups: &[String]) -> Rc<MarkOrder> {
        Rc::new(MarkOrder {
            rules: Arc::clone(&self.rules),
            slots: slots(groups.iter().map(|group| group_id(group)), false),
            settle: self.rules.settings.settle,
            goes_on: self.routes.iter().all(|route| route.goes_on),
            unmarked: self.routes.iter().map(|route| route.unmarked.clone()).collect(),
        })
    }
}

/// Returns the slots of a purge of URIs, each with its scheme and authority where it is known.
pub(crate) fn slots_of_uris(uris: &[String]) -> Slots {
    let group = |uri: &String| {
        let (_, rest) = uri.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find('/')?);
        let path = path.split('?').next().unwrap_or_default();
        let uri: http::uri::Authority = authority.parse().ok()?;
        Some(group_id(&[uri.host(), path].concat()))
    };
    match uris.iter().map(group).collect::<Option<Vec<GroupId>>>() {
        Some(groups) => slots(groups.into_iter(), false),
        // Those of any host.
        None => slots([].into_iter(), true),
    }
}

impl MarkOrder {
    /// Returns the rules of the configuration that it is of.
    pub(super) fn rules(&self) -> &Arc<QuorumRules> {
        &self.rules
    }

    /// Marks the slots of the write.
    ///
    /// # Errors
    /// Too few nodes take the mark, and a route demands it.
    pub(super) async fn begin(&self, client: &Rc<QuorumClient>) -> Result<Mark, MarkLost> {
        Mark::begin(client, &self.rules, self.slots.clone(), (self.settle, self.goes_on)).await
    }

    /// Ends the write, and counts it where it was not marked. Returns whether the answer may leave.
    pub(super) async fn end(&self, mark: Mark, outcome: Outcome) -> bool {
        let ending = mark.end(outcome).await;
        if ending == Ending::Unmarked && outcome != Outcome::NotSent {
            self.unmarked.iter().for_each(IntCounter::inc);
        }
        ending != Ending::Lost
    }
}

/// Returns the 503 for a read that too few nodes answer for.
pub(super) fn read_refused() -> Problem {
    let detail = "too few nodes of `fleet.redis` answer to verify this read; repeat it later";
    Problem::new(ProblemKind::ConsistencyUnavailable, detail).retry_after(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_of_urls_has_the_slots_of_their_uris() {
        let of = |uris: &[&str]| slots_of_uris(&uris.iter().map(|&uri| uri.to_owned()).collect::<Vec<_>>());
        let slot = slot_of(group_id("shop.example/a"));
        assert_eq!(of(&["http://shop.example:8080/a?q=1", "https://shop.example/a"]).as_slice(), [slot]);
        assert_eq!(of(&["/a"]).as_slice(), [ALL], "of any host");
    }
}
