//! The groups of a request, as the templates of causal and strong routes make them.

use super::request::Form;
use crate::consistency::{GroupSubject, GroupTemplate};
use crate::http::head::RequestFields;
use http::HeaderName;

/// Returns the template of the group that each request has.
pub(crate) fn uri_group() -> GroupTemplate {
    "{host}{path}".parse().expect("the template is well-formed")
}

/// A request, as templates of groups see it.
pub(crate) struct GroupedRequest<'a> {
    pub(crate) form: &'a Form<'a>,
    pub(crate) fields: &'a RequestFields,
}

impl GroupSubject for GroupedRequest<'_> {
    fn host(&self) -> &str {
        &self.form.host
    }

    fn path(&self) -> &str {
        &self.form.path
    }

    fn header(&self, name: &HeaderName, part: &mut dyn FnMut(&[u8])) {
        if let Some(value) = self.fields.value(name) {
            part(&value);
        }
    }
}
