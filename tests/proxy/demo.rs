//! The demo's tour holds, step by step.

use std::process::Command;

#[test]
fn the_tour_holds() {
    let told = Command::new(env!("CARGO_BIN_EXE_ringway")).args(["demo", "--once"]).output().unwrap();
    let said = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success(), "{said}");
    assert!(said.matches("ok   ").count() >= 5 && !said.contains("FAIL"), "{said}");
}
