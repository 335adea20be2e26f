//! Causal routes of proxies that hear each other: what is heard costs fewer validations, and ends what it supersedes.

use super::{SECRET, Session, configuration, status, versions};
use crate::engines::{Link, Redis};
use crate::support::{Origin, Proxy, eventually, warm, write_private};
use tempfile::TempDir;

/// Two or three proxies, each with a link of its own to one Redis.
pub struct Heard {
    _origin: Origin,
    pub proxies: Vec<Proxy>,
    pub links: Vec<Link>,
    _server: Redis,
    _folder: TempDir,
}

impl Heard {
    /// Starts proxies; `None` where Redis is not installed.
    pub fn start(count: usize) -> Option<Heard> {
        let server = Redis::start(&[])?;
        let (origin, folder) = (versions(), tempfile::tempdir().unwrap());
        let secret = folder.path().join("fleet.key");
        write_private(&secret, SECRET);
        let links: Vec<Link> = (0..count).map(|_| Link::to(server.port)).collect();
        let proxies: Vec<Proxy> = links
            .iter()
            .map(|link| {
                let text = configuration(&origin, &secret, "level: causal, groups: [\"{host}/{path:2}\"]");
                let address = format!("127.0.0.1:{}", link.port());
                let redis =
                    format!("lease: 1s, redis: {{ nodes: [{{ id: r, address: \"{address}\" }}] }}, secret_file:");
                Proxy::start(&text.replacen("secret_file:", &redis, 1))
            })
            .collect();
        let heard = Heard { _origin: origin, proxies, links, _server: server, _folder: folder };
        eventually("a bus that works", || heard.works());
        Some(heard)
    }

    pub fn works(&self) -> bool {
        self.proxies.iter().all(|proxy| {
            let fleet = proxy.admin_get("/api/fleet").json();
            let members = fleet["members"].as_array().unwrap();
            let alive = members.iter().filter(|member| member["state"] != "missed").count();
            fleet["bus"]["open_gap"] == false && alive >= self.proxies.len()
        })
    }

    /// The number of a process that a proxy has heard.
    fn heard(&self, at: usize, of: usize) -> u64 {
        let process = self.proxies[of].admin_get("/api/fleet").json()["process"].as_str().unwrap().to_owned();
        self.proxies[at].admin_get("/api/fleet/groups/any").json()["clock"][&process].as_u64().unwrap_or_default()
    }
}

#[test]
fn a_write_ends_what_other_proxies_have_stored_of_its_group() {
    let Some(fleet) = Heard::start(2) else { return };
    let [here, there] = &fleet.proxies[..] else { panic!() };
    warm(there, "/articles/7");
    warm(there, "/articles/8");
    Session::default().post(here, "/articles/7/comments");
    eventually("the new version for everybody", || Session::default().get(there, "/articles/7").text() == "v2");
    assert!(status(&Session::default().get(there, "/articles/8")).starts_with("ringway; hit"), "another group");
}

/// What was fetched after the answers of another proxy were heard is no older than they are.
#[test]
fn what_was_heard_costs_no_validation() {
    let Some(fleet) = Heard::start(2) else { return };
    let [here, there] = &fleet.proxies[..] else { panic!() };
    let mut reader = Session::default();
    reader.get(here, "/articles/7");
    let given = fleet.heard(0, 0);
    eventually("the numbers of the other proxy", || fleet.heard(1, 0) >= given);
    warm(there, "/articles/7");
    assert!(status(&reader.get(there, "/articles/7")).starts_with("ringway; hit"));
}

#[test]
fn writes_that_do_not_know_of_each_other_are_counted() {
    let Some(fleet) = Heard::start(2) else { return };
    let [here, there] = &fleet.proxies[..] else { panic!() };
    fleet.links.iter().for_each(|link| link.cut(true));
    Session::default().post(here, "/articles/7");
    // A resource of the group that no write names.
    warm(here, "/articles/7/likes");
    Session::default().post(there, "/articles/7");
    fleet.links.iter().for_each(|link| link.cut(false));
    eventually("both writes at both proxies", || {
        let writes =
            |proxy: &Proxy| proxy.admin_get("/api/fleet/groups/example.com/articles/7").json()["writes"].clone();
        fleet.proxies.iter().all(|proxy| writes(proxy).as_array().unwrap().len() == 2)
    });
    let read = Session::default().get(here, "/articles/7/likes");
    assert!(read.text() == "v3" && status(&read).contains("detail=causal"), "{read:?}");
    assert_eq!(here.metric("ringway_concurrent_writes_total{route=\"site\"}"), 1.0);
}

#[test]
fn a_purge_has_a_number_that_others_hear() {
    let Some(fleet) = Heard::start(2) else { return };
    let before = fleet.heard(0, 0);
    let purged = fleet.proxies[0].purge("{\"all\":true}").json();
    assert_eq!(purged["heard_by"]["members"], 2, "{purged}");
    assert_eq!(fleet.heard(0, 0), before + 1);
    assert!(fleet.heard(1, 0) > before, "it came with the purge");
}
