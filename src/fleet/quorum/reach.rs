//! The addresses and the login of the nodes.

#[cfg(feature = "redis")]
use crate::io::redis::Login;

/// The addresses of the nodes, in the order of their identities, and the login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) addresses: Vec<String>,
    #[cfg(feature = "redis")]
    pub(crate) login: Login,
}
