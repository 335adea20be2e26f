//! The `ringway` program. Everything it does is in the library's `cli`.

use std::process::ExitCode;

// A proxy makes many small, short-lived allocations on many cores.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ringway::cli::main()
}
