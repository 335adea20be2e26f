//! A change of the file, or of a file that it names, is whole or it is not.

use crate::support::{Proxy, eventually, write_private};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUTES: usize = 50;

/// A file whose every route answers with its version. What is cut off at a line's end is valid too.
fn version(number: usize) -> String {
    let routes: String = (0..ROUTES)
        .map(|route| format!("  - {{ name: r{route}, path: /{route}, respond: {{ body: \"v{number}\" }} }}\n"))
        .collect();
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\nroutes:\n{routes}"
    )
}

/// The version in force, which must be the same on the first route and the last one.
fn in_force(proxy: &Proxy) -> String {
    // Between the two there may be a reload.
    for _ in 0..3 {
        let (first, last) = (proxy.get("/0"), proxy.get(&format!("/{}", ROUTES - 1)));
        if first.text() == last.text() && last.status == 200 {
            return first.text();
        }
        assert_ne!(last.status, 404, "a part of a file is in force");
    }
    panic!("two versions are in force");
}

fn wait_for(proxy: &Proxy, number: usize) {
    eventually(&format!("version {number}"), || in_force(proxy) == format!("v{number}"));
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn a_file_that_is_being_written_is_not_in_force_before_it_is_closed() {
    let proxy = Proxy::start_whole(&version(0));
    let path = proxy.folder().join("ringway.yaml");
    // From then on it is followed.
    replace(&path, &version(1));
    wait_for(&proxy, 1);
    let text = version(2);
    let mut file = File::create(&path).unwrap();
    let half = text.rfind("  - { name: r30").unwrap();
    file.write_all(&text.as_bytes()[..half]).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        assert_eq!(in_force(&proxy), "v1");
    }
    // Nor by a reload for another reason.
    let asked = std::thread::spawn({
        let admin = proxy.admin;
        move || {
            crate::support::Client::connect(admin).request(format!(
                "POST /api/reload HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            ))
        }
    });
    file.write_all(&text.as_bytes()[half..]).unwrap();
    drop(file);
    wait_for(&proxy, 2);
    assert_eq!(asked.join().unwrap().status, 200);
    // A rename counts at once.
    let begun = Instant::now();
    replace(&path, &version(3));
    wait_for(&proxy, 3);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(proxy.metric("ringway_config_reloads_total{result=\"failure\"}"), 0.0);
}

#[test]
fn a_file_that_becomes_something_else_holds_up_nothing() {
    let mut proxy = Proxy::start_whole(&version(1));
    let path = proxy.folder().join("ringway.yaml");
    std::fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let answer = proxy.admin_post("/api/reload", "");
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("it is not a regular file"), "{answer:?}");
    proxy.signal("HUP");
    assert_eq!((proxy.admin_get("/livez").status, in_force(&proxy).as_str()), (200, "v1"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, version(2)).unwrap();
    wait_for(&proxy, 2);
    // So may a file that it names.
    let token = proxy.folder().join("token");
    assert!(std::process::Command::new("mkfifo").arg(&token).status().unwrap().success());
    let named = version(3).replace("\"127.0.0.1:0\" }\naccess", "\"127.0.0.1:0\", token_file: token }\naccess");
    replace(&path, &named);
    eventually("a refusal", || proxy.log().contains("it is not a regular file"));
    assert_eq!((proxy.admin_get("/livez").status, in_force(&proxy).as_str()), (200, "v2"));
    proxy.signal("TERM");
    eventually("the end of the proxy", || proxy.has_ended());
}

#[test]
fn a_refused_file_is_tried_again_when_what_it_names_is_there() {
    let proxy = Proxy::start_whole(&version(1));
    let path = proxy.folder().join("ringway.yaml");
    let named = version(2).replace("\"127.0.0.1:0\" }\naccess", "\"127.0.0.1:0\", token_file: token }\naccess");
    replace(&path, &named);
    eventually("a refusal", || proxy.metric("ringway_config_reloads_total{result=\"failure\"}") >= 1.0);
    assert_eq!(in_force(&proxy), "v1");
    write_private(&proxy.folder().join("token"), "0123456789abcdef");
    wait_for(&proxy, 2);
}

#[test]
fn changes_behind_links_and_folders_are_found() {
    let proxy = Proxy::start_whole(&version(1));
    let path = proxy.folder().join("ringway.yaml");
    let at = |name: &str| proxy.folder().join(name);
    // The file becomes a link to a link.
    std::fs::create_dir(at("a")).unwrap();
    std::fs::write(at("a/real"), version(2)).unwrap();
    symlink("a/real", at("middle")).unwrap();
    symlink("middle", at("link.new")).unwrap();
    std::fs::rename(at("link.new"), &path).unwrap();
    wait_for(&proxy, 2);
    // The target is edited, in place and by a rename.
    std::fs::write(at("a/real"), version(3)).unwrap();
    wait_for(&proxy, 3);
    replace(&at("a/real"), &version(4));
    wait_for(&proxy, 4);
    // The middle of the chain is repointed, and its new target then edited.
    std::fs::create_dir(at("b")).unwrap();
    std::fs::write(at("b/real"), version(5)).unwrap();
    symlink("b/real", at("middle.new")).unwrap();
    std::fs::rename(at("middle.new"), at("middle")).unwrap();
    wait_for(&proxy, 5);
    std::fs::write(at("b/real"), version(6)).unwrap();
    wait_for(&proxy, 6);
    // The folder of the target is replaced.
    std::fs::create_dir(at("c")).unwrap();
    std::fs::write(at("c/real"), version(7)).unwrap();
    std::fs::rename(at("b"), at("old")).unwrap();
    std::fs::rename(at("c"), at("b")).unwrap();
    wait_for(&proxy, 7);
    std::fs::write(at("b/real"), version(8)).unwrap();
    wait_for(&proxy, 8);
    // A folder on the way is a link, which is swapped.
    for (folder, number) in [("v9", 9), ("v10", 10)] {
        std::fs::create_dir(at(folder)).unwrap();
        std::fs::write(at(folder).join("real"), version(number)).unwrap();
    }
    symlink("v9", at("current")).unwrap();
    symlink("current/real", at("link.new")).unwrap();
    std::fs::rename(at("link.new"), &path).unwrap();
    wait_for(&proxy, 9);
    symlink("v10", at("current.new")).unwrap();
    std::fs::rename(at("current.new"), at("current")).unwrap();
    wait_for(&proxy, 10);
}

/// As editors save: the old file goes away, and a new one is written, synchronised and closed.
#[test]
fn a_file_that_is_saved_anew_is_not_lost() {
    let proxy = Proxy::start_whole(&version(0));
    let path = proxy.folder().join("ringway.yaml");
    for number in 1..8 {
        std::fs::rename(&path, path.with_extension("bak")).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(version(number).as_bytes()).unwrap();
        file.sync_all().unwrap();
        std::thread::park_timeout(Duration::from_millis(30 * number as u64));
        drop(file);
        wait_for(&proxy, number);
    }
    assert_eq!(proxy.metric("ringway_config_reloads_total{result=\"failure\"}"), 0.0, "no half of a file was read");
}

/// Any sequence of writes, in place and by renames, whole and half, valid and not: what is in force was written whole,
/// and in the end it is the last one that is valid.
#[test]
fn whatever_is_done_to_the_file_a_whole_version_is_in_force() {
    let mut random = fastrand::Rng::with_seed(20);
    let proxy = Proxy::start_whole(&version(1));
    let path: PathBuf = proxy.folder().join("ringway.yaml");
    let (mut last_valid, mut is_last_invalid) = (1, false);
    for number in 2..26 {
        let text = version(number);
        match random.u8(..6) {
            0 => replace(&path, &text),
            1 => std::fs::write(&path, &text).unwrap(),
            2 => {
                // In place, in pieces that are all valid.
                let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
                let lines: Vec<&str> = text.split_inclusive('\n').collect();
                for piece in lines.chunks(ROUTES / 3) {
                    file.write_all(piece.concat().as_bytes()).unwrap();
                    in_force(&proxy);
                    std::thread::park_timeout(Duration::from_millis(random.u64(..300)));
                }
            }
            3 => {
                let target = proxy.folder().join(format!("target{number}"));
                std::fs::write(&target, &text).unwrap();
                let link = proxy.folder().join("link.new");
                symlink(&target, &link).unwrap();
                std::fs::rename(link, &path).unwrap();
            }
            4 => {
                replace(&path, &text.replace("access_log", "acces_log"));
                is_last_invalid = true;
                in_force(&proxy);
                continue;
            }
            _ => {
                // Away for a moment.
                let away = proxy.folder().join("away");
                std::fs::rename(&path, &away).unwrap();
                in_force(&proxy);
                std::fs::write(away.with_extension("new"), &text).unwrap();
                std::fs::rename(away.with_extension("new"), &path).unwrap();
            }
        }
        (last_valid, is_last_invalid) = (number, false);
        let found: usize = in_force(&proxy)[1..].parse().unwrap();
        assert!(found <= number);
        if random.bool() {
            wait_for(&proxy, number);
        }
    }
    if is_last_invalid {
        eventually("the refusal of the last one", || proxy.metric("ringway_config_last_reload_success") == 0.0);
    } else {
        wait_for(&proxy, last_valid);
    }
    let found: usize = in_force(&proxy)[1..].parse().unwrap();
    assert!(found <= last_valid);
}
