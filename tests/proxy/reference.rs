//! `docs/configuration.md` is made from the schema: it names every key, with its default.
//!
//! After a change of the keys: `RINGWAY_BLESS=1 cargo test --test proxy reference`.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn the_reference_names_every_key() {
    let told = Command::new(env!("CARGO_BIN_EXE_ringway")).arg("schema").output().unwrap();
    let schema: Value = serde_json::from_slice(&told.stdout).unwrap();
    let mut page = String::from(
        "# Configuration reference\n\nOne YAML file. Durations are written `250ms`, `2s`, `5m`, `1h`; sizes `64KiB`, `1GiB`; `${NAME}` in a value is\nreplaced from the environment (`$${` stands for `${`). Relative paths are taken from the file's own folder. Unknown\nkeys are errors. `ringway check` tells every error with its place; `ringway schema` prints the JSON Schema, from which\nthis page is made.\n",
    );
    block(&mut page, "Top level", &schema);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("RINGWAY_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page, "docs/configuration.md is out of date; see tests/proxy/reference.rs");
}

/// A table of a block's keys, then the blocks inside it.
fn block(page: &mut String, path: &str, schema: &Value) {
    *page += &format!("\n## {path}\n\n");
    if let Some(about) = schema["description"].as_str().filter(|_| path != "Top level") {
        *page += &format!("{about}\n\n");
    }
    *page += "| key | default | meaning |\n| --- | --- | --- |\n";
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
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
        *page += &format!("| `{key}` | {default} | {}{range} |\n", value["description"].as_str().unwrap_or_default());
        let below = match path {
            "Top level" => key.clone(),
            _ => format!("{path}.{key}"),
        };
        if value["properties"].is_object() {
            inner.push((below, value));
        } else if value["items"]["properties"].is_object() {
            inner.push((format!("{below}[]"), &value["items"]));
        } else if value["additionalProperties"]["properties"].is_object() {
            inner.push((format!("{below}.NAME"), &value["additionalProperties"]));
        }
    }
    for (path, schema) in inner {
        block(page, &path, schema);
    }
}
