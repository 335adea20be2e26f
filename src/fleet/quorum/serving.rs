//! The work on one node: to connect, to register the configuration of this process, and to send batches of checks. The
//! connection is opened anew whenever it breaks or is silent; an operation of a write that it breaks is not sent again.

use super::client::QuorumClient;
use super::link::{Gathering, NodeLink, Open};
use super::messages::{Checked, ServerFacts};
use super::rules::{QuorumRules, millis};
use super::wire::Connection;
use crate::clock;
use crate::consistency::quorum::{Life, NodeReply};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two attempts to connect.
const ATTEMPT: Duration = Duration::from_millis(250);

/// Keeps a node connected, for as long as the thread runs.
pub(super) async fn serve(client: Rc<QuorumClient>, place: usize) {
    let link = &client.links[place];
    let mut rules = client.rules.subscribe();
    let mut is_told = false;
    loop {
        let now = Arc::clone(&rules.borrow_and_update());
        let error = match open(&client, &now, place).await {
            Ok(open) => {
                is_told = false;
                serve_on(&client, link, Rc::new(open), &mut rules).await
            }
            Err(error) => error,
        };
        link.close();
        if client.speaks && !is_told {
            is_told = true;
            let node = &now.settings.ids[place];
            tracing::warn!(node, error, "a node of strong reads is away; it is tried every 250 ms");
        }
        // Rules that do not change any more mean that the thread ends.
        let _ = tokio::time::timeout(ATTEMPT, rules.changed()).await;
    }
}

/// Connects to a node, and registers the configuration there.
async fn open(client: &QuorumClient, rules: &QuorumRules, place: usize) -> Result<Open, String> {
    let (connection, facts) = Connection::open(rules, place).await?;
    register(client, &client.links[place], &connection, rules).await?;
    // Nothing is waited for from here on until the connection is known: two that open at a time see each other.
    let is_same = |(other, link): (usize, &NodeLink)| {
        other != place && link.open.borrow().as_ref().is_some_and(|open| open.facts.run == facts.run)
    };
    if let Some((other, _)) = client.links.iter().enumerate().find(|it| is_same(*it)) {
        let other = &rules.settings.ids[other];
        return Err(format!("it is the same server as the node `{other}`: give each node a server of its own"));
    }
    Ok(Open { connection, facts })
}

async fn register(
    client: &QuorumClient,
    link: &NodeLink,
    connection: &Connection,
    rules: &QuorumRules,
) -> Result<(), String> {
    if !client.is_needed.get() {
        return Ok(());
    }
    let sent = millis(clock::since_boot());
    let others = connection.register(rules).await?;
    link.registered.set(Some(sent));
    client.metrics.consistency_config_skew.set(i64::from(others > 0));
    Ok(())
}

/// Works until the connection ends. Returns why it did.
async fn serve_on(
    client: &QuorumClient,
    link: &NodeLink,
    open: Rc<Open>,
    rules: &mut watch::Receiver<Arc<QuorumRules>>,
) -> String {
    link.open.replace(Some(Rc::clone(&open)));
    client.connected.notify_waiters();
    let mut now = Arc::clone(&rules.borrow());
    let mut registers = pin!(tokio::time::sleep(now.settings.lease / 3));
    loop {
        let mut is_due = false;
        tokio::select! {
            biased;
            () = open.connection.closed() => return "the server has closed the connection".to_owned(),
            changed = rules.changed() => {
                if changed.is_err() {
                    return "the thread ends".to_owned();
                }
                let next = Arc::clone(&rules.borrow_and_update());
                if next.settings.reach != now.settings.reach || next.settings.fleet != now.settings.fleet {
                    // The next attempt is made at once.
                    rules.mark_changed();
                    return "the settings have changed".to_owned();
                }
                now = next;
                is_due = true;
            }
            () = registers.as_mut() => is_due = true,
            () = link.filled.notified() => {}
        }
        if is_due {
            registers.as_mut().reset((Instant::now() + now.settings.lease / 3).into());
            if let Err(error) = register(client, link, &open.connection, &now).await {
                return error;
            }
        }
        let batch = link.gathering.take();
        if batch.readers.is_empty() {
            continue;
        }
        match open.connection.check(now.digest, &batch.slots).await {
            Ok(checked) => deliver(link.node, &open.facts, &now, &batch, &checked),
            Err(error) => {
                batch.readers.iter().for_each(|reader| reader.failed(link.node));
                return error;
            }
        }
        if !link.gathering.borrow().readers.is_empty() {
            link.filled.notify_one();
        }
    }
}

/// Hands a reply to the readers of its batch.
fn deliver(node: u8, facts: &ServerFacts, rules: &QuorumRules, batch: &Gathering, checked: &Checked) {
    let uptime = facts.uptime.saturating_add(millis(facts.at.elapsed()));
    let age = checked.now.saturating_sub(checked.born).min(uptime);
    let mut reply = NodeReply {
        node,
        // A tag is equal under its own configuration alone: other numbers or slots need other nodes.
        life: Life { birth: checked.birth, run: facts.run ^ rules.digest },
        is_old: age >= rules.life(),
        has_other_config: checked.has_other_config,
        slots: Default::default(),
    };
    for reader in &batch.readers {
        reply.slots.clear();
        let view = |slot| batch.places.get(&slot).and_then(|place| checked.views.get(*place)).copied();
        reply.slots.extend(reader.slots_of(node).filter_map(|slot| Some((slot, view(slot)?))));
        reader.answered(&reply);
    }
}
