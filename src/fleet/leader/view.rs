//! The fleet's keys, as this process knows them: by a range of all, and by the watch from there on.

use super::election::Holder;
use super::values::{Beat, Keys, LeaderValue, MemberValue, StateOrder, Table};
use crate::fleet::etcd::{Batch, Header, KeyValue};
use std::collections::{BTreeMap, BTreeSet};

/// The keys, read.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    cluster: u64,
    /// The revision up to which the process knows all changes.
    pub(super) revision: u64,
    pub(super) leader: Option<(Holder, LeaderValue)>,
    pub(super) beat: Beat,
    /// The revision of the last beat.
    pub(super) beat_revision: u64,
    pub(super) tables: BTreeMap<String, Table>,
    /// The states of nodes, by the name of the key below the prefix.
    orders: BTreeMap<String, StateOrder>,
    /// The names of states that etcd has lost and that this process keeps.
    kept: BTreeSet<String>,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) live: BTreeSet<String>,
}

/// A member, as etcd has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) value: MemberValue,
    pub(super) revision: u64,
    /// The lease by which etcd forgets it; 0 while it is alive.
    pub(super) lease: u64,
}

/// The parts that have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) leader: bool,
    pub(super) beat: bool,
    pub(super) orders: bool,
    /// The states of nodes that a cluster has lost, and that are kept here.
    pub(super) kept: usize,
}

impl View {
    /// Takes all keys below the prefix, as of a revision. Another cluster, or one with an older revision than is known,
    /// has lost states of nodes: those stay as they are, until an operator sets them anew.
    pub(super) fn replace(&mut self, prefix: &str, header: Header, all: Vec<KeyValue>) -> Changes {
        let has_lost = self.revision > 0 && (self.cluster != header.cluster_id || header.revision < self.revision);
        let before = std::mem::take(self);
        let mut changes = Changes::default();
        (self.cluster, self.revision) = (header.cluster_id, header.revision);
        for key in all {
            self.change(prefix, &key, true, &mut changes);
        }
        for (name, order) in before.orders {
            if (has_lost || before.kept.contains(&name)) && !self.orders.contains_key(&name) {
                changes.kept += usize::from(has_lost);
                self.kept.insert(name.clone());
                self.orders.insert(name, order);
            }
        }
        Changes { leader: true, orders: true, ..changes }
    }

    /// Takes the changes of a message of the watch.
    pub(super) fn apply(&mut self, prefix: &str, batch: &Batch) -> Changes {
        let mut changes = Changes::default();
        for (key, is_set) in &batch.changes {
            self.change(prefix, key, *is_set, &mut changes);
            self.revision = self.revision.max(key.mod_revision);
        }
        changes
    }

    /// Returns the states of nodes for the fleet.
    pub(super) fn orders(&self) -> Vec<StateOrder> {
        self.orders.values().cloned().collect()
    }

    /// Returns the number of states of nodes.
    pub(super) fn count_orders(&self) -> usize {
        self.orders.len()
    }

    /// Returns whether there is a state under the name of a key below the prefix.
    pub(super) fn has_order(&self, name: &str) -> bool {
        self.orders.contains_key(name)
    }

    fn change(&mut self, prefix: &str, key: &KeyValue, is_set: bool, changes: &mut Changes) {
        let Some(name) = key.key.strip_prefix(prefix) else { return };
        if name == Keys::LEADER {
            let value = serde_json::from_slice(&key.value).unwrap_or_default();
            self.leader = is_set.then_some((Holder { term: key.create_revision, lease: key.lease }, value));
            changes.leader = true;
        } else if name == Keys::BEAT {
            self.beat = read(key, is_set).unwrap_or_default();
            self.beat_revision = if is_set { key.mod_revision } else { 0 };
            changes.beat = true;
        } else if let Some(pool) = name.strip_prefix(Keys::TABLE) {
            match read(key, is_set) {
                Some(table) => drop(self.tables.insert(pool.to_owned(), table)),
                None => drop(self.tables.remove(pool)),
            }
            changes.beat = true;
        } else if name.starts_with(Keys::STATE) {
            match read::<StateOrder>(key, is_set) {
                Some(order) => {
                    let order = StateOrder { revision: key.mod_revision, ..order };
                    self.kept.remove(name);
                    self.orders.insert(name.to_owned(), order);
                }
                None => drop(self.orders.remove(name)),
            }
            changes.orders = true;
        } else if let Some(process) = name.strip_prefix(Keys::MEMBER) {
            match read(key, is_set) {
                Some(value) => {
                    let member = Member { value, revision: key.mod_revision, lease: key.lease };
                    self.members.insert(process.to_owned(), member);
                }
                None => drop(self.members.remove(process)),
            }
        } else if let Some(process) = name.strip_prefix(Keys::LIVE) {
            match is_set {
                true => self.live.insert(process.to_owned()),
                false => self.live.remove(process),
            };
        }
    }
}

/// Returns the value of a key that is set; nothing where this version cannot read it.
fn read<T: serde::de::DeserializeOwned>(key: &KeyValue, is_set: bool) -> Option<T> {
    is_set.then(|| serde_json::from_slice(&key.value).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, value: &str, revision: u64) -> KeyValue {
        KeyValue {
            key: format!("f/{name}"),
            value: value.as_bytes().to_vec(),
            create_revision: revision,
            mod_revision: revision,
            lease: 0,
        }
    }

    const ORDER: &str = r#"{"pool":"app","node":"a","state":"drain","file":"up","by":"ann","at":1}"#;

    #[test]
    fn a_watch_goes_on_where_a_range_ends() {
        let mut view = View::default();
        let header = Header { cluster_id: 1, revision: 9, ..Header::default() };
        view.replace(
            "f/",
            header,
            vec![key("leader", r#"{"process":"p","name":"n"}"#, 4), key("state/app/a", ORDER, 5)],
        );
        assert_eq!(view.leader.as_ref().map(|(holder, value)| (holder.term, &*value.process)), Some((4, "p")));
        assert_eq!((view.revision, view.orders()[0].revision), (9, 5));
        let changed = key("state/app/a", &ORDER.replace("drain", "up"), 10);
        let batch = Batch { changes: vec![(changed, true), (key("leader", "", 11), false)] };
        let changes = view.apply("f/", &batch);
        assert_eq!(changes, Changes { leader: true, orders: true, ..Changes::default() });
        assert!(view.leader.is_none() && view.revision == 11 && view.orders()[0].revision == 10);
        // Absent in a later range of the same cluster: it was removed.
        view.replace("f/", Header { revision: 12, ..header }, Vec::new());
        assert_eq!(view.orders(), []);
    }

    #[test]
    fn a_cluster_that_has_lost_the_states_takes_none_away() {
        let mut view = View::default();
        let header = Header { cluster_id: 1, revision: 9, ..Header::default() };
        view.replace("f/", header, vec![key("state/app/a", ORDER, 5)]);
        for lost in [Header { cluster_id: 2, revision: 90, ..header }, Header { cluster_id: 2, revision: 3, ..header }]
        {
            assert_eq!(view.replace("f/", lost, Vec::new()).kept, 1);
            assert_eq!(view.replace("f/", lost, Vec::new()).kept, 0);
            assert_eq!(view.count_orders(), 1, "read again");
        }
        let newer = key("state/app/a", &ORDER.replace("drain", "down"), 2);
        assert_eq!(view.replace("f/", Header { cluster_id: 3, revision: 2, ..header }, vec![newer]).kept, 0);
        assert_eq!(view.orders()[0].revision, 2);
    }
}
