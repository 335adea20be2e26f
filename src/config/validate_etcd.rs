//! The rules of the block `fleet.etcd`, and of the pools that need it.

use super::diagnostics::Diagnostics;
use super::model::{Fleet, FleetEtcd, HealthScope, Pool, Settings};
use super::read::Spanned;

/// The most endpoints: etcd advises against more than seven members.
const MAX_ENDPOINTS: usize = 16;

pub(super) fn validate(settings: &Settings, diagnostics: &mut Diagnostics) {
    let etcd = settings.fleet.as_ref().and_then(|fleet| Some((fleet, fleet.etcd.as_ref()?)));
    if let Some((fleet, etcd)) = etcd {
        endpoints(fleet, etcd, diagnostics);
        login(etcd, diagnostics);
    }
    for (name, pool) in settings.pools.iter().filter(|(_, pool)| pool.health.value == HealthScope::Shared) {
        shared_health(name, pool, etcd.is_some(), diagnostics);
    }
}

fn endpoints(fleet: &Fleet, etcd: &FleetEtcd, diagnostics: &mut Diagnostics) {
    let Some(first) = etcd.endpoints.first() else {
        if !diagnostics.has_errors() {
            let message = "`fleet.etcd` needs `endpoints`, like `[\"https://10.0.0.1:2379\"]`";
            diagnostics.error(fleet.id.span, message);
        }
        return;
    };
    if etcd.endpoints.len() > MAX_ENDPOINTS {
        diagnostics.error(first.span, format!("`fleet.etcd.endpoints` takes at most {MAX_ENDPOINTS} endpoints"));
    }
    let texts: Vec<(String, _)> = etcd.endpoints.iter().map(|it| (it.value.to_string(), it.span)).collect();
    diagnostics.unique("endpoint", texts.iter().map(|(text, span)| (text.as_str(), *span)));
    for endpoint in &etcd.endpoints {
        if endpoint.value.is_tls && etcd.tls.is_none() {
            let message = "an `https` endpoint needs `tls`; `tls: {}` trusts the system's authorities";
            diagnostics.error(endpoint.span, message);
        }
        if !endpoint.value.is_tls && etcd.tls.is_some() {
            diagnostics.error(endpoint.span, "`tls` needs `https` endpoints: this one would be asked in cleartext");
        }
    }
}

fn login(etcd: &FleetEtcd, diagnostics: &mut Diagnostics) {
    match (&etcd.username, &etcd.password_file) {
        (Some(username), None) => diagnostics.error(username.span, "`username` needs `password_file`"),
        (None, Some(file)) => diagnostics.error(file.span, "`password_file` needs `username`"),
        _ => {}
    }
}

fn shared_health(name: &Spanned<String>, pool: &Pool, has_etcd: bool, diagnostics: &mut Diagnostics) {
    if !has_etcd {
        let message = format!(
            "`health: shared` of the pool `{}` needs `fleet: {{ etcd: {{ endpoints: [...] }} }}`, which chooses the \
             proxy that checks for all",
            name.value
        );
        diagnostics.error(pool.health.span, message);
    }
    if pool.health_check.is_none() {
        let message = format!(
            "`health: shared` of the pool `{}` needs `health_check`; `health_check: {{}}` uses the defaults",
            name.value
        );
        diagnostics.error(pool.health.span, message);
    }
}
