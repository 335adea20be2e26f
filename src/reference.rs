//! Pages of `docs/` that tests make from tables of the code.

use std::path::Path;

/// Compares a page with its file; with `RINGWAY_BLESS` writes it there before.
pub(crate) fn compare(file: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("RINGWAY_BLESS").is_some() {
        std::fs::write(&path, page).expect("the page can be written where it is blessed");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "{file} is out of date: RINGWAY_BLESS=1 cargo test --lib reference");
}
