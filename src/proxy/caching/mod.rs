//! The caching step: it answers from the store, or begins a fetch.
//!
//! A hit ends here, without a task and without waiting. All other requests go on to `miss`, which fetches, or to
//! `invalidation`, which forwards a write. `request` has the traits that decide, `serving` builds the replies.

pub(super) mod invalidation;
mod miss;
pub(super) mod request;
mod serving;
mod verified;

use super::exchange::Exchange;
use super::forward::RoutedRequest;
use super::plan;
use super::respond::Reply;
use super::snapshot::{CacheResult, CacheRules, Route};
use super::step::Step;
use crate::cache::{CacheStatus, ForwardReason, Joined, Known, Order, RequestDirectives, Reuse, Stored};
use crate::consistency::{Guarantee, Rejection, Requester};
use crate::http::head::RequestHead;
use crate::http::method::is_safe;
use crate::http::problem::{Problem, ProblemKind};
use invalidation::invalidation;
use miss::{Miss, validate_in_background};
use request::{is_read, order};
use serving::{ReplyBuilder, ServedFrom};
use std::rc::Rc;
use std::sync::Arc;
use verified::VerifiedRead;

/// Answers a request from the store, or begins a fetch.
pub(super) fn begin(routed: &RoutedRequest<'_>, caching: &Arc<Route>, head: RequestHead) -> Result<Step, Problem> {
    let Some(rules) = &caching.cache else { return routed.begin(head) };
    if !is_read(&head.method) {
        return other_method(routed, caching, head);
    }
    let target = plan::cache_target(&routed.form, &head.fields);
    let fields = &head.fields;
    let worker = routed.worker;
    let directives = RequestDirectives::of(fields.plain());
    let honoured = rules.policy.honours_clients.then_some(&directives);
    if plan::cache_bypass(&routed.form, fields, &rules.bypass_cookies).is_some() {
        if directives.only_if_cached {
            return Ok(Step::Reply(refused(rules, routed.exchange)));
        }
        return bypass(routed, rules, head);
    }
    let key = rules.key.key(target, fields);
    let now = worker.cache.at(routed.exchange.started);
    // A protocol switch concerns only this client and the node.
    let is_private = fields.facts.upgrade().is_some();
    let replies = ReplyBuilder {
        method: &head.method,
        fields: fields.plain(),
        rules: Some(rules),
        exchange: routed.exchange,
        now,
    };
    let requester = routed.exchange.requester();
    if let Some(requester) = requester.filter(|requester| requester.guarantee == Guarantee::Quorum) {
        let order = order(rules, key, target, &head.method, fields);
        let (requester, caching, method) = (Rc::clone(requester), Arc::clone(caching), head.method.clone());
        let upstream_request = routed.upstream_request(head)?;
        let read = VerifiedRead { upstream_request, caching, order, requester, method, directives, is_private };
        return Ok(Step::Later(Box::pin(read.reply())));
    }
    let why = match worker.cache.look_up(key, fields) {
        Known::Response(hit)
            if let Some(why) = requester.and_then(|requester| refusal(routed, caching, requester, &hit)) =>
        {
            why
        }
        Known::Response(hit) => match hit.reuse(now, honoured) {
            Reuse::Yes { stale } => {
                hit.note_use(now);
                return Ok(Step::Reply(replies.serve(&hit, ServedFrom::LookUp { is_stale: stale })));
            }
            Reuse::WhileValidating => {
                hit.note_use(now);
                let reply = replies.serve(&hit, ServedFrom::WhileValidating);
                if !is_private && !hit.is_pausing(now) && !directives.no_store {
                    let order = order(rules, key, target, &head.method, fields).for_requester(requester);
                    // One validation at a time is enough.
                    if let Joined::Leader(leader) = worker.cache.join(worker.cache.group(&order), &order)
                        && let Ok(upstream_request) = routed.upstream_request(head)
                    {
                        validate_in_background(upstream_request, order, leader);
                    }
                }
                return Ok(Step::Reply(reply));
            }
            // The excess of a store in doubt goes to the nodes.
            Reuse::AfterValidation
                if hit.is_in_doubt() && !directives.only_if_cached && !worker.cache.may_validate(&hit, now) =>
            {
                return pass(routed, rules, head);
            }
            Reuse::AfterValidation if hit.is_pausing(now) && hit.stands_in(now) && !directives.only_if_cached => {
                return Ok(Step::Reply(replies.serve(&hit, ServedFrom::StandIn)));
            }
            Reuse::AfterValidation if hit.is_fresh(now) => ForwardReason::Request,
            Reuse::AfterValidation => ForwardReason::Stale,
        },
        Known::OtherVariants => ForwardReason::VaryMiss,
        Known::Nothing => ForwardReason::UriMiss,
    };
    if directives.only_if_cached {
        return Ok(Step::Reply(refused(rules, routed.exchange)));
    }
    if is_private {
        return bypass(routed, rules, head);
    }
    let order = order(rules, key, target, &head.method, fields).for_requester(requester);
    let miss = miss(routed, caching, order, head, why)?;
    Ok(Step::Later(Box::pin(miss.reply())))
}

