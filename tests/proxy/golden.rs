//! Configurations and what `ringway check` says of them: `tests/config/NAME.yaml` and `NAME.txt`.
//!
//! After a change that is meant: `RINGWAY_BLESS=1 cargo test --test proxy golden`.

use std::path::Path;
use std::process::Command;

#[test]
fn check_says_what_stands_beside_each_configuration() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let is_blessed = std::env::var_os("RINGWAY_BLESS").is_some();
    let (mut count, mut differences) = (0, String::new());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".yaml") {
            let yaml = path.with_extension("yaml");
            assert!(name.ends_with(".txt") && yaml.exists(), "{name} stands alone");
            continue;
        }
        let mut check = Command::new(env!("CARGO_BIN_EXE_ringway"));
        check.args(["check", "--config", &name]).current_dir(&folder);
        check.env("EDGE", "blue").env_remove("NOBODY");
        let output = check.output().unwrap();
        let said = format!("{}exit code {}\n", String::from_utf8_lossy(&output.stdout), output.status.code().unwrap());
        let golden = path.with_extension("txt");
        if is_blessed {
            std::fs::write(&golden, &said).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            differences += &format!("== {name}\n-- expected\n{expected}-- found\n{said}");
        }
        count += 1;
    }
    assert!(count >= 20, "{count} configurations");
    assert!(differences.is_empty(), "see tests/proxy/golden.rs\n{differences}");
}
