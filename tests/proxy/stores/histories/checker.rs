//! The judgement of a history: each key ran once at most, and its clients saw one result.

use std::collections::BTreeMap;

/// What a client saw of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its result, the first time or replayed.
    Result(String),
    /// It may have run, and will not run again.
    Unknown,
    /// It was not run now: 409 in progress, or 503.
    Refused(u16),
    /// The connection broke, or there was no answer in time.
    Nothing,
}

/// A request of a client.
#[derive(Clone, Debug)]
pub struct Operation {
    pub key: String,
    pub seen: Seen,
}

/// Returns what is wrong with a history, where `runs` tells how often the node ran a key.
pub fn violations(operations: &[Operation], runs: impl Fn(&str) -> u32) -> Vec<String> {
    let mut results: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Operation { key, seen } in operations {
        let results = results.entry(key).or_default();
        if let Seen::Result(text) = seen
            && !results.contains(&text.as_str())
        {
            results.push(text);
        }
    }
    let mut found = Vec::new();
    for (key, results) in results {
        let runs = runs(key);
        if runs > 1 {
            found.push(format!("`{key}` ran {runs} times"));
        }
        if results.len() > 1 {
            found.push(format!("`{key}` has several results: {results:?}"));
        }
        if !results.is_empty() && runs == 0 {
            found.push(format!("`{key}` has a result and never ran"));
        }
        if let Some(other) = results.iter().find(|result| !result.contains(&format!(" {key} "))) {
            found.push(format!("`{key}` has the result of another key: {other}"));
        }
    }
    found
}

#[test]
fn a_history_that_is_right_passes() {
    let history = [
        ("a", Seen::Nothing),
        ("a", Seen::Result("charged a as 1".into())),
        ("b", Seen::Unknown),
        ("a", Seen::Refused(503)),
        ("a", Seen::Result("charged a as 1".into())),
        ("c", Seen::Refused(409)),
    ];
    let runs = |key: &str| u32::from(key == "a" || key == "b");
    assert_eq!(violations(&operations(&history), runs), Vec::<String>::new());
}

#[test]
fn histories_that_are_wrong_fail() {
    let result = |text: &str| Seen::Result(text.to_owned());
    let wrong = |history: &[(&str, Seen)], runs: u32, said: &str| {
        let found = violations(&operations(history), |_| runs);
        assert!(found.iter().any(|violation| violation.contains(said)), "{said}: {found:?}");
    };
    wrong(&[("a", Seen::Nothing)], 2, "ran 2 times");
    wrong(&[("a", Seen::Unknown), ("a", Seen::Refused(503))], 2, "ran 2 times");
    wrong(&[("a", result("charged a as 1")), ("a", result("charged a as 2"))], 1, "several results");
    wrong(&[("a", result("charged a as 1"))], 0, "never ran");
    wrong(&[("a", result("charged b as 1"))], 1, "another key");
}

#[cfg(test)]
fn operations(history: &[(&str, Seen)]) -> Vec<Operation> {
    history.iter().map(|(key, seen)| Operation { key: (*key).to_owned(), seen: seen.clone() }).collect()
}
