//! The table of problem types: status, `type`, Proxy-Status token, meaning and remedy of each.
//!
//! `docs/errors.md` is made from it: `RINGWAY_BLESS=1 cargo test --lib reference`.

use http::StatusCode;

/// The listeners that a problem occurs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The listeners of clients.
    Clients,
    /// The admin and metrics listeners.
    Admin,
    Both,
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) status: StatusCode,
    /// The stable name after `urn:ringway:problem:`.
    pub(crate) name: &'static str,
    /// RFC 9209's error token; `None` on the admin listener, which sends no `Proxy-Status`.
    pub(crate) token: Option<&'static str>,
    #[cfg_attr(not(test), expect(dead_code, reason = "a column of docs/errors.md"))]
    pub(crate) side: Side,
    /// The cause, in a few words.
    #[cfg_attr(not(test), expect(dead_code, reason = "a column of docs/errors.md"))]
    pub(crate) title: &'static str,
    /// The remedy for an operator or the author of a client.
    #[cfg_attr(not(test), expect(dead_code, reason = "a column of docs/errors.md"))]
    pub(crate) remedy: &'static str,
}

macro_rules! problem_kinds {
    ($($kind:ident: $status:ident, $name:literal, $token:expr, $side:ident, $title:literal, $remedy:literal;)*) => {
        /// The type of a problem document.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ProblemKind {
            $($kind,)*
        }

        impl ProblemKind {
            #[cfg(test)]
            pub(crate) const ALL: &[ProblemKind] = &[$(ProblemKind::$kind),*];

            /// Returns the kind's line of the table.
            pub(crate) const fn row(self) -> Row {
                match self {
                    $(ProblemKind::$kind => Row {
                        status: StatusCode::$status,
                        name: $name,
                        token: $token,
                        side: Side::$side,
                        title: $title,
                        remedy: $remedy,
                    },)*
                }
            }
        }
    };
}

const REQUEST: Option<&str> = Some("http_request_error");
const DENIED: Option<&str> = Some("http_request_denied");
const UNAVAILABLE: Option<&str> = Some("destination_unavailable");
const INTERNAL: Option<&str> = Some("proxy_internal_error");
const INCOMPLETE: Option<&str> = Some("http_response_incomplete");

