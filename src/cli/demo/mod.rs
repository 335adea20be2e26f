//! `ringway demo`: three nodes, two proxies in front of them, and a tour that checks its own claims.

/// Prints a line; a reader that has gone is no error of the demo's.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

mod client;
mod echo;
mod nodes;
mod services;
mod stores;
mod tour;

use super::Outcome;
use crate::config::Config;
use crate::server;
use nodes::DemoNode;
use services::Services;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use stores::Stores;
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub(super) struct Options {
    /// Exit after the tour, with status 1 if a step failed
    #[arg(long, conflicts_with = "nodes")]
    once: bool,
    /// Start only three nodes, for a configuration of your own: each answers with its name, the request, and the number
    /// of times that it has run a payment
    #[arg(long)]
    nodes: bool,
    /// With `--nodes`: the port of the first node; the others use the next ones
    #[arg(long, requires = "nodes", conflicts_with = "once", default_value_t = 9001)]
    port: u16,
}

pub(super) fn run(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match options.nodes {
        true => runtime.block_on(async {
            echo::serve(options.port).await?;
            end().await?;
            Ok(ExitCode::SUCCESS)
        }),
        false => runtime.block_on(demo(options.once)),
    }
}

/// Waits until the process is stopped.
async fn end() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Returns this program as a shell finds it: as it was called, which need not be by a name on the path.
fn program() -> String {
    let called = std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "ringway".to_owned());
    let is_plain = called.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    if is_plain { called } else { format!("'{}'", called.replace('\'', r"'\''")) }
}

/// The nodes, the proxy and the files of the tour.
struct Stage {
    proxy: SocketAddr,
    /// Another proxy of the same fleet.
    other_proxy: SocketAddr,
    admin: SocketAddr,
    /// Three that serve from the beginning, and one that joins.
    nodes: Vec<DemoNode>,
    services: Services,
    /// The bus of the proxies, where Redis is installed.
    stores: Option<Stores>,
    file: DemoFile,
}

