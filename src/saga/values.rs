//! The values that a saga's templates use: of the request and of the steps' answers only what some template names is
//! kept.

use crate::template::{Reference, Values, get, is_json, open_object, quoted};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The most bytes that are kept of a saga's request and of its steps' answers together.
pub(crate) const MAX_KEPT: usize = 64 << 10;

/// Values of a request and of steps' answers, by the paths that templates name them with. Fields of the request that a
/// saga's templates name are among them, keys and variables of the environment never.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept(BTreeMap<String, String>);

/// Nothing of a request shows in a log.
impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Kept {
    /// Returns the bytes that the values take.
    pub(crate) fn size(&self) -> usize {
        self.0.iter().map(|(path, json)| path.len() + json.len()).sum()
    }

    /// Adds a value.
    pub(super) fn insert(&mut self, reference: &Reference, json: String) {
        self.0.insert(reference.to_string(), json);
    }

    /// Returns whether the values of a step's answer can be added: all together are [`MAX_KEPT`] at most.
    pub(crate) fn has_room_for(&self, other: &Kept) -> bool {
        self.size() + other.size() <= MAX_KEPT
    }

    /// Adds the values of a step's answer; nothing is added where all together would be more than [`MAX_KEPT`].
    /// Returns whether they were added.
    #[must_use]
    pub(crate) fn add(&mut self, other: Kept) -> bool {
        let fits = self.has_room_for(&other);
        if fits {
            self.0.extend(other.0);
        }
        fits
    }

    /// Returns the values as bytes: a JSON object.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let members: Vec<String> = self.0.iter().map(|(path, json)| format!("{}:{json}", quoted(path))).collect();
        format!("{{{}}}", members.join(",")).into_bytes()
    }

    /// Reads the values from their bytes; nothing where they are damaged.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Kept> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| is_json(text))?;
        let members = open_object(text)?;
        Some(Kept(members.into_iter().map(|(path, json)| (path, json.to_owned())).collect()))
    }

    pub(super) fn get(&self, reference: &Reference) -> Option<&str> {
        let Some(path) = reference.path() else { return self.0.get(&reference.to_string()).map(String::as_str) };
        // The value itself, or one that it is a part of.
        (0..=path.len()).rev().find_map(|levels| {
            let json = self.0.get(&reference.ancestor(levels)?.to_string())?;
            get(json, &path[levels..])
        })
    }
}

/// All that the templates of a saga may name.
pub(crate) struct Context<'a> {
    pub(crate) kept: &'a Kept,
    /// Returns the `Idempotency-Key` of a step, by the step's name.
    pub(crate) key: &'a dyn Fn(&str) -> Option<String>,
    /// Returns a variable of the environment.
    pub(crate) environment: &'a dyn Fn(&str) -> Option<String>,
}

impl Values for Context<'_> {
    fn value(&self, reference: &Reference) -> Option<Cow<'_, str>> {
        let text = |text: String| Cow::Owned(quoted(&text));
        match reference {
            Reference::StepKey(step) => (self.key)(step).map(text),
            Reference::Environment(name) => (self.environment)(name).map(text),
            _ => self.kept.get(reference).map(Cow::Borrowed),
        }
    }
}
