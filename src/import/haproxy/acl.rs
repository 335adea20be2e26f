//! Conditions: `acl`, and `if` and `unless` behind a rule.

use super::super::draft::{PathMatch, Route, host, is_field, is_path, slug};
use super::super::yaml::Value;
use super::syntax::Line;

/// A test that a route can make.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Paths(Vec<PathMatch>),
    Hosts(Vec<String>),
    Methods(Vec<String>),
    Scheme(&'static str),
    /// A field with one of these values; `*` is any.
    Header(String, Vec<String>),
    Always,
    Never,
}

/// The `acl` lines of a section; those of one name are alternatives.
pub(super) struct Acls<'a> {
    lines: Vec<&'a Line>,
}

/// One of the alternatives of a condition.
#[derive(Debug)]
pub(super) struct Alternative {
    /// The routes that match it; more requests than it where some tests are unknown.
    pub(super) routes: Vec<Route>,
    pub(super) unknown: Unknown,
    /// A difference between the condition and the routes.
    pub(super) difference: Option<&'static str>,
}

/// The tests of an alternative that a route cannot make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    /// No test is known.
    pub(super) is_all: bool,
    /// There are tests for something, such as a list of bad clients.
    pub(super) has_positive: bool,
    /// There are tests against something, such as a list of good clients.
    pub(super) has_negative: bool,
}

impl Unknown {
    /// Returns whether there is any unknown test.
    pub(super) fn is_any(self) -> bool {
        self.has_positive || self.has_negative
    }
}

impl<'a> Acls<'a> {
    pub(super) fn new(lines: &[&'a Line]) -> Acls<'a> {
        Acls { lines: lines.iter().filter(|line| line.word(0) == "acl").copied().collect() }
    }

    /// Returns the alternatives of the condition at the end of a rule; without one, all requests.
    ///
    /// `base`: what the routes match besides.
    pub(super) fn condition(&self, words: &[String], base: &Route) -> Vec<Alternative> {
        let mut words = words.iter().map(String::as_str).skip_while(|word| !matches!(*word, "if" | "unless"));
        let is_negative = words.next() == Some("unless");
        let words: Vec<&str> = words.collect();
        if words.is_empty() {
            let routes = vec![base.clone()];
            return vec![Alternative { routes, unknown: Unknown::default(), difference: None }];
        }
        let mut alternatives: Vec<Vec<Term<'_>>> =
            words.split(|word| matches!(*word, "||" | "or")).map(terms_of).collect();
        if is_negative {
            let Some(negated) = negated(&alternatives) else {
                let unknown = Unknown { is_all: true, has_positive: true, has_negative: true };
                return vec![Alternative { routes: vec![base.clone()], unknown, difference: None }];
            };
            alternatives = negated;
        }
        alternatives.iter().map(|terms| self.alternative(terms, base)).collect()
    }

    /// Returns the text of the `acl` lines that a condition names.
    pub(super) fn text(&self, words: &[String]) -> String {
        let is_named = |line: &&&Line| words.iter().any(|word| word.trim_start_matches('!') == line.word(1));
        self.lines.iter().filter(is_named).map(|line| line.words.join(" ")).collect()
    }

    fn alternative(&self, terms: &[Term<'_>], base: &Route) -> Alternative {
        let mut unknown = Unknown { is_all: true, ..Unknown::default() };
        let (mut routes, mut difference) = (vec![base.clone()], None);
        for term in terms {
            let narrower = self.test(term).and_then(|(test, its)| {
                difference = difference.or(its);
                routes.iter().map(|route| narrowed(route, &test)).collect::<Option<Vec<_>>>()
            });
            match narrower {
                Some(narrower) => {
                    routes = narrower.concat();
                    unknown.is_all = false;
                }
                None if term.is_not => unknown.has_negative = true,
                None => unknown.has_positive = true,
            }
        }
        Alternative { routes, unknown, difference }
    }

    /// Returns the test of a term, and how it differs.
    fn test(&self, term: &Term<'_>) -> Option<Different> {
        let tests: Vec<Option<Different>> = match &term.kind {
            Kind::Inline(words) => vec![test(words)],
            Kind::Named(name) => {
                let lines: Vec<_> = self.lines.iter().filter(|line| line.word(1) == *name).collect();
                match lines.is_empty() {
                    true => vec![predefined(name).map(|test| (test, None))],
                    false => {
                        let of = |line: &&&Line| test(&line.from(2).iter().map(String::as_str).collect::<Vec<_>>());
                        lines.iter().map(of).collect()
                    }
                }
            }
        };
        let tests: Vec<Different> = tests.into_iter().collect::<Option<_>>()?;
        let difference = tests.iter().find_map(|(_, difference)| *difference);
        let mut alternatives = tests.into_iter().map(|(test, _)| test);
        let first = alternatives.next()?;
        let test = alternatives.try_fold(first, either)?;
        let test = match (term.is_not, test) {
            (false, test) => test,
            (true, Test::Scheme("http")) => Test::Scheme("https"),
            (true, Test::Scheme(_)) => Test::Scheme("http"),
            (true, Test::Always) => Test::Never,
            (true, Test::Never) => Test::Always,
            (true, _) => return None,
        };
        Some((test, difference))
    }
}

#[derive(Clone)]
struct Term<'a> {
    is_not: bool,
    kind: Kind<'a>,
}

#[derive(Clone)]
enum Kind<'a> {
    Named(&'a str),
    /// The words between `{` and `}`.
    Inline(Vec<&'a str>),
}

/// Returns the alternatives of the contrary: of `a b` they are `!a` and `!b`, of `a or b` it is `!a !b`.
fn negated<'a>(alternatives: &[Vec<Term<'a>>]) -> Option<Vec<Vec<Term<'a>>>> {
    let not = |term: &Term<'a>| Term { is_not: !term.is_not, kind: term.kind.clone() };
    match alternatives {
        [terms] => Some(terms.iter().map(|term| vec![not(term)]).collect()),
        several if several.iter().all(|terms| terms.len() == 1) => {
            Some(vec![several.iter().map(|terms| not(&terms[0])).collect()])
        }
        _ => None,
    }
}