/// Returns why a stored response may not be served to a requester without validation.
fn refusal(routed: &RoutedRequest<'_>, caching: &Route, requester: &Requester, hit: &Stored) -> Option<ForwardReason> {
    let now = routed.worker.cache.at(routed.exchange.started);
    let result = requester.check(hit.causal_tag(), now);
    routed.exchange.checked(result.map_or_else(Rejection::label, |()| "fresh"));
    let rejection = result.err()?;
    if let (Rejection::Concurrent, Some(rules)) = (rejection, &caching.consistency) {
        rules.concurrent.inc();
    }
    Some(if rejection == Rejection::Strong { ForwardReason::Strong } else { ForwardReason::Causal })
}

/// Forwards a request without use of the store.
fn bypass(routed: &RoutedRequest<'_>, rules: &CacheRules, head: RequestHead) -> Result<Step, Problem> {
    note(routed.exchange, rules, CacheResult::Bypass);
    let mut upstream_request = routed.upstream_request(head)?;
    upstream_request.cache_status = Some(CacheStatus::forwarded(ForwardReason::Bypass));
    Ok(Step::Forward(upstream_request))
}

/// Forwards a request for a stored response that cannot be validated now.
fn pass(routed: &RoutedRequest<'_>, rules: &CacheRules, head: RequestHead) -> Result<Step, Problem> {
    note(routed.exchange, rules, CacheResult::Pass);
    let mut upstream_request = routed.upstream_request(head)?;
    upstream_request.cache_status = Some(CacheStatus::forwarded(ForwardReason::Stale));
    Ok(Step::Forward(upstream_request))
}

/// Answers a request with `only-if-cached` by 504.
fn refused(rules: &CacheRules, exchange: &Rc<Exchange>) -> Reply {
    note(exchange, rules, CacheResult::Refused);
    Reply::problem(&not_cached(), exchange).with_cache_status(Some(CacheStatus::Refused))
}

fn note(exchange: &Exchange, rules: &CacheRules, result: CacheResult) {
    rules.count(result);
    exchange.cached(result.label());
}

fn miss(
    routed: &RoutedRequest<'_>,
    caching: &Arc<Route>,
    order: Order,
    head: RequestHead,
    why: ForwardReason,
) -> Result<Miss, Problem> {
    let method = head.method.clone();
    let upstream_request = routed.upstream_request(head)?;
    Ok(Miss::new(upstream_request, Arc::clone(caching), Rc::new(order), method, why))
}

/// Forwards a request with another method than GET and HEAD; an unsafe one invalidates stored responses.
fn other_method(routed: &RoutedRequest<'_>, caching: &Route, head: RequestHead) -> Result<Step, Problem> {
    let own = routed.route.cache.as_ref();
    if let Some(own) = own {
        note(routed.exchange, own, CacheResult::Bypass);
    }
    let status = own.map(|_| CacheStatus::forwarded(ForwardReason::Method));
    if is_safe(&head.method) {
        return match routed.begin(head)? {
            Step::Forward(mut upstream_request) => {
                upstream_request.cache_status = status;
                Ok(Step::Forward(upstream_request))
            }
            other => Ok(other),
        };
    }
    let invalidation = invalidation(routed, caching, &head);
    let mut upstream_request = routed.upstream_request(head)?;
    upstream_request.cache_status = status;
    match invalidation {
        Some(invalidation) => Ok(Step::Later(Box::pin(invalidation.forward(upstream_request)))),
        None => Ok(Step::Forward(upstream_request)),
    }
}

/// Returns the 504 for `only-if-cached` without a stored response (RFC 9111 5.2.1.7).
fn not_cached() -> Problem {
    let detail = "nothing is stored that may answer this request, and it asks not to go further";
    Problem::new(ProblemKind::NotCached, detail)
}
