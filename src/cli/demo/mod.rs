//! `ringway demo`: three nodes, the proxy before them, and a tour that checks what it says.

mod client;
mod nodes;
mod tour;

use super::Outcome;
use crate::config::Config;
use crate::server;
use nodes::DemoNode;
use std::path::Path;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Options {
    /// Exit after the tour, with 1 if a step did not hold
    #[arg(long)]
    once: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(demo(options.once))
}

async fn demo(once: bool) -> Outcome {
    let mut nodes = Vec::new();
    for id in ["node-1", "node-2", "node-3"] {
        nodes.push(DemoNode::start(id).await?);
    }
    let text = configuration(&nodes);
    let (config, _) = Config::parse(Path::new("demo.yaml"), &text, &|_| None).map_err(|report| report.to_string())?;
    let mut running = server::start(config).await?;
    let proxy = running.listeners()[0].1;

    println!("Ringway {} on http://{proxy}, before three nodes:", env!("CARGO_PKG_VERSION"));
    for node in &nodes {
        println!("  {} on http://{}", node.id, node.address);
    }
    println!();
    let held = tour::take(proxy, &mut nodes).await?;
    println!();
    if !once {
        println!("Try it yourself:");
        println!("  curl -i -H 'x-user-id: alice' http://{proxy}/");
        println!("  curl http://{}/api/pools", running.admin);
        println!("  curl http://{}/metrics", running.admin);
        println!("\nCtrl-C ends it.");
        tokio::signal::ctrl_c().await?;
    }
    running.stop();
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn configuration(nodes: &[DemoNode]) -> String {
    let list: String =
        nodes.iter().map(|node| format!("      - {{ id: {}, address: \"{}\" }}\n", node.id, node.address)).collect();
    format!(
        "listeners:
  - {{ name: http, address: \"127.0.0.1:0\" }}
admin: {{ address: \"127.0.0.1:0\" }}
access_log: {{ format: \"off\" }}
pools:
  app:
    nodes:
{list}
routes:
  - {{ name: hello, path: /hello, respond: {{ body: \"hello from the edge\\n\" }} }}
  - {{ name: site, path_prefix: /, pool: app, hash_on: [header:x-user-id, client_ip] }}
"
    )
}