problem_kinds! {
    BadRequest: BAD_REQUEST, "bad-request", REQUEST, Clients,
        "The request cannot be read as HTTP.",
        "Correct the client; `detail` names the malformed part.";
    BadHost: BAD_REQUEST, "bad-host", REQUEST, Clients,
        "The request has no host, more than one, or one that is not a host and a port.",
        "Send one `Host` field (`:authority` in HTTP/2) that agrees with the URL.";
    BadTarget: BAD_REQUEST, "bad-target", REQUEST, Clients,
        "The request's target is not a valid path or URL.",
        "Percent-encode the path, send no fragment, and use `http` or `https`.";
    BadContentLength: BAD_REQUEST, "bad-content-length", REQUEST, Clients,
        "`Content-Length` is not a number, or several differ.",
        "Send one `Content-Length` that is the length of the body, or none with chunks.";
    BadChunk: BAD_REQUEST, "bad-chunk", REQUEST, Clients,
        "The chunks of the request's body are malformed.",
        "Correct the client's chunked coding, or the intermediary that rewrites it.";
    BadConnectionOption: BAD_REQUEST, "bad-connection-option", REQUEST, Clients,
        "`Connection` names a field that must reach the node, such as `Host` or `Authorization`.",
        "Name only hop-by-hop fields in `Connection`.";
    BadField: BAD_REQUEST, "bad-field", REQUEST, Clients,
        "The name of a field has an underscore, or there is white space where none is allowed.",
        "Rename the field; operators: see `limits.underscores_in_headers`.";
    IncompleteRequest: BAD_REQUEST, "incomplete-request", REQUEST, Clients,
        "The request's body ended before it was complete.",
        "Send the request again. If it happens often, look for a client that gives up early.";
    TlsRequired: BAD_REQUEST, "tls-required", REQUEST, Clients,
        "The client sent plain HTTP to a listener with TLS.",
        "Use `https://` for this address.";
    IdempotencyKeyMissing: BAD_REQUEST, "idempotency-key-missing", REQUEST, Clients,
        "The route requires an `Idempotency-Key`, and the request has none.",
        "Send a new, unique key with each new operation, and the same key with its retries.";
    IdempotencyKeyInvalid: BAD_REQUEST, "idempotency-key-invalid", REQUEST, Clients,
        "The `Idempotency-Key` is invalid.",
        "Send one key as a quoted text, for example a UUID; `detail` tells the error.";
    ScopeMissing: BAD_REQUEST, "scope-missing", REQUEST, Clients,
        "The request has none of the fields that identify the caller (`idempotency.scope`).",
        "Authenticate the request. Operators: name a field under `scope` that every caller sends.";
    SagaInput: BAD_REQUEST, "saga-input", REQUEST, Clients,
        "The request's body is not JSON, or lacks a value that the route's saga uses; nothing was done.",
        "Send the value that `detail` names, as JSON.";
    MissingKey: BAD_REQUEST, "missing-key", None, Admin,
        "The query has no `key`.",
        "Add `?key=KEY` to the path.";
    BadPurge: BAD_REQUEST, "bad-purge", None, Admin,
        "The body of a purge does not select any responses.",
        "Send one of `url`, `prefix`, `tag` and `\"all\": true`, and `soft` if needed.";
    BadFilter: BAD_REQUEST, "bad-filter", None, Admin,
        "A parameter of `/api/tap`, `/api/top` or `/api/history` is unknown, or its value is none.",
        "Correct the parameter that `detail` names.";
    BadPlan: BAD_REQUEST, "bad-plan", None, Admin,
        "The body of `/api/plan` is no plan: a `file`, or a `pool` with `without` and `with`.",
        "Correct what `detail` names. Errors within a file are no problem: they stand in the response.";
    BadDecision: BAD_REQUEST, "bad-decision", None, Admin,
        "There is no such state of sagas, or the body of a decision does not say what became of the saga.",
        "Send `\"outcome\": \"succeeded\"` or `\"compensated\"` to `resolve`, and your name as `by` if you want it.";
    Unauthorized: UNAUTHORIZED, "unauthorized", None, Admin,
        "The request has no valid token.",
        "Send `Authorization: Bearer TOKEN`, or give `--token-file` to the command.";
    CrossSite: FORBIDDEN, "cross-site", None, Admin,
        "A page of another site sent the request.",
        "Call the API from a script, or from a page of the listener itself.";
    NoRoute: NOT_FOUND, "no-route", Some("destination_not_found"), Clients,
        "No route matches the host, path, method and fields.",
        "Check the URL. Operators: `ringway explain METHOD URL` shows how routes are matched.";
    NotFound: NOT_FOUND, "not-found", None, Admin,
        "The listener does not have this path.",
        "Check the path against the list of the admin API; the metrics listener has fewer paths.";
    NoSuchNode: NOT_FOUND, "no-such-node", None, Admin,
        "The pool has no such node, or there is no such pool.",
        "`ringway status` lists pools and the ids of their nodes.";
    NoSuchRecord: NOT_FOUND, "no-such-record", None, Admin,
        "The idempotency store has no record with this id.",
        "Look it up anew with `/api/idempotency?key=KEY`: it may have expired.";
    NoSuchSaga: NOT_FOUND, "no-such-saga", Some("destination_not_found"), Both,
        "There is no saga with this id, or it is another caller's.",
        "Ask with the credentials of the request that began it. Operators: `ringway sagas` lists them.";
    NoSuchMember: NOT_FOUND, "no-such-member", None, Admin,
        "The fleet has no such member, or there is no fleet.",
        "`ringway fleet` lists the members with their processes.";
    MethodNotAllowed: METHOD_NOT_ALLOWED, "method-not-allowed", DENIED, Both,
        "CONNECT and TRACE are not answered; the path of a saga's state, or of the admin API, has other methods.",
        "Use another method: `Allow` or `detail` names those of the path.";
    RequestTimeout: REQUEST_TIMEOUT, "request-timeout", REQUEST, Both,
        "The request's head or body did not arrive in time, or the body came too slowly.",
        "Send the request again. Operators: see `limits`: `header_timeout`, `body_idle_timeout` and `body_min_rate`.";
    RequestInProgress: CONFLICT, "request-in-progress", DENIED, Clients,
        "A request with this `Idempotency-Key` is still running.",
        "Repeat the request with the same key after `Retry-After`.";
    OutcomeUnknown: CONFLICT, "outcome-unknown", INCOMPLETE, Clients,
        "The request may have run, and no complete response arrived.",
        "With `Retry-After`, repeat it with the same key. Without it, find out first whether it ran; an operator can release the record.";
    ResultTooLarge: CONFLICT, "result-too-large", DENIED, Clients,
        "A request with this `Idempotency-Key` has run; its response was too large to be kept.",
        "Read the result elsewhere. Operators: raise `max_response`, or `limits.buffered_bytes`.";
    SagaRunning: CONFLICT, "saga-running", DENIED, Clients,
        "The steps of a request with this `Idempotency-Key` are still running.",
        "Repeat the request with the same key after `Retry-After`, or ask at `Location`.";
    SagaCompensating: CONFLICT, "saga-compensating", DENIED, Clients,
        "A step has failed, or the deadline has passed, and the steps before it are being undone.",
        "Repeat the request with the same key after `Retry-After`, or ask at `Location`.";
    ConcurrentWrite: CONFLICT, "concurrent-write", DENIED, Clients,
        "Another write to the same group is not known to the session (`on_concurrent_write: reject`).",
        "Read the resource, merge both changes, and write again with the session's new token.";
    SagaCompensated: CONFLICT, "saga-compensated", DENIED, Clients,
        "A step has failed, and all steps before it are undone; `detail` names the step and its status.",
        "Mend what the step refused, and send the request with a new key: nothing of it is left.";
    SagaStuck: CONFLICT, "saga-stuck", DENIED, Clients,
        "A step can be neither finished nor undone, and a person has to decide.",
        "Ask at `Location` later. Operators: `ringway sagas --state stuck`, then `retry` or `resolve`.";
    SagaNotStuck: CONFLICT, "saga-not-stuck", None, Admin,
        "The saga is not stuck: the proxy works on it, or it has ended.",
        "Look at it again with `ringway sagas`; there is nothing to decide.";
    SagaElsewhere: CONFLICT, "saga-elsewhere", None, Admin,
        "The configuration of this proxy lacks a pool that the saga uses.",
        "Decide at a proxy that has the pool, or add it here.";
    RecordRunning: CONFLICT, "record-running", None, Admin,
        "The request of the record still runs.",
        "Wait until it has ended, then look up the record again.";
    ContentTooLarge: PAYLOAD_TOO_LARGE, "content-too-large", REQUEST, Both,
        "The body is larger than the listener or the route allows.",
        "Send less. Operators: `limits.request_body`, and `max_request` of `idempotency`.";
    SagaInputTooLarge: PAYLOAD_TOO_LARGE, "saga-input-too-large", REQUEST, Clients,
        "The parts of the request that the route's saga uses come to more than 64 KiB; nothing was done.",
        "Send less in the values that the steps use, for example a reference to what is stored elsewhere.";
    UriTooLong: URI_TOO_LONG, "uri-too-long", REQUEST, Clients,
        "The request's target is too long.",
        "Move data from the query to a body. Operators: see `limits.header_bytes`.";
    ExpectationFailed: EXPECTATION_FAILED, "expectation-failed", REQUEST, Clients,
        "`Expect` asks for something other than `100-continue`.",
        "Send no other expectation.";
    MisdirectedRequest: MISDIRECTED_REQUEST, "misdirected-request", REQUEST, Clients,
        "The certificate of the connection does not cover the request's host.",
        "Send the request on a connection of its own. Operators: give the host a certificate.";
    ForeignHost: MISDIRECTED_REQUEST, "bad-host", None, Admin,
        "The admin listener does not accept the request's host.",
        "Use its address, or add the host to `admin.allowed_hosts`.";
    IdempotencyKeyReused: UNPROCESSABLE_ENTITY, "idempotency-key-reused", DENIED, Clients,
        "The `Idempotency-Key` was used for another query, content type or body.",
        "Use a new key for a new operation, and retry requests unchanged.";
    ReloadFailed: UNPROCESSABLE_ENTITY, "reload-failed", None, Admin,
        "The configuration file was refused; the previous configuration stays in use.",
        "Correct the line that `detail` names; `ringway check` lists all errors.";
    RateLimited: TOO_MANY_REQUESTS, "rate-limited", DENIED, Clients,
        "The client has exceeded the `rate_limit` of the route.",
        "Wait for `Retry-After`. Operators: `ringway_rate_limited_total` counts these responses.";
    HeaderTooLarge: REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", REQUEST, Clients,
        "The request's head is larger, or has more fields, than allowed.",
        "Send fewer or smaller fields; cookies are the usual cause. Operators: `limits.header_bytes` and `headers`.";
    UnsupportedTransferCoding: NOT_IMPLEMENTED, "unsupported-transfer-coding", REQUEST, Clients,
        "The body has a transfer coding other than exactly `chunked`.",
        "Send the body chunked or with a `Content-Length`; compress by `Content-Encoding`.";
    UpstreamFailed: BAD_GATEWAY, "upstream-failed", INTERNAL, Clients,
        "No node responded; `Proxy-Status` and `detail` name the failure.",
        "Look at the node's log and at `ringway_upstream_requests_total` by `outcome`. Clients may retry idempotent requests.";
    StoreUnavailable: SERVICE_UNAVAILABLE, "store-unavailable", INTERNAL, Both,
        "The idempotency store is not available; nothing was forwarded.",
        "Repeat with the same key after `Retry-After`. Operators: the process log has the cause.";
    FleetUnavailable: SERVICE_UNAVAILABLE, "fleet-unavailable", None, Admin,
        "etcd does not answer, or refuses: the state of a node for the fleet may not be set.",
        "Send the request again: a state that is set twice is the same. `ringway fleet` has the cause.";
    ConsistencyUnavailable: SERVICE_UNAVAILABLE, "consistency-unavailable", INTERNAL, Clients,
        "Too few nodes of `fleet.redis` answer for a strong read or write; nothing was forwarded.",
        "Repeat after `Retry-After`. Operators: `on_quorum_loss` and `on_write_quorum_loss` choose; `/api/fleet` has the nodes.";
    BuffersFull: SERVICE_UNAVAILABLE, "buffers-full", INTERNAL, Clients,
        "The buffers of the proxy have reached `limits.buffered_bytes`.",
        "Repeat the request later. Operators: watch `ringway_buffered_bytes`, and raise the limit.";
    NoHealthyNode: SERVICE_UNAVAILABLE, "no-healthy-node", UNAVAILABLE, Clients,
        "No node of the pool is available.",
        "Repeat after `Retry-After`. Operators: `ringway status` shows the reason for each node.";
    ConnectionLimitReached: SERVICE_UNAVAILABLE, "connection-limit-reached", Some("connection_limit_reached"), Clients,
        "Every node of the pool has reached its limit of requests in flight.",
        "Repeat after `Retry-After`. Operators: add nodes, or raise the nodes' limits or the queue.";
    SessionNodeDown: SERVICE_UNAVAILABLE, "session-node-down", UNAVAILABLE, Clients,
        "The node of a strict session is down, and `on_gone` is `reject`.",
        "Retry later, or begin a new session. Operators: bring the node back, or let sessions move.";
    BeingReplaced: SERVICE_UNAVAILABLE, "being-replaced", None, Admin,
        "A new process is taking over.",
        "Send the request again on a new connection.";
    TooManyReaders: SERVICE_UNAVAILABLE, "too-many-readers", None, Admin,
        "The limit of readers of `/api/events`, or of `/api/tap`, is reached.",
        "Close one of them, or retry after `Retry-After`.";
    UpstreamTimeout: GATEWAY_TIMEOUT, "upstream-timeout", Some("http_response_timeout"), Clients,
        "A node did not accept a connection, or did not answer, in time.",
        "Find out why the node is slow. Operators: see `timeouts` of the pool.";
    NotCached: GATEWAY_TIMEOUT, "not-cached", DENIED, Clients,
        "The request has `only-if-cached`, and no stored response can answer it.",
        "Send the request without `only-if-cached`.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    /// The error types of RFC 9209 and its registry.
    const TOKENS: &[&str] = &[
        "connection_limit_reached",
        "destination_not_found",
        "destination_unavailable",
        "http_request_denied",
        "http_request_error",
        "http_response_incomplete",
        "http_response_timeout",
        "proxy_internal_error",
    ];

    #[test]
    fn the_reference_lists_every_problem_type() {
        let mut page = String::from(
            "# Error reference\n\nThis page is generated from the table in `src/http/problem_kinds.rs`; do not edit it.\n\nThe proxy's own responses are problem documents (RFC 9457, `application/problem+json`) with a\nstable `type`, `urn:ringway:problem:NAME`. On listeners for clients they have\n`Proxy-Status: ringway; error=TOKEN` (RFC 9209), which distinguishes them from the responses of your\nnodes. `detail` tells more about the case.\n",
        );
        for (title, side) in
            [("On listeners for clients", Side::Clients), ("On the admin and metrics listeners", Side::Admin)]
        {
            page += &format!(
                "\n## {title}\n\n| status | type | token | what happened | what to do |\n| --- | --- | --- | --- | --- |\n"
            );
            let mut rows: Vec<Row> = ProblemKind::ALL.iter().map(|kind| kind.row()).collect();
            rows.retain(|row| row.side == side || row.side == Side::Both);
            rows.sort_by_key(|row| row.status.as_u16());
            for row in rows {
                let token = match (side, row.token) {
                    (Side::Clients, Some(_)) if row.name.starts_with("upstream-") => "that of the failure".to_owned(),
                    (Side::Clients, Some(token)) => format!("`{token}`"),
                    _ => String::new(),
                };
                let Row { status, name, title, remedy, .. } = row;
                page += &format!("| {} | `{name}` | {token} | {title} | {remedy} |\n", status.as_u16());
            }
        }
        reference::compare("docs/errors.md", &page);
    }

    #[test]
    fn a_type_has_one_meaning_on_a_side() {
        let mut seen = BTreeSet::new();
        for row in ProblemKind::ALL.iter().map(|kind| kind.row()) {
            let sides: &[Side] = match row.side {
                Side::Both => &[Side::Clients, Side::Admin],
                Side::Clients => &[Side::Clients],
                Side::Admin => &[Side::Admin],
            };
            for side in sides {
                assert!(seen.insert((row.name, format!("{side:?}"))), "{} stands twice", row.name);
            }
            assert!(row.side == Side::Admin || row.token.is_some_and(|token| TOKENS.contains(&token)), "{}", row.name);
            assert!(!row.title.is_empty() && !row.remedy.is_empty(), "{}", row.name);
        }
    }

    /// Pages list types in tables with `urn:ringway:problem:` in their head.
    #[test]
    fn documents_name_no_other_types() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut known: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
        for row in ProblemKind::ALL.iter().map(|kind| kind.row()) {
            known.entry(row.name).or_default().push(row.status.as_u16());
        }
        let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let mut found = 0;
        for page in pages.chain([root.join("README.md")]).filter(|page| page.extension().is_some_and(|it| it == "md")) {
            let text = std::fs::read_to_string(&page).unwrap();
            let mut is_table = false;
            for line in text.lines() {
                is_table = line.starts_with('|') && (is_table || line.contains("type `urn:ringway:problem:`"));
                let mut cells = line.split('|').skip(1);
                let (true, Some(statuses), Some(types)) = (is_table, cells.next(), cells.next()) else { continue };
                let statuses: Vec<u16> = statuses.split([',', ' ']).filter_map(|status| status.parse().ok()).collect();
                for name in types.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("urn:")) {
                    let known = known.get(name).unwrap_or_else(|| panic!("{}: `{name}`", page.display()));
                    assert!(known.iter().any(|status| statuses.contains(status)), "{}: {line}", page.display());
                    found += 1;
                }
            }
        }
        assert!(found > 10, "the tables of the pages were not found");
    }
}
