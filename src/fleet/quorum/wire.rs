//! The commands to one server, and their replies. Each is a script, which a server carries out at one moment and by its
//! own clock.

use super::messages::{Checked, ServerFacts, WriteOrder};
use super::rules::QuorumRules;
use crate::consistency::quorum::{Slot, SlotView};
use crate::fleet::{field_of, words};
use crate::io::redis::{Client, Value, list, number, text, within_a_second};
use ::redis::{Cmd, Pipeline};
use siphasher::sip::SipHasher13;
use std::cell::RefCell;
use std::hash::Hasher as _;
use std::time::Instant;

const PRELUDE: &str = include_str!("scripts/prelude.lua");
const REGISTER: &str = include_str!("scripts/register.lua");
const CHECK: &str = include_str!("scripts/check.lua");
const WRITE: &str = include_str!("scripts/write.lua");

/// A connection to a server, which ends with its first failure.
pub(super) struct Connection {
    client: Client,
    prefix: String,
    digests: Digests,
}

/// The digests of the scripts.
struct Digests {
    register: String,
    check: String,
    begin: String,
    write: String,
}

impl Connection {
    /// Connects to the node at a place, and makes sure that it can hold stamps.
    ///
    /// # Errors
    /// A sentence for operators.
    pub(super) async fn open(rules: &QuorumRules, place: usize) -> Result<(Connection, ServerFacts), String> {
        let reach = &rules.settings.reach;
        let address = reach.addresses.get(place).ok_or("the node has no address")?;
        within_a_second(async {
            let client = Client::open(&reach.login, address).await?;
            let info = text(&client.ask(::redis::cmd("INFO")).await?).unwrap_or_default();
            let at = Instant::now();
            words(&rules.settings.ids[place], &info)?;
            suits(&info)?;
            let load = |body: &str, flags: &str| {
                let mut command = ::redis::cmd("SCRIPT");
                command.arg("LOAD").arg(format!("#!lua{flags}\n{PRELUDE}{body}"));
                command
            };
            let mut commands = Pipeline::new();
            // Scripts that end or show something may write beyond `maxmemory`; a begin may not.
            commands.add_command(load(REGISTER, " flags=allow-oom"));
            commands.add_command(load(CHECK, " flags=allow-oom"));
            commands.add_command(load(WRITE, ""));
            commands.add_command(load(WRITE, " flags=allow-oom"));
            let loaded = client.send(&commands, 0).await?;
            let mut digests = loaded.iter().map(|reply| text(reply).ok_or_else(|| refusal(reply)));
            let mut next = || digests.next().unwrap_or_else(|| Err("a script is missing".to_owned()));
            let digests = Digests { register: next()?, check: next()?, begin: next()?, write: next()? };
            let mut hasher = SipHasher13::new();
            hasher.write(field_of(&info, "run_id").unwrap_or_default().as_bytes());
            let uptime = field_of(&info, "uptime_in_seconds").and_then(|text| text.parse::<u64>().ok());
            let facts = ServerFacts { run: hasher.finish(), uptime: uptime.unwrap_or_default() * 1000, at };
            let prefix = format!("ringway:{}:strong:", rules.settings.fleet);
            Ok((Connection { client, prefix, digests }, facts))
        })
        .await
    }

    /// Returns when the connection has ended.
    pub(super) async fn closed(&self) {
        self.client.closed().await;
    }

    fn call(&self, digest: &str) -> Cmd {
        let mut command = ::redis::cmd("EVALSHA");
        command.arg(digest).arg(1).arg(&self.prefix);
        command
    }

    async fn ask(&self, command: Cmd, bytes: usize) -> Result<Value, String> {
        let mut commands = Pipeline::new();
        commands.add_command(command);
        let reply = self.client.send(&commands, bytes).await?.pop();
        match reply.ok_or("the server gave no reply")? {
            refused @ Value::ServerError(_) => Err(refusal(&refused)),
            value => Ok(value),
        }
    }

    /// Registers the configuration of this process for a life of marks. Returns the number of other ones.
    ///
    /// # Errors
    /// The connection broke, or the server refuses.
    pub(super) async fn register(&self, rules: &QuorumRules) -> Result<u64, String> {
        let mut command = self.call(&self.digests.register);
        command.arg(hex(rules.digest)).arg(rules.life()).arg(hex(random()));
        number(&self.ask(command, 0).await?).ok_or_else(|| "the server's reply is not understood".to_owned())
    }

    /// Reads the stamps and marks of slots.
    ///
    /// # Errors
    /// As for [`Connection::register`].
    pub(super) async fn check(&self, digest: u64, slots: &[Slot]) -> Result<Checked, String> {
        let mut command = self.call(&self.digests.check);
        command.arg(hex(digest)).arg(hex(random()));
        slots.iter().for_each(|slot| _ = command.arg(slot.number()));
        let reply = self.ask(command, slots.len() * 24).await?;
        checked(&reply, slots.len()).ok_or_else(|| "the server's reply is not understood".to_owned())
    }

