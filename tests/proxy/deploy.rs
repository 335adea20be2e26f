//! The files of `deploy/` are what their readers take them for.

use crate::support::have;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn unit(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd")
}

/// Asks `systemd-analyze` about the units, with the program that was just built in the place of the installed one.
fn analyze(arguments: &[&str], folder: &Path) -> Output {
    let service = unit("ringway.service").replace("/usr/bin/ringway", env!("CARGO_BIN_EXE_ringway"));
    std::fs::write(folder.join("ringway.service"), service).unwrap();
    std::fs::write(folder.join("ringway.socket"), unit("ringway.socket")).unwrap();
    Command::new("systemd-analyze").args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn the_units_are_valid_and_the_service_is_shut_in() {
    if !have("systemd-analyze", "systemd") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["ringway.service", "ringway.socket"] {
        let told = analyze(&["verify", &format!("./{name}")], folder.path());
        assert!(told.status.success() && told.stderr.is_empty(), "{name}: {told:?}");
    }
    // Ten times the exposure, of at most 100.
    let told = analyze(&["security", "--offline=true", "--threshold=20", "./ringway.service"], folder.path());
    assert!(told.status.success(), "{told:?}");
}

/// The command that the unit starts is one that the program takes.
#[test]
fn the_service_starts_what_there_is() {
    let service = unit("ringway.service");
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/ringway ")).unwrap();
    let mut arguments: Vec<&str> = start.split(' ').collect();
    assert_eq!(arguments.pop(), Some("/etc/ringway/ringway.yaml"));
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/ringway.yaml");
    let told = Command::new(env!("CARGO_BIN_EXE_ringway")).args(["check", "--config", config]).output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let told = Command::new(env!("CARGO_BIN_EXE_ringway")).args(&arguments).arg("/nowhere.yaml").output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(said.contains("/nowhere.yaml") && !said.contains("Usage"), "{said}");
}

/// The example of a fleet: its configuration is valid with the environment of both ways to start it.
#[test]
fn the_fleet_starts_with_the_commands_and_with_the_containers() {
    let fleet = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fleet");
    let told = Command::new(fleet.join("proxy.sh"))
        .args(["1", "check"])
        .env("RINGWAY", env!("CARGO_BIN_EXE_ringway"))
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    let text = std::fs::read_to_string(fleet.join("compose.yaml")).unwrap();
    let environment = text.lines().filter_map(|line| line.trim().strip_prefix("RINGWAY_")?.split_once(": "));
    let environment = environment.map(|(name, value)| (format!("RINGWAY_{name}"), value.trim_matches('"').to_owned()));
    let told = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["check", "--config"])
        .arg(fleet.join("ringway.yaml"))
        .envs(environment)
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    assert_eq!(text.matches("RINGWAY_").count(), 5, "each variable once");
}
