//! Whatever is imported, the result is a valid Ringway file, or an error with a place.

use super::{Files, Import, ImportError, haproxy, nginx};
use crate::config::Config;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

/// No file is included.
struct None;

impl Files for None {
    fn matching(&self, _: &Path) -> Vec<PathBuf> {
        Vec::new()
    }

    fn text(&self, _: &Path) -> Result<String, String> {
        Err("there are no files".to_owned())
    }
}

/// Panics unless the file is valid but for the files and the names that it needs on this machine.
fn assert_valid(source: &str, result: Result<Import, ImportError>) {
    let Ok(import) = result else { return };
    if let Err(report) = Config::of(Path::new("ringway.yaml"), &import.text) {
        let report = report.to_string();
        let is_own = |line: &&str| {
            let message = line.strip_prefix("ringway.yaml:").filter(|_| !line.contains(": warning: "));
            message.is_some_and(|message| !message.contains("cannot read `") && !message.contains("errors"))
        };
        let faults: Vec<&str> = report.lines().filter(is_own).collect();
        assert!(faults.is_empty(), "{faults:#?}\n---\n{}\n---\n{source}", import.text);
    }
}

/// The examples of the golden tests, and values at which they could break.
const NGINX: &[&str] = &[
    include_str!("../../tests/import/shop.conf"),
    include_str!("../../tests/import/sites.conf"),
    include_str!("../../tests/import/closed-nginx.conf"),
    include_str!("../../tests/import/wordpress.conf"),
];
const HAPROXY: &[&str] =
    &[include_str!("../../tests/import/edge.cfg"), include_str!("../../tests/import/closed-haproxy.cfg")];
const VALUES: &[&str] = &[
    "\"\"",
    "0",
    "-1",
    "99999999999999999999",
    "on",
    "off",
    "$x",
    "${HOME}",
    "%[src]",
    "\"a b\"",
    "\"{\"",
    "'\"'",
    "\u{e4}",
    "/",
    "/%zz/",
    "*",
    "[::]:0",
    "a:b:c",
    "unix:/x",
    "~",
    "=",
    "@",
    "1d",
    "10m",
    "{",
    "}",
    ";",
    "\"\\n#\"",
    "http://",
    "\"}\"",
    "!",
    "||",
];

/// Returns an example with some words taken out, doubled, exchanged, or replaced by other values.
fn mutated(source: &str, changes: &[(usize, usize, u8)]) -> String {
    let mut words: Vec<&str> = source.split_inclusive([' ', '\n', ';']).collect();
    for (at, other, kind) in changes {
        let (at, other) = (at % words.len(), other % words.len());
        match kind % 4 {
            0 => drop(words.remove(at)),
            1 => words.insert(at, words[other]),
            2 => words.swap(at, other),
            _ => words.splice(at..=at, [VALUES[other % VALUES.len()], " "]).for_each(drop),
        }
    }
    words.concat()
}

fn changes() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<usize>(), any::<u8>()), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 20_000 }))]

    #[test]
    fn a_changed_nginx_file_becomes_a_valid_one(example in 0..NGINX.len(), changes in changes()) {
        let source = mutated(NGINX[example], &changes);
        assert_valid(&source, nginx(Path::new("nginx.conf"), &source, &None));
    }

    #[test]
    fn a_changed_haproxy_file_becomes_a_valid_one(example in 0..HAPROXY.len(), changes in changes()) {
        let source = mutated(HAPROXY[example], &changes);
        assert_valid(&source, haproxy(Path::new("haproxy.cfg"), &source));
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "(?s).{0,200}") {
        assert_valid(&text, nginx(Path::new("nginx.conf"), &text, &None));
        assert_valid(&text, haproxy(Path::new("haproxy.cfg"), &text));
    }
}
