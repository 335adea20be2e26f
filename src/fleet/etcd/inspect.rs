//! The report of `ringway check --connect` on an etcd cluster.

use super::client::{Client, Txn};
use super::error::EtcdError;
use super::settings::EtcdSettings;
use super::version::of_version;
use super::wire::{self, Range, Status};
use serde_json::json;
use tokio::sync::watch;

/// The distance in revisions at which a cluster that keeps an old revision has not compacted for long: a fleet alone
/// adds as many in a day.
const MANY: u64 = 86_400;

/// The facts about a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inspection {
    pub(crate) sentences: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// Why it cannot be used.
    pub(crate) errors: Vec<String>,
}

/// Asks each endpoint, and the cluster as a whole.
pub(crate) fn inspect(settings: &EtcdSettings) -> Inspection {
    let mut found = Inspection::default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Inspection { errors: vec![error.to_string()], ..found },
    };
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let mut clusters = Vec::new();
        for endpoint in &settings.endpoints {
            let one = EtcdSettings { endpoints: vec![endpoint.clone()], ..settings.clone() };
            let (_sender, receiver) = watch::channel(one);
            match Client::new(receiver).status().await {
                Ok(status) => {
                    clusters.push(status.header.cluster_id);
                    found.note_member(&endpoint.url, &status);
                }
                Err(error) => found.errors.push(of_endpoint(&endpoint.url, &error)),
            }
        }
        if clusters.iter().any(|cluster| *cluster != clusters[0]) {
            found.errors.push("the endpoints belong to different clusters: name the members of one".to_owned());
        }
        if !clusters.is_empty() && found.errors.len() < settings.endpoints.len() {
            let (_sender, receiver) = watch::channel(settings.clone());
            let mut client = Client::new(receiver);
            if let Err(error) = found.note_cluster(&mut client, settings).await {
                found.errors.push(error.to_string());
            }
        }
    });
    found
}

fn of_endpoint(url: &str, error: &EtcdError) -> String {
    let error = error.to_string();
    if error.contains(url) { error } else { format!("{url}: {error}") }
}

impl Inspection {
    fn note_member(&mut self, url: &str, status: &Status) {
        let leads = if status.leader == status.header.member_id { ", leads" } else { "" };
        let mebibytes = status.size.div_ceil(1 << 20);
        self.sentences.push(format!("{url}: etcd {}{leads}, {mebibytes} MiB", status.version));
        self.warnings.extend(of_version(&status.version).map(|warning| format!("{url}: {warning}")));
        if status.leader == 0 {
            self.errors.push(format!("{url}: the cluster has no leader: too few of its members are alive"));
        }
    }

    /// Notes whether the fleet can write, and whether the cluster compacts.
    async fn note_cluster(&mut self, client: &mut Client, settings: &EtcdSettings) -> Result<(), EtcdError> {
        let key = format!("{}check", settings.prefix());
        let written = client.txn(&Txn::default().put(&key, b"", 0)).await?;
        client.txn(&Txn::default().delete(&key)).await?;
        self.sentences.push(format!("the fleet {} can write below `{}`", settings.fleet, settings.prefix()));
        let revision = written.header.revision;
        let old = revision.saturating_sub(MANY);
        if old > 1 && is_kept(client, &key, old).await? {
            self.warnings.push(format!(
                "revision {old} of {revision} is still there: the cluster seems never to compact, and will run full; \
                 start etcd with `--auto-compaction-retention=1h`"
            ));
        } else if old <= 1 {
            self.sentences.push(
                "the cluster is too young to tell whether it compacts; etcd needs `--auto-compaction-retention=1h`"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Returns whether etcd still has the keys as of a revision.
async fn is_kept(client: &mut Client, key: &str, revision: u64) -> Result<bool, EtcdError> {
    let body = json!({ "key": wire::encode(key), "revision": revision.to_string(), "serializable": true });
    match client.call::<Range>("/v3/kv/range", &body).await {
        Ok(_) => Ok(true),
        Err(EtcdError::Refused { message, .. }) if message.contains("compacted") => Ok(false),
        Err(error) => Err(error),
    }
}
