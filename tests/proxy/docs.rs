//! README and docs hold: their links lead somewhere, their configurations load, their commands exist and say what is
//! printed of them.
//!
//! A `yaml` block is a whole configuration; one that is a part of it is marked `yaml fragment`, and is completed here.
//! In `console` blocks a line with `$ ` is a command, and the lines below it are its output, where `...` stands for any
//! lines.

use crate::reference::anchor;
use crate::support::Authority;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Commands that need neither a network nor a running proxy.
const OFFLINE: [&str; 5] = ["check", "completions", "explain", "ring", "schema"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A page of the repository.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(path: PathBuf) -> Page {
        let text = std::fs::read_to_string(&path).unwrap();
        Page { path, text }
    }

    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// Returns the page's code blocks: the line of the fence, the words behind it, and the content.
    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let mut is_inside = false;
        for (index, line) in self.text.lines().enumerate() {
            match line.strip_prefix("```") {
                Some(info) if !is_inside => {
                    blocks.push(Block { line: index + 1, info, lines: Vec::new() });
                    is_inside = true;
                }
                Some(_) => is_inside = false,
                None if is_inside => blocks.last_mut().unwrap().lines.push(line),
                None => {}
            }
        }
        assert!(!is_inside, "{}: a code block does not end", self.name());
        blocks
    }

    /// Returns the page without its code blocks.
    fn prose(&self) -> String {
        let mut is_inside = false;
        let lines = self.text.lines().map(|line| {
            let is_fence = line.starts_with("```");
            is_inside ^= is_fence;
            if is_fence || is_inside { "" } else { line }
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Returns the code spans of the prose.
    fn spans(&self) -> Vec<String> {
        let prose = self.prose();
        prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// Returns the anchors of the page's headings, as GitHub makes them.
    fn anchors(&self) -> Vec<String> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let prose = self.prose();
        let headings = prose
            .lines()
            .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
        headings
            .map(|heading| {
                let anchor = anchor(heading);
                let count = seen.entry(anchor.clone()).or_default();
                *count += 1;
                if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
            })
            .collect()
    }

    /// Returns the targets of the page's links and pictures.
    fn links(&self) -> Vec<String> {
        let prose = self.prose();
        // What stands in code is no link.
        let outside = prose.split('`').step_by(2).collect::<Vec<_>>().join("`");
        let starts = outside.match_indices("](").map(|(at, _)| at + 2);
        starts.filter_map(|at| outside[at..].split_once(')').map(|(link, _)| link.to_owned())).collect()
    }
}

struct Block<'a> {
    line: usize,
    info: &'a str,
    lines: Vec<&'a str>,
}

/// Returns all pages that people read.
fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            match path.is_dir() {
                true if name.starts_with('.') || matches!(name, "target" | "node_modules") => {}
                true => folders.push(path),
                false if name.ends_with(".md") => pages.push(Page::read(path)),
                false => {}
            }
        }
    }
    assert!(pages.len() >= 12, "{} pages", pages.len());
    pages
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let anchors: BTreeMap<PathBuf, Vec<String>> =
        pages.iter().map(|page| (page.path.canonicalize().unwrap(), page.anchors())).collect();
    let mut broken = Vec::new();
    for page in &pages {
        for link in page.links() {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => page.path.clone(),
                path => page.path.parent().unwrap().join(path),
            };
            let is_good = target.canonicalize().is_ok_and(|target| {
                anchor.is_empty() || anchors.get(&target).is_some_and(|known| known.iter().any(|known| known == anchor))
            });
            if !is_good {
                broken.push(format!("{}: {link}", page.name()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_configuration_loads() {
    let authority = Authority::new();
    let mut count = 0;
    for page in pages() {
        for block in page.blocks() {
            let text = match block.info {
                "yaml" => block.lines.join("\n"),
                "yaml fragment" => complete(&block.lines.join("\n")),
                info => {
                    assert!(!info.starts_with("yaml"), "{}:{}: `{info}`", page.name(), block.line);
                    continue;
                }
            };
            let folder = tempfile::tempdir().unwrap();
            authority.provide(folder.path(), &text);
            std::fs::write(folder.path().join("ringway.yaml"), &text).unwrap();
            let checked = ringway(folder.path(), &["check"]);
            let said = String::from_utf8_lossy(&checked.stdout);
            assert!(checked.status.success(), "{}:{}:\n{said}\nof:\n{text}", page.name(), block.line);
            count += 1;
        }
    }
    assert!(count >= 15, "{count} configurations");
}

/// Completes a part of a configuration: a listener, a pool `app` with a node and a route, where it has none.
fn complete(part: &str) -> String {
    let has = |key: &str| part.lines().any(|line| line.starts_with(&format!("{key}:")));
    let mut text = part.to_owned();
    if !has("listeners") {
        text += "\nlisteners: [{ name: http, address: 127.0.0.1:8080 }]";
    }
    let node = "    nodes: [{ id: app-1, address: 127.0.0.1:9001 }]\n";
    if !has("pools") {
        text += &format!("\npools:\n  app:\n{node}");
    } else if !part.contains("nodes:") && !part.contains("discovery:") {
        text = text.replacen("  app:\n", &format!("  app:\n{node}"), 1);
    }
    if !has("routes") {
        text += "\nroutes: [{ name: all, pool: app }]";
    }
    text
}

fn ringway(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway")).args(arguments).current_dir(folder).output().unwrap()
}

/// A command line of a page, and its output there.
struct Line {
    place: String,
    words: Vec<String>,
    output: Vec<String>,
}

/// Returns the command lines of a page's console blocks.
fn lines_of(page: &Page) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for block in page.blocks().iter().filter(|block| matches!(block.info, "console" | "sh")) {
        let mut output_of = None;
        let mut source = block.lines.iter().enumerate();
        while let Some((offset, line)) = source.next() {
            let prompt = if block.info == "console" { line.strip_prefix("$ ") } else { Some(*line) };
            let Some(command) = prompt else {
                if let Some(last) = output_of.and_then(|index: usize| lines.get_mut(index)) {
                    last.output.push((*line).to_owned());
                }
                continue;
            };
            let mut command = command.to_owned();
            while let Some(begun) = command.strip_suffix('\\').map(str::to_owned) {
                command = begun + source.next().unwrap().1.trim();
            }
            let place = format!("{}:{}", page.name(), block.line + 1 + offset);
            output_of = Some(lines.len());
            lines.push(Line { place, words: words(&command), output: Vec::new() });
        }
    }
    lines
}

/// Returns the words of a command as a shell makes them, up to a comment or an operator.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '|' | '&' | '>' | ';') if word.is_none() => break,
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns what stands behind the program in a command of ringway; a demo may be run by cargo.
fn arguments(words: &[String]) -> Option<Vec<&str>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ringway", rest @ ..] => Some(rest.to_vec()),
        ["cargo", "run", "--release", "--", rest @ ..] | ["cargo", "run", "--profile", "quick", "--", rest @ ..] => {
            Some(rest.to_vec())
        }
        _ => None,
    }
}

/// Every command of ringway, in blocks and in the text, has a subcommand and flags that exist.
#[test]
fn every_command_can_be_called() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        if page.name() == "CHANGELOG.md" {
            continue;
        }
        let spans = page.spans().into_iter().filter(|span| span.starts_with("ringway ")).map(|span| Line {
            place: page.name(),
            words: words(&span),
            output: Vec::new(),
        });
        for line in lines_of(&page).into_iter().chain(spans) {
            let Some(mut arguments) = arguments(&line.words) else { continue };
            // The help comes before what is missing, and after what is unknown.
            arguments.push("--help");
            let asked = ringway(root(), &arguments);
            if !asked.status.success() {
                let said = String::from_utf8_lossy(&asked.stderr).lines().next().unwrap_or_default().to_owned();
                wrong.push(format!("{}: ringway {}: {said}", line.place, arguments.join(" ")));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 40, "{count} commands");
}

/// A command that needs no network is run, and says what the page says.
#[test]
fn every_transcript_is_true() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("config")).unwrap();
    for entry in std::fs::read_dir(root().join("config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            authority.provide(&folder.path().join("config"), &text);
            std::fs::write(folder.path().join("config").join(path.file_name().unwrap()), text).unwrap();
        }
    }
    let (mut count, mut with_output) = (0, 0);
    for page in pages() {
        for line in lines_of(&page) {
            let Some(mut arguments) = arguments(&line.words) else { continue };
            if arguments[0] == "run" {
                arguments[0] = "check";
            }
            if !OFFLINE.contains(&arguments[0]) || arguments.contains(&"--connect") {
                continue;
            }
            let ran = ringway(folder.path(), &arguments);
            let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success(), "{}: {}:\n{said}", line.place, arguments.join(" "));
            count += 1;
            let shown: Vec<&str> = line.output.iter().map(String::as_str).collect();
            let shown = shown.join("\n").trim().to_owned();
            if !shown.is_empty() {
                with_output += 1;
                assert!(
                    is_told(&said, &shown),
                    "{}: the page shows\n{shown}\nand the command says\n{said}",
                    line.place
                );
            }
        }
    }
    assert!(count >= 8 && with_output >= 3, "{count} commands, {with_output} with their output");
}

