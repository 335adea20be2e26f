//! What the admin API can ask of the fleet: its members, and the removal of one that is gone.

use crate::consistency::{Dot, Groups, group_id};
use crate::control::{FleetStatus, GroupStatus, HeardBy, MemberStatus, PurgeOrder, PurgeTarget, WriteStatus};
use crate::fleet::{ProcessId, Purge, PurgeBy};
use crate::server::process::handle::Handle;
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest wait for other members to apply a purge.
const PATIENCE: Duration = Duration::from_millis(250);

/// Returns the fleet as this process sees it; `None` where none is configured.
pub(super) fn status(handle: &Handle) -> Option<FleetStatus> {
    let member = handle.fleet.as_ref()?;
    if let Some(bus) = &member.bus {
        return Some(bus.status());
    }
    let id = handle.snapshot.load().config.settings.fleet.as_ref().map(|fleet| fleet.id.value.clone());
    let own = MemberStatus {
        process: member.process.to_string(),
        name: String::new(),
        address: handle.admin.bound.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: "self".to_owned(),
        heard_seconds: 0.0,
        lag_seconds: 0.0,
        clock_offset_seconds: 0.0,
        config: String::new(),
        rings: BTreeMap::new(),
    };
    let warning = "the fleet has no bus: purges and writes stay on this proxy; `fleet.redis` adds one";
    Some(FleetStatus {
        id: id.unwrap_or_default(),
        process: member.process.to_string(),
        bus: None,
        members: vec![own],
        rings: Vec::new(),
        warnings: vec![warning.to_owned()],
    })
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

/// Removes a member that is gone for good. Returns whether this process knew it.
///
/// # Errors
/// The text names no process, this one, or there is no bus.
pub(super) fn forget(handle: &Handle, process: &str) -> Result<bool, String> {
    let process: ProcessId = process.parse()?;
    let member = handle.fleet.as_ref().ok_or("no fleet is configured")?;
    let bus = member.bus.as_ref().ok_or("the fleet has no bus: `fleet.redis` adds one")?;
    if process == member.process {
        return Err("this is the process itself, which is not gone".to_owned());
    }
    tracing::warn!(%process, "an operator removes a member from the fleet");
    Ok(bus.forget(process))
}
