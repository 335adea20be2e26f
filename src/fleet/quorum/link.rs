//! One node, for one thread: its connection, and the checks that gather while another batch is on its way.

use super::check::Asked;
use super::messages::ServerFacts;
use super::wire::Connection;
use crate::consistency::quorum::{Millis, Slot};
use foldhash::fast::RandomState;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::Notify;

/// A node.
pub(super) struct NodeLink {
    pub(super) node: u8,
    pub(super) open: RefCell<Option<Rc<Open>>>,
    pub(super) gathering: RefCell<Gathering>,
    pub(super) filled: Notify,
    /// When the last registration of this process's configuration that the node has acknowledged was sent.
    pub(super) registered: Cell<Option<Millis>>,
}

/// A connection, and what it has found.
pub(super) struct Open {
    pub(super) connection: Connection,
    pub(super) facts: ServerFacts,
}

/// The readers of the next batch.
#[derive(Default)]
pub(super) struct Gathering {
    /// Each once.
    pub(super) slots: Vec<Slot>,
    pub(super) places: HashMap<Slot, usize, RandomState>,
    pub(super) readers: Vec<Rc<Asked>>,
}

impl NodeLink {
    pub(super) fn new(node: u8) -> NodeLink {
        NodeLink {
            node,
            open: RefCell::default(),
            gathering: RefCell::default(),
            filled: Notify::new(),
            registered: Cell::new(None),
        }
    }

    /// Returns the connection, where there is one.
    pub(super) fn open(&self) -> Option<Rc<Open>> {
        self.open.borrow().clone()
    }

    /// Returns whether the node knows the configuration of this process for another while.
    pub(super) fn is_registered(&self, now: Millis, lease: Millis) -> bool {
        self.registered.get().is_some_and(|sent| now.saturating_sub(sent) < lease)
    }

    /// Asks the node for the slots of a reader that it holds, with the next batch. A node that is away is not asked.
    pub(super) fn ask(&self, reader: &Rc<Asked>) {
        if self.open.borrow().is_none() {
            return;
        }
        let mut gathering = self.gathering.borrow_mut();
        let Gathering { slots, places, readers } = &mut *gathering;
        for slot in reader.slots_of(self.node) {
            places.entry(slot).or_insert_with(|| {
                slots.push(slot);
                slots.len() - 1
            });
        }
        reader.ask(self.node);
        readers.push(Rc::clone(reader));
        self.filled.notify_one();
    }

    /// Notes that the connection has ended.
    pub(super) fn close(&self) {
        self.open.replace(None);
        self.registered.set(None);
        let gathering = self.gathering.take();
        gathering.readers.iter().for_each(|reader| reader.failed(self.node));
    }
}
