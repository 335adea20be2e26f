//! The part of `ringway explain` that shows a saga: its steps, their pools and templates.

use super::shown;
use crate::config::read::Field;
use crate::config::{Saga, SagaRequest, SagaStep};
use std::io::{Result, Write};

/// Prints the steps of a saga with their templates. Credentials are shown as the configuration's are.
pub(super) fn explain_saga(out: &mut impl Write, saga: &Saga) -> Result<()> {
    let steps = if saga.steps.len() == 1 { "1 step".to_owned() } else { format!("{} steps", saga.steps.len()) };
    let (deadline, stuck) = (shown(saga.deadline), shown(saga.stuck_after));
    writeln!(out, "saga         {steps} within {deadline}, then back; stuck after {stuck}")?;
    for (index, step) in saga.steps.iter().enumerate() {
        let SagaStep { name, request, compensate, timeout, retries } = step;
        let (timeout, backoff) = (shown(*timeout), shown(retries.backoff));
        explain_request(out, &format!("{}. {}", index + 1, name.value), request)?;
        writeln!(
            out,
            "               {timeout} an attempt; unknown: {} pauses of {backoff}, then longer",
            retries.attempts
        )?;
        match compensate.as_ref().and_then(|undo| undo.request()) {
            Some(undo) => explain_request(out, "  undo", undo)?,
            None if index + 1 == saga.steps.len() => {
                writeln!(out, "               no undo: once it may have happened, nothing is undone")?;
            }
            None => writeln!(out, "               no undo: it leaves nothing")?,
        }
    }
    let body = saga.respond.body.as_ref().map_or(String::new(), |body| format!(" {}", body.template));
    writeln!(out, "answer       {}{body}", saga.respond.status.as_u16())
}

fn explain_request(out: &mut impl Write, title: &str, request: &SagaRequest) -> Result<()> {
    let SagaRequest { pool, method, path, headers, body } = request;
    writeln!(out, "             {title} {} {} at {}", method.value, path.template, pool.value)?;
    if let Some(headers) = headers.show().as_object() {
        for (name, value) in headers {
            writeln!(out, "               {name}: {}", value.as_str().unwrap_or_default())?;
        }
    }
    body.iter().try_for_each(|body| writeln!(out, "               {}", body.template))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn a_saga_is_shown_with_its_templates() {
        let text = include_str!("../../tests/config/saga.yaml");
        let settings = Config::settings_of(Path::new("saga.yaml"), text, &|_| Some("s3cret".to_owned()));
        let mut out = Vec::new();
        explain_saga(&mut out, settings.routes[0].saga.as_ref().unwrap()).unwrap();
        let expected = r#"saga         4 steps within 30s, then back; stuck after 1d
             1. reserve POST /reservations at inventory
               authorization: Bearer ${env.EDGE}
               x-tenant: ${request.header.x-tenant}
               {"items":"${request.body.items}","note":"$${literal} for ${request.body.order}","n":[1.50,null,true]}
               2s an attempt; unknown: 3 pauses of 100ms, then longer
               undo POST /reservations/${steps.reserve.key}/undo at inventory
             2. check GET /stock?order=${request.body.order} at inventory
               5s an attempt; unknown: 3 pauses of 100ms, then longer
               no undo: it leaves nothing
             3. charge POST /charges at payments
               {"amount":"${steps.reserve.body.total}"}
               5s an attempt; unknown: 3 pauses of 100ms, then longer
               undo POST /charges/${steps.charge.key}/undo at payments
               "${steps.reserve.status}"
             4. ship POST /shipments at shipping
               {"order":"${request.body.order}","id":"${steps.ship.key}"}
               5s an attempt; unknown: 3 pauses of 100ms, then longer
               no undo: once it may have happened, nothing is undone
answer       201 {"shipment":"${steps.ship.body.id}","reserved":"${steps.reserve.status}"}
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
