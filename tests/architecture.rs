//! Imports point down: a room uses those below it, and files do not import one another in a circle.
//!
//! What counts is each `use` of `crate::` and `super::` outside tests, followed to the file that it names.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms from the top; those of one line do not know each other.
const ORDER: &[&[&str]] = &[
    &["main", "lib", "fuzz"],
    &["cli"],
    &["server"],
    &["admin"],
    &["proxy"],
    &["upstream"],
    &["cache", "fleet", "idempotency"],
    &["saga"],
    &["control", "import"],
    &["config"],
    &["consistency", "ring", "tls", "telemetry", "template"],
    &["http", "io"],
    &["clock"],
    &["reference", "engines"],
];

/// The circles that there are: a parent and its child, and no other.
const CIRCLES: &[&[&str]] = &[&["upstream::group", "upstream::node"]];

type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn a_room_uses_those_below_it() {
    let level = |path: &str| {
        let room = path.split("::").next().unwrap();
        let level = ORDER.iter().position(|rooms| rooms.contains(&room));
        (room.to_owned(), level.unwrap_or_else(|| panic!("`{room}` has no place in the order")))
    };
    for (file, imports) in imports() {
        let (room, own) = level(&file);
        for import in imports {
            let (other, its) = level(&import);
            assert!(room == other || own < its, "{file} imports {import}, which does not stand below it");
        }
    }
}

#[test]
fn no_circle_is_new() {
    let imports = imports();
    let reached: Imports = imports.keys().map(|file| (file.clone(), reached_from(file, &imports))).collect();
    let is_mutual = |a: &str, b: &str| reached[a].contains(b) && reached[b].contains(a);
    let circles: BTreeSet<Vec<&str>> = imports
        .keys()
        .filter(|file| reached[*file].contains(*file))
        .map(|file| imports.keys().map(String::as_str).filter(|other| is_mutual(file, other)).collect())
        .collect();
    let known: BTreeSet<Vec<&str>> = CIRCLES.iter().map(|circle| circle.to_vec()).collect();
    assert_eq!(circles, known, "left: the circles that there are; right: those that are known");
}

/// Every file that can be reached by imports.
fn reached_from(file: &str, imports: &Imports) -> BTreeSet<String> {
    let (mut reached, mut rest) = (BTreeSet::new(), vec![file]);
    while let Some(next) = rest.pop() {
        for import in imports.get(next).into_iter().flatten() {
            if reached.insert(import.clone()) {
                rest.push(import);
            }
        }
    }
    reached
}

/// What each file imports: modules by their path, `mod.rs` by that of its folder.
fn imports() -> Imports {
    let mut files = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    let names: BTreeSet<&String> = files.keys().collect();
    let imported = |file: &str, path: &str| {
        let path = absolute(file, path)?;
        let (mut end, is_file) = (path.as_str(), |path: &str| names.iter().any(|name| *name == path));
        while !is_file(end) {
            match end.rsplit_once("::") {
                Some((parent, _)) => end = parent,
                None => break,
            }
        }
        (end != file && !end.is_empty()).then(|| end.to_owned())
    };
    let of = |(file, text): (&String, &String)| {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let uses = code.split(";\n").filter_map(|statement| statement.rsplit_once("use ").map(|(_, tree)| tree));
        let paths = uses.flat_map(paths).filter_map(|path| imported(file, &path)).collect();
        (file.clone(), paths)
    };
    files.iter().map(of).collect()
}

fn read(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            read(&path, &format!("{prefix}{name}::"), files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests" {
            let module =
                if name == "mod" { prefix.trim_end_matches(':').to_owned() } else { format!("{prefix}{name}") };
            files.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The paths of a tree of imports: `a::{b, c}` has two.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in inner.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(letter);
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| paths(part)).map(|path| format!("{head}{path}")).collect()
}

/// A path from the crate's root, where it is in the crate.
fn absolute(file: &str, path: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    let (mut base, mut rest) = (file.rsplit_once("::").map_or("", |(parent, _)| parent), path.strip_prefix("super::")?);
    while let Some(above) = rest.strip_prefix("super::") {
        (base, rest) = (base.rsplit_once("::").map_or("", |(parent, _)| parent), above);
    }
    Some(if base.is_empty() { rest.to_owned() } else { format!("{base}::{rest}") })
}
