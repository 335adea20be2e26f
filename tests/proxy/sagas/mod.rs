//! Sagas: a checkout over three services that keep books, which refuse, hang, answer half and die, behind proxies that
//! are killed, stopped and replaced.

mod clients;
mod fleet;
mod leaving;
mod outcomes;
mod persons;

use crate::engines::{Link, Postgres};
use crate::support::{Answer, Ask, Barrier, Origin, Peer, Proxy, eventually, write_private};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a service does with its next request, other than to honour its key.
#[derive(Clone)]
enum Trick {
    /// It refuses: 422.
    Refuse,
    /// It is busy: 429.
    Busy,
    /// It does the work, and answers this status.
    Works(u16),
    /// It does nothing, and answers this status.
    Fails(u16),
    /// It does the work, and hangs up.
    WorksSilently,
    /// It does the work, and sends half of the answer.
    AnswersHalf,
    /// It hangs up before it has done anything.
    HangsUp,
    /// It does the work, and answers with 70 KB.
    AnswersMuch,
    /// It begins when the gate is open.
    Waits(Barrier),
    /// It honours the key.
    Honours,
}

/// What a service has in its books, by the key of the step.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// How often the work was done for the key.
    done: u32,
    /// It was undone, or is never to be done.
    is_undone: bool,
    /// How often a step came after its undo, and was refused.
    late: u32,
    /// The order that the step belongs to.
    order: String,
}

type Books = Arc<Mutex<HashMap<String, Entry>>>;

/// A service that honours keys: the work of a key is done once, and never after its undo.
struct Service {
    origin: Origin,
    books: Books,
    /// What becomes of the next steps, and of the next undos.
    steps: Arc<Mutex<VecDeque<Trick>>>,
    undos: Arc<Mutex<VecDeque<Trick>>>,
    /// The last request, with its body.
    last: Arc<Mutex<Option<Ask>>>,
}

impl Service {
    fn start(name: &'static str) -> Service {
        let (books, steps, undos): (Books, Arc<Mutex<VecDeque<Trick>>>, _) = Default::default();
        let tricks: [Arc<Mutex<VecDeque<Trick>>>; 2] = [Arc::clone(&steps), Arc::clone(&undos)];
        let own = Arc::clone(&books);
        let last: Arc<Mutex<Option<Ask>>> = Arc::default();
        let seen = Arc::clone(&last);
        let origin = Origin::start(move |ask, peer| {
            *seen.lock().unwrap() = Some(ask.clone());
            let path = ask.path().to_owned();
            let undone = path.strip_prefix("/undo/");
            let trick = tricks[usize::from(undone.is_some())].lock().unwrap().pop_front().unwrap_or(Trick::Honours);
            match undone {
                Some(key) => undo(&own, key, &trick, peer),
                None => {
                    let key = ask.field("idempotency-key").expect("a step has a key").to_owned();
                    let body: serde_json::Value = serde_json::from_slice(&ask.body).unwrap_or_default();
                    work(name, &own, (&key, &body), &trick, peer);
                }
            }
        });
        Service { origin, books, steps, undos, last }
    }

    fn last(&self) -> Ask {
        self.last.lock().unwrap().clone().unwrap()
    }

    fn next(&self, tricks: impl IntoIterator<Item = Trick>) {
        self.steps.lock().unwrap().extend(tricks);
    }

    /// Has the next step wait for the gate that is returned.
    fn next_waits(&self) -> Barrier {
        let gate = Barrier::default();
        self.next([Trick::Waits(gate.clone())]);
        gate
    }

    /// Has the next undo wait for the gate that is returned.
    fn next_undo_waits(&self) -> Barrier {
        let gate = Barrier::default();
        self.next_undo([Trick::Waits(gate.clone())]);
        gate
    }

    fn next_undo(&self, tricks: impl IntoIterator<Item = Trick>) {
        self.undos.lock().unwrap().extend(tricks);
    }

    /// The entries of an order.
    fn of(&self, order: &str) -> Vec<Entry> {
        self.books.lock().unwrap().values().filter(|entry| entry.order == order).cloned().collect()
    }

    /// Whether the work for an order is done and not undone.
    fn has_effect(&self, order: &str) -> bool {
        self.of(order).iter().any(|entry| entry.done > 0 && !entry.is_undone)
    }
}

