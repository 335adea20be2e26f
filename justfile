# The commands of this repository: `just` lists them (https://just.systems).

_default:
    @just --list

# The demo: three nodes, the proxy, a tour.
demo:
    cargo run --profile quick -- demo

# Format, lints and documentation, as CI wants them.
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets --features fuzzing -- -D warnings
    cargo clippy --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# All tests, or those whose names hold a word: `just test reload`.
test *words:
    cargo test --locked {{words}}

# Write generated pages and golden files anew.
bless:
    RINGWAY_BLESS=1 cargo test --locked --lib reference
    RINGWAY_BLESS=1 cargo test --locked --test proxy -- reference golden

# The dashboard in Chromium.
dashboard:
    cargo build --locked
    npm ci --prefix tests/dashboard --no-audit --no-fund --ignore-scripts
    npm test --silent --prefix tests/dashboard

# The screenshots of docs/dashboard.md, anew.
shots:
    cargo build --locked
    npm ci --prefix tests/dashboard --no-audit --no-fund --ignore-scripts
    npm run --silent shots --prefix tests/dashboard

# What a request costs, against the table.
counts:
    cargo build --locked --release
    python3 benches/counts/run.py

# CPU, latency and memory beside other proxies.
compare *arguments:
    cargo build --locked --release --bins --example bare
    python3 benches/compare/run.py {{arguments}}

# One fuzz target for a minute; without a name all of them are listed.
fuzz target='':
    cargo +nightly fuzz {{ if target == '' { 'list' } else { 'run ' + target + ' -- -max_total_time=60' } }}

# Licences, advisories and duplicates of the dependencies.
deny:
    cargo deny --locked check

# The whole gate, on a Debian machine.
ci:
    .ci/run
