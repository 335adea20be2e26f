//! The facts about a server that `INFO` tells; managed services forbid `CONFIG`.

/// The first version whose scripts may say that they write beyond `maxmemory`.
const OLDEST: u32 = 7;

/// The facts about a server that decide what survives which failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `redis` or `valkey`.
    pub(super) product: String,
    pub(super) version: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub(super) mode: String,
    /// It takes writes.
    pub(super) is_primary: bool,
    /// It is reading its data from the disk.
    pub(super) is_loading: bool,
    /// The history of writes that it goes on with, and the one that it followed before it was promoted.
    pub(super) history: String,
    pub(super) former_history: String,
    /// The number of moves of proxies to another server, up to this one, as the store has it.
    pub(super) moves: u64,
    pub(super) pulse: Pulse,
    pub(super) has_aof: bool,
    /// The last write of the append-only file, and the last snapshot, went well.
    pub(super) is_saving: bool,
    /// `appendfsync` and `no-appendfsync-on-rewrite`, where the server tells: `CONFIG` alone knows.
    pub(super) fsync: Option<String>,
    pub(super) skips_fsync_on_rewrite: Option<bool>,
}

/// The facts that change from moment to moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    /// The replicas that are connected and in step.
    pub(super) replicas: u32,
    pub(super) used_memory: u64,
    /// 0 where memory is not bounded.
    pub(super) max_memory: u64,
    pub(super) eviction: String,
}

/// Why new claims are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooFewReplicas(String),
    NoMemory,
}

impl Refusal {
    /// Returns it in a sentence for operators.
    pub(super) fn text(&self) -> &str {
        match self {
            Refusal::TooFewReplicas(text) => text,
            Refusal::NoMemory => "nine tenths of its `maxmemory` are used; no new keys are taken",
        }
    }
}

/// Returns the fields of an `INFO` reply.
fn fields(info: &str) -> impl Iterator<Item = (&str, &str)> {
    info.lines().filter_map(|line| line.trim_end().split_once(':'))
}

impl Facts {
    /// Reads the reply of `INFO`.
    pub(super) fn of(info: &str) -> Facts {
        let mut facts =
            Facts { is_saving: true, product: "redis".to_owned(), pulse: Pulse::of(info), ..Facts::default() };
        for (name, value) in fields(info) {
            match name {
                // Valkey calls itself by both names, and `redis_version` is the one that it is compatible with.
                "redis_version" if facts.version.is_empty() => value.clone_into(&mut facts.version),
                "server_name" if value == "valkey" => value.clone_into(&mut facts.product),
                "valkey_version" => value.clone_into(&mut facts.version),
                "redis_mode" | "server_mode" => value.clone_into(&mut facts.mode),
                "role" => facts.is_primary = value == "master",
                "loading" => facts.is_loading = value == "1",
                "master_replid" => value.clone_into(&mut facts.history),
                "master_replid2" => value.clone_into(&mut facts.former_history),
                "aof_enabled" => facts.has_aof = value == "1",
                "aof_last_write_status" | "rdb_last_bgsave_status" => facts.is_saving &= value == "ok",
                _ => {}
            }
        }
        facts
    }

    /// Returns why the server is no place for a store, in a sentence for operators.
    pub(super) fn refusal(&self) -> Option<String> {
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if self.mode == "cluster" {
            return Some(
                "it runs in cluster mode, where a failover loses writes that were acknowledged, and `WAIT` does not \
                 choose the replica that is promoted: use a server without it"
                    .to_owned(),
            );
        }
        if self.mode == "sentinel" {
            return Some("it is a Sentinel: give the addresses of the servers that it watches".to_owned());
        }
        if major.is_some_and(|major| major < OLDEST) {
            return Some(format!("its version is {}, and version {OLDEST} is the oldest that works", self.version));
        }
        self.pulse.evicts().then(|| {
            format!(
                "its `maxmemory-policy` is `{}`: it forgets records when its memory is full, and their requests would \
                 run again; set it to `noeviction`",
                self.pulse.eviction
            )
        })
    }

    /// Returns whether this server was promoted from the other one's replica.
    pub(super) fn follows(&self, other: &Facts) -> bool {
        !other.history.is_empty() && self.former_history == other.history && self.history != other.history
    }
}

impl Pulse {
    /// Reads the reply of `INFO`, or of its sections `replication` and `memory`.
    pub(super) fn of(info: &str) -> Pulse {
        let mut pulse = Pulse::default();
        for (name, value) in fields(info) {
            match name {
                "used_memory" => pulse.used_memory = value.parse().unwrap_or_default(),
                "maxmemory" => pulse.max_memory = value.parse().unwrap_or_default(),
                "maxmemory_policy" => value.clone_into(&mut pulse.eviction),
                _ => {
                    let number = name.strip_prefix("slave").or_else(|| name.strip_prefix("replica"));
                    let is_replica = number.is_some_and(|number| number.parse::<u32>().is_ok());
                    pulse.replicas += u32::from(is_replica && value.contains("state=online"));
                }
            }
        }
        pulse
    }

    /// Returns the facts that the promise depends on.
    pub(super) fn settings(&self) -> (u32, u64, &str) {
        (self.replicas, self.max_memory, &self.eviction)
    }

