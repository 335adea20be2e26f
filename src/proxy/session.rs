//! Sessions of causal routes: the token that a request brings is taken off it before any step reads the fields, and the
//! answer brings the new one.
//!
//! The token travels in the cookie `ringway-session` or in the field `Ringway-Session`. An answer has it in the form in
//! which the request had it, in both where the request had none, and only where it has changed.

use super::groups::{GroupedRequest, uri_group};
use super::hash_key::cookies;
use super::request::Form;
use super::strong::StrongReads;
use crate::clock;
use crate::config::{self, Config, Level, OnConcurrentWrite, Reads};
use crate::consistency::{
    Causality, Dot, GroupTemplate, Groups, Guarantee, Known, Opened, Requester, Signer, Token, digest, group_id,
};
use crate::fleet::quorum::QuorumRules;
use crate::fleet::{Bus, Event};
use crate::http::fields::{is_unclosed, items};
use crate::http::head::RequestFields;
use crate::http::method::is_safe;
use crate::http::problem::{Problem, ProblemKind};
use crate::telemetry::metrics::Metrics;
use http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use prometheus::IntCounter;
use serde_json::{Value, json};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// The cookie of a token.
const COOKIE_NAME: &str = "ringway-session";
/// The field of a token.
pub(crate) const FIELD: HeaderName = HeaderName::from_static("ringway-session");
/// The most tokens that a request may bring, such as cookies for several paths.
const MAX_TOKENS: usize = 4;
/// The life of a cookie, in seconds: that of its token.
const LIFE: u64 = 24 * 3600;

/// The signer of a configuration with causal routes.
pub(crate) struct SessionRules {
    signer: Signer,
    /// The digest of the routes' templates, by which tokens are understood.
    digest: u32,
}

impl SessionRules {
    /// Returns the rules; `None` where no route is causal.
    pub(super) fn build(config: &Config) -> Option<Arc<SessionRules>> {
        let causal = || config.settings.routes.iter().filter(|route| route.level() == Level::Causal);
        causal().next()?;
        let templates = causal().flat_map(|route| {
            let own = route.consistency.iter().flat_map(|rules| &rules.groups);
            own.map(|template| (route.name.as_str(), &template.value))
        });
        let digest = digest(templates);
        Some(Arc::new(SessionRules { signer: Signer::new(&config.secrets.fleet_secrets, digest), digest }))
    }
}

/// The guarantee of a route, and its groups.
pub(crate) struct ConsistencyRules {
    pub(super) guarantee: Guarantee,
    templates: Vec<GroupTemplate>,
    /// Writes of sessions that do not know of another write are refused.
    refuses_concurrent: bool,
    /// Stored responses that were dropped for a concurrent write.
    pub(super) concurrent: IntCounter,
    /// Set where reads are verified by a quorum.
    pub(super) strong: Option<StrongReads>,
}

impl ConsistencyRules {
    /// Returns the rules of a route; `None` where it guarantees nothing.
    pub(super) fn build(
        route: &config::Route,
        metrics: &Metrics,
        quorum: Option<&Arc<QuorumRules>>,
    ) -> Option<ConsistencyRules> {
        let reads = route.consistency.as_ref().filter(|rules| rules.is_by_quorum()).map(config::Consistency::reads);
        let quorum = quorum.filter(|_| reads == Some(Reads::Cache));
        let guarantee = match route.level() {
            Level::Eventual => return None,
            Level::Causal => Guarantee::Causal,
            Level::Strong if quorum.is_some() => Guarantee::Quorum,
            Level::Strong => Guarantee::Strong,
        };
        let own = route.consistency.iter().flat_map(|rules| &rules.groups).map(|template| template.value.clone());
        let uri = uri_group();
        Some(ConsistencyRules {
            guarantee,
            refuses_concurrent: route
                .consistency
                .as_ref()
                .is_some_and(|rules| rules.on_concurrent_write.value == OnConcurrentWrite::Reject),
            templates: own.chain([uri]).collect(),
            concurrent: metrics.concurrent_writes.with_label_values(&[route.name.as_str()]),
            strong: quorum.map(|quorum| StrongReads::build(route, quorum, metrics)),
        })
    }

    /// Returns the groups of a request.
    fn groups(&self, form: &Form<'_>, fields: &RequestFields) -> Groups {
        let subject = GroupedRequest { form, fields };
        self.templates.iter().map(|template| template.group(&subject)).collect()
    }
}

/// Notes a write that this process has made itself, and tells the other members of the fleet.
pub(super) fn announce(causality: &Causality, bus: Option<&Bus>, groups: &[String]) {
    let write = causality.write(groups.iter().map(|group| group_id(group)).collect());
    if let Some(bus) = bus {
        bus.publish(Event::Write { uris: Vec::new(), causal: Some(write.encode().into()) });
    }
}