fn terms_of<'a>(words: &[&'a str]) -> Vec<Term<'a>> {
    let (mut terms, mut words, mut is_not) = (Vec::new(), words.iter().copied(), false);
    while let Some(word) = words.next() {
        let name = word.trim_start_matches('!');
        is_not ^= (word.len() - name.len()) % 2 == 1;
        let kind = match name {
            "" => continue,
            "{" => Kind::Inline(words.by_ref().take_while(|word| *word != "}").collect()),
            name => Kind::Named(name),
        };
        terms.push(Term { is_not: std::mem::take(&mut is_not), kind });
    }
    terms
}

fn predefined(name: &str) -> Option<Test> {
    let methods = |names: &[&str]| Test::Methods(names.iter().map(|name| (*name).to_owned()).collect());
    Some(match name {
        "METH_GET" => methods(&["GET", "HEAD"]),
        "METH_CONNECT" | "METH_DELETE" | "METH_HEAD" | "METH_OPTIONS" | "METH_POST" | "METH_PUT" | "METH_TRACE" => {
            methods(&[&name[5..]])
        }
        "TRUE" | "HTTP" => Test::Always,
        "FALSE" => Test::Never,
        _ => return None,
    })
}

/// A test, and how it differs from the one of the source.
type Different = (Test, Option<&'static str>);

/// Returns the test of a criterion with its flags and values.
fn test(words: &[&str]) -> Option<Different> {
    let (criterion, rest) = words.split_first()?;
    let (mut method, mut values, mut rest, mut ignores_case) = ("", Vec::new(), rest.iter(), false);
    while let Some(word) = rest.next() {
        match *word {
            "-i" => ignores_case = true,
            "-n" => {}
            "-m" => method = rest.next()?,
            "--" => values.extend(rest.by_ref().copied()),
            word if word.starts_with('-') && values.is_empty() => return None,
            word => values.push(word),
        }
    }
    ignores_case |= criterion.contains(",lower");
    // Converters that normalise do no harm; others could be anything.
    let criterion = [",url_dec", ",lower", ",field(1,:)"]
        .iter()
        .fold((*criterion).to_owned(), |rest, converter| rest.replace(converter, ""));
    let criterion = &*criterion;
    if criterion.split_once(')').map_or(criterion.contains(','), |(_, rest)| !rest.is_empty()) {
        return None;
    }
    let criterion = criterion.strip_prefix("req.").unwrap_or(criterion);
    let (name, argument) = match criterion.split_once('(') {
        Some((name, argument)) => (name, argument.strip_suffix(')')?.split(',').next()?),
        None => (criterion, ""),
    };
    let (name, method) = match (name.rsplit_once('_'), method) {
        (
            Some((
                name @ ("path" | "hdr" | "url" | "base"),
                kind @ ("beg" | "end" | "dom" | "reg" | "sub" | "dir" | "len"),
            )),
            "",
        ) => (name, kind),
        (_, method) => (name, method),
    };
    let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    let found = match (name, method) {
        ("path" | "url", "" | "str") => {
            Test::Paths(values.iter().map(|path| PathMatch::Exact((*path).to_owned())).collect())
        }
        ("path" | "url", "beg") => {
            Test::Paths(values.iter().map(|path| PathMatch::Prefix((*path).to_owned())).collect())
        }
        ("hdr", kind) if argument.eq_ignore_ascii_case("host") => Test::Hosts(hosts(kind, &values)?),
        ("ssl_fc_sni", "" | "str") => Test::Hosts(hosts("", &values)?),
        // Ringway decides on the scheme by it, where a trusted proxy sends it.
        ("hdr", "" | "str") if argument.eq_ignore_ascii_case("x-forwarded-proto") => match values[..] {
            ["https"] => Test::Scheme("https"),
            ["http"] => Test::Scheme("http"),
            _ => return None,
        },
        ("hdr", "" | "str") if is_field(argument, "") => Test::Header(argument.to_ascii_lowercase(), owned(&values)),
        ("hdr", "found") if is_field(argument, "") => Test::Header(argument.to_ascii_lowercase(), vec!["*".to_owned()]),
        ("method", _) => Test::Methods(owned(&values)),
        ("ssl_fc", _) => Test::Scheme("https"),
        ("always_true", _) => Test::Always,
        ("always_false", _) => Test::Never,
        _ => return None,
    };
    match &found {
        Test::Paths(paths) if paths.iter().any(|path| !is_path(path.text())) => return None,
        Test::Methods(methods)
            if methods
                .iter()
                .any(|method| method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase())) =>
        {
            return None;
        }
        Test::Header(name, values) if !values.iter().all(|value| !value.is_empty() && is_field(name, value)) => {
            return None;
        }
        _ => {}
    }
    let is_open = |path: &PathMatch| matches!(path, PathMatch::Prefix(prefix) if !prefix.ends_with('/'));
    let difference = match &found {
        Test::Paths(_) | Test::Header(..) if ignores_case => Some("paths and values are matched with their case"),
        Test::Paths(paths) if paths.iter().any(is_open) => {
            Some("`path_prefix` matches whole segments: /a and /a/b, not /ab")
        }
        Test::Scheme(_) if name == "hdr" => {
            Some("name the load balancer in `trusted_proxies`: only its X-Forwarded-Proto is believed")
        }
        Test::Hosts(_) if method == "dom" => Some("a host is a name, or all names below it, not any part of a name"),
        _ => None,
    };
    let is_empty = match &found {
        Test::Paths(paths) => paths.is_empty(),
        Test::Hosts(values) | Test::Methods(values) | Test::Header(_, values) => values.is_empty(),
        _ => false,
    };
    (!is_empty).then_some((found, difference))
}

