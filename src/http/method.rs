//! The registered methods: those that are safe (RFC 9110 9.2.1, RFC 9110 16.1.1), and how they are written.

use http::Method;

/// The safe methods besides `GET`, `HEAD`, `OPTIONS` and `TRACE`. `PRI` is not a method of requests.
const OTHERS: [&str; 4] = ["PROPFIND", "QUERY", "REPORT", "SEARCH"];

/// Returns whether a method is safe by its registration. Unregistered methods count as unsafe.
pub(crate) fn is_safe(method: &Method) -> bool {
    method.is_safe() || OTHERS.contains(&method.as_str())
}

/// Returns whether a method is one of RFC 9110 or `PATCH` but for its case, which counts (RFC 9110 9.1).
pub(crate) fn differs_by_case(method: &Method) -> bool {
    const COMMON: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    COMMON.iter().any(|common| common != method && common.as_str().eq_ignore_ascii_case(method.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_registered_as_safe_is_safe() {
        for (name, safe) in [
            ("GET", true),
            ("HEAD", true),
            ("OPTIONS", true),
            ("TRACE", true),
            ("PROPFIND", true),
            ("QUERY", true),
            ("REPORT", true),
            ("SEARCH", true),
            ("POST", false),
            ("PUT", false),
            ("DELETE", false),
            ("PATCH", false),
            ("PROPPATCH", false),
            ("M-SEARCH", false),
            ("query", false),
        ] {
            assert_eq!(is_safe(&Method::from_bytes(name.as_bytes()).unwrap()), safe, "{name}");
        }
    }
}
