//! Rollouts: configurations that mark other slots, routes that become strong, and changes of the nodes.

use super::{Nodes, Shop, is_hit, routes, status, warm};
use crate::support::{Proxy, eventually};

const SKEW: &str = "ringway_consistency_config_skew";

#[test]
fn proxies_with_other_groups_send_reads_to_the_origin() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let old = nodes.proxy(&shop, "");
    warm(&old, "/tools/list");
    let new = Proxy::start(&(nodes.block() + &routes(&shop, "").replace("{path:1}", "{path:2}")));
    // A proxy that starts waits half a second for the nodes, which a busy machine may exceed.
    let is_unverifiable =
        |proxy: &Proxy| status(&proxy.get("/tools/list")) == "ringway; fwd=request; detail=unverifiable";
    eventually("skew", || is_unverifiable(&old));
    assert!(!is_hit(&new.get("/tools/list")));
    assert_eq!(old.send("POST", "/tools/add", "content-length: 0").status, 200, "writes go on");
    assert_eq!(new.get("/tools/list").text(), "v2");
    eventually("the metric", || old.metric(SKEW) == 1.0 && new.metric(SKEW) == 1.0);
    drop(new);
    // Once the other configuration has not been heard of for a lease and `settle`.
    warm(&old, "/tools/list");
    eventually("the metric", || old.metric(SKEW) == 0.0);
    assert_eq!(old.get("/tools/list").text(), "v2");
}

/// A proxy that has no strong route any more says so: others do not wait for it.
#[test]
fn a_proxy_without_strong_routes_is_in_nobodys_way() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let old = nodes.proxy(&shop, "");
    let other = Proxy::start(&(nodes.block() + &routes(&shop, "").replace("{path:1}", "{path:2}")));
    eventually("skew", || old.metric(SKEW) == 1.0 && other.metric(SKEW) == 1.0);
    other.reconfigure(&(nodes.block() + &shop.origin.configuration("")));
    warm(&old, "/tools/list");
    eventually("the end of the skew", || old.metric(SKEW) == 0.0 && other.metric(SKEW) == 0.0);
    // It takes part again at once.
    other.reconfigure(&(nodes.block() + &routes(&shop, "")));
    warm(&other, "/tools/list");
    assert_eq!(other.send("POST", "/tools/add", "content-length: 0").status, 200);
    assert_eq!(old.get("/tools/list").text(), "v2");
}

#[test]
fn a_reload_with_other_groups_loses_no_write() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let proxies = nodes.proxies(2, &shop, "/tools/list");
    let text = nodes.block() + &routes(&shop, "").replace("{path:1}", "{path:2}");
    for proxy in &proxies {
        proxy.reconfigure(&text);
        assert_eq!(proxy.send("POST", "/tools/list", "content-length: 0").status, 200);
        for reader in &proxies {
            assert_eq!(reader.get("/tools/list").text(), shop.version("/tools"));
        }
    }
    proxies.iter().for_each(|proxy| warm(proxy, "/tools/list"));
}

#[test]
fn a_new_strong_route_marks_before_it_serves() {
    let Some(nodes) = Nodes::start(3) else { return };
    let shop = Shop::start();
    let (marking, serving) = (nodes.proxy(&shop, "reads: origin"), nodes.proxy(&shop, ""));
    warm(&serving, "/tools/list");
    assert_eq!(serving.metric(SKEW), 0.0, "where reads are answered is no part of the digest");
    for _ in 0..3 {
        let answer = marking.get("/tools/list");
        assert!(status(&answer).contains("fwd="), "{answer:?}");
    }
    assert_eq!(marking.send("POST", "/tools/add", "content-length: 0").status, 200);
    assert_eq!(serving.get("/tools/list").text(), "v2", "its writes are marked");
}

/// From the nodes 0, 1 and 2 to 2, 3 and 4, in two rollouts.
#[test]
fn a_change_of_nodes_loses_no_write() {
    let Some(nodes) = Nodes::start(5) else { return };
    let shop = Shop::start();
    let old = nodes.block_of(&[0, 1, 2], "");
    let between = nodes.block_of(&[2, 3, 4], &format!("former: {{ nodes: [{}] }}", nodes.list(&[0, 1, 2])));
    let new = nodes.block_of(&[2, 3, 4], "");
    let start = |block: &str| Proxy::start(&(block.to_owned() + &routes(&shop, "")));
    let mut proxies = vec![start(&old), start(&old)];
    proxies.iter().for_each(|proxy| warm(proxy, "/tools/list"));
    for block in [&between, &new] {
        for place in 0..2 {
            proxies[place] = start(block);
            for writer in &proxies {
                let written = writer.send("POST", "/tools/add", "content-length: 0");
                assert_eq!(written.status, 200, "{written:?}");
                for reader in &proxies {
                    let answer = reader.get("/tools/list");
                    assert_eq!(answer.text(), written.text(), "{answer:?}");
                    assert!(block != &between || !is_hit(&answer), "{answer:?}");
                }
            }
        }
    }
    proxies.iter().for_each(|proxy| warm(proxy, "/tools/list"));
}