/// Does the work of a step, once for each key.
fn work(name: &str, books: &Books, (key, body): (&str, &serde_json::Value), trick: &Trick, peer: &mut Peer) {
    let refuse = |peer: &mut Peer, status| peer.reply(status, "content-type: application/json", "{\"why\":\"no\"}");
    match trick {
        Trick::Refuse => return refuse(peer, 422),
        Trick::Busy => return refuse(peer, 429),
        Trick::Fails(status) => return refuse(peer, *status),
        Trick::HangsUp => return peer.hang_up(),
        Trick::Waits(gate) => gate.wait(),
        _ => {}
    }
    let is_late = {
        let mut books = books.lock().unwrap();
        let entry = books.entry(key.to_owned()).or_default();
        entry.order = body["order"].as_str().unwrap_or_default().to_owned();
        match entry.is_undone {
            true => entry.late += 1,
            false if entry.done == 0 => entry.done = 1,
            false => {}
        }
        entry.is_undone
    };
    let more = if matches!(trick, Trick::AnswersMuch) { "x".repeat(70_000) } else { String::new() };
    let answer = format!("{{\"id\":\"{name}-{}{more}\",\"amount\":1.50}}", &key[..8]);
    match trick {
        _ if is_late => refuse(peer, 410),
        Trick::Works(status) => refuse(peer, *status),
        Trick::WorksSilently => peer.hang_up(),
        Trick::AnswersHalf => {
            peer.send(format!("HTTP/1.1 201 X\r\ncontent-length: {}\r\n\r\n{}", answer.len(), &answer[..5]));
            peer.hang_up();
        }
        _ => peer.reply(201, "content-type: application/json", &answer),
    }
}

/// Undoes a step, also one that never came.
fn undo(books: &Books, key: &str, trick: &Trick, peer: &mut Peer) {
    match trick {
        Trick::Fails(status) => return peer.reply(*status, "", "no"),
        Trick::HangsUp => return peer.hang_up(),
        Trick::Waits(gate) => gate.wait(),
        _ => {}
    }
    books.lock().unwrap().entry(key.to_owned()).or_default().is_undone = true;
    match trick {
        Trick::Works(status) => peer.reply(*status, "", "no"),
        Trick::WorksSilently => peer.hang_up(),
        _ => peer.reply(204, "", ""),
    }
}

/// Where the log of the sagas is.
enum Store {
    Sqlite(tempfile::TempDir),
    Postgres(tempfile::TempDir),
}

