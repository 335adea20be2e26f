//! The block `fleet.etcd`: the cluster by which a fleet agrees on a leader and on the states of nodes.

use super::PoolTls;
use crate::config::read::{Spanned, settings};
use crate::config::values::EtcdEndpoint;

settings! {
    /// The etcd cluster of a fleet, version 3.4.22 or newer, by its JSON gateway.
    FleetEtcd {
        /// The client URLs of its members, like `https://10.0.0.1:2379`; the next one is asked where one does not
        /// answer. A name is resolved at each connection.
        endpoints: Vec<Spanned<EtcdEndpoint>> = required;
        /// The user, where the cluster has authentication enabled; it needs `password_file`.
        username: Option<Spanned<String>> = absent;
        /// A file with the password of the user.
        password_file: Option<Spanned<String>> = absent;
        /// TLS to `https` endpoints, which need the block; `tls: {}` trusts the system's authorities.
        tls: Option<PoolTls> = absent;
    }
}
