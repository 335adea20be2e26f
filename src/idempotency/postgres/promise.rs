//! The promise of the store: the losses that are possible under the settings found on the server, and when.

use crate::idempotency::remote::WITHOUT_WRITES;
use tokio_postgres::{Client, Error};

/// The settings of a server that decide what survives which failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) version: String,
    pub(crate) fsync: bool,
    pub(crate) full_page_writes: bool,
    /// `synchronous_standby_names`: the standbys that a commit waits for.
    pub(crate) standbys: String,
    /// `synchronous_commit`, as it is set for this role.
    pub(crate) commit: String,
    pub(crate) is_standby: bool,
}

/// Reads the settings.
pub(super) async fn find(client: &Client) -> Result<Found, Error> {
    let row = client
        .query_typed_one(
            "SELECT current_setting('server_version'), current_setting('fsync') = 'on',
                    current_setting('full_page_writes') = 'on', current_setting('synchronous_standby_names'),
                    current_setting('synchronous_commit'), pg_is_in_recovery()",
            &[],
        )
        .await?;
    Ok(Found {
        version: row.try_get(0)?,
        fsync: row.try_get(1)?,
        full_page_writes: row.try_get(2)?,
        standbys: row.try_get(3)?,
        commit: row.try_get(4)?,
        is_standby: row.try_get(5)?,
    })
}

/// Returns the promise that the settings allow, a sentence for each kind of failure.
pub(crate) fn sentences(found: &Found) -> Vec<String> {
    let mut sentences = vec![format!(
        "PostgreSQL {}: a claim is committed before its request is sent, a result before its client gets it.",
        found.version
    )];
    sentences.push(match found.fsync {
        true => "A proxy or a server process that is killed loses nothing.".to_owned(),
        false => "`fsync` is off: a machine that crashes loses claims, and their requests can run again. Turn it on."
            .to_owned(),
    });
    if !found.full_page_writes {
        sentences.push("`full_page_writes` is off: a machine that crashes can leave damaged pages.".to_owned());
    }
    let standbys = found.standbys.trim();
    sentences.push(if standbys.is_empty() {
        "No standby is synchronous: at most once, except for claims younger than the replication lag at a failover; a \
         server that is lost without a standby loses all records."
            .to_owned()
    } else if standbys.to_ascii_uppercase().starts_with("ANY") {
        format!(
            "A commit waits for `{standbys}`: at most once through a failover to a standby that has acknowledged; \
             promoting one that has not loses the claims that it lacks."
        )
    } else {
        format!("A commit waits for `{standbys}`: at most once through a failover to a synchronous standby.")
    });
    sentences.push(WITHOUT_WRITES.to_owned());
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_its_sentence() {
        let found = |standbys: &str, fsync| Found {
            version: "15.18".to_owned(),
            fsync,
            full_page_writes: fsync,
            standbys: standbys.to_owned(),
            commit: "on".to_owned(),
            is_standby: false,
        };
        let says = |found: Found, text: &str| {
            let sentences = sentences(&found).join(" ");
            assert!(sentences.contains(text), "{sentences}");
        };
        says(found("", true), "except for claims younger than the replication lag");
        says(found("FIRST 1 (b)", true), "a failover to a synchronous standby.");
        says(found("any 1 (b, c)", true), "promoting one that has not");
        says(found("", false), "`fsync` is off");
        says(found("", false), "`full_page_writes` is off");
        says(found("*", true), "killed loses nothing");
    }
}
