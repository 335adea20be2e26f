//! The promise of the store: the losses that are possible under the settings found on the server, and when.

use super::facts::Facts;
use crate::idempotency::remote::WITHOUT_WRITES;

/// Returns the promise that the settings allow, a sentence for each kind of failure.
pub(super) fn sentences(facts: &Facts, replicas: u32, address: &str) -> Vec<String> {
    let product = if facts.product == "valkey" { "Valkey" } else { "Redis" };
    let mut sentences = vec![format!(
        "{product} {} at {address}: a claim is in its memory before its request is sent, a result before its client gets \
         it. A proxy that is killed loses nothing.",
        facts.version
    )];
    let is_durable = facts.has_aof && facts.fsync.as_deref() == Some("always");
    sentences.push(match (facts.has_aof, facts.fsync.as_deref()) {
        (false, _) => "There is no append-only file: a server that is killed or loses its power forgets all claims since \
             its last snapshot, and their requests can run again. Set `appendonly yes` and `appendfsync always`."
            .to_owned(),
        (true, Some("always")) => "Every write is on the server's disk before it is answered (`appendfsync always`): a \
             server that is killed or loses its power loses nothing."
            .to_owned(),
        (true, Some(fsync)) => format!(
            "`appendfsync` is `{fsync}`: a machine that loses its power forgets the claims of {}, and their requests can \
             run again. Set `appendfsync always`.",
            if fsync == "everysec" { "the last second or two" } else { "the last half a minute or so" }
        ),
        (true, None) => "There is an append-only file; the server does not tell how often it is flushed. With \
             `appendfsync always` a server that is killed or loses its power loses nothing; with `everysec`, the default, \
             a machine that loses its power forgets the claims of the last second or two."
            .to_owned(),
    });
    if facts.has_aof && facts.skips_fsync_on_rewrite == Some(true) {
        sentences.push(
            "`no-appendfsync-on-rewrite` is on: while the file is rewritten, nothing is flushed, and a machine that loses \
             its power forgets those claims. Turn it off."
                .to_owned(),
        );
    }
    if !facts.is_saving {
        sentences.push("The server says that its last write to the disk failed.".to_owned());
    }
    let connected = facts.pulse.replicas;
    sentences.push(match replicas {
        0 if is_durable => "`durability.replicas` is 0: at most once, except through a failover: a replica that is \
             promoted lacks the claims that it had not received, and their requests can run again."
            .to_owned(),
        0 => "`durability.replicas` is 0: a failover or a crash can grant a claim twice. At most once through both needs \
             `durability.replicas` of 1 or more and `appendfsync always`."
            .to_owned(),
        replicas if connected < replicas => format!(
            "`durability.replicas` is {replicas}, and connected are {connected}: new keys are refused until more are."
        ),
        replicas if connected > replicas => format!(
            "A claim waits for {replicas} of {connected} replicas: at most once through a failover to one that has \
             acknowledged; promoting another one loses the claims that it lacks."
        ),
        _ => "A claim waits for every connected replica (`WAIT`): at most once through a failover to one of them.".to_owned(),
    });
    if facts.pulse.max_memory == 0 {
        sentences.push(
            "`maxmemory` is not set: the server grows until its machine has no memory left. With a bound, new keys are \
             refused at nine tenths of it."
                .to_owned(),
        );
        if !facts.pulse.eviction.is_empty() && facts.pulse.eviction != "noeviction" {
            sentences.push(format!(
                "`maxmemory-policy` is `{}`: as soon as `maxmemory` is set, the server forgets records and is refused. Set \
                 it to `noeviction`.",
                facts.pulse.eviction
            ));
        }
    }
    sentences.push(WITHOUT_WRITES.to_owned());
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idempotency::redis::facts::Pulse;

    #[test]
    fn every_setting_has_its_sentence() {
        let facts = |fsync: Option<&str>, connected| Facts {
            version: "7.0.15".to_owned(),
            has_aof: true,
            is_saving: true,
            fsync: fsync.map(str::to_owned),
            pulse: Pulse { replicas: connected, ..Pulse::default() },
            ..Facts::default()
        };
        let says = |facts: &Facts, replicas, text: &str| {
            let sentences = sentences(facts, replicas, "a:1").join(" ");
            assert!(sentences.contains(text), "{sentences}");
        };
        let always = facts(Some("always"), 1);
        says(&always, 0, "except through a failover");
        says(&always, 1, "at most once through a failover to one of them.");
        says(&always, 2, "is 2, and connected are 1");
        says(&facts(Some("always"), 2), 1, "1 of 2 replicas");
        says(&facts(Some("everysec"), 0), 0, "the last second or two");
        says(&facts(Some("no"), 0), 0, "half a minute");
        says(&facts(Some("everysec"), 0), 0, "a failover or a crash can grant a claim twice");
        says(&facts(None, 0), 0, "does not tell how often");
        says(&Facts { has_aof: false, ..facts(None, 0) }, 0, "no append-only file");
        says(&Facts { skips_fsync_on_rewrite: Some(true), ..always.clone() }, 0, "no-appendfsync-on-rewrite");
        says(&Facts { is_saving: false, ..always.clone() }, 0, "write to the disk failed");
        says(&always, 0, "`maxmemory` is not set");
        let evicts = Pulse { eviction: "allkeys-lru".to_owned(), ..Pulse::default() };
        says(&Facts { pulse: evicts, ..always }, 0, "`maxmemory-policy` is `allkeys-lru`");
    }
}