/// Returns whether an output is what a page shows, where a line `...` stands for any lines.
fn is_told(said: &str, shown: &str) -> bool {
    let said: Vec<&str> = said.trim().lines().map(str::trim_end).collect();
    let parts: Vec<Vec<&str>> = shown
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .split(|line| *line == "...")
        .map(<[&str]>::to_vec)
        .collect();
    let mut from = 0;
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        let found = (from..=said.len().saturating_sub(part.len())).find(|&at| said[at..].starts_with(part));
        match found {
            Some(at) if index > 0 || at == 0 => from = at + part.len(),
            _ => return false,
        }
        if is_last && !part.is_empty() && from != said.len() {
            return false;
        }
    }
    true
}

/// The scripts that pages name are there, and know the flags that are shown.
#[test]
fn every_script_is_there() {
    let mut count = 0;
    for page in pages() {
        let spans =
            page.spans().into_iter().map(|span| Line { place: page.name(), words: words(&span), output: Vec::new() });
        for line in lines_of(&page).into_iter().chain(spans) {
            let Some(at) = line.words.iter().position(|word| word.ends_with(".py") && word.contains('/')) else {
                continue;
            };
            let script = root().join(&line.words[at]);
            let Ok(source) = std::fs::read_to_string(&script) else {
                panic!("{}: there is no {}", line.place, line.words[at]);
            };
            let source = source + &std::fs::read_to_string(root().join("benches/harness.py")).unwrap();
            for flag in line.words[at + 1..].iter().filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap();
                assert!(source.contains(flag), "{}: {} has no {flag}", line.place, line.words[at]);
            }
            count += 1;
        }
    }
    assert!(count >= 10, "{count} scripts");
}

