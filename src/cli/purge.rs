//! `ringway purge`: the removal of stored responses.

use super::Outcome;
use super::api::Target;
use serde_json::json;

#[derive(clap::Args)]
#[group(id = "what", required = true, multiple = false, args = ["url", "prefix", "tag", "all"])]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// One URL with all its variants; `/a` without a host means every host
    #[arg(long)]
    url: Option<String>,
    /// All responses whose URL begins with this
    #[arg(long)]
    prefix: Option<String>,
    /// All responses with this tag (Cache-Tag, Surrogate-Key)
    #[arg(long)]
    tag: Option<String>,
    /// All stored responses
    #[arg(long)]
    all: bool,
    /// Make them stale instead: they are validated before their next use
    #[arg(long)]
    soft: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let named = [("url", &options.url), ("prefix", &options.prefix), ("tag", &options.tag)];
    let mut order = json!({ "soft": options.soft });
    match named.into_iter().find_map(|(kind, given)| Some((kind, given.as_ref()?))) {
        Some((kind, given)) => order[kind] = given.as_str().into(),
        None => order["all"] = true.into(),
    }
    options.target.command_with("/api/cache/purge", &order)
}
