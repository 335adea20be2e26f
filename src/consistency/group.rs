//! Groups of resources that change together. A route's templates make them of a request; the URI without its query is
//! always one.

use http::HeaderName;
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;
use std::fmt;
use std::hash::Hasher as _;
use std::str::FromStr;

/// The hash of a group's text. Two groups with one hash are taken for one, which costs validations.
pub(crate) type GroupId = u64;

/// The groups of a request: those of the templates, and its URI.
pub(crate) type Groups = SmallVec<[GroupId; 5]>;

/// The most segments of `{path:N}`.
const MAX_SEGMENTS: usize = 16;

/// A template of a group, such as `{host}/{path:2}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Host,
    /// The path, with its first slash.
    Path,
    /// So many segments of the path, without the first slash.
    Segments(usize),
    Header(HeaderName),
}

/// The parts of a request that templates name, as the steps of the pipeline see them.
pub(crate) trait GroupSubject {
    /// Returns the normalised host, without a port.
    fn host(&self) -> &str;
    /// Returns the normalised path.
    fn path(&self) -> &str;
    /// Calls a function with the first line of a field.
    fn header(&self, name: &HeaderName, part: &mut dyn FnMut(&[u8]));
}

impl FromStr for GroupTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<GroupTemplate, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (before, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if before.contains('}') {
                return Err("a `{` before each `}`".to_owned());
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let Some(after) = after.strip_prefix('{') else { break };
            let (name, after) = after.split_once('}').ok_or("a `}` behind each `{`")?;
            parts.push(Part::of(name)?);
            rest = after;
        }
        match parts.iter().any(|part| !matches!(part, Part::Text(_))) {
            true => Ok(GroupTemplate { text: text.to_owned(), parts }),
            false => Err("a template with a reference, like `{host}/{path:2}`".to_owned()),
        }
    }
}

impl Part {
    fn of(name: &str) -> Result<Part, String> {
        match name.split_once(':') {
            None if name == "host" => Ok(Part::Host),
            None if name == "path" => Ok(Part::Path),
            Some(("path", segments)) => match segments.parse() {
                Ok(segments @ 1..=MAX_SEGMENTS) => Ok(Part::Segments(segments)),
                _ => Err(format!("`{{path:N}}` with a number from 1 to {MAX_SEGMENTS}")),
            },
            Some(("header", field)) => match HeaderName::from_bytes(field.as_bytes()) {
                Ok(field) => Ok(Part::Header(field)),
                Err(_) => Err("the name of a field in `{header:NAME}`".to_owned()),
            },
            _ => Err("one of `{host}`, `{path}`, `{path:N}` and `{header:NAME}` in each pair of braces".to_owned()),
        }
    }
}

impl GroupTemplate {
    /// Returns the group of a request. A missing part is empty.
    pub(crate) fn group(&self, subject: &dyn GroupSubject) -> GroupId {
        // Short texts are hashed at once, which takes two thirds of the instructions.
        let (mut text, mut length) = ([0; 128], 0);
        self.each(subject, |part| {
            if let Some(place) = text.get_mut(length..length + part.len()) {
                place.copy_from_slice(part);
            }
            length += part.len();
        });
        text.get(..length).map_or_else(|| self.long_group(subject), id)
    }

    fn long_group(&self, subject: &dyn GroupSubject) -> GroupId {
        let mut hasher = SipHasher13::new();
        self.each(subject, |part| hasher.write(part));
        hasher.finish()
    }

    /// Returns the text of a request's group.
    pub(crate) fn render(&self, subject: &dyn GroupSubject) -> String {
        let mut text = String::new();
        self.each(subject, |part| text.push_str(&String::from_utf8_lossy(part)));
        text
    }

    fn each(&self, subject: &dyn GroupSubject, mut tell: impl FnMut(&[u8])) {
        for part in &self.parts {
            match part {
                Part::Text(text) => tell(text.as_bytes()),
                Part::Host => tell(subject.host().as_bytes()),
                Part::Path => tell(subject.path().as_bytes()),
                Part::Segments(segments) => tell(first_segments(subject.path(), *segments).as_bytes()),
                Part::Header(name) => subject.header(name, &mut tell),
            }
        }
    }

