//! The files of `deploy/` are what their readers take them for.

use crate::support::have;
use granit_parser::{Event, Parser};
use serde_json::{Map, Value};
use std::collections::HashMap;
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
    let file = read_yaml(&std::fs::read_to_string(fleet.join("compose.yaml")).unwrap());
    for number in 1..=3 {
        let service = &file["services"][format!("ringway-{number}")];
        let told = Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["check", "--config"])
            .arg(fleet.join("ringway.yaml"))
            .envs(
                service["environment"].as_object().unwrap().iter().map(|(name, value)| (name, value.as_str().unwrap())),
            )
            .output()
            .unwrap();
        assert!(told.status.success(), "{number}: {told:?}");
    }
}

/// What the containers do is what the commands beside them do: the same programs, ports, files and variables.
#[test]
fn the_containers_of_the_fleet_do_what_its_commands_do() {
    let fleet = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fleet");
    let read = |name: &str| std::fs::read_to_string(fleet.join(name)).unwrap();
    let (file, script, readme) = (read_yaml(&read("compose.yaml")), read("proxy.sh"), read("README.md"));
    let services = file["services"].as_object().unwrap();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    // The server's settings in the commands are among those of its container.
    let server = texts(&services["redis"]["command"]).join(" ");
    let command = readme.lines().find_map(|line| line.strip_prefix("$ redis-server ")?.strip_suffix(" &")).unwrap();
    assert!(server.starts_with(&format!("redis-server {command}")), "{server}");
    let exported: Vec<&str> =
        script.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('=')).map(|(name, _)| name).collect();
    let mut homes = std::collections::HashSet::new();
    for number in 1..=3 {
        let service = &services[&format!("ringway-{number}")];
        assert!(readme.contains(&format!("deploy/fleet/proxy.sh {number} &")), "{number}");
        let environment = service["environment"].as_object().unwrap();
        assert_eq!(environment.keys().map(String::as_str).collect::<Vec<_>>(), exported, "{number}");
        // The port of the command on this machine is the one that the container has outside.
        let listen = environment["RINGWAY_LISTEN"].as_str().unwrap();
        let inside = listen.rsplit_once(':').unwrap().1;
        assert_eq!(texts(&service["ports"]), [format!("808{number}:{inside}")]);
        assert!(script.contains("127.0.0.1:808$number"));
        let mounts: Vec<(String, String)> = texts(&service["volumes"])
            .iter()
            .map(|mount| mount.trim_end_matches(":ro").split_once(':').unwrap())
            .map(|(from, to)| (from.to_owned(), to.to_owned()))
            .collect();
        let command = texts(&service["command"]);
        for path in [&command[0], &command[3]] {
            assert!(mounts.iter().any(|(_, to)| to == path), "{path} is mounted");
        }
        assert_eq!(command[1..3], ["run", "--config"]);
        assert!(script.contains("|| set -- run\nexec \"$RINGWAY\" \"$@\" --config ringway.yaml"));
        // Each proxy has a place of its own for what it knows of the store.
        let data = environment["RINGWAY_DATA"].as_str().unwrap();
        let home = &mounts.iter().find(|(_, to)| to == data).unwrap().0;
        assert!(file["volumes"].get(home).is_some(), "{home} is declared");
        assert!(homes.insert(home.clone()), "{home} is nobody else's");
        for service in texts(&service["depends_on"]) {
            assert!(services.contains_key(&service), "{service}");
        }
        for variable in ["RINGWAY_STORE", "RINGWAY_NODE"] {
            let (host, _) = environment[variable].as_str().unwrap().split_once(':').unwrap();
            assert!(services.contains_key(host), "{variable} leads to a service");
        }
    }
}

/// Reads a YAML file, with aliases and merged mappings as Compose takes them.
fn read_yaml(text: &str) -> Value {
    let mut events = Parser::new_from_str(text).map(|event| event.unwrap().0);
    let first = events.find(|event| !matches!(event, Event::StreamStart | Event::DocumentStart(..))).unwrap();
    node(&first, &mut events, &mut HashMap::new())
}

fn node<'a>(
    event: &Event<'a>,
    events: &mut impl Iterator<Item = Event<'a>>,
    anchors: &mut HashMap<usize, Value>,
) -> Value {
    let (value, anchor) = match event {
        Event::Scalar(text, _, anchor, _) => (Value::from(text.as_ref()), *anchor),
        Event::Alias(anchor) => return anchors[anchor].clone(),
        Event::SequenceStart(_, anchor, _) => {
            let mut items = Vec::new();
            loop {
                match events.next().unwrap() {
                    Event::SequenceEnd => break (Value::from(items), *anchor),
                    event => items.push(node(&event, events, anchors)),
                }
            }
        }
        Event::MappingStart(_, anchor, _) => {
            let (mut merged, mut own) = (Map::new(), Map::new());
            loop {
                let key = match events.next().unwrap() {
                    Event::MappingEnd => break,
                    event => node(&event, events, anchors).as_str().unwrap().to_owned(),
                };
                let event = events.next().unwrap();
                match (key.as_str(), node(&event, events, anchors)) {
                    ("<<", Value::Object(base)) => merged.extend(base),
                    (_, value) => assert!(own.insert(key, value).is_none(), "a key stands there twice"),
                }
            }
            merged.extend(own);
            (Value::Object(merged), *anchor)
        }
        event => panic!("{event:?}"),
    };
    if anchor != 0 {
        anchors.insert(anchor, value.clone());
    }
    value
}
