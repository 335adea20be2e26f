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
        /// TLS to clients. Off without the block.
        tls: Option<ListenerTls> = absent;
        /// Reads the client's address from a PROXY protocol header (version 1 or 2), with which every connection must
        /// begin. Off without the block.
        proxy_protocol: Option<ProxyProtocol> = absent;
    }
}

settings! {
    /// The PROXY protocol.
    ProxyProtocol {
        /// The networks of the load balancers that send it; connections from elsewhere are closed.
        trusted: Vec<IpNet> = required;
    }
}

choices! {
    /// A version of TLS.
    MinVersion {
        /// TLS 1.2 and 1.3.
        Tls12 = "1.2",
        /// TLS 1.3 only.
        Tls13 = "1.3",
    }
}

choices! {
    /// The requirement of client certificates.
    ClientAuth {
        /// A client without a certificate is refused.
        Required = "required",
        /// A client may send a certificate, which must be valid.
        Optional = "optional",
    }
}

settings! {
    /// TLS of a listener. Its files are watched: a new certificate is used without a reload of this file.
    ListenerTls {
        /// The certificates, selected by the server name of the client (SNI); the first one is the default.
        certificates: Vec<CertificateFiles> = required;
        /// The lowest version of TLS: `1.2` or `1.3`.
        min_version: MinVersion = "'1.2'";
        /// A file with the authorities (PEM) of client certificates; requests one from every client. Nodes get its
        /// subject as `X-Client-Cert-Subject`.
        client_ca_file: Option<Spanned<String>> = absent;
        /// `required` or `optional`, with `client_ca_file`.
        client_auth: ClientAuth = "required";
        /// A file with the secrets that encrypt session tickets, one per line, the newest first: proxies with the same
        /// file resume each other's sessions. Without it each process has a secret of its own.
        ticket_secret_file: Option<Spanned<String>> = absent;
        /// A request for a host that the served certificate does not cover, from a client that sent another server name
        /// (SNI): `refuse` answers 421, `allow` answers the request.
        sni_mismatch: SniMismatch = "refuse";
    }
}

choices! {
    /// The treatment of a request for another host than the certificate's.
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
        /// A file with the certificate and its intermediate ones (PEM).
        chain_file: Spanned<String> = required;
        /// A file with the private key (PEM).
        key_file: Spanned<String> = required;
    }
}
