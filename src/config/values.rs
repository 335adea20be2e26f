//! Scalar settings with a grammar of their own.

pub(crate) use super::hash_source::HashSource;
use super::read::{Field, Reader};
use super::tree::{Node, Value};
use super::units;
use crate::consistency::GroupTemplate;
use crate::http::method::differs_by_case;
use crate::http::target;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use serde_json::{Value as Json, json};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Implements [`Field`] for a type that is written as one scalar.
macro_rules! scalar {
    ($type:ty, $expected:expr, $schema:expr, |$text:ident| $parse:expr, |$value:ident| $show:expr) => {
        impl Field for $type {
            fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
                reader.scalar(node, $expected, |$text| $parse)
            }
            fn schema() -> Json {
                $schema
            }
            fn show(&self) -> Json {
                let $value = self;
                $show
            }
        }
    };
}

scalar!(
    String,
    "a text",
    json!({ "title": "text", "type": ["string", "number", "boolean"] }),
    |text| Ok(text.to_owned()),
    |value| value.as_str().into()
);

scalar!(
    bool,
    "true or false",
    json!({ "type": "boolean" }),
    |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false".to_owned()),
    },
    |value| (*value).into()
);

scalar!(
    u32,
    "a whole number",
    json!({ "type": "integer", "minimum": 0 }),
    |text| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| format!("a whole number from 0 to {}", u32::MAX)),
        false => Err("a whole number".to_owned()),
    },
    |value| (*value).into()
);

scalar!(
    Duration,
    "a duration like `250ms`, `2s`, `5m` or `1h`",
    json!({
        "title": "duration",
        "type": "string",
        "pattern": "^(0|([0-9]+(ms|s|m|h|d))+)$",
        "examples": ["250ms", "2s", "1h30m", "7d"],
    }),
    |text| units::duration(text),
    |value| format_duration(*value).into()
);

/// A duration as a user would write it, in the largest unit that is exact.
fn format_duration(value: Duration) -> String {
    let milliseconds = value.as_millis();
    for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds >= length && milliseconds.is_multiple_of(length) {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    if milliseconds == 0 { "0s".to_owned() } else { format!("{milliseconds}ms") }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, length) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= length && self.0.is_multiple_of(length) {
                return write!(f, "{}{unit}", self.0 / length);
            }
        }
        write!(f, "{}B", self.0)
    }
}

scalar!(
    Size,
    "a size like `64KiB`, `10MiB` or `1GiB`",
    json!({
        "title": "size",
        "type": "string",
        "pattern": "^(0|[0-9]+(B|[KMGT]iB|[kKMG]B))$",
        "examples": ["64KiB", "512MiB", "512MB", "1GiB"],
    }),
    |text| units::size(text).map(Size),
    |value| value.to_string().into()
);

scalar!(
    SocketAddr,
    "an address like `127.0.0.1:8080` or `[::]:8080`",
    json!({ "title": "address", "type": "string", "examples": ["127.0.0.1:8080", "[::]:8080"] }),
    |text| text.parse().map_err(|_| "an address like `127.0.0.1:8080` or `[::]:8080`".to_owned()),
    |value| value.to_string().into()
);

scalar!(
    IpNet,
    "a network like `10.0.0.0/8`",
    json!({ "title": "network", "type": "string", "examples": ["10.0.0.0/8", "fd00::/8", "192.0.2.7"] }),
    |text| {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>()
            .or(address)
            .map(|net| net.trunc())
            .map_err(|_| "a network like `10.0.0.0/8`, or an address".to_owned())
    },
    |value| value.to_string().into()
);

scalar!(
    Method,
    "a method like `GET`",
    json!({ "title": "method", "type": "string", "examples": ["GET"] }),
    |text| match Method::from_bytes(text.as_bytes()) {
        // The case counts (RFC 9110 9.1): no client means this one.
        Ok(method) if differs_by_case(&method) => {
            Err(format!("a method as clients send it, `{}`", text.to_ascii_uppercase()))
        }
        parsed => parsed.map_err(|_| "a method like `GET`".to_owned()),
    },
    |value| value.as_str().into()
);

scalar!(
    HeaderName,
    "a field name like `x-edge`",
    json!({ "title": "field name", "type": "string", "examples": ["x-edge"] }),
    |text| HeaderName::from_bytes(text.as_bytes()).map_err(|_| "a field name like `x-edge`".to_owned()),
    |value| value.as_str().into()
);

scalar!(
    HeaderValue,
    "a field value",
    json!({ "title": "field value", "type": ["string", "number", "boolean"], "examples": ["max-age=60"] }),
    |text| HeaderValue::from_str(text.trim()).map_err(|_| "a field value of visible ASCII characters".to_owned()),
    |value| value.to_str().unwrap_or_default().into()
);