    /// Returns whether the server forgets records to make room.
    pub(super) fn evicts(&self) -> bool {
        self.max_memory > 0 && !self.eviction.is_empty() && self.eviction != "noeviction"
    }

    /// Returns why new claims are refused, where this many replicas must have each of them.
    pub(super) fn refuses(&self, replicas: u32) -> Option<Refusal> {
        if self.replicas < replicas {
            return Some(Refusal::TooFewReplicas(format!(
                "connected replicas: {}, and `durability.replicas` asks for {replicas}; no new keys are taken",
                self.replicas
            )));
        }
        // A tenth is left for the ends of claims that were granted.
        (self.max_memory > 0 && self.used_memory >= self.max_memory / 10 * 9).then_some(Refusal::NoMemory)
    }
}

/// Returns the server to write to: the one that was promoted last, else the one that proxies have moved to last, else
/// the one with the most replicas, up to the number that is asked for, else the first.
pub(super) fn choose(servers: &[Option<Facts>], replicas: u32) -> Option<usize> {
    let primaries = || servers.iter().enumerate().filter_map(|(at, facts)| Some((at, facts.as_ref()?)));
    let primaries = || primaries().filter(|(_, facts)| facts.is_primary && !facts.is_loading);
    let is_superseded = |facts: &Facts| primaries().any(|(_, other)| other.follows(facts));
    let candidates = primaries().filter(|(_, facts)| !is_superseded(facts));
    candidates.rev().max_by_key(|(_, facts)| (facts.moves, facts.pulse.replicas.min(replicas))).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(history: &str, former: &str, replicas: u32) -> Facts {
        Facts {
            is_primary: true,
            history: history.to_owned(),
            former_history: former.to_owned(),
            pulse: Pulse { replicas, ..Pulse::default() },
            ..Facts::default()
        }
    }

    #[test]
    fn the_server_that_was_promoted_last_takes_the_writes() {
        let (old, new) = (server("a", "0", 0), server("b", "a", 0));
        let replica = Facts { is_primary: false, ..server("a", "0", 0) };
        assert_eq!(choose(&[], 0), None);
        assert_eq!(choose(&[None, Some(replica.clone())], 0), None);
        assert_eq!(choose(&[Some(old.clone()), Some(replica)], 0), Some(0));
        assert_eq!(choose(&[Some(old.clone()), Some(new.clone())], 0), Some(1));
        assert_eq!(choose(&[Some(new.clone()), Some(old.clone())], 0), Some(0));
        assert_eq!(choose(&[None, Some(old.clone())], 0), Some(1));
        // Of two that know nothing of each other the one that can keep the promise.
        let (one, other) = (server("c", "0", 0), server("d", "0", 2));
        assert_eq!(choose(&[Some(one.clone()), Some(other.clone())], 1), Some(1));
        assert_eq!(choose(&[Some(one), Some(other)], 0), Some(0), "the first");
        // Started anew, a server has another history, and is not known to be the old one.
        let moved_to = Facts { moves: 2, ..server("e", "0", 0) };
        let left = Facts { moves: 1, ..server("f", "0", 1) };
        assert_eq!(choose(&[Some(left), Some(moved_to)], 1), Some(1));
        let loading = Facts { is_loading: true, ..new };
        assert_eq!(choose(&[Some(loading), Some(old)], 0), Some(1));
    }

    #[test]
    fn servers_that_forget_or_split_their_keys_are_refused() {
        let info =
            |more: &str| Facts::of(&format!("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n{more}"));
        assert_eq!(info("").refusal(), None);
        assert!(Facts::of("redis_version:7.2.4\r\nserver_mode:cluster\r\n").refusal().unwrap().contains("cluster"));
        assert!(Facts::of("redis_version:6.2.0\r\n").refusal().unwrap().contains("6.2.0"));
        assert!(Facts::of("redis_mode:sentinel\r\n").refusal().unwrap().contains("Sentinel"));
        assert_eq!(info("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n").refusal(), None, "nothing to evict");
        let evicts = info("maxmemory:100\r\nmaxmemory_policy:volatile-ttl\r\n").refusal();
        assert!(evicts.unwrap().contains("volatile-ttl"));
        let valkey = Facts::of("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n");
        assert_eq!((valkey.product.as_str(), valkey.version.as_str()), ("valkey", "8.1.1"));
    }

    #[test]
    fn claims_are_refused_with_too_few_replicas_and_at_nine_tenths_of_the_memory() {
        let pulse = |text: &str| Pulse::of(text);
        let two = pulse(
            "role:master\r\nconnected_slaves:3\r\nslave0:ip=1,state=online\r\nslave1:ip=2,state=wait_bgsave\r\n\
             slave2:ip=3,state=online,lag=1\r\nslave_read_only:1\r\n",
        );
        assert_eq!(two.replicas, 2);
        assert_eq!(two.refuses(2), None);
        assert!(
            matches!(two.refuses(3), Some(Refusal::TooFewReplicas(text)) if text.starts_with("connected replicas: 2, "))
        );
        assert_eq!(pulse("used_memory:899\r\nmaxmemory:1000\r\n").refuses(0), None);
        assert_eq!(pulse("used_memory:900\r\nmaxmemory:1000\r\n").refuses(0), Some(Refusal::NoMemory));
        assert_eq!(pulse("used_memory:900\r\nmaxmemory:0\r\n").refuses(0), None);
    }
}
