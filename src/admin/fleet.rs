//! States of nodes for the whole fleet, and members that are gone: `/api/pools/POOL/nodes/ID/STATE?scope=fleet`,
//! `/api/fleet/PROCESS/forget`.

use crate::config::NodeState;
use crate::control::{AppliedBy, CommandResult, Control, FleetState, Forgotten};
use crate::http::problem::{Problem, ProblemKind};

/// Sets a state of a node for the fleet; `by` is the person and the address that it comes from.
pub(super) async fn set_state(
    control: &dyn Control,
    (pool, node): (&str, &str),
    state: NodeState,
    by: &str,
) -> Result<CommandResult, Problem> {
    match control.set_fleet_state((pool, node), state, by).await.map_err(unavailable)? {
        FleetState::Set(applied) => {
            let detail = format!("{pool}/{node}: {}{}", state.word(), in_words(&applied));
            let result = CommandResult {
                pool: Some(pool.to_owned()),
                node: Some(node.to_owned()),
                state: Some(state.word().to_owned()),
                applied_by: Some(applied),
                ..CommandResult::success()
            };
            Ok(result.with_detail(detail))
        }
        FleetState::NoSuchNode => {
            let detail = format!("the pool `{pool}` has no node `{node}`, or there is no such pool");
            Err(Problem::new(ProblemKind::NoSuchNode, detail))
        }
        FleetState::BeingReplaced => {
            let detail = "another process takes over; say it again on a new connection";
            Err(Problem::new(ProblemKind::BeingReplaced, detail).retry_after(1).closing())
        }
        FleetState::NoEtcd => {
            let detail = "no etcd is configured: `fleet.etcd` lets the proxies of a fleet share states of nodes";
            Err(Problem::new(ProblemKind::NoSuchMember, detail))
        }
    }
}

/// Removes a member that is gone.
pub(super) async fn forget(control: &dyn Control, process: &str) -> Result<CommandResult, Problem> {
    match control.forget_member(process).await {
        Ok(Forgotten::Known) => Ok(CommandResult::success().with_detail(format!("forgot {process}"))),
        Ok(Forgotten::Unknown) => {
            let detail = format!("this proxy knows no member `{process}`; the others were told to forget it");
            Err(Problem::new(ProblemKind::NoSuchMember, detail))
        }
        Ok(Forgotten::Refused(detail)) => Err(Problem::new(ProblemKind::NoSuchMember, detail)),
        Err(detail) => Err(unavailable(detail)),
    }
}

fn unavailable(detail: String) -> Problem {
    Problem::new(ProblemKind::FleetUnavailable, detail).retry_after(1)
}

/// Returns which proxies have applied a state, as the end of a sentence.
fn in_words(applied: &AppliedBy) -> String {
    let AppliedBy { members, of, missing, .. } = applied;
    match missing.as_slice() {
        [] => format!(" on {members} of {of} proxies"),
        missing => format!(" on {members} of {of} proxies; missing: {}", missing.join(", ")),
    }
}
