//! Where clients connect: addresses, TLS, the PROXY protocol.

use crate::config::read::{Spanned, choices, settings};
use ipnet::IpNet;
use std::net::SocketAddr;

settings! {
    /// An address that clients connect to.
    Listener {
        /// The listener's name in metrics and logs.
        name: Spanned<String> = required;
        /// IP address and port.
        address: Spanned<SocketAddr> = required;
        /// Speaks TLS. Off without the block.
        tls: Option<ListenerTls> = absent;
        /// Takes the client's address from a PROXY protocol header (version 1 or 2), which every connection must begin with. Off without the block.
        proxy_protocol: Option<ProxyProtocol> = absent;
    }
}

settings! {
    /// The PROXY protocol.
    ProxyProtocol {
        /// The networks of the load balancers that speak it; connections from elsewhere are closed.
        trusted: Vec<IpNet> = required;
    }
}

choices! {
    /// A version of TLS.
    MinVersion {
        /// TLS 1.2 and 1.3.
        Tls12 = "1.2",
        /// TLS 1.3 alone.
        Tls13 = "1.3",
    }
}

choices! {
    /// Whether a client must show a certificate.
    ClientAuth {
        /// A client without one is refused.
        Required = "required",
        /// A client may show one; what it shows must be valid.
        Optional = "optional",
    }
}

settings! {
    /// TLS of a listener. Its files are followed: a new certificate is used without a reload of this file.
    ListenerTls {
        /// The certificates, chosen by the name that the client asks for (SNI); the first one is for all others.
        certificates: Vec<CertificateFiles> = required;
        /// The lowest version: `1.2` or `1.3`.
        min_version: MinVersion = "'1.2'";
        /// A file with the authorities (PEM) of clients' certificates; asks clients for one. The subject goes to nodes as `X-Client-Cert-Subject`.
        client_ca_file: Option<Spanned<String>> = absent;
        /// `required` or `optional`, where `client_ca_file` is given.
        client_auth: ClientAuth = "required";
        /// A file with the secrets that seal session tickets, one a line, the newest first: proxies with the same file resume each other's sessions. Without it each process has a secret of its own.
        ticket_secret_file: Option<Spanned<String>> = absent;
        /// A request for a host that the served certificate does not cover, from a client that named another one by SNI: `refuse` answers 421, `allow` answers the request.
        sni_mismatch: SniMismatch = "refuse";
    }
}

choices! {
    /// What becomes of a request for another host than the certificate's.
    SniMismatch {
        /// 421.
        Refuse = "refuse",
        /// It is answered.
        Allow = "allow",
    }
}

settings! {
    /// A certificate and its key.
    CertificateFiles {
        /// A file with the certificate and those between it and its authority (PEM).
        chain_file: Spanned<String> = required;
        /// A file with the private key (PEM).
        key_file: Spanned<String> = required;
    }
}
