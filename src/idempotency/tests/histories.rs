//! Histories of proxies that share a store: a request that may have run is never run again, and a known result stays.

#[cfg(feature = "postgres")]
use super::conformance::PostgresKit;
use super::conformance::{Kit, SqliteKit};
use super::*;
use std::ops::Range;

#[derive(Clone, Debug)]
enum Event {
    /// A proxy claims a request.
    Claim { proxy: usize, id: u8, lease_is_over: bool },
    /// A copy of one of a proxy's claims arrives: sent again, or late.
    ClaimCopy { proxy: usize, run: usize },
    /// One of a proxy's runs ends, however late.
    Complete { proxy: usize, run: usize, finish: Finish },
    /// One of a proxy's runs turns out to have sent nothing.
    Release { proxy: usize, run: usize, leaves_tombstone: bool },
    /// A proxy sends its heartbeat.
    Beat { proxy: usize },
    /// A proxy runs the upkeep: expiry and dead holders.
    Tend { proxy: usize },
    /// SIGKILL, and a start.
    Crash { proxy: usize },
}

fn events(proxies: usize, number: Range<usize>) -> impl Strategy<Value = Vec<Event>> {
    let (proxy, run) = (0..proxies, 0..8usize);
    let event = prop_oneof![
        4 => (proxy.clone(), 0..2u8, any::<bool>())
            .prop_map(|(proxy, id, lease_is_over)| Event::Claim { proxy, id, lease_is_over }),
        4 => (proxy.clone(), run.clone()).prop_map(|(proxy, run)| Event::ClaimCopy { proxy, run }),
        3 => (proxy.clone(), run.clone(), finishes())
            .prop_map(|(proxy, run, finish)| Event::Complete { proxy, run, finish }),
        3 => (proxy.clone(), run, any::<bool>())
            .prop_map(|(proxy, run, leaves_tombstone)| Event::Release { proxy, run, leaves_tombstone }),
        1 => proxy.clone().prop_map(|proxy| Event::Beat { proxy }),
        1 => proxy.clone().prop_map(|proxy| Event::Tend { proxy }),
        1 => proxy.prop_map(|proxy| Event::Crash { proxy }),
    ];
    proptest::collection::vec(event, number)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Two proxies on one file, either of which may die, come back, be late or count as dead while it lives.
    #[test]
    fn at_most_one_run_in_every_history(history in events(2, 0..40)) {
        History::of(&SqliteKit::start(), 2).take_place(history)?;
    }
}

#[cfg(feature = "postgres")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// The same, with two and with three proxies on one database.
    #[test]
    fn at_most_one_run_in_every_history_of_a_database((proxies, history) in
        (2..=3u64).prop_flat_map(|proxies| (Just(proxies), events(proxies as usize, 20..40))))
    {
        let Some(kit) = PostgresKit::start(None) else { return Ok(()) };
        History::of(&kit, proxies).take_place(history)?;
    }
}

/// A run that a proxy has begun.
#[derive(Clone, Copy)]
struct BegunRun {
    id: u8,
    token: Token,
    /// Released without a tombstone: its claim was sent once, so that no copy of it can arrive.
    has_no_copies: bool,
    is_released: bool,
}

/// A proxy's store, and the runs that it has begun.
struct Process {
    store: Option<Box<dyn Store>>,
    runs: Vec<BegunRun>,
}

impl Process {
    fn start(kit: &dyn Kit, holder: u64) -> Process {
        Process { store: Some(kit.open(holder)), runs: Vec::new() }
    }

    fn store(&self) -> &dyn Store {
        self.store.as_deref().unwrap()
    }

    /// Returns one of its runs, where it has any.
    fn run(&self, number: usize) -> Option<BegunRun> {
        self.runs.get(number % self.runs.len().max(1)).copied()
    }
}

/// Proxies on one store, and the known state of each identity.
struct History<'a> {
    kit: &'a dyn Kit,
    proxies: Vec<Process>,
    /// The number of processes that there have been.
    holders: u64,
    /// The number of claims that there have been.
    claims: u64,
    may_have_run: HashMap<u8, Token>,
    results: HashMap<u8, StoredResponse>,
    /// The released claims whose copies the store refuses, until another claim takes their place.
    tombstones: HashMap<u8, Token>,
}

