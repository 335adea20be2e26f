//! The methods that are registered as safe (RFC 9110 9.2.1, RFC 9110 16.1.1).

use http::Method;

/// Those beside `GET`, `HEAD`, `OPTIONS` and `TRACE`. `PRI` is no method of a request.
const OTHERS: [&str; 4] = ["PROPFIND", "QUERY", "REPORT", "SEARCH"];

/// Returns whether a request of this method changes nothing, as its registration says. Methods that are not
/// registered may change anything.
pub(crate) fn is_safe(method: &Method) -> bool {
    method.is_safe() || OTHERS.contains(&method.as_str())
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
