//! Reads of strong routes with `verify: quorum`: a stored response is served where the nodes of the fleet say, after the
//! request has arrived, that no write of its groups has begun since its fetch did.
//!
//! The look of a request decides on every way in which a stored response can be served to it: it is a part of the
//! requester, which the look-up here, the fetch and whoever waits for one ask.

use super::miss::Miss;
use super::note;
use super::serving::{ReplyBuilder, ServedFrom};
use crate::cache::{CacheStatus, ForwardReason, Known, Order, RequestDirectives, Reuse, Stored};
use crate::config::OnQuorumLoss;
use crate::consistency::quorum::Standing;
use crate::consistency::{Requester, StoredTag};
use crate::fleet::quorum::Check;
use crate::http::problem::Problem;
use crate::proxy::exchange::Exchange;
use crate::proxy::respond::Reply;
use crate::proxy::snapshot::{CacheResult, CacheRules, Route};
use crate::proxy::strong::{ReadResult, StrongReads, read_refused, slots_of};
use crate::proxy::upstream::UpstreamRequest;
use http::Method;
use std::rc::Rc;
use std::sync::Arc;

/// A read of a strong route.
pub(super) struct VerifiedRead {
    pub(super) upstream_request: Box<UpstreamRequest>,
    pub(super) caching: Arc<Route>,
    /// Without its requester.
    pub(super) order: Order,
    pub(super) requester: Rc<Requester>,
    pub(super) method: Method,
    pub(super) directives: RequestDirectives,
    /// A protocol switch concerns only this client and the node.
    pub(super) is_private: bool,
}

/// Returns whether the nodes have verified a stored response so far.
fn is_fresh(check: &Check, hit: &Stored) -> bool {
    matches!(hit.causal_tag(), Some(StoredTag::Quorum(tag)) if check.is_fresh(tag))
}

/// The result of a look.
enum Looked {
    /// A stored response is served.
    Serve(Reply),
    /// The nodes allow a fetch whose response is stored.
    Fetch,
    /// The request goes to a node by itself.
    Pass(ForwardReason, CacheResult),
    Refuse(Problem),
}

impl VerifiedRead {
    /// Returns the reply to the request.
    pub(super) async fn reply(self) -> Reply {
        let exchange = Rc::clone(self.upstream_request.exchange());
        let caching = Arc::clone(&self.caching);
        let (Some(rules), Some(reads)) =
            (&caching.cache, caching.consistency.as_ref().and_then(|rules| rules.strong.as_ref()))
        else {
            return self.pass(ForwardReason::Strong).await;
        };
        match self.look(reads).await {
            Looked::Serve(reply) => reply,
            _ if self.directives.only_if_cached => super::refused(rules, &exchange),
            Looked::Refuse(problem) => Reply::problem(&problem, &exchange),
            Looked::Pass(why, result) => {
                note(&exchange, rules, result);
                self.pass(why).await
            }
            Looked::Fetch if self.is_private => {
                note(&exchange, rules, CacheResult::Bypass);
                self.pass(ForwardReason::Bypass).await
            }
            Looked::Fetch => {
                let why = self.why();
                let VerifiedRead { upstream_request, order, requester, method, .. } = self;
                let order = Rc::new(order.for_requester(Some(&requester)));
                Miss::new(upstream_request, caching, order, method, why).reply().await
            }
        }
    }

    /// Asks the nodes, and judges the stored response by their answers.
    async fn look(&self, reads: &StrongReads) -> Looked {
        let worker = &self.upstream_request.context.worker;
        let client = worker.quorum(&reads.rules);
        if reads.rules.is_changing() || !client.has_rules(&reads.rules) {
            self.count(reads, ReadResult::QuorumLost);
            return Looked::Pass(ForwardReason::Unverifiable, CacheResult::Pass);
        }
        let check = client.look(&reads.rules, &slots_of(&self.requester.groups));
        check.settle().await;
        if check.standing() == Standing::Usable {
            if let Known::Response(hit) = self.look_up()
                && is_fresh(&check, &hit)
                && let Some(reply) = self.serve(&hit)
            {
                self.count(reads, ReadResult::Fresh);
                return Looked::Serve(reply);
            }
            // Other nodes may be those that its tag names, and a tag that names more is worth more: also that of a
            // validation.
            check.settle_all().await;
        }
        let standing = check.standing();
        if let Some(look) = check.into_look() {
            self.requester.looked(look);
        }
        match standing {
            Standing::Usable => self.verified(reads),
            Standing::Marked => {
                self.count(reads, ReadResult::Marked);
                Looked::Pass(ForwardReason::Marked, CacheResult::Marked)
            }
            Standing::OtherConfig | Standing::Young => {
                self.count(reads, ReadResult::QuorumLost);
                Looked::Pass(ForwardReason::Unverifiable, CacheResult::Pass)
            }
            Standing::QuorumLost => self.unverified(reads),
        }
    }