/// Returns the hosts of values that are matched whole, at the end (`end`) or by domain (`dom`).
fn hosts(method: &str, values: &[&str]) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for value in values {
        let value = value.rsplit_once(':').map_or(*value, |(name, _)| name);
        let (bare, is_below) = match value.strip_prefix('.') {
            Some(bare) => (bare, true),
            None => (value, false),
        };
        let bare = host(bare).filter(|bare| !bare.starts_with('*'))?;
        match method {
            "" | "str" if !is_below => found.push(bare),
            "end" | "dom" if is_below => found.push(format!("*.{bare}")),
            "end" | "dom" => found.extend([bare.clone(), format!("*.{bare}")]),
            _ => return None,
        }
    }
    Some(found)
}

/// Returns a test that holds where either of two holds.
fn either(a: Test, b: Test) -> Option<Test> {
    Some(match (a, b) {
        (Test::Paths(a), Test::Paths(b)) => Test::Paths([a, b].concat()),
        (Test::Hosts(a), Test::Hosts(b)) => Test::Hosts([a, b].concat()),
        (Test::Methods(a), Test::Methods(b)) => Test::Methods([a, b].concat()),
        (Test::Header(name, a), Test::Header(other, b)) if name == other => Test::Header(name, [a, b].concat()),
        _ => return None,
    })
}