scalar!(
    StatusCode,
    "a status code",
    json!({ "title": "status code", "type": "integer", "minimum": 200, "maximum": 599 }),
    |text| match text.parse::<u16>() {
        Ok(code) if (200..600).contains(&code) => StatusCode::from_u16(code).map_err(|_| "a status code".to_owned()),
        _ => Err("a status code from 200 to 599".to_owned()),
    },
    |value| value.as_u16().into()
);

/// The status code of a redirection (RFC 9110 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RedirectStatus(pub(crate) StatusCode);

impl RedirectStatus {
    const ALL: [u16; 5] = [301, 302, 303, 307, 308];
}

scalar!(
    RedirectStatus,
    "301, 302, 303, 307 or 308",
    json!({ "enum": RedirectStatus::ALL }),
    |text| match text.parse::<u16>().ok().filter(|code| RedirectStatus::ALL.contains(code)) {
        Some(code) => StatusCode::from_u16(code).map(RedirectStatus).map_err(|error| error.to_string()),
        None => Err("301, 302, 303, 307 or 308".to_owned()),
    },
    |value| value.0.as_u16().into()
);

/// The address of a node: an IP address or a name, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl NodeAddress {
    const EXPECTED: &str = "an address with a port, like `10.0.0.11:8080` or `app.internal:8080`";

    fn parse(text: &str) -> Result<NodeAddress, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(NodeAddress { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or(Self::EXPECTED)?;
        let valid =
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        match port.parse::<u16>() {
            Ok(port) if valid && port > 0 => Ok(NodeAddress { host: host.to_owned(), port }),
            _ => Err(Self::EXPECTED.to_owned()),
        }
    }
}

scalar!(
    NodeAddress,
    NodeAddress::EXPECTED,
    json!({ "title": "node address", "type": "string", "examples": ["10.0.0.11:8080", "app.internal:8080"] }),
    |text| NodeAddress::parse(text),
    |value| value.to_string().into()
);

/// The client URL of a member of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EtcdEndpoint {
    pub(crate) is_tls: bool,
    pub(crate) address: NodeAddress,
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_tls { "https" } else { "http" }, self.address)
    }
}

impl EtcdEndpoint {
    const EXPECTED: &str = "the client URL of an etcd member, like `https://10.0.0.1:2379`";

    fn parse(text: &str) -> Result<EtcdEndpoint, String> {
        let (scheme, rest) = text.split_once("://").ok_or(Self::EXPECTED)?;
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(Self::EXPECTED.to_owned()),
        };
        let address = NodeAddress::parse(rest.strip_suffix('/').unwrap_or(rest)).map_err(|_| Self::EXPECTED)?;
        Ok(EtcdEndpoint { is_tls, address })
    }
}

scalar!(
    EtcdEndpoint,
    EtcdEndpoint::EXPECTED,
    json!({ "title": "etcd endpoint", "type": "string", "examples": ["https://10.0.0.1:2379", "http://127.0.0.1:2379"] }),
    |text| EtcdEndpoint::parse(text),
    |value| value.to_string().into()
);

/// The addresses of a server with replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddresses(pub(crate) Vec<NodeAddress>);

impl Field for ServerAddresses {
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let addresses = match &node.value {
            Value::Sequence(_) => Vec::read(node, reader)?,
            _ => vec![NodeAddress::read(node, reader)?],
        };
        if addresses.is_empty() {
            reader.diagnostics.error(node.span, format!("expected {}, found an empty list", NodeAddress::EXPECTED));
        }
        Some(ServerAddresses(addresses))
    }
    fn schema() -> Json {
        json!({
            "title": "server addresses",
            "type": ["string", "array"],
            "examples": ["10.0.0.9:6379", ["10.0.0.9:6379", "10.0.0.10:6379"]],
        })
    }
    fn show(&self) -> Json {
        self.0.show()
    }
}

/// A percentage, in thousandths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Percent(u32);

impl Percent {
    const EXPECTED: &str = "a share from `0%` to `100%`";

    fn parse(text: &str) -> Result<Percent, String> {
        let number = text.strip_suffix('%').and_then(|number| thousandths(number.trim_end()));
        number.filter(|&parts| parts <= 100_000).map(Percent).ok_or_else(|| Self::EXPECTED.to_owned())
    }

    /// Returns the share from 0 to 1.
    pub(crate) fn ratio(self) -> f64 {
        f64::from(self.0) / 100_000.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 1000.0)
    }
}

scalar!(
    Percent,
    Percent::EXPECTED,
    json!({
        "title": "share",
        "type": "string",
        "pattern": "^[0-9]+(\\.[0-9]{1,3})? *%$",
        "examples": ["20%", "12.5%"],
    }),
    |text| Percent::parse(text),
    |value| value.to_string().into()
);