    /// Carries out an operation on slots.
    ///
    /// # Errors
    /// As for [`Connection::register`].
    pub(super) async fn write(&self, order: &WriteOrder) -> Result<(), String> {
        let begins = order.flags.contains('d');
        let mut command = self.call(if begins { &self.digests.begin } else { &self.digests.write });
        command.arg(order.flags).arg(&order.write).arg(order.life).arg(hex(order.digest)).arg(hex(random()));
        order.slots.iter().for_each(|slot| _ = command.arg(slot.number()));
        self.ask(command, order.slots.len() * 8).await.map(drop)
    }
}

/// Makes sure that a server keeps what it is given for as long as it runs.
fn suits(info: &str) -> Result<(), String> {
    match field_of(info, "maxmemory_policy").unwrap_or_default() {
        "" | "noeviction" => {}
        policy => {
            return Err(format!(
                "its `maxmemory-policy` is `{policy}`, by which it may forget marks; strong reads need `noeviction`"
            ));
        }
    }
    match field_of(info, "connected_slaves").unwrap_or_default() {
        "" | "0" => Ok(()),
        _ => {
            Err("it has a replica; strong reads need nodes that fail over to none, for a replica may lack marks".into())
        }
    }
}

fn refusal(reply: &Value) -> String {
    match reply {
        Value::ServerError(error) => error.to_string(),
        _ => "the server's reply is not understood".to_owned(),
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// Returns a number that no other operation has, of any process.
fn random() -> u64 {
    thread_local! {
        static RANDOM: RefCell<fastrand::Rng> =
            RefCell::new(getrandom::u64().map_or_else(|_| fastrand::Rng::new(), fastrand::Rng::with_seed));
    }
    RANDOM.with_borrow_mut(|random| random.u64(..))
}

fn checked(reply: &Value, slots: usize) -> Option<Checked> {
    let [now, birth, others, views @ ..] = list(reply) else { return None };
    let birth = text(birth)?;
    let (birth, born) = birth.split_once(':')?;
    let view = |pair: &[Value]| {
        let stamp = u64::from_str_radix(&text(&pair[0])?, 16).ok();
        Some(SlotView { stamp, is_marked: number(&pair[1])? != 0 })
    };
    let views: Vec<SlotView> = views.chunks_exact(2).map(view).collect::<Option<_>>()?;
    (views.len() == slots).then_some(Checked {
        now: number(now)?,
        birth: u64::from_str_radix(birth, 16).ok()?,
        born: born.parse().ok()?,
        has_other_config: number(others)? != 0,
        views,
    })
}

/// Asks each node whether it can hold stamps, for `check --connect`. Returns a sentence for each, or why it cannot.
pub(crate) fn inspect(rules: &QuorumRules) -> Vec<Result<String, String>> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Err(error.to_string())],
    };
    let (mut runs, mut told) = (Vec::new(), Vec::new());
    tokio::task::LocalSet::new().block_on(&runtime, async {
        for (place, id) in rules.settings.ids.iter().enumerate() {
            let address = &rules.settings.reach.addresses[place];
            let judged = Connection::open(rules, place).await.and_then(|(_, facts)| {
                if let Some((other, _)) = runs.iter().find(|(_, run)| *run == facts.run) {
                    return Err(format!("it is the same server as the node `{other}`, by its run_id"));
                }
                runs.push((id.clone(), facts.run));
                let horizon = rules.life();
                let age = facts.uptime;
                Ok(match age >= horizon {
                    true => format!("{id}: holds stamps and marks"),
                    false => format!("{id}: counts for strong reads once it has run for {} s", horizon.div_ceil(1000)),
                })
            });
            told.push(judged.map_err(|error| format!("{id} at {address}: {error}")));
        }
    });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_may_forget_is_refused() {
        assert!(suits("maxmemory_policy:noeviction\r\nconnected_slaves:0\r\n").is_ok());
        assert!(suits("maxmemory_policy:allkeys-lru\r\n").unwrap_err().contains("noeviction"));
        assert!(suits("connected_slaves:1\r\n").unwrap_err().contains("replica"));
    }

    #[test]
    fn a_reply_is_read_whole_or_not_at_all() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let reply = |parts: Vec<Value>| checked(&Value::Array(parts), 1);
        let good = || vec![bulk("1000"), bulk("00000000000000ff:900"), Value::Int(0), bulk("0a"), Value::Int(1)];
        let found = reply(good()).unwrap();
        assert_eq!((found.now, found.birth, found.born, found.has_other_config), (1000, 255, 900, false));
        assert_eq!(found.views, [SlotView { stamp: Some(10), is_marked: true }]);
        assert!(reply(good()[..3].to_vec()).is_none());
        assert!(checked(&Value::Nil, 0).is_none());
    }
}
