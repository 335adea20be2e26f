//! The leader's room in words and numbers, for the admin API.

use super::health::Prober;
use super::shared::Leadership;
use super::values::StateOrder;
use super::view::{Member, View};
use crate::clock::BootTime;
use crate::config::NodeState;
use crate::control::{AppliedStatus, FleetStateStatus, LeaderStatus, SharedHealthStatus};

impl Leadership {
    /// Returns what this process knows by etcd.
    pub(crate) fn status(&self) -> LeaderStatus {
        let shared = &self.shared;
        let (view, now) = (shared.view.lock().clone(), BootTime::now());
        let heard = shared.heard.lock().clone();
        let pools = shared.probers.lock().clone().into_iter().map(|(pool, prober)| {
            let (word, reason) = words(prober);
            let age_seconds = heard.get(&pool).map(|heard| now.since(*heard).as_secs_f64());
            SharedHealthStatus { pool, prober: word.to_owned(), reason: reason.map(str::to_owned), age_seconds }
        });
        let board = shared.board.lock();
        let own = shared.process.to_string();
        LeaderStatus {
            up: board.is_up,
            error: board.error.clone(),
            endpoint: board.endpoint.clone(),
            leads: self.is_leader(),
            term: view.leader.as_ref().map_or(0, |(holder, _)| holder.term),
            process: view.leader.as_ref().map(|(_, leader)| leader.process.clone()),
            name: view.leader.as_ref().map(|(_, leader)| leader.name.clone()),
            pools: pools.collect(),
            states: view.orders().into_iter().map(|order| state(order, &view)).collect(),
            members: view.members.iter().map(|(process, it)| member(process, it, &own, &view)).collect(),
        }
    }

    /// Returns what operators should look at, in sentences. `has_bus`: the bus tells of members that are gone.
    pub(crate) fn warnings(&self, has_bus: bool) -> Vec<String> {
        let status = self.status();
        let mut warnings = Vec::new();
        if !status.up {
            let error = status.error.as_deref().unwrap_or("not connected yet");
            warnings.push(format!(
                "etcd is away: {error}; this proxy checks nodes by itself, and keeps the states of nodes that it knows"
            ));
        } else if status.term == 0 {
            warnings.push("the fleet has no leader; a new one comes after the lease of the last one".to_owned());
        }
        for pool in status.pools.iter().filter(|pool| pool.prober == "local") {
            let reason = pool.reason.as_deref().unwrap_or_default();
            warnings.push(format!("this proxy checks the nodes of `{}` for itself: {reason}", pool.pool));
        }
        for state in status.states.iter().filter(|state| !state.missing.is_empty()) {
            let missing = state.missing.join(", ");
            warnings.push(format!("{}/{} is not `{}` yet on {missing}", state.pool, state.node, state.state.word()));
        }
        for member in status.members.iter().filter(|member| member.state == "missed" && !has_bus) {
            warnings.push(format!(
                "{} vanished without leaving; `ringway fleet forget {}` removes it if it is gone for good",
                member.name, member.process
            ));
        }
        warnings
    }
}

fn words(prober: Prober) -> (&'static str, Option<&'static str>) {
    match prober {
        Prober::Own => ("self", None),
        Prober::Leader => ("leader", None),
        Prober::Local(why) => ("local", Some(why.words())),
    }
}

fn state(order: StateOrder, view: &View) -> FleetStateStatus {
    let named = |process: &String, member: &Member| format!("{} ({process})", member.value.name);
    let all = || view.members.iter();
    let missing = all().filter(|(_, it)| it.value.applied < order.revision).map(|(process, it)| named(process, it));
    let has_drained = |member: &Member| {
        let mut drained = member.value.drained.iter();
        drained.any(|(pool, node)| (pool, node) == (&order.pool, &order.node))
    };
    let draining = all().filter(|(_, it)| order.state == NodeState::Drain && !has_drained(it));
    FleetStateStatus {
        missing: missing.collect(),
        draining: draining.map(|(process, it)| named(process, it)).collect(),
        state: order.state,
        file: order.file,
        at: order.at,
        revision: order.revision,
        pool: order.pool,
        node: order.node,
        by: order.by,
    }
}

fn member(process: &str, member: &Member, own: &str, view: &View) -> AppliedStatus {
    let state = match view.live.contains(process) {
        _ if process == own => "self",
        true => "live",
        false => "missed",
    };
    AppliedStatus {
        process: process.to_owned(),
        name: member.value.name.clone(),
        address: member.value.address.clone(),
        version: member.value.version.clone(),
        state: state.to_owned(),
        applied: member.value.applied,
    }
}
