//! Any sequence of reloads, bad files and states set by hand, compared with a simple model.

use crate::support::{Client, Origin, Proxy};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;

const IDS: [&str; 4] = ["a", "b", "c", "d"];
const STATES: [&str; 3] = ["up", "drain", "down"];

#[derive(Clone, Debug)]
enum Step {
    /// A file with these nodes: weight and state of each that is there.
    Reload([Option<(u32, usize)>; 4]),
    BadFile,
    /// A state set through the API.
    Set(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || prop::option::weighted(0.7, (0u32..3, 0usize..3));
    let step = prop_oneof![
        3 => [node(), node(), node(), node()].prop_map(Step::Reload),
        1 => Just(Step::BadFile),
        3 => (0usize..4, 0usize..3).prop_map(|(node, state)| Step::Set(node, state)),
    ];
    prop::collection::vec(step, 1..10)
}

/// What the proxy should know.
#[derive(Default)]
struct Model {
    /// Weight, the file's state, and the state in force.
    nodes: BTreeMap<&'static str, (u32, usize, usize)>,
    in_force: bool,
}

impl Model {
    fn reload(&mut self, file: &[Option<(u32, usize)>; 4]) {
        let mut next = BTreeMap::new();
        for (id, node) in IDS.into_iter().zip(file) {
            let Some((weight, state)) = *node else { continue };
            // What was set by hand holds until the file says something new.
            let kept = self.nodes.get(id).filter(|(_, file_state, _)| *file_state == state).map(|(_, _, set)| *set);
            next.insert(id, (weight, state, kept.unwrap_or(state)));
        }
        self.nodes = next;
        self.in_force = true;
    }
}

fn file(address: std::net::SocketAddr, nodes: &[Option<(u32, usize)>; 4]) -> String {
    let list: Vec<String> = IDS
        .into_iter()
        .zip(nodes)
        .filter_map(|(id, node)| {
            let (weight, state) = (*node)?;
            Some(format!("{{ id: {id}, address: \"{address}\", weight: {weight}, state: {} }}", STATES[state]))
        })
        .collect();
    format!(
        "listeners: [{{ name: http, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: \"off\" }}\npools: {{ app: {{ nodes: [{}] }} }}\nroutes: [{{ name: site, pool: app, hash_on: [uri] }}]\n",
        list.join(", ")
    )
}

fn post(proxy: &Proxy, path: &str) -> u16 {
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", proxy.admin);
    Client::connect(proxy.admin).request(request).status
}

#[test]
fn states_reloads_and_metrics_agree_with_a_model() {
    let node = Origin::echo();
    let start = [Some((1, 0)), None, None, None];
    let proxy = Proxy::start_whole(&file(node.address, &start));
    let path = proxy.folder().join("ringway.yaml");
    let mut runner =
        TestRunner::new(Config { cases: 24, max_shrink_iters: 50, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&steps(), |steps| {
        // Each case begins anew: a pool without the nodes forgets what was said of them.
        std::fs::write(&path, file(node.address, &[None; 4])).unwrap();
        prop_assert_eq!(post(&proxy, "/api/reload"), 200);
        let mut model = Model { in_force: true, ..Model::default() };
        for step in &steps {
            match step {
                Step::Reload(nodes) => {
                    std::fs::write(&path, file(node.address, nodes)).unwrap();
                    prop_assert_eq!(post(&proxy, "/api/reload"), 200);
                    model.reload(nodes);
                }
                Step::BadFile => {
                    std::fs::write(&path, "listeners: nonsense\n").unwrap();
                    prop_assert_eq!(post(&proxy, "/api/reload"), 422);
                    model.in_force = false;
                }
                Step::Set(id, state) => {
                    let known = model.nodes.contains_key(IDS[*id]);
                    let status = post(&proxy, &format!("/api/pools/app/nodes/{}/{}", IDS[*id], STATES[*state]));
                    prop_assert_eq!(status, if known { 200 } else { 404 });
                    if let Some((_, _, set)) = model.nodes.get_mut(IDS[*id]) {
                        *set = *state;
                    }
                }
            }
            agree(&proxy, &model)?;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn agree(proxy: &Proxy, model: &Model) -> Result<(), TestCaseError> {
    let pools = proxy.admin_get("/api/pools").json();
    let shown: BTreeMap<String, (u32, String)> = pools[0]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let text = |key: &str| node[key].as_str().unwrap().to_owned();
            (text("id"), (node["weight"].as_u64().unwrap() as u32, text("state")))
        })
        .collect();
    let expected: BTreeMap<String, (u32, String)> = model
        .nodes
        .iter()
        .map(|(id, (weight, _, state))| ((*id).to_owned(), (*weight, STATES[*state].to_owned())))
        .collect();
    prop_assert_eq!(shown, expected);
    let usable = model.nodes.values().any(|(weight, _, state)| *weight > 0 && *state == 0);
    prop_assert_eq!(proxy.get("/").status, if usable { 200 } else { 503 });
    prop_assert_eq!(proxy.admin_get("/readyz").status, if usable { 200 } else { 503 });
    prop_assert_eq!(proxy.metric("ringway_config_last_reload_success"), f64::from(u8::from(model.in_force)));
    let page = proxy.admin_get("/metrics").text();
    for id in IDS {
        let has_series = page.contains(&format!("ringway_ring_share_ratio{{node=\"{id}\""));
        prop_assert_eq!(has_series, model.nodes.contains_key(id), "the series of {}", id);
    }
    Ok(())
}
