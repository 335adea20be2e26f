//! The differences between two configurations, in words, for the log and the admin API.

use super::model::Settings;
use super::{Config, Secrets};

/// The most names that are listed per kind of change.
const MOST_NAMES: usize = 3;

/// Returns the parts that differ between two configurations, each in a few words; none where nothing has changed.
pub(crate) fn changes(old: &Config, new: &Config) -> Vec<String> {
    // Destructured completely, so that the compiler requires a new part here.
    let Settings {
        workers,
        trusted_proxies,
        listeners,
        admin,
        metrics,
        limits,
        access_log,
        process_log,
        cache,
        idempotency_store,
        fleet,
        pools,
        routes,
    } = &old.settings;
    let other = &new.settings;
    let mut changes = Vec::new();
    let named =
        |list: &[super::Listener]| list.iter().map(|it| (it.name.value.clone(), it.clone())).collect::<Vec<_>>();
    changes.extend(entries("listeners", &named(listeners), &named(&other.listeners)));
    let named = |pools: &super::read::Named<super::Pool>| {
        pools.iter().map(|(name, pool)| (name.value.clone(), pool.clone())).collect::<Vec<_>>()
    };
    changes.extend(entries("pools", &named(pools), &named(&other.pools)));
    let named = |list: &[super::Route]| list.iter().map(|it| (it.name.value.clone(), it.clone())).collect::<Vec<_>>();
    changes.extend(entries("routes", &named(routes), &named(&other.routes)));
    let blocks = [
        ("workers", *workers != other.workers),
        ("trusted_proxies", *trusted_proxies != other.trusted_proxies),
        ("admin", *admin != other.admin),
        ("metrics", *metrics != other.metrics),
        ("limits", *limits != other.limits),
        ("access_log", *access_log != other.access_log),
        ("process_log", *process_log != other.process_log),
        ("cache", *cache != other.cache),
        ("idempotency_store", *idempotency_store != other.idempotency_store),
        ("fleet", *fleet != other.fleet),
    ];
    changes.extend(blocks.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()));
    let files = files(&old.secrets, &new.secrets);
    if files > 0 {
        changes.push(format!("{files} of the files that it names"));
    }
    changes
}

/// Returns the changes of a named list: the numbers of new, removed and changed entries, with some of their names.
fn entries<T: PartialEq>(kind: &str, old: &[(String, T)], new: &[(String, T)]) -> Option<String> {
    let of = |list: &'_ [(String, T)]| -> std::collections::HashMap<String, usize> {
        list.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect()
    };
    let (before, after) = (of(old), of(new));
    let added = new.iter().filter(|(name, _)| !before.contains_key(name)).map(|(name, _)| name.as_str());
    let removed = old.iter().filter(|(name, _)| !after.contains_key(name)).map(|(name, _)| name.as_str());
    let changed = new.iter().filter_map(|(name, value)| {
        before.get(name).is_some_and(|&place| old[place].1 != *value).then_some(name.as_str())
    });
    let parts: Vec<String> = [
        listed("added", added.collect()),
        listed("removed", removed.collect()),
        listed("changed", changed.collect()),
        is_reordered(old, new).then(|| "another order".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| format!("{kind}: {}", parts.join(", ")))
}

/// Returns whether the entries that are in both lists have another order.
fn is_reordered<T>(old: &[(String, T)], new: &[(String, T)]) -> bool {
    let names =
        |list: &'_ [(String, T)]| list.iter().map(|(name, _)| name.clone()).collect::<std::collections::HashSet<_>>();
    let (before, after) = (names(old), names(new));
    let stayed = old.iter().filter(|(name, _)| after.contains(name)).map(|(name, _)| name);
    !stayed.eq(new.iter().filter(|(name, _)| before.contains(name)).map(|(name, _)| name))
}

fn listed(verb: &str, names: Vec<&str>) -> Option<String> {
    let shown = names.iter().take(MOST_NAMES).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        count if count > MOST_NAMES => Some(format!("{count} {verb} ({shown}, ...)")),
        count => Some(format!("{count} {verb} ({shown})")),
    }
}

/// Returns the number of named files that are new, removed or changed.
fn files(old: &Secrets, new: &Secrets) -> usize {
    let gone = old.files.iter().filter(|(path, _)| !new.files.iter().any(|(other, _)| other == path)).count();
    let news = new.files.iter().filter(|file| !old.files.contains(file)).count();
    gone + news
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SMALL, parse};
    use super::*;

    #[test]
    fn every_kind_of_change_is_told_with_names() {
        let config = |text: &str| parse(text).unwrap().0;
        let old = config(SMALL);
        let changed = |text: &str| changes(&old, &config(text));
        assert_eq!(changed(SMALL), Vec::<String>::new());
        assert_eq!(changed(&format!("limits: {{ headers: 7 }}\nworkers: 2{SMALL}")), ["workers", "limits"]);
        let more = format!(
            "{}  - {{ name: b, path: /b, pool: app }}\n  - {{ name: c, path: /c, pool: app }}\n  - {{ name: d, path: /d, pool: app }}\n  - {{ name: e, path: /e, pool: app }}\n",
            SMALL.replace("9001", "9002").replace("name: http", "name: web")
        );
        let expected = [
            "listeners: 1 added (`web`), 1 removed (`http`)",
            "pools: 1 changed (`app`)",
            "routes: 4 added (`b`, `c`, `d`, ...)",
        ];
        assert_eq!(changed(&more), expected);
        let two = |first: &str, second: &str| {
            config(&format!(
                "{SMALL}  - {{ name: {first}, path: /x, pool: app }}\n  - {{ name: {second}, path: /x, pool: app }}\n"
            ))
        };
        assert_eq!(changes(&two("b", "c"), &two("c", "b")), ["routes: another order"]);
    }
}