    /// Returns the fields that the template names.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.parts.iter().filter_map(|part| match part {
            Part::Header(name) => Some(name),
            _ => None,
        })
    }
}

impl fmt::Display for GroupTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns the group of a text, such as `shop.example/stock`.
pub(crate) fn group_id(text: &str) -> GroupId {
    id(text.as_bytes())
}

fn id(text: &[u8]) -> GroupId {
    SipHasher13::new().hash(text)
}

/// Returns the digest of templates, each with the name of its route, in any order: tokens made under others are not
/// understood.
pub(crate) fn digest<'a>(templates: impl Iterator<Item = (&'a str, &'a GroupTemplate)>) -> u32 {
    let mut texts: Vec<(&str, &str)> = templates.map(|(route, template)| (route, template.text.as_str())).collect();
    texts.sort_unstable();
    texts.dedup();
    let mut hasher = SipHasher13::new();
    for text in texts.iter().flat_map(|(route, template)| [route, template]) {
        hasher.write(text.as_bytes());
        hasher.write_u8(0);
    }
    hasher.finish() as u32
}

/// Returns the first segments of a path, without its first slash.
fn first_segments(path: &str, count: usize) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    // Segments are short: a loop over bytes beats a search.
    let mut slashes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
    slashes.nth(count - 1).map_or(path, |(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(&'static str, &'static str, &'static str);

    impl GroupSubject for Request {
        fn host(&self) -> &str {
            self.0
        }

        fn path(&self) -> &str {
            self.1
        }

        fn header(&self, name: &HeaderName, part: &mut dyn FnMut(&[u8])) {
            if name == "x-tenant" && !self.2.is_empty() {
                part(self.2.as_bytes());
            }
        }
    }

    #[test]
    fn a_template_makes_the_text_of_a_group() {
        let request = Request("shop.example", "/articles/7/comments", "acme");
        for (template, text) in [
            ("{host}{path}", "shop.example/articles/7/comments"),
            ("{host}/{path:1}", "shop.example/articles"),
            ("{host}/{path:2}", "shop.example/articles/7"),
            ("{host}/{path:9}", "shop.example/articles/7/comments"),
            ("tenant {header:x-tenant}", "tenant acme"),
            ("{header:x-other}", ""),
        ] {
            let template: GroupTemplate = template.parse().unwrap();
            assert_eq!(template.group(&request), group_id(text), "{template}");
            assert_eq!(template.render(&request), text);
        }
        let long = "/long".repeat(30);
        let request = Request("shop.example", long.leak(), "");
        let whole: GroupTemplate = "{host}{path}".parse().unwrap();
        assert_eq!(whole.group(&request), group_id(&whole.render(&request)), "hashed in parts");
        let root: GroupTemplate = "{host}/{path:2}".parse().unwrap();
        assert_eq!(root.group(&Request("a", "/", "")), group_id("a/"));
    }

    #[test]
    fn a_template_that_makes_no_sense_is_refused() {
        for (text, part) in [
            ("", "with a reference"),
            ("shop", "with a reference"),
            ("{host", "a `}` behind"),
            ("host}{path}", "a `{` before"),
            ("{hots}", "one of `{host}`"),
            ("{path:0}", "from 1 to 16"),
            ("{path:x}", "from 1 to 16"),
            ("{header:}", "the name of a field"),
            ("{cookie:a}", "one of `{host}`"),
        ] {
            let error = text.parse::<GroupTemplate>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_digest_is_that_of_each_routes_set() {
        let of = |texts: &[(&str, &str)]| {
            let templates: Vec<(&str, GroupTemplate)> =
                texts.iter().map(|(route, text)| (*route, text.parse().unwrap())).collect();
            digest(templates.iter().map(|(route, template)| (*route, template)))
        };
        assert_eq!(of(&[("a", "{host}"), ("a", "{path}")]), of(&[("a", "{path}"), ("a", "{host}"), ("a", "{path}")]));
        assert_ne!(of(&[("a", "{host}")]), of(&[("a", "{host}"), ("a", "{path}")]));
        // Routes that swap their templates make other groups.
        assert_ne!(of(&[("a", "{host}"), ("b", "{path}")]), of(&[("b", "{host}"), ("a", "{path}")]));
    }
}