/// Returns the routes that match what the route matches, and the test holds for; `None` where routes cannot say that.
fn narrowed(route: &Route, test: &Test) -> Option<Vec<Route>> {
    let with = |change: &dyn Fn(&mut Route)| {
        let mut route = route.clone();
        change(&mut route);
        route
    };
    Some(match test {
        Test::Always => vec![route.clone()],
        Test::Never => Vec::new(),
        Test::Paths(paths) => {
            let of = |path: &PathMatch| {
                let path = within(route.path.as_ref(), path)?;
                Some(with(&|route| {
                    route.path = Some(path.clone());
                    route.name = format!("{}-{}", route.name, slug(path.text()));
                }))
            };
            paths.iter().filter_map(of).collect()
        }
        Test::Hosts(_) if !route.hosts.is_empty() => return None,
        Test::Hosts(hosts) => vec![with(&|route| route.hosts.clone_from(hosts))],
        Test::Methods(methods) => {
            let both: Vec<String> = match route.methods.is_empty() {
                true => methods.clone(),
                false => methods.iter().filter(|method| route.methods.contains(method)).cloned().collect(),
            };
            match both.is_empty() {
                true => Vec::new(),
                false => vec![with(&|route| route.methods.clone_from(&both))],
            }
        }
        Test::Scheme(scheme) if route.scheme.is_some_and(|own| own != *scheme) => Vec::new(),
        Test::Scheme(scheme) => vec![with(&|route| route.scheme = Some(scheme))],
        Test::Header(name, _) if route.headers.iter().any(|(own, _)| own == name) => return None,
        Test::Header(name, values) => {
            let of = |value: &String| {
                with(&|route| {
                    let value = Value::text(value.clone());
                    super::super::draft::set(&mut route.headers, name, value);
                })
            };
            values.iter().map(of).collect()
        }
    })
}

/// Returns the path that matches what both match, if any path does.
fn within(outer: Option<&PathMatch>, path: &PathMatch) -> Option<PathMatch> {
    match (outer, path) {
        (None, path) => Some(path.clone()),
        (Some(PathMatch::Prefix(outer)), path) if path.text().starts_with(&**outer) => Some(path.clone()),
        (Some(outer), PathMatch::Prefix(prefix)) if outer.text().starts_with(&**prefix) => Some(outer.clone()),
        (Some(outer), path) => (outer == path).then(|| path.clone()),
    }
}
