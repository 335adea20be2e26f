//! The scripts: all decide as [`transition`] has it, by the server's clock; the conformance suite holds them to it.
//!
//! Redis carries out one at a time, and writes its changes as one. Those that end or show something may write beyond
//! `maxmemory`; a claim may not.
//!
//! [`transition`]: crate::idempotency::record::transition

const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// Declares the scripts, with the flags that Redis is told.
macro_rules! scripts {
    ($($(#[doc = $about:literal])* $name:ident = $file:literal, $flags:literal;)*) => {
        /// A script.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Script {
            $($(#[doc = $about])* $name,)*
        }

        impl Script {
            pub(super) const ALL: &[Script] = &[$(Script::$name,)*];

            /// Returns the text, as `SCRIPT LOAD` takes it.
            pub(super) fn text(self) -> String {
                match self {
                    $(Script::$name => {
                        let flags = $flags;
                        format!("#!lua{flags}\n{PRELUDE}{}", include_str!(concat!("scripts/", $file, ".lua")))
                    })*
                }
            }
        }
    };
}

scripts! {
    /// Makes a claim.
    Claim = "claim", "";
    /// Ends a run.
    Complete = "complete", " flags=allow-oom";
    /// Gives up a claim.
    Release = "release", " flags=allow-oom";
    /// Removes a record on an operator's word.
    Authorise = "authorise", " flags=allow-oom";
    /// Renews the heartbeat of this process.
    Beat = "beat", " flags=allow-oom";
    /// Upkeep.
    Tend = "tend", " flags=allow-oom";
    /// Lists the running records of this process.
    Running = "running", " flags=no-writes";
    /// Reads a record.
    LookUp = "look_up", " flags=no-writes";
    /// Lists the records of a key.
    Find = "find", " flags=no-writes";
    /// Reads records for a copy.
    Page = "page", " flags=no-writes";
    /// Adds a record of another store.
    Add = "add", "";
}
