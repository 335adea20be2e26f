//! TLS, shared by several rooms: certificates and the hosts that they cover, their selection by server name, session
//! tickets, and trust.

mod certificate;
mod client;
mod names;
mod server;
mod tickets;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub(crate) use certificate::{Certificate, authorities, identity};
pub(crate) use client::{ClientTls, Trust};
pub(crate) use names::Names;
pub(crate) use server::{ServerMaterial, ServerTls, TlsVersion};

/// Returns the cryptography of every connection, to clients, nodes and stores.
fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}
