//! The handle of the leader's room, for the admin API and the life of the process.

use super::election::Election;
use super::health::Prober;
use super::values::StateOrder;
use super::view::View;
use crate::clock::BootTime;
use crate::control::AppliedBy;
use crate::fleet::ProcessId;
use crate::fleet::etcd::EtcdSettings;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The state that the handle and the thread share.
pub(super) struct Shared {
    pub(super) fleet: String,
    pub(super) process: ProcessId,
    /// Host and process id.
    pub(super) name: String,
    pub(super) election: Mutex<Election>,
    pub(super) view: Mutex<View>,
    /// The revision up to which the states of nodes are applied.
    pub(super) applied: Mutex<u64>,
    /// The moment of the last beat for each pool.
    pub(super) heard: Mutex<BTreeMap<String, BootTime>>,
    /// The prober of each pool.
    pub(super) probers: Mutex<BTreeMap<String, Prober>>,
    pub(super) board: Mutex<Board>,
    /// All keys were read once.
    pub(super) ready: watch::Sender<bool>,
}

/// The state of etcd, for operators.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) is_up: bool,
    pub(super) error: Option<String>,
    pub(super) endpoint: String,
}

/// An order to the thread.
pub(super) enum Order {
    Set {
        order: StateOrder,
        reply: oneshot::Sender<Result<AppliedBy, String>>,
    },
    Forget {
        process: ProcessId,
        reply: oneshot::Sender<Result<bool, String>>,
    },
    /// Hands leadership over.
    Retire,
    /// Says good-bye, and answers once that is done.
    Leave(std::sync::mpsc::SyncSender<()>),
}

/// The process as a member of a fleet with etcd: cheap to clone, for any thread.
#[derive(Clone)]
pub(crate) struct Leadership {
    pub(super) shared: Arc<Shared>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) control: Arc<watch::Sender<EtcdSettings>>,
}

impl Shared {
    pub(super) fn new(fleet: String, process: ProcessId) -> Shared {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Shared {
            fleet,
            process,
            name: format!("{host}/{}", std::process::id()),
            election: Mutex::default(),
            view: Mutex::default(),
            applied: Mutex::default(),
            heard: Mutex::default(),
            probers: Mutex::default(),
            board: Mutex::default(),
            ready: watch::Sender::new(false),
        }
    }
}

impl Leadership {
    /// Returns once the states of nodes were read and applied, or after so long.
    pub(crate) async fn ready(&self, patience: Duration) {
        let mut ready = self.shared.ready.subscribe();
        // The sender lives as long as this.
        let _ = tokio::time::timeout(patience, ready.wait_for(|ready| *ready)).await;
    }

    /// Returns the fleet that the process belongs to.
    pub(crate) fn fleet(&self) -> &str {
        &self.shared.fleet
    }

    /// Returns whether etcd answers.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.board.lock().is_up
    }

    /// Returns whether this process is the leader now.
    pub(crate) fn is_leader(&self) -> bool {
        self.shared.election.lock().acting(BootTime::now().millis()).is_some()
    }

    /// Returns the term of the leader; 0 without one.
    pub(crate) fn term(&self) -> u64 {
        self.shared.view.lock().leader.as_ref().map_or(0, |(holder, _)| holder.term)
    }

    /// Returns the number of members that are alive.
    pub(crate) fn members(&self) -> usize {
        self.shared.view.lock().live.len()
    }

    /// Returns the time since the last beat for each pool with shared health.
    pub(crate) fn ages(&self) -> Vec<(String, Duration)> {
        let (now, probers) = (BootTime::now(), self.shared.probers.lock().clone());
        let heard = self.shared.heard.lock();
        let known = heard.iter().filter(|(pool, _)| probers.contains_key(*pool));
        known.map(|(pool, heard)| (pool.clone(), now.since(*heard))).collect()
    }

    /// Sets a state of a node for the fleet. Returns the members that have applied it.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub(crate) async fn set_state(&self, order: StateOrder) -> Result<AppliedBy, String> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Set { order, reply })?;
        answer.await.unwrap_or_else(|_| Err("the proxy is stopping".to_owned()))
    }

    /// Removes a member that is gone. Returns whether there was one.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub(crate) async fn forget(&self, process: ProcessId) -> Result<bool, String> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Forget { process, reply })?;
        answer.await.unwrap_or_else(|_| Err("the proxy is stopping".to_owned()))
    }

    fn order(&self, order: Order) -> Result<(), String> {
        let sent = self.orders.try_send(order);
        sent.map_err(|_| "too many orders wait for etcd; ask again later".to_owned())
    }

    /// Hands leadership over, for good.
    pub(crate) fn retire(&self) {
        // A full queue ends with the process, and the lease after it.
        let _ = self.orders.try_send(Order::Retire);
    }

    /// Says good-bye, so that no member waits for this process. Blocks for so long at most.
    pub(crate) fn leave(&self, patience: Duration) {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        if self.orders.try_send(Order::Leave(sender)).is_ok() {
            // Without an answer the others will miss it after a lease.
            let _ = receiver.recv_timeout(patience);
        }
    }

    /// Lets the room go on with other endpoints, or with another login.
    pub(crate) fn reconfigure(&self, settings: &EtcdSettings) {
        self.control.send_if_modified(|now| {
            let differs = now != settings;
            settings.clone_into(now);
            differs
        });
    }

    /// Returns whether other settings need a restart.
    pub(crate) fn is_another(&self, settings: &EtcdSettings) -> bool {
        self.control.borrow().is_another(settings)
    }
}