    /// Returns the reply from a stored response that is fresh also by its own terms.
    fn serve(&self, hit: &Stored) -> Option<Reply> {
        let now = self.upstream_request.context.worker.cache.now();
        let honoured = self.order.policy.honours_clients.then_some(&self.directives);
        let Reuse::Yes { stale } = hit.reuse(now, honoured) else { return None };
        hit.note_use(now);
        Some(self.replies(self.rules()).serve(hit, ServedFrom::LookUp { is_stale: stale }))
    }

    /// Counts what the nodes said, and notes it for the log.
    fn count(&self, reads: &StrongReads, result: ReadResult) {
        reads.count(result);
        self.upstream_request.exchange().checked(result.label());
    }

    fn look_up(&self) -> Known {
        self.upstream_request.context.worker.cache.look_up(self.order.key, &self.order.request)
    }

    /// Serves the stored response where the look of the request allows it.
    fn verified(&self, reads: &StrongReads) -> Looked {
        let now = self.upstream_request.context.worker.cache.now();
        let Known::Response(hit) = self.look_up() else {
            self.count(reads, ReadResult::Changed);
            return Looked::Fetch;
        };
        if self.requester.check(hit.causal_tag(), now).is_err() {
            self.count(reads, ReadResult::Changed);
            return Looked::Fetch;
        }
        self.count(reads, ReadResult::Fresh);
        if let Some(reply) = self.serve(&hit) {
            return Looked::Serve(reply);
        }
        // The excess of a store in doubt goes to the nodes; nothing stale is served while it is validated.
        let may_validate = || self.upstream_request.context.worker.cache.may_validate(&hit, now);
        match hit.is_in_doubt() && !self.directives.only_if_cached && !may_validate() {
            true => Looked::Pass(ForwardReason::Stale, CacheResult::Pass),
            false => Looked::Fetch,
        }
    }

    /// Decides by the route's settings where too few nodes have answered.
    fn unverified(&self, reads: &StrongReads) -> Looked {
        if reads.on_quorum_loss == OnQuorumLoss::Stale
            && let Known::Response(hit) = self.look_up()
            && let Some(stored) = self.is_usable_unverified(&hit).then_some(&hit)
        {
            self.count(reads, ReadResult::Unverified);
            return Looked::Serve(self.replies(self.rules()).serve(stored, ServedFrom::Unverified));
        }
        self.count(reads, ReadResult::QuorumLost);
        match reads.on_quorum_loss {
            OnQuorumLoss::Reject => Looked::Refuse(read_refused()),
            OnQuorumLoss::Origin | OnQuorumLoss::Stale => Looked::Pass(ForwardReason::Unverifiable, CacheResult::Pass),
        }
    }

    fn is_usable_unverified(&self, hit: &Stored) -> bool {
        let now = self.upstream_request.context.worker.cache.now();
        let honoured = self.order.policy.honours_clients.then_some(&self.directives);
        matches!(hit.reuse_unverified(now, honoured), Reuse::Yes { .. })
    }

    /// Returns why a request goes to a node whose response is stored.
    fn why(&self) -> ForwardReason {
        let now = self.upstream_request.context.worker.cache.now();
        match self.look_up() {
            Known::Response(hit) if self.requester.check(hit.causal_tag(), now).is_err() => ForwardReason::Strong,
            Known::Response(hit) if hit.is_fresh(now) => ForwardReason::Request,
            Known::Response(_) => ForwardReason::Stale,
            Known::OtherVariants => ForwardReason::VaryMiss,
            Known::Nothing => ForwardReason::UriMiss,
        }
    }

    /// Forwards the request without use of the store.
    async fn pass(mut self, why: ForwardReason) -> Reply {
        self.upstream_request.cache_status = Some(CacheStatus::forwarded(why));
        self.upstream_request.forward().await
    }

    fn rules(&self) -> Option<&CacheRules> {
        self.caching.cache.as_ref()
    }

    fn replies<'a>(&'a self, rules: Option<&'a CacheRules>) -> ReplyBuilder<'a> {
        let exchange: &'a Rc<Exchange> = self.upstream_request.exchange();
        ReplyBuilder {
            method: &self.method,
            fields: self.order.request.plain(),
            rules,
            exchange,
            now: self.upstream_request.context.worker.cache.now(),
        }
    }
}