/// A multiple of the average, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Factor(u32);

impl Factor {
    const EXPECTED: &str = "a factor from 1 to 100, like `1.25`";

    fn parse(text: &str) -> Result<Factor, String> {
        let parts = thousandths(text).filter(|parts| (1_000..=100_000).contains(parts));
        parts.map(Factor).ok_or_else(|| Self::EXPECTED.to_owned())
    }

    /// Returns the factor, in thousandths.
    pub(crate) fn thousandths(self) -> u32 {
        self.0
    }
}

scalar!(
    Factor,
    Factor::EXPECTED,
    json!({ "title": "factor", "type": "number", "minimum": 1, "maximum": 100, "examples": [1.25] }),
    |text| Factor::parse(text),
    |value| (f64::from(value.0) / 1000.0).into()
);

/// Returns a decimal number with up to three places, times a thousand.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(places) || places.len() > 3 {
        return None;
    }
    let scale = 10u32.pow(3 - places.len() as u32);
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(places.parse::<u32>().ok()? * scale)
}

/// A status code, or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusRange {
    low: u16,
    high: u16,
}

impl StatusRange {
    const EXPECTED: &str = "a status code like `204`, or a range like `200-399`";

    pub(crate) fn parse(text: &str) -> Result<StatusRange, String> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (low.trim().parse::<u16>(), high.trim().parse::<u16>()) {
            (Ok(low), Ok(high)) if (200..600).contains(&low) && (low..600).contains(&high) => {
                Ok(StatusRange { low, high })
            }
            _ => Err(Self::EXPECTED.to_owned()),
        }
    }

    pub(crate) fn holds(self, status: StatusCode) -> bool {
        (self.low..=self.high).contains(&status.as_u16())
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low == self.high {
            true => write!(f, "{}", self.low),
            false => write!(f, "{}-{}", self.low, self.high),
        }
    }
}

scalar!(
    StatusRange,
    StatusRange::EXPECTED,
    json!({
        "title": "status or range",
        "type": ["integer", "string"],
        "pattern": "^[2-5][0-9]{2}(-[2-5][0-9]{2})?$",
        "examples": [204, "200-399"],
    }),
    |text| StatusRange::parse(text),
    |value| value.to_string().into()
);

/// A condition of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryOn {
    /// Nothing was sent.
    ConnectFailure,
    /// The connection ended before the response began.
    Reset,
    /// The response did not begin in time.
    Timeout,
    /// The response has this status.
    Status(StatusCode),
}

impl RetryOn {
    const EXPECTED: &str = "one of connect_failure, reset, timeout, or a status code from 400 to 599";

    pub(crate) fn parse(text: &str) -> Result<RetryOn, String> {
        match text {
            "connect_failure" => Ok(RetryOn::ConnectFailure),
            "reset" => Ok(RetryOn::Reset),
            "timeout" => Ok(RetryOn::Timeout),
            _ => match text.parse::<u16>().ok().filter(|code| (400..600).contains(code)) {
                Some(code) => StatusCode::from_u16(code).map(RetryOn::Status).map_err(|_| Self::EXPECTED.to_owned()),
                None => Err(Self::EXPECTED.to_owned()),
            },
        }
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetryOn::ConnectFailure => f.write_str("connect_failure"),
            RetryOn::Reset => f.write_str("reset"),
            RetryOn::Timeout => f.write_str("timeout"),
            RetryOn::Status(status) => f.write_str(status.as_str()),
        }
    }
}

scalar!(
    RetryOn,
    RetryOn::EXPECTED,
    json!({
        "title": "failure",
        "type": ["integer", "string"],
        "pattern": "^(connect_failure|reset|timeout|[45][0-9]{2})$",
        "examples": ["connect_failure", 503],
    }),
    |text| RetryOn::parse(text),
    |value| value.to_string().into()
);

/// The target of a health check: a path, and optionally a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckPath(pub(crate) String);

scalar!(
    CheckPath,
    "a path that begins with `/`",
    json!({ "title": "target", "type": "string", "pattern": "^/", "examples": ["/healthz?deep=1"] }),
    |text| match text.starts_with('/') && !text.contains('#') && text.parse::<http::uri::PathAndQuery>().is_ok() {
        true => Ok(CheckPath(text.to_owned())),
        false => Err("a path that begins with `/`, percent-encoded where it must be".to_owned()),
    },
    |value| value.0.as_str().into()
);

/// A name that a certificate must cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerName(pub(crate) rustls::pki_types::ServerName<'static>);