/// Returns the name of a database that no other test has.
fn new_database() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("sagas{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Three services, and a store for the proxies before them.
struct Shop {
    inventory: Service,
    payments: Service,
    shipping: Service,
    store: Store,
    /// The times of the saga, and whether shipping can be undone.
    times: String,
    has_pivot: bool,
    /// More rules of the route's keys.
    keys: &'static str,
    /// The time that a step may take.
    timeout: &'static str,
}

impl Shop {
    fn new(store: Store) -> Shop {
        let [inventory, payments, shipping] = ["inventory", "payments", "shipping"].map(Service::start);
        let times = "deadline: 10s, stuck_after: 1h".to_owned();
        Shop { inventory, payments, shipping, store, times, has_pivot: true, keys: "lease: 1s", timeout: "500ms" }
    }

    fn sqlite() -> Shop {
        Shop::new(Store::Sqlite(tempfile::tempdir().unwrap()))
    }

    /// One that proxies of several machines share, where the engine is installed.
    fn postgres() -> Option<Shop> {
        let server = Postgres::shared()?;
        Some(Shop::at(&server.database(&new_database())))
    }

    /// The same behind a link that can fail; with the name of the database.
    fn postgres_behind_a_link() -> Option<(Shop, Link, String)> {
        let server = Postgres::shared()?;
        let (database, link) = (new_database(), Link::to(server.port));
        let url = server.database(&database).replace(&format!(":{}/", server.port), &format!(":{}/", link.port()));
        Some((Shop::at(&url), link, database))
    }

    fn at(url: &str) -> Shop {
        let folder = tempfile::tempdir().unwrap();
        write_private(&folder.path().join("url"), url);
        Shop::new(Store::Postgres(folder))
    }

    fn text(&self) -> String {
        let store = match &self.store {
            Store::Sqlite(folder) => format!("{{ path: {}/store.db }}", folder.path().display()),
            Store::Postgres(folder) => {
                let folder = folder.path().display();
                format!("{{ kind: postgres, url_file: {folder}/url, identity_file: {folder}/store.id }}")
            }
        };
        let undo = |step: &str, pool: &str| {
            format!("compensate: {{ pool: {pool}, path: \"/undo/${{steps.{step}.key}}\" }}, timeout: {}", self.timeout)
        };
        let shipping = if self.has_pivot { format!("timeout: {}", self.timeout) } else { undo("ship", "shipping") };
        let pool = |name: &str, service: &Service| {
            format!("  {name}: {{ nodes: [{{ id: {name}-1, address: \"{}\" }}] }}\n", service.origin.address)
        };
        format!(
            "idempotency_store: {store}
pools:
{}{}{}routes:
  - name: checkout
    path: /checkout
    methods: [POST]
    idempotency: {{ required: true, scope: [header:authorization], {} }}
    saga:
      {}
      steps:
        - {{ name: reserve, request: {{ pool: inventory, path: /reservations, body: {{ order: \"${{request.body.order}}\" }} }}, {}, retries: {{ attempts: 3, backoff: 20ms }} }}
        - {{ name: charge, request: {{ pool: payments, path: /charges, headers: {{ x-token: \"${{env.HOME}}\" }}, body: {{ order: \"${{request.body.order}}\", amount: \"${{request.body.amount}}\" }} }}, {}, retries: {{ attempts: 3, backoff: 20ms }} }}
        - {{ name: ship, request: {{ pool: shipping, path: /shipments, body: {{ order: \"${{request.body.order}}\", reservation: \"${{steps.reserve.body.id}}\" }} }}, {shipping}, retries: {{ attempts: 3, backoff: 20ms }} }}
      respond: {{ status: 201, body: {{ shipment: \"${{steps.ship.body.id}}\", paid: \"${{steps.charge.body.amount}}\" }} }}
",
            pool("inventory", &self.inventory),
            pool("payments", &self.payments),
            pool("shipping", &self.shipping),
            self.keys,
            self.times.replace(", ", "\n      "),
            undo("reserve", "inventory"),
            undo("charge", "payments"),
        )
    }

    fn proxy(&self) -> Proxy {
        Proxy::start(&self.text())
    }

    /// Starts a proxy with more in its environment.
    fn proxy_with(&self, prepare: impl FnOnce(&mut Command)) -> Proxy {
        let listeners = "listeners: [{ name: http, address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\n\
                         access_log: { format: \"off\" }\n";
        Proxy::start_as(Path::new(env!("CARGO_BIN_EXE_ringway")), &(listeners.to_owned() + &self.text()), prepare)
    }

    fn services(&self) -> [&Service; 3] {
        [&self.inventory, &self.payments, &self.shipping]
    }

    /// Whether each service has the order in its books, done and not undone.
    fn effects(&self, order: &str) -> [bool; 3] {
        self.services().map(|service| service.has_effect(order))
    }

    /// No service has done the work of a step twice, and every order is done by all, or by none.
    fn books_balance(&self, order: &str) {
        let effects = self.effects(order);
        assert!(effects == [true; 3] || effects == [false; 3], "{order}: {effects:?}");
        for service in self.services() {
            let entries = service.of(order);
            assert!(entries.len() <= 1, "{order}: a step has had several keys: {entries:?}");
            assert!(entries.iter().all(|entry| entry.done <= 1), "{order}: {entries:?}");
        }
    }
}

/// A checkout of an order, with the order as its key.
fn checkout(order: &str) -> String {
    by("alice", order, &format!("{{\"order\":\"{order}\",\"amount\":1.50}}"))
}

fn by(caller: &str, key: &str, body: &str) -> String {
    format!(
        "POST /checkout HTTP/1.1\r\nhost: shop.example\r\ncontent-length: {}\r\nauthorization: Bearer {caller}\r\n\
         idempotency-key: {key}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns whether an answer is the last one of its saga.
fn is_final(answer: &Answer) -> bool {
    answer.status == 201 || (answer.status == 409 && answer.problem() == "saga-compensated")
}

impl Proxy {
    /// One checkout on a connection of its own.
    fn checks_out(&self, order: &str) -> Answer {
        self.connect().request(checkout(order))
    }

    /// The state of a saga, as its caller sees it.
    fn saga(&self, location: &str, caller: &str) -> Answer {
        self.connect().request(format!(
            "GET {location} HTTP/1.1\r\nhost: shop.example\r\nauthorization: Bearer {caller}\r\nconnection: close\r\n\r\n"
        ))
    }

    /// The sagas in a state, as the admin API tells them.
    fn sagas(&self, state: &str) -> Vec<serde_json::Value> {
        let answer = self.admin_get(&format!("/api/sagas?state={state}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json().as_array().unwrap().clone()
    }

    /// Repeats a checkout until its answer is final.
    fn insists(&self, order: &str) -> Answer {
        let mut last = None;
        eventually(&format!("the end of {order}"), || {
            let answer = self.checks_out(order);
            let is_over = is_final(&answer);
            last = Some(answer);
            is_over || {
                std::thread::sleep(Duration::from_millis(20));
                false
            }
        });
        last.unwrap()
    }
}
