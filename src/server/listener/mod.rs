//! Listening sockets: the set of one address, those that a configuration opens, and the admin socket.

pub(super) mod accept;
pub(super) mod admin_socket;
pub(super) mod open;
pub(super) mod socket_set;
