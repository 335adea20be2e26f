//! `docs/configuration.md` is made from the schema: it names every key, with its type, default and meaning.
//!
//! After a change of the keys: `RINGWAY_BLESS=1 cargo test --test proxy reference`.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const INTRODUCTION: &str = "\
# Configuration reference

```yaml
listeners: [{ name: http, address: 127.0.0.1:8080 }]
limits: { header_timeout: 5s, request_body: 512MB }
pools: { app: { nodes: [{ id: app-1, address: \"127.0.0.1:9001\" }] } }
routes: [{ name: site, path_prefix: /, pool: app }]
```

One YAML file. `ringway run` uses `./ringway.yaml`, `config/ringway.yaml` or
`/etc/ringway/ringway.yaml`, whichever exists first; `--config FILE` names another one. Unknown keys
are errors. `ringway check` prints every error with its line and column. `ringway schema` prints the
JSON Schema, from which this page is generated: save it to a file and write
`# yaml-language-server: $schema=FILE` on the first line of the configuration, and editors complete
the keys.

- **Durations** have a unit: `250ms`, `2s`, `5m`, `1h`, `7d`, or several: `1h30m`.
- **Sizes** are binary (`64KiB`, `512MiB`, `1GiB`: times 1024) or decimal (`64kB`, `512MB`, `1GB`:
  times 1000).
- **The environment**: `${NAME}` in a value is replaced from the environment; `$${` stands for `${`.
  Inside `{ }` and `[ ]` put it in quotes: `{ address: \"${ADDRESS}\" }`.
- **Paths** that are relative are taken from the file's own folder.
";

#[test]
fn the_reference_names_every_key() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringway")).arg("schema").output().unwrap();
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut page = Page { text: INTRODUCTION.to_owned(), types: Vec::new() };
    page.block("Top level", &schema);
    page.types();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("RINGWAY_BLESS").is_some() {
        std::fs::write(&file, &page.text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page.text, "docs/configuration.md is out of date; see tests/proxy/reference.rs");
}

/// The page as far as it is written, and the schemas of the types that its tables have named.
struct Page {
    text: String,
    types: Vec<Value>,
}

impl Page {
    /// Writes a table of a block's keys, then the blocks inside it.
    fn block(&mut self, path: &str, schema: &Value) {
        self.text += &format!("\n## {path}\n\n");
        if let Some(about) = schema["description"].as_str().filter(|_| path != "Top level") {
            self.text += &format!("{about}\n\n");
        }
        self.text += "| key | type | default | meaning |\n| --- | --- | --- | --- |\n";
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut inner = Vec::new();
        for (key, value) in schema["properties"].as_object().unwrap() {
            if value["deprecated"] == true {
                continue;
            }
            let default = match &value["default"] {
                Value::Null if required.contains(&key.as_str()) => "required".to_owned(),
                Value::Null => String::new(),
                Value::String(text) if text.is_empty() => "empty".to_owned(),
                Value::String(text) => format!("`{text}`"),
                other => format!("`{other}`"),
            };
            let range = match (&value["minimum"], &value["maximum"]) {
                (Value::Number(low), Value::Number(high)) => format!(" From {low} to {high}."),
                _ => String::new(),
            };
            let below = match path {
                "Top level" => key.clone(),
                _ => format!("{path}.{key}"),
            };
            let kind = self.type_of(value, &below);
            let meaning = value["description"].as_str().unwrap_or_default();
            self.text += &format!("| `{key}` | {kind} | {default} | {meaning}{range} |\n");
            if value["properties"].is_object() {
                inner.push((below, value));
            } else if value["items"]["properties"].is_object() {
                inner.push((format!("{below}[]"), &value["items"]));
            } else if value["additionalProperties"]["properties"].is_object() {
                inner.push((format!("{below}.NAME"), &value["additionalProperties"]));
            }
        }
        for (path, schema) in inner {
            self.block(&path, schema);
        }
    }

    /// Returns a type in words, with a link where it is a block of its own.
    fn type_of(&mut self, schema: &Value, path: &str) -> String {
        if let Some(words) = schema["enum"].as_array() {
            let words: Vec<String> = words.iter().map(|word| format!("`{}`", plain(word))).collect();
            return words.join(", ");
        }
        if schema["properties"].is_object() {
            return format!("[block](#{})", anchor(path));
        }
        if schema["additionalProperties"].is_object() {
            let kind = self.type_of(&schema["additionalProperties"], &format!("{path}.NAME"));
            return format!("name: {kind}");
        }
        if schema["items"].is_object() {
            return format!("list: {}", self.type_of(&schema["items"], &format!("{path}[]")));
        }
        let Some(title) = schema["title"].as_str() else {
            return match schema["type"].as_str() {
                Some("boolean") => "`true`, `false`".to_owned(),
                Some("integer") => "whole number".to_owned(),
                other => panic!("{path} has a type without a name: {other:?}"),
            };
        };
        // What a key adds to its type is none of the type's.
        let mut kind = schema.clone();
        for own in ["default", "description"] {
            kind.as_object_mut().unwrap().remove(own);
        }
        match self.types.iter().find(|known| known["title"] == title) {
            Some(known) => assert_eq!(known["pattern"], kind["pattern"], "two types are called {title}"),
            None => self.types.push(kind),
        }
        match schema["anyOf"].is_array() {
            true => format!("[{title}](#{}s)", anchor(title)),
            false => title.to_owned(),
        }
    }

    /// Writes the types, and a table of its forms for each that has several.
    fn types(&mut self) {
        self.text += "\n## Types\n\n| type | for example | pattern of the whole value |\n| --- | --- | --- |\n";
        for kind in self.types.iter().filter(|kind| kind["examples"].is_array()) {
            let examples: Vec<String> =
                kind["examples"].as_array().unwrap().iter().map(|example| format!("`{}`", plain(example))).collect();
            let pattern =
                kind["pattern"].as_str().map_or(String::new(), |text| format!("`{}`", text.replace('|', "\\|")));
            self.text += &format!("| {} | {} | {pattern} |\n", plain(&kind["title"]), examples.join(", "));
        }
        for kind in self.types.iter().filter(|kind| kind["anyOf"].is_array()) {
            let title = plain(&kind["title"]);
            let (first, rest) = title.split_at(1);
            self.text += &format!("\n## {}{rest}s\n\n| {title} | meaning |\n| --- | --- |\n", first.to_uppercase());
            for form in kind["anyOf"].as_array().unwrap() {
                self.text += &format!("| `{}` | {} |\n", plain(&form["title"]), plain(&form["description"]));
            }
        }
    }
}

/// Returns a value as a user writes it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the anchor of a heading, as GitHub makes it.
pub fn anchor(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '))
        .collect::<String>();
    kept.replace(' ', "-")
}