impl History<'_> {
    fn of(kit: &dyn Kit, proxies: u64) -> History<'_> {
        let started = (1..=proxies).map(|holder| Process::start(kit, holder)).collect();
        let (may_have_run, results, tombstones) = Default::default();
        History { kit, proxies: started, holders: proxies, claims: 0, may_have_run, results, tombstones }
    }

    fn take_place(mut self, history: Vec<Event>) -> Result<(), TestCaseError> {
        history.into_iter().try_for_each(|event| match event {
            Event::Claim { proxy, id, lease_is_over } => self.claim(proxy, id, lease_is_over),
            Event::ClaimCopy { proxy, run } => self.copy_claim(proxy, run),
            Event::Complete { proxy, run, finish } => self.complete(proxy, run, finish),
            Event::Release { proxy, run, leaves_tombstone } => self.release(proxy, run, leaves_tombstone),
            Event::Beat { proxy } => {
                call(|done| self.proxies[proxy].store().beat(done)).unwrap();
                Ok(())
            }
            Event::Tend { proxy } => {
                call(|done| self.proxies[proxy].store().tend(done)).unwrap();
                Ok(())
            }
            Event::Crash { proxy } => self.crash(proxy),
        })
    }

    fn claim(&mut self, proxy: usize, id: u8, lease_is_over: bool) -> Result<(), TestCaseError> {
        self.claims += 1;
        let process = &mut self.proxies[proxy];
        let token = Token { holder: process.store().holder(), number: self.claims };
        let lease = if lease_is_over { self.kit.ended_lease() } else { HOUR };
        match claim_with(process.store(), lasting(new_claim(id, token, 0, lease))).unwrap() {
            Claimed::Again => prop_assert!(false, "another run that no claim asked for"),
            Claimed::First => {
                process.runs.push(BegunRun { id, token, has_no_copies: false, is_released: false });
                if lease_is_over {
                    self.kit.end_lease(token);
                }
                self.tombstones.remove(&id);
                prop_assert_eq!(self.may_have_run.insert(id, token), None, "a second run");
            }
            Claimed::Found(found) => self.found(id, &found)?,
        }
        Ok(())
    }

    /// A copy is granted to the run that has the record, or where nothing may have run.
    fn copy_claim(&mut self, proxy: usize, run: usize) -> Result<(), TestCaseError> {
        let process = &self.proxies[proxy];
        let Some(BegunRun { id, token, is_released, .. }) = process.run(run).filter(|run| !run.has_no_copies) else {
            return Ok(());
        };
        match claim_with(process.store(), lasting(new_claim(id, token, 0, HOUR))) {
            Ok(Claimed::First) => {
                prop_assert_ne!(self.tombstones.remove(&id), Some(token), "a released claim came to life");
                let before = self.may_have_run.insert(id, token);
                prop_assert!(before.is_none_or(|before| before == token), "a second run, of {before:?}");
                prop_assert!(!self.results.contains_key(&id), "a result was replaced by a run");
            }
            Ok(Claimed::Found(found)) => self.found(id, &found)?,
            Err(StoreError::Released) => prop_assert!(is_released && self.may_have_run.get(&id) != Some(&token)),
            claimed => prop_assert!(false, "{claimed:?}"),
        }
        Ok(())
    }

    /// A record is that of the run that may have taken place.
    fn found(&self, id: u8, found: &Found) -> Result<(), TestCaseError> {
        prop_assert_eq!(Some(&found.record.token), self.may_have_run.get(&id));
        prop_assert_eq!(found.response.as_ref(), self.results.get(&id));
        prop_assert_eq!(found.record.state == State::Done, self.results.contains_key(&id));
        Ok(())
    }

    fn complete(&mut self, proxy: usize, run: usize, finish: Finish) -> Result<(), TestCaseError> {
        let process = &self.proxies[proxy];
        let Some(BegunRun { id, token, .. }) = process.run(run) else { return Ok(()) };
        let completion = Completion { ttl: HOUR, ..completion(id, token, finish) };
        if call(|done| process.store().complete(completion.clone(), done)).unwrap() {
            prop_assert_eq!(Some(&token), self.may_have_run.get(&id));
            if let Some(response) = completion.response {
                let before = self.results.insert(id, response.clone());
                prop_assert!(before.is_none_or(|before| before == response), "a result was replaced");
            }
        }
        Ok(())
    }

    fn release(&mut self, proxy: usize, run: usize, leaves_tombstone: bool) -> Result<(), TestCaseError> {
        let process = &mut self.proxies[proxy];
        let Some(BegunRun { id, token, is_released, has_no_copies }) = process.run(run) else { return Ok(()) };
        let way = if leaves_tombstone { ReleaseWay::Entombed } else { ReleaseWay::Plain };
        let has_gone = call(|done| process.store().release(release_of(id, token, way), done)).unwrap();
        let run = run % process.runs.len();
        process.runs[run].is_released = is_released || has_gone || leaves_tombstone;
        process.runs[run].has_no_copies = has_no_copies || !leaves_tombstone;
        if leaves_tombstone && (has_gone || !self.may_have_run.contains_key(&id)) {
            self.tombstones.entry(id).or_insert(token);
        }
        if has_gone {
            prop_assert_eq!(self.may_have_run.remove(&id), Some(token));
            prop_assert!(!self.results.contains_key(&id), "a result was released");
        }
        Ok(())
    }

    fn crash(&mut self, proxy: usize) -> Result<(), TestCaseError> {
        self.holders += 1;
        self.proxies[proxy].store = None;
        self.proxies[proxy] = Process::start(self.kit, self.holders);
        if !self.kit.notices_deaths() {
            return Ok(());
        }
        // No record of a dead process is listed as running.
        let living: Vec<u64> = self.proxies.iter().map(|process| process.store().holder()).collect();
        for number in 0..2 {
            let found = read(|done| self.proxies[proxy].store().look_up(id(number), done));
            prop_assert!(found.is_none_or(
                |found| found.record.state != State::Running || living.contains(&found.record.token.holder)
            ));
        }
        Ok(())
    }
}
