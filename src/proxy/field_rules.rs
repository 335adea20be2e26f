//! Changes that the configuration makes to the header fields of a message.

use crate::config;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The `remove` and `set` of a route's `request_headers` or `response_headers`.
#[derive(Default)]
pub(crate) struct FieldRules {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
}

impl FieldRules {
    pub(super) fn of(rules: &config::FieldRules) -> FieldRules {
        let set = rules.set.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, value.clone()))
        });
        FieldRules { remove: rules.remove.iter().map(|name| name.value.clone()).collect(), set: set.collect() }
    }

    /// Removes fields, then sets others.
    pub(crate) fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name, value.clone());
        }
    }
}