/// The token that a client has, as far as its connection knows: a request with the same text needs no verification.
pub(super) struct Given {
    rules: Arc<SessionRules>,
    token: Rc<Token>,
    text: Box<[u8]>,
}

impl Given {
    /// Returns whether a request brings this token in a cookie, and no other cookie.
    fn is_cookie_of(&self, rules: &Arc<SessionRules>, fields: &HeaderMap) -> bool {
        let mut lines = fields.get_all(COOKIE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return false };
        let value = line.as_bytes().strip_prefix(COOKIE_NAME.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        value.is_some_and(|value| *value == *self.text)
            && Arc::ptr_eq(&self.rules, rules)
            && !fields.contains_key(FIELD)
    }
}

type GivenSlot = RefCell<Option<Given>>;

/// The token that a request has brought, and the forms in which it had it.
#[derive(Default)]
pub(super) struct Received {
    token: Rc<Token>,
    /// The text, where it is one and a good one.
    text: Option<Box<[u8]>>,
    in_cookie: bool,
    in_field: bool,
}

/// Takes the tokens off a request.
pub(super) fn take(
    rules: &Arc<SessionRules>,
    fields: &mut RequestFields,
    given: &GivenSlot,
    metrics: &Metrics,
) -> Received {
    if let Some(given) = given.borrow().as_ref().filter(|given| given.is_cookie_of(rules, fields.plain())) {
        let received = Received { token: Rc::clone(&given.token), in_cookie: true, ..Received::default() };
        fields.remove(&COOKIE);
        return received;
    }
    let mut received = Received::default();
    let mut texts: SmallVec<[&[u8]; 1]> = SmallVec::new();
    for value in fields.plain().get_all(FIELD) {
        received.in_field = true;
        // An empty value asks for the field, and brings no token.
        texts.extend(Some(value.as_bytes()).filter(|text| !text.is_empty()));
    }
    for value in cookies(fields.plain(), COOKIE_NAME) {
        received.in_cookie = true;
        texts.push(value);
    }
    match (&texts[..], &*given.borrow()) {
        ([], _) => {}
        ([text], Some(given)) if *given.text == **text && Arc::ptr_eq(&given.rules, rules) => {
            received.token = Rc::clone(&given.token);
        }
        _ => (received.token, received.text) = open(rules, &texts, metrics),
    }
    drop(texts);
    if received.in_field {
        fields.remove(&FIELD);
    }
    if received.in_cookie {
        fields.remove_cookie(COOKIE_NAME);
    }
    received
}

/// Returns what several texts bring together, and the text where it is one and a good one.
fn open(rules: &SessionRules, texts: &[&[u8]], metrics: &Metrics) -> (Rc<Token>, Option<Box<[u8]>>) {
    let now = clock::unix_seconds();
    let (mut token, mut good) = (None::<Token>, None);
    for (number, text) in texts.iter().enumerate() {
        let opened = if number < MAX_TOKENS { rules.signer.open(text, now) } else { Opened::Bad };
        let (other, result) = match opened {
            Opened::Token(other) => {
                good = Some((*text).into());
                (other, None)
            }
            Opened::Expired => (Token::default(), Some("expired")),
            Opened::OtherTemplates => (Token::unknown(), Some("other_templates")),
            Opened::Bad => (Token::unknown(), Some("bad")),
        };
        if let Some(result) = result {
            metrics.session_tokens.with_label_values(&[result]).inc();
        }
        match &mut token {
            None => token = Some(other),
            Some(token) => token.join(&other),
        }
    }
    (Rc::new(token.unwrap_or_default()), good.filter(|_| texts.len() == 1))
}

/// A request on a route with a guarantee, until its answer leaves.
pub(super) struct Session {
    requester: Rc<Requester>,
    /// `None` on a strong route.
    causal: Option<CausalSession>,
}

struct CausalSession {
    rules: Arc<SessionRules>,
    /// The tokens that the client has sent.
    received: Received,
    is_secure: bool,
}

impl Session {
    /// Returns the session of a request.
    pub(super) fn begin(
        (causality, given): (&Arc<Causality>, &GivenSlot),
        rules: &ConsistencyRules,
        sessions: Option<(&Arc<SessionRules>, Received)>,
        (form, fields): (&Form<'_>, &RequestFields),
    ) -> Session {
        let of = |groups, token| match rules.refuses_concurrent {
            true => Rc::new(Requester::new(causality, rules.guarantee, groups, token).knowing_writes()),
            false => Rc::new(Requester::new(causality, rules.guarantee, groups, token)),
        };
        match (rules.guarantee, sessions) {
            (Guarantee::Causal, Some((sessions, received))) => {
                let requester = of(rules.groups(form, fields), arrived(&received.token, given, sessions));
                let is_secure = fields.facts.is_secure;
                let causal = CausalSession { rules: Arc::clone(sessions), received, is_secure };
                Session { requester, causal: Some(causal) }
            }
            (Guarantee::Quorum, _) => {
                Session { requester: of(rules.groups(form, fields), Rc::default()), causal: None }
            }
            _ => Session { requester: of(Groups::new(), Rc::default()), causal: None },
        }
    }

    /// Returns the session of a request that writes to these groups by requests of the proxy's own.
    pub(super) fn of_groups(
        (causality, given): (&Arc<Causality>, &GivenSlot),
        groups: &[String],
        (sessions, received): (&Arc<SessionRules>, Received),
        is_secure: bool,
    ) -> Session {
        let token = arrived(&received.token, given, sessions);
        let groups = groups.iter().map(|group| group_id(group)).collect();
        let requester = Requester::new(causality, Guarantee::Causal, groups, token);
        let causal = CausalSession { rules: Arc::clone(sessions), received, is_secure };
        Session { requester: Rc::new(requester), causal: Some(causal) }
    }

    /// Refuses a write whose session does not know of another write, where the route says so.
    pub(super) fn check_write(&self, method: &Method) -> Result<(), Problem> {
        match self.requester.unseen_write().filter(|_| !is_safe(method)) {
            None => Ok(()),
            Some(known) => Err(concurrent_write(&self.requester, &known)),
        }
    }

    pub(super) fn requester(&self) -> &Rc<Requester> {
        &self.requester
    }

    /// Adds the token to an answer, and bars caches behind the proxy from it: their copies would be outside of the
    /// guarantee. A stored result of an idempotent request keeps its own `Cache-Control`.
    pub(super) fn finish(&self, fields: &mut HeaderMap, given: &GivenSlot, is_stored_result: bool) {
        match is_stored_result {
            true => _ = fields.remove(FIELD),
            false => bar_other_caches(fields),
        }
        let Some(causal) = &self.causal else { return };
        let has_it = |given: &Given| Rc::ptr_eq(&given.token, &self.requester.token) && self.requester.has_answer();
        if given.borrow().as_ref().is_some_and(has_it) {
            return;
        }
        let mut token = arrived(&self.requester.token, given, &causal.rules).as_ref().clone();
        self.requester.answer(&mut token);
        let text = match token.is_same_as(&causal.received.token) {
            true => causal.received.text.clone().unwrap_or_default(),
            false => causal.put(&mut token, fields).into(),
        };
        *given.borrow_mut() = Some(Given { rules: Arc::clone(&causal.rules), token: Rc::new(token), text });
    }
}

/// Returns a session's token with what the connection was given, which counts also where the client does not bring it
/// back. Under other templates it can only be said that there was something.
fn arrived(token: &Rc<Token>, given: &GivenSlot, rules: &SessionRules) -> Rc<Token> {
    match &*given.borrow() {
        Some(given) if !Rc::ptr_eq(&given.token, token) => {
            let mut token = Token::clone(token);
            match given.rules.digest == rules.digest {
                true => token.join(&given.token),
                false => token.join(&Token::unknown()),
            }
            Rc::new(token)
        }
        _ => Rc::clone(token),
    }
}

impl CausalSession {
    /// Adds a token to an answer. Returns its text.
    fn put(&self, token: &mut Token, fields: &mut HeaderMap) -> Vec<u8> {
        let text = self.rules.signer.seal(token, clock::unix_seconds());
        let Received { in_cookie, in_field, .. } = self.received;
        if (in_cookie || !in_field)
            && let Ok(cookie) = HeaderValue::try_from(format!(
                "{COOKIE_NAME}={text}; Path=/; Max-Age={LIFE}; HttpOnly; SameSite=Lax{}",
                if self.is_secure { "; Secure" } else { "" }
            ))
        {
            fields.append(SET_COOKIE, cookie);
        }
        if (in_field || !in_cookie)
            && let Ok(value) = HeaderValue::try_from(&text)
        {
            fields.insert(FIELD, value);
        }
        text.into_bytes()
    }
}

/// Returns the 409 for a write whose session does not know of another one, with the clocks of both.
fn concurrent_write(requester: &Requester, known: &Known) -> Problem {
    let clock = |dots: &mut dyn Iterator<Item = Dot>| {
        let numbers = dots.map(|dot| (format!("{:016x}", dot.process), json!(dot.number)));
        Value::Object(numbers.collect())
    };
    let detail = "another write to the same group is not known to this session: read, merge and write again";
    let mut theirs = known.clock.iter().chain([known.dot]);
    let mut yours = requester.token.writes(&requester.groups);
    Problem::new(ProblemKind::ConcurrentWrite, detail)
        .with_member("concurrent", clock(&mut theirs))
        .with_member("yours", clock(&mut yours))
}

/// The directives by which only the client's own cache may keep a response, and asks before it uses it.
const ONLY_PRIVATE: &str = "private, no-cache";
/// Directives that would let another cache serve a response without asking.
const SHARED: [&str; 5] = ["public", "s-maxage", "proxy-revalidate", "private", "no-cache"];
/// Fields by which other caches are told more than by `Cache-Control`, and the field of the token, which is the proxy's.
const BARRED: [HeaderName; 3] =
    [HeaderName::from_static("cdn-cache-control"), HeaderName::from_static("surrogate-control"), FIELD];

thread_local! {
    /// The last `Cache-Control` of one line, and the value in its place: most responses of a route have the same.
    static LAST_BARRED: RefCell<Option<(HeaderValue, HeaderValue)>> = const { RefCell::new(None) };
}

/// Adds `private, no-cache` to a response, in place of what contradicts it.
fn bar_other_caches(fields: &mut HeaderMap) {
    let mut lines = fields.get_all(&CACHE_CONTROL).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => {
            let value = LAST_BARRED.with_borrow_mut(|last| match last {
                Some((known, value)) if known == line => value.clone(),
                _ => last.insert((line.clone(), barred([line].into_iter()))).1.clone(),
            });
            if let Some(line) = fields.get_mut(&CACHE_CONTROL) {
                *line = value;
            }
        }
        _ => {
            let value = barred(fields.get_all(&CACHE_CONTROL).iter());
            fields.insert(CACHE_CONTROL, value);
        }
    }
    // Most responses have none of them, which one pass finds out.
    let is_barred = |name: &HeaderName| matches!(name.as_str().len(), 15 | 17) && BARRED.contains(name);
    if fields.keys().any(is_barred) {
        BARRED.iter().for_each(|name| _ = fields.remove(name));
    }
}

/// Returns the directives of a response without those that are for other caches, and with `private, no-cache`.
fn barred<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> HeaderValue {
    let mut value = Vec::new();
    for item in lines.flat_map(|line| items(line.as_bytes())) {
        let name = item.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
        let is_shared = SHARED.iter().any(|shared| name.eq_ignore_ascii_case(shared.as_bytes()));
        let kept = match is_unclosed(item) {
            // It would swallow the directives behind it. Of all that another reader finds in it, one must not be lost.
            true if has_no_store(item) => &b"no-store"[..],
            true => continue,
            false if is_shared => continue,
            false => item,
        };
        value.extend_from_slice(kept);
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(ONLY_PRIVATE.as_bytes());
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(ONLY_PRIVATE))
}

fn has_no_store(item: &[u8]) -> bool {
    item.to_ascii_lowercase().windows(8).any(|part| part == b"no-store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_caches_are_barred_whatever_the_response_says() {
        for (lines, expected) in [
            (&[][..], "private, no-cache"),
            (&["max-age=60"], "max-age=60, private, no-cache"),
            (&["public, max-age=60", "S-MaxAge=9, must-revalidate"], "max-age=60, must-revalidate, private, no-cache"),
            (&["no-store"], "no-store, private, no-cache"),
            (&["private, no-cache"], "private, no-cache"),
            (&["no-cache=\"set-cookie, x\", max-age=1"], "max-age=1, private, no-cache"),
            (&["No-Store", "max-age=0, no-cache=\"x\""], "No-Store, max-age=0, private, no-cache"),
            (
                &["private=\"a, b\", no-transform", "x=\"\\\"public, y\""],
                "no-transform, x=\"\\\"public, y\", private, no-cache",
            ),
            (&["max-age=1, x=\"public, no-store"], "max-age=1, no-store, private, no-cache"),
            (&["x=\"a\\"], "private, no-cache"),
        ] {
            let mut fields = HeaderMap::new();
            lines.iter().for_each(|line| _ = fields.append(CACHE_CONTROL, HeaderValue::from_static(line)));
            fields.insert("cdn-cache-control", HeaderValue::from_static("max-age=9"));
            bar_other_caches(&mut fields);
            let found: Vec<&HeaderValue> = fields.get_all(CACHE_CONTROL).iter().collect();
            assert_eq!(found, [expected], "{lines:?}");
            assert!(!fields.contains_key("cdn-cache-control"));
        }
    }
}