scalar!(
    ServerName,
    "a host name or an IP address",
    json!({ "title": "server name", "type": "string", "examples": ["app.internal"] }),
    |text| rustls::pki_types::ServerName::try_from(text.to_owned())
        .map(ServerName)
        .map_err(|_| "a host name or an IP address".to_owned()),
    |value| value.0.to_str().into_owned().into()
);

/// The seed of a ring. Unless it is the public default it is a secret, which is not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RingSeed(pub(crate) String);

impl RingSeed {
    /// Returns whether this is the public default, which pools without a seed use.
    pub(crate) fn is_public(&self) -> bool {
        self.0 == "ringway"
    }
}

scalar!(
    RingSeed,
    "a text",
    json!({ "title": "text", "type": "string" }),
    |text| Ok(RingSeed(text.to_owned())),
    |value| if value.is_public() { "ringway" } else { "(hidden)" }.into()
);

/// A TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) u16);

scalar!(
    Port,
    "a port from 1 to 65535",
    json!({ "title": "port", "type": "integer", "minimum": 1, "maximum": 65535 }),
    |text| match text.parse() {
        Ok(port @ 1..) => Ok(Port(port)),
        _ => Err("a port from 1 to 65535".to_owned()),
    },
    |value| value.0.into()
);

/// A DNS name that nodes are discovered by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DnsName {
    /// The addresses of a name; the port is given.
    Addresses(NodeAddress),
    /// The SRV records of a service.
    Service(String),
}

impl DnsName {
    /// Returns the host name of its nodes.
    pub(crate) fn host(&self) -> &str {
        match self {
            DnsName::Addresses(address) => &address.host,
            DnsName::Service(name) => name.splitn(3, '.').last().unwrap_or(name),
        }
    }

    const EXPECTED: &str = "a name with a port like `app.internal:8080`, or a service like `_http._tcp.app.internal`";

    pub(crate) fn parse(text: &str) -> Result<DnsName, String> {
        if text.starts_with('_') && !text.contains(':') {
            let valid = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
            return match valid && text.contains('.') {
                true => Ok(DnsName::Service(text.to_owned())),
                false => Err(Self::EXPECTED.to_owned()),
            };
        }
        NodeAddress::parse(text).map(DnsName::Addresses).map_err(|_| Self::EXPECTED.to_owned())
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DnsName::Addresses(address) => address.fmt(f),
            DnsName::Service(name) => f.write_str(name),
        }
    }
}

scalar!(
    DnsName,
    DnsName::EXPECTED,
    json!({ "title": "DNS name", "type": "string", "examples": ["app.internal:8080", "_http._tcp.app.internal"] }),
    |text| DnsName::parse(text),
    |value| value.to_string().into()
);

/// The hosts of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HostPattern {
    /// `*`
    Any,
    /// `*.example.com`: all names below, at any depth; contains `example.com`.
    Below(String),
    Exact(String),
}

impl HostPattern {
    const EXPECTED: &str = "a host like `api.example.com` or `*.example.com`, without a port";

    fn parse(text: &str) -> Result<HostPattern, String> {
        let lower = text.to_ascii_lowercase();
        let (below, name) = match lower.strip_prefix("*.") {
            _ if lower == "*" => return Ok(HostPattern::Any),
            Some(name) => (true, name),
            None => (false, lower.as_str()),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_owned();
        if !target::is_host(&name) {
            return Err(Self::EXPECTED.to_owned());
        }
        Ok(if below { HostPattern::Below(name) } else { HostPattern::Exact(name) })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Below(name) => write!(f, "*.{name}"),
            HostPattern::Exact(name) => f.write_str(name),
        }
    }
}

scalar!(
    GroupTemplate,
    "a template like `{host}/{path:2}`",
    json!({ "title": "template", "type": "string", "examples": ["{host}/{path:2}", "{header:x-tenant}"] }),
    |text| text.parse::<GroupTemplate>(),
    |value| value.to_string().into()
);

scalar!(
    HostPattern,
    HostPattern::EXPECTED,
    json!({ "title": "host", "type": "string", "examples": ["api.example.com", "*.example.com"] }),
    |text| HostPattern::parse(text),
    |value| value.to_string().into()
);

/// A path in the normal form in which requests are matched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RoutePath(pub(crate) String);

scalar!(
    RoutePath,
    "a path that begins with `/`",
    json!({ "title": "path", "type": "string", "pattern": "^/", "examples": ["/assets"] }),
    |text| match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')) {
        true => target::normalize_path(text)
            .map(|path| RoutePath(path.into_owned()))
            .map_err(|_| "a path without broken percent-encoding".to_owned()),
        false => Err("a path that begins with `/`, without a query".to_owned()),
    },
    |value| value.0.as_str().into()
);
