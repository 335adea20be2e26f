//! The place of etcd: endpoints and login.

use crate::tls::ClientTls;
use rustls::pki_types::ServerName;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The shortest lease that etcd grants with its default timing.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// The place of etcd, and the secrets to reach it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EtcdSettings {
    pub(crate) fleet: String,
    pub(crate) lease: Duration,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) login: EtcdLogin,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// As the configuration has it.
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
}

/// The login to the cluster.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct EtcdLogin {
    pub(crate) user: Option<(String, String)>,
    pub(crate) tls: Option<Arc<ClientTls>>,
    /// The name that members must show; without one the host of their address.
    pub(crate) server_name: Option<ServerName<'static>>,
}

/// Passwords do not show.
impl fmt::Debug for EtcdLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EtcdLogin(..)")
    }
}

impl EtcdSettings {
    /// Returns whether a running process cannot follow a change to other settings: all but endpoints and the login.
    pub(crate) fn is_another(&self, other: &EtcdSettings) -> bool {
        (&self.fleet, self.lease) != (&other.fleet, other.lease)
    }

    /// Returns the time to live of a lease, in the whole seconds that etcd grants.
    pub(in crate::fleet) fn ttl_seconds(&self) -> u64 {
        let lease = self.lease.max(SHORTEST_LEASE);
        lease.as_secs() + u64::from(lease.subsec_nanos() > 0)
    }

    /// Returns the prefix of all keys of the fleet.
    pub(in crate::fleet) fn prefix(&self) -> String {
        format!("ringway/{}/", self.fleet)
    }
}
