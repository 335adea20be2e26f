//! The fleet in the admin API: its members, purges and states of nodes for all of them, and the removal of a member that
//! is gone.

use crate::cache;
use crate::clock;
use crate::config::NodeState;
use crate::consistency::{Dot, Groups, group_id};
use crate::control::{
    AppliedStatus, FleetState, FleetStatus, Forgotten, GroupStatus, HeardBy, MemberStatus, PurgeOrder, PurgeTarget,
    WriteStatus,
};
use crate::fleet::{ProcessId, Purge, PurgeBy, StateOrder};
use crate::proxy::strong::slots_of_uris;
use crate::server::process::fleet::FleetMember;
use crate::server::process::handle::Handle;
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest wait for other members to apply a purge.
const PATIENCE: Duration = Duration::from_millis(250);

/// Returns the fleet as this process sees it; `None` where none is configured.
pub(super) fn status(handle: &Handle) -> Option<FleetStatus> {
    let member = handle.fleet.as_ref()?;
    let mut status = match &member.bus {
        Some(bus) => bus.status(),
        None => without_bus(handle, member),
    };
    if let Some(leadership) = &member.leadership {
        status.warnings.extend(leadership.warnings(member.bus.is_some()));
        status.leader = Some(leadership.status());
    }
    Some(status)
}

fn without_bus(handle: &Handle, member: &FleetMember) -> FleetStatus {
    let id = handle.snapshot.load().config.settings.fleet.as_ref().map(|fleet| fleet.id.value.clone());
    let own = AppliedStatus {
        process: member.process.to_string(),
        name: String::new(),
        address: handle.admin.bound.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: "self".to_owned(),
        applied: 0,
    };
    let known = member.leadership.as_ref().map(|leadership| leadership.status().members).unwrap_or_default();
    let is_known = known.iter().any(|known| known.process == own.process);
    let own = (!is_known).then_some(own);
    let members = own.into_iter().chain(known).map(|known| MemberStatus {
        process: known.process,
        name: known.name,
        address: known.address,
        version: known.version,
        state: known.state,
        heard_seconds: 0.0,
        lag_seconds: 0.0,
        clock_offset_seconds: 0.0,
        config: String::new(),
        rings: BTreeMap::new(),
    });
    let warning = "the fleet has no bus: purges and writes stay on this proxy; `fleet.redis` adds one";
    FleetStatus {
        id: id.unwrap_or_default(),
        process: member.process.to_string(),
        bus: None,
        leader: None,
        members: members.collect(),
        rings: Vec::new(),
        warnings: vec![warning.to_owned()],
    }
}

/// Returns what this process knows of a group of causal routes.
pub(super) fn group(handle: &Handle, group: &str) -> GroupStatus {
    let clock = |dots: &mut dyn Iterator<Item = Dot>| {
        dots.filter(|dot| dot.number > 0).map(|dot| (ProcessId(dot.process).to_string(), dot.number)).collect()
    };
    let writes = handle.causality.writes.of(group_id(group)).into_iter().map(|known| WriteStatus {
        process: ProcessId(known.dot.process).to_string(),
        number: known.dot.number,
        clock: clock(&mut known.clock.iter()),
    });
    GroupStatus {
        group: group.to_owned(),
        clock: clock(&mut handle.causality.clock.vector().iter()),
        writes: writes.collect(),
    }
}

/// Publishes a purge that this process has applied. Returns which members have applied it, too; `None` without a bus.
pub(super) async fn purge(handle: &Handle, order: &PurgeOrder) -> Option<HeardBy> {
    let bus = handle.fleet.as_ref()?.bus.as_ref()?;
    let (by, value) = match &order.what {
        PurgeTarget::Url(value) => (PurgeBy::Url, value.clone()),
        PurgeTarget::Prefix(value) => (PurgeBy::Prefix, value.clone()),
        PurgeTarget::Tag(value) => (PurgeBy::Tag, value.clone()),
        PurgeTarget::All => (PurgeBy::All, String::new()),
    };
    let causal = Some(handle.causality.write(Groups::new()).encode().into());
    Some(bus.purge(Purge { by, value, soft: order.soft, causal }, PATIENCE).await)
}

/// Stamps the slots of a purge, so that no other proxy serves what was stored before it on a strong route. Returns whether
/// enough nodes have the stamps; `None` where no route is verified by them.
pub(super) async fn stamp(handle: &Handle, purge: &cache::Purge) -> Option<bool> {
    handle.snapshot.load().strong.as_ref()?;
    let slots = match purge {
        cache::Purge::Url(uris) => slots_of_uris(uris),
        _ => slots_of_uris(&[String::new()]),
    };
    Some(handle.fleet.as_ref()?.stamper.stamp(slots).await)
}

/// Removes a member that is gone for good.
///
/// # Errors
/// etcd does not answer.
pub(super) async fn forget(handle: &Handle, process: &str) -> Result<Forgotten, String> {
    let refused = |why: &str| Ok(Forgotten::Refused(why.to_owned()));
    let process = match process.parse::<ProcessId>() {
        Ok(process) => process,
        Err(error) => return Ok(Forgotten::Refused(error)),
    };
    let Some(member) = handle.fleet.as_ref() else { return refused("no fleet is configured") };
    if member.bus.is_none() && member.leadership.is_none() {
        return refused("the fleet has neither a bus nor etcd: `fleet.redis` and `fleet.etcd` add them");
    }
    if process == member.process {
        return refused("this is the process itself, which is not gone");
    }
    tracing::warn!(%process, "an operator removes a member from the fleet");
    let by_bus = member.bus.as_ref().is_some_and(|bus| bus.forget(process));
    let by_etcd = match &member.leadership {
        Some(leadership) => leadership.forget(process).await?,
        None => false,
    };
    Ok(if by_bus || by_etcd { Forgotten::Known } else { Forgotten::Unknown })
}

/// Sets the state of a node for the whole fleet. Returns the members that have applied it.
///
/// # Errors
/// etcd does not answer, or refuses.
pub(super) async fn set_state(
    handle: &Handle,
    (pool, node): (&str, &str),
    state: NodeState,
    by: &str,
) -> Result<FleetState, String> {
    let Some(leadership) = handle.leadership() else { return Ok(FleetState::NoEtcd) };
    if *handle.states_given.lock() {
        return Ok(FleetState::BeingReplaced);
    }
    let file = {
        let snapshot = handle.snapshot.load();
        let pool = snapshot.pools.iter().find(|known| &*known.name == pool);
        let node = pool.and_then(|pool| pool.nodes.iter().find(|known| &*known.id == node));
        node.map(|node| node.state)
    };
    let Some(file) = file else { return Ok(FleetState::NoSuchNode) };
    let order = StateOrder {
        pool: pool.to_owned(),
        node: node.to_owned(),
        state,
        file,
        by: by.to_owned(),
        at: clock::unix_seconds(),
        number: 0,
        revision: 0,
    };
    leadership.set_state(order).await.map(FleetState::Set)
}