#[test]
fn the_first_page_is_short_and_all_lines_fit() {
    let readme = Page::read(root().join("README.md"));
    assert!(readme.text.len() < 8 << 10, "README.md has {} bytes", readme.text.len());
    for page in pages() {
        let name = page.name();
        if name != "README.md" && !name.starts_with("docs/") {
            continue;
        }
        for (index, line) in page.prose().lines().enumerate() {
            let is_generated = ["configuration.md", "errors.md", "metrics.md"].iter().any(|page| name.ends_with(page));
            let is_bound = !line.starts_with(['|', '!', '#']) && !is_generated;
            assert!(
                !is_bound || line.chars().count() < 100,
                "{name}:{}: {} characters",
                index + 1,
                line.chars().count()
            );
        }
    }
}

/// The checks themselves see what is wrong.
#[test]
fn the_checks_see_what_is_wrong() {
    let page = |text: &str| Page { path: root().join("docs/x.md"), text: text.to_owned() };
    let found = page("# A `b` c\n\n[x\ny](z.md#q) `[no](link)`\n\n```sh\n[no](link)\n```\n\n## A `b` c\n");
    assert_eq!(found.links(), ["z.md#q"]);
    assert_eq!(found.anchors(), ["a-b-c", "a-b-c-1"]);
    assert_eq!(words("ringway explain -H 'Cookie: a=b' x # y"), ["ringway", "explain", "-H", "Cookie: a=b", "x"]);
    for (shown, is_true) in [
        ("a\nb", false),
        ("a\n...", true),
        ("...\nc", true),
        ("a\n...\nc", true),
        ("...\nb\n...", true),
        ("b\n...", false),
    ] {
        assert_eq!(is_told("a\nb\nc\n", shown), is_true, "{shown}");
    }
    assert!(!ringway(root(), &["status", "--nothing", "--help"]).status.success());
    assert!(!ringway(root(), &["node", "app", "app-1", "upp", "--help"]).status.success());
    assert!(!ringway(root(), &["serve", "--help"]).status.success());
}
