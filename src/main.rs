//! The `ringway` program. Everything it does is in the library's `cli`.

use std::process::ExitCode;

// Small, short-lived allocations on many cores are what a proxy does all day.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ringway::cli::main()
}