async fn demo(once: bool) -> Outcome {
    let mut nodes = Vec::new();
    for id in ["node-1", "node-2", "node-3", "node-4"] {
        nodes.push(DemoNode::start(id).await?);
    }
    let services = Services::start().await?;
    let mut file = DemoFile::create(&services)?;
    let stores = Stores::start(&file.folder).await;
    file.bus = stores.as_ref().map(|stores| format!(", {}", stores.block())).unwrap_or_default();
    file.write(&nodes[..3])?;
    let (config, _) = Config::load(&file.path()).map_err(|report| report.to_string())?;
    let mut running = server::start(config, server::Inherited::default()).await?;
    let (_, proxy) = running.listeners().swap_remove(0);
    let (config, _) = Config::load(&file.second(&nodes[..3])?).map_err(|report| report.to_string())?;
    let mut other = server::start(config, server::Inherited::default()).await?;
    let (_, other_proxy) = other.listeners().swap_remove(0);

    tell!("Ringway {} on http://{proxy}, before three nodes:", env!("CARGO_PKG_VERSION"));
    for node in &nodes[..3] {
        tell!("  {} on http://{}", node.id, node.address);
    }
    tell!();
    let mut stage = Stage { proxy, other_proxy, admin: running.admin(), nodes, services, stores, file };
    let held = tour::take(&mut stage).await?;
    tell!();
    if !once {
        tell!("Try it yourself:");
        tell!("  curl -i -H 'x-user-id: alice' http://{proxy}/");
        tell!("  curl -i http://{proxy}/shop");
        tell!("  curl -i http://{proxy}/news                   # twice; cache-status tells");
        tell!("  curl -i -H 'authorization: me' -H 'idempotency-key: 1' -d amount=5 http://{proxy}/payments   # twice");
        tell!(
            "  curl -i -H 'authorization: me' -H 'idempotency-key: 2' -d '{{\"items\": [], \"amount\": 5000}}' http://{proxy}/checkout"
        );
        tell!("  {} sagas --admin http://{}", program(), running.admin());
        tell!("  {} purge --all --admin http://{}", program(), running.admin());
        tell!("  {} status --admin http://{}", program(), running.admin());
        tell!("  $EDITOR {}      # a change takes effect at once", stage.file.path().display());
        tell!("  curl http://{}/metrics", running.admin());
        tell!("\nCtrl-C ends it.");
        end().await?;
    }
    other.stop();
    running.stop();
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo's configuration, in a folder of its own that goes when the demo ends.
struct DemoFile {
    folder: PathBuf,
    /// The pools of the checkout.
    services: String,
    /// The bus, as a part of the block `fleet`.
    bus: String,
}

impl DemoFile {
    fn create(services: &Services) -> io::Result<DemoFile> {
        let folder = std::env::temp_dir().join(format!("ringway-demo-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let pools = services.pools.iter();
        let pools = pools.map(|(name, at)| format!("  {name}: {{ nodes: [{{ id: {name}-1, address: \"{at}\" }}] }}\n"));
        let file = DemoFile { folder, services: pools.collect(), bus: String::new() };
        let secret: String = (0..4).map(|_| format!("{:016x}", fastrand::u64(..))).collect();
        for name in ["affinity.key", "fleet.key"] {
            std::fs::write(file.folder.join(name), &secret)?;
        }
        Ok(file)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("ringway.yaml")
    }

    /// Writes the configuration of the other proxy, with a store of its own. Returns its path.
    fn second(&self, nodes: &[DemoNode]) -> io::Result<PathBuf> {
        let path = self.folder.join("second.yaml");
        let text = format!("idempotency_store: {{ path: second/store.db }}\n{}", self.text(nodes));
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes a configuration with these nodes over the old one.
    fn write(&self, nodes: &[DemoNode]) -> io::Result<()> {
        self.write_text(&self.text(nodes))
    }

    fn text(&self, nodes: &[DemoNode]) -> String {
        let list: String = nodes
            .iter()
            .map(|node| format!("      - {{ id: {}, address: \"{}\" }}\n", node.id, node.address))
            .collect();
        let DemoFile { services, bus, .. } = self;
        format!(
            "listeners:
  - {{ name: http, address: \"127.0.0.1:0\" }}
admin: {{ address: \"127.0.0.1:0\" }}
access_log: {{ format: \"off\" }}
fleet: {{ secret_file: fleet.key{bus} }}
pools:
  app:
    health_check: {{ interval: 100ms, healthy_after: 1, unhealthy_after: 2 }}
    outlier_ejection: {{ base_time: 500ms }}
    retries: {{}}
    nodes:
{list}
{services}
routes:
  - {{ name: hello, path: /hello, respond: {{ body: \"hello from the edge\\n\" }} }}
  - {{ name: shop, path_prefix: /shop, pool: app, affinity_cookie: {{ mode: strict, secret_file: affinity.key }} }}
  - {{ name: payments, path_prefix: /payments, pool: app, idempotency: {{ required: true }} }}
  - name: checkout
    path: /checkout
    methods: [POST]
    idempotency: {{ required: true }}
    saga:
      steps:
        - name: reserve
          request: {{ pool: inventory, path: /reservations, body: {{ items: \"${{request.body.items}}\" }} }}
          compensate: {{ pool: inventory, path: \"/reservations/${{steps.reserve.key}}/undo\" }}
        - name: charge
          request: {{ pool: payments, path: /charges, body: {{ amount: \"${{request.body.amount}}\" }} }}
          compensate: {{ pool: payments, path: \"/charges/${{steps.charge.key}}/undo\" }}
        - name: ship
          request: {{ pool: shipping, path: /shipments, body: {{ reservation: \"${{steps.reserve.body.id}}\" }} }}
      respond: {{ status: 201, body: {{ shipment: \"${{steps.ship.body.id}}\" }} }}
  - {{ name: news, path_prefix: /news, pool: app, hash_on: [uri], cache: {{ default_ttl: 1m }} }}
  - {{ name: notes, path_prefix: /notes, pool: app, hash_on: [uri], cache: {{ default_ttl: 1m }}, consistency: {{ level: causal }} }}
  - {{ name: site, path_prefix: /, pool: app, hash_on: [header:x-user-id, client_ip] }}
"
        )
    }

    fn write_text(&self, text: &str) -> io::Result<()> {
        let new = self.folder.join("new.yaml");
        std::fs::write(&new, text)?;
        std::fs::rename(new, self.path())
    }
}

impl Drop for DemoFile {
    fn drop(&mut self) {
        // The folder may have been removed already.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
