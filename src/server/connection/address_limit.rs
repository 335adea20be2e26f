//! The limit on open connections of each client address, over all workers.

use crate::http::forwarded::network_of;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

/// The number of locks by which the table is divided.
const SHARDS: usize = 16;

type Counts = HashMap<IpAddr, u32>;

/// The counts of all addresses that have a connection.
#[derive(Default)]
pub(in crate::server) struct Addresses {
    shards: [Mutex<Counts>; SHARDS],
    hasher: RandomState,
}

/// One connection of an address.
pub(in crate::server) struct AddressPermit {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// A seat for another connection of an address that may have `limit` of them; `None` over it.
    pub(in crate::server) fn take(self: &Arc<Self>, address: IpAddr, limit: u32) -> Option<AddressPermit> {
        let address = network_of(address);
        let has_room = self.change(address, |counts| {
            let count = counts.entry(address).or_default();
            let has_room = *count < limit;
            *count += u32::from(has_room);
            has_room
        });
        has_room.then(|| AddressPermit { addresses: Arc::clone(self), address })
    }

    fn change<T>(&self, address: IpAddr, change: impl FnOnce(&mut Counts) -> T) -> T {
        let shard = self.hasher.hash_one(address) as usize % SHARDS;
        change(&mut self.shards[shard].lock())
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        self.addresses.change(self.address, |counts| match counts.get_mut(&self.address) {
            Some(1) | None => drop(counts.remove(&self.address)),
            Some(count) => *count -= 1,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_and_no_more() {
        let addresses: Arc<Addresses> = Arc::default();
        let take = |text: &str| addresses.take(text.parse().unwrap(), 2);
        let first = take("192.0.2.1");
        let second = take("::ffff:192.0.2.1");
        assert!(first.is_some() && second.is_some());
        assert!(take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some());
        drop(first);
        let third = take("192.0.2.1");
        assert!(third.is_some());
        let six = (take("2001:db8::1"), take("2001:db8::2"));
        assert!(six.0.is_some() && six.1.is_some());
        assert!(take("2001:db8:0:0:ffff::1").is_none(), "the same /64");
        assert!(take("2001:db8:0:1::1").is_some());
        drop((second, third, six));
        assert!(addresses.shards.iter().all(|shard| shard.lock().is_empty()), "nobody is remembered for ever");
    }
}
