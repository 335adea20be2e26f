//! The tour: each step sends real requests, prints the results, and checks them.

use super::Stage;
use super::client::{admin, ambiguous, get, note, order, pay, purge, shop, upload};
use super::nodes::DemoNode;
use crate::cli::http_client::Answer;
use http::Method;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const USERS: usize = 300;
/// The longest time until a change of the file is in force.
const PATIENCE: Duration = Duration::from_secs(10);

/// The node of each user.
type Homes = BTreeMap<usize, String>;

/// Prints results, and records whether all of them were as expected.
struct Report {
    succeeded: bool,
}

impl Report {
    fn step(&mut self, title: &str, said: &str, ok: bool) {
        tell!("{} {title}\n     {said}", if ok { "ok  " } else { "FAIL" });
        self.succeeded &= ok;
    }
}

/// Runs the tour. Returns whether every step succeeded.
pub(super) async fn take(stage: &mut Stage) -> io::Result<bool> {
    let mut report = Report { succeeded: true };
    let homes = everybody_has_a_home(stage, &mut report).await?;
    bodies_stream(stage, &mut report).await?;
    two_meanings_are_refused(stage, &mut report).await?;
    sessions_stick(stage, &mut report).await?;
    one_fetch_serves_all(stage, &mut report).await?;
    a_client_reads_its_own_write(stage, &mut report).await?;
    a_purge_reaches_every_proxy(stage, &mut report).await?;
    a_payment_is_charged_once(stage, &mut report).await?;
    an_order_is_whole_or_undone(stage, &mut report).await?;
    wait_until(stage.admin, "/api/pools", |pools| !pools.contains("\"healthy\": false")).await?;
    a_node_dies(stage, &homes, &mut report).await?;
    a_node_joins_live(stage, &homes, &mut report).await?;
    a_bad_file_changes_nothing(stage, &mut report).await?;
    Ok(report.succeeded)
}

async fn everybody_has_a_home(stage: &Stage, report: &mut Report) -> io::Result<Homes> {
    let homes = visit(stage.proxy).await?;
    let again = visit(stage.proxy).await?;
    let nodes = &stage.nodes[..3];
    let shares: Vec<String> = nodes.iter().map(|node| format!("{} {}", node.id, count(&homes, node.id))).collect();
    let moved = moved(&homes, &again);
    let said = format!(
        "{USERS} users came twice; {moved} met another node the second time. Users per node: {}.",
        shares.join(", ")
    );
    report.step("Every user has a home.", &said, moved == 0 && nodes.iter().all(|node| count(&homes, node.id) > 0));
    Ok(homes)
}

async fn bodies_stream(stage: &Stage, report: &mut Report) -> io::Result<()> {
    let (proxy, size) = (stage.proxy, 8 << 20);
    let uploaded = upload(proxy, size).await?;
    let ok = uploaded.body.contains(&format!("got {size} bytes"));
    report.step("Bodies stream through.", &format!("The node said: {}", uploaded.body.trim()), ok);
    Ok(())
}

async fn two_meanings_are_refused(stage: &Stage, report: &mut Report) -> io::Result<()> {
    let served = || stage.nodes.iter().map(DemoNode::served).sum::<u64>();
    let before = served();
    let refused = ambiguous(stage.proxy).await?;
    let reached = served() - before;
    let said = format!("A request with two Host fields got {}; {reached} requests reached a node.", refused.status);
    report.step("What has two meanings is refused.", &said, refused.status == 400 && reached == 0);
    Ok(())
}

async fn sessions_stick(stage: &Stage, report: &mut Report) -> io::Result<()> {
    let first = shop(stage.proxy, "").await?;
    let cookie = first.field("set-cookie").and_then(|set| set.split(';').next()).unwrap_or_default().to_owned();
    let home = first.field("x-node").unwrap_or_default().to_owned();
    admin(stage.admin, Method::POST, &format!("/api/pools/app/nodes/{home}/drain")).await?;
    let (mut stayed, mut strangers) = (0, 0);
    for _ in 0..20 {
        stayed += usize::from(shop(stage.proxy, &cookie).await?.field("x-node") == Some(&home));
        strangers += usize::from(shop(stage.proxy, "").await?.field("x-node") == Some(&home));
    }
    admin(stage.admin, Method::POST, &format!("/api/pools/app/nodes/{home}/up")).await?;
    let said = format!(
        "A visitor got a sealed cookie for {home}, which then drained: {stayed} of 20 visits stayed there, {strangers} new visitors came."
    );
    report.step("Sessions stick.", &said, !cookie.is_empty() && stayed == 20 && strangers == 0);
    Ok(())
}

async fn one_fetch_serves_all(stage: &Stage, report: &mut Report) -> io::Result<()> {
    const READERS: usize = 50;
    let proxy = stage.proxy;
    let served = || stage.nodes.iter().map(DemoNode::served).sum::<u64>();
    let before = served();
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        readers.spawn(async move { get(proxy, "/news/today", &format!("reader-{reader}")).await });
    }
    let mut answered = 0;
    while let Some(answer) = readers.join_next().await {
        answered += usize::from(answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200)));
    }
    let fetched = served() - before;
    let hit = get(proxy, "/news/today", "late").await?;
    let status = hit.field("cache-status").unwrap_or_default().to_owned();
    let said = format!(
        "{READERS} readers came at once for a page that was not cached: {answered} got it, {fetched} request reached a node. A late one: `{status}`."
    );
    report.step("One fetch serves all.", &said, answered == READERS && fetched == 1 && served() - before == 1);

    let purged = purge(stage.admin, &format!("http://{proxy}/news/today")).await?.status;
    let after = get(proxy, "/news/today", "next").await?;
    let status = after.field("cache-status").unwrap_or_default().to_owned();
    let said = format!("The page was purged ({purged}); the next reader had it fetched anew: `{status}`.");
    report.step("A purge is in force at once.", &said, purged == 200 && served() - before == 2);
    Ok(())
}

async fn a_client_reads_its_own_write(stage: &Stage, report: &mut Report) -> io::Result<()> {
    let (here, there) = (stage.proxy, stage.other_proxy);
    let before = note(Method::GET, there, "").await?;
    let written = note(Method::POST, here, "").await?;
    let session = written.field("set-cookie").and_then(|set| set.split(';').next()).unwrap_or_default().to_owned();
    let others = note(Method::GET, there, "").await?;
    let own = note(Method::GET, there, &session).await?;
    let said = format!(
        "A note was at {} on one proxy; a client made {} of it through the other. Then the first proxy gave {} to others, and {} to that client.",
        before.body, written.body, others.body, own.body
    );
    // With a bus, the first proxy may have heard of the write already.
    let is_old = stage.stores.is_some() || others.body == before.body;
    let ok = own.body == written.body && is_old && own.body != before.body;
    report.step("Clients read their own writes, on any proxy.", &said, ok);
    Ok(())
}

async fn a_purge_reaches_every_proxy(stage: &Stage, report: &mut Report) -> io::Result<()> {
    const PAGE: &str = "/news/tomorrow";
    if stage.stores.is_none() {
        tell!("skip A purge reaches every proxy.\n     It needs `redis-server`, which is not installed.");
        return Ok(());
    }
    let is_whole = |fleet: &str| fleet.contains("\"state\": \"live\"") && !fleet.contains("\"open_gap\": true");
    wait_until(stage.admin, "/api/fleet", is_whole).await?;
    let status = |answer: &Answer| answer.field("cache-status").unwrap_or_default().to_owned();
    for proxy in [stage.proxy, stage.other_proxy] {
        get(proxy, PAGE, "early").await?;
    }
    let before = status(&get(stage.other_proxy, PAGE, "reader").await?);
    let purged = purge(stage.admin, PAGE).await?;
    let after = status(&get(stage.other_proxy, PAGE, "reader").await?);
    let heard: serde_json::Value = serde_json::from_str(&purged.body).unwrap_or_default();
    let heard = &heard["heard_by"];
    let said = format!(
        "The other proxy had a page: `{before}`. It was purged at this one, and {} of {} proxies had heard it when the answer came. Then the other one: `{after}`.",
        heard["members"], heard["of"]
    );
    let ok = before.contains("hit") && after.contains("fwd=") && heard["members"] == 2 && heard["of"] == 2;
    report.step("A purge reaches every proxy.", &said, ok);
    Ok(())
}

async fn a_payment_is_charged_once(stage: &mut Stage, report: &mut Report) -> io::Result<()> {
    let served = |stage: &Stage| stage.nodes.iter().map(DemoNode::served).sum::<u64>();
    let before = served(stage);
    let first = pay(stage.proxy, "order-1234").await?;
    let charged_by = first.field("x-node").unwrap_or_default().to_owned();
    let Some(node) = stage.nodes.iter().position(|node| node.id == charged_by) else {
        report.step("A payment is charged once.", &format!("Nobody took it: {}", first.status), false);
        return Ok(());
    };
    let mut replayed = 0;
    for number in 2..=5 {
        match number {
            3 => stage.nodes[node].stop().await,
            5 => stage.nodes[node].restart().await?,
            _ => {}
        }
        let again = pay(stage.proxy, "order-1234").await?;
        replayed += usize::from(again.field("idempotent-replayed") == Some("true") && again.body == first.body);
    }
    let charges = served(stage) - before;
    let said = format!(
        "It was sent five times with one Idempotency-Key, and {charged_by} was killed in between: {charges} charge, and the other {replayed} answers were the first one again."
    );
    report.step("A payment is charged once.", &said, first.status == 200 && charges == 1 && replayed == 4);
    Ok(())
}

async fn an_order_is_whole_or_undone(stage: &Stage, report: &mut Report) -> io::Result<()> {
    let refused = order(stage.proxy, "order-5000", 5000).await?;
    let (seen, left) = (stage.services.seen(), stage.services.standing());
    let again = order(stage.proxy, "order-5000", 5000).await?;
    let is_replayed = again.field("idempotent-replayed") == Some("true") && again.body == refused.body;
    let said = format!(
        "A card was declined: {}. The client got {}, and again when it asked again; {} reservations, {} charges and {} shipments are left.",
        seen.join(", "),
        refused.status,
        left[0],
        left[1],
        left[2]
    );
    let undone = ["inventory reserves", "payments declines", "inventory releases"];
    let is_undone = refused.body.contains("saga-compensated") && left == [0; 3] && seen == undone;
    report.step("A failed order is undone.", &said, refused.status == 409 && is_undone && is_replayed);

    let done = order(stage.proxy, "order-40", 40).await?;
    let said = format!(
        "A good card: {}. The client got {} with {}.",
        stage.services.seen().join(", "),
        done.status,
        done.body
    );
    report.step("A good one is whole.", &said, done.status == 201 && stage.services.standing() == [1; 3]);
    Ok(())
}

async fn a_node_dies(stage: &mut Stage, homes: &Homes, report: &mut Report) -> io::Result<()> {
    let gone = stage.nodes[1].id;
    stage.nodes[1].stop().await;
    let without = visit(stage.proxy).await?;
    let (orphans, others): (Vec<usize>, Vec<usize>) = (0..USERS).partition(|user| homes[user] == gone);
    let disturbed = others.iter().filter(|user| homes[user] != without[user]).count();
    let served = orphans.iter().filter(|user| without[user] != gone && !without[user].is_empty()).count();
    let said = format!(
        "{gone} is gone: {served} of its {} users were served by the next node, {disturbed} of the other {} moved.",
        orphans.len(),
        others.len()
    );
    report.step("A node dies; nobody notices.", &said, disturbed == 0 && served == orphans.len());

    wait_until(stage.admin, "/api/pools", |pools| pools.contains("\"healthy\": false")).await?;
    stage.nodes[1].restart().await?;
    wait_until(stage.admin, "/api/pools", |pools| !pools.contains("\"healthy\": false")).await?;
    let back = visit(stage.proxy).await?;
    let said = format!("{} of {USERS} users are where they began.", USERS - moved(homes, &back));
    report.step("It comes back; its users come home.", &said, moved(homes, &back) == 0);
    Ok(())
}

async fn a_node_joins_live(stage: &Stage, homes: &Homes, report: &mut Report) -> io::Result<()> {
    let joined = stage.nodes[3].id;
    stage.file.write(&stage.nodes)?;
    wait_for(stage.admin, "/api/pools", joined).await?;
    let with = visit(stage.proxy).await?;
    let to_it = (0..USERS).filter(|user| with[user] == joined).count();
    let elsewhere = moved(homes, &with) - to_it;
    let said = format!(
        "{joined} was written into the file: {to_it} of {USERS} users went to it, {elsewhere} moved otherwise."
    );
    report.step("A change of the file takes effect while it serves.", &said, to_it > 0 && elsewhere == 0);
    Ok(())
}

async fn a_bad_file_changes_nothing(stage: &Stage, report: &mut Report) -> io::Result<()> {
    stage.file.write_text("listeners: [{ nam: http }]\nroutes: []\n")?;
    wait_for(stage.admin, "/api/status", "\"success\": false").await?;
    let status = get(stage.proxy, "/", "alice").await?.status;
    stage.file.write(&stage.nodes[..3])?;
    wait_for(stage.admin, "/api/status", "\"error\": null").await?;
    let said = format!(
        "With a misspelt key in it the old configuration served on ({status}), and the status said where and what."
    );
    report.step("A bad file changes nothing.", &said, status == 200);
    Ok(())
}

/// Polls the admin API until the response contains a text.
async fn wait_for(listener: SocketAddr, path: &str, text: &str) -> io::Result<()> {
    wait_until(listener, path, |answer| answer.contains(text)).await
}

/// Polls the admin API until the response is as expected.
async fn wait_until(listener: SocketAddr, path: &str, is_so: impl Fn(&str) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = admin(listener, Method::GET, path).await?.body;
        if is_so(&answer) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{path} did not change in time: {answer}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One request a user.
async fn visit(proxy: SocketAddr) -> io::Result<Homes> {
    let mut homes = Homes::new();
    for user in 0..USERS {
        let answer = get(proxy, "/", &format!("user-{user}")).await?;
        homes.insert(user, answer.field("x-node").unwrap_or_default().to_owned());
    }
    Ok(homes)
}

fn count(homes: &Homes, node: &str) -> usize {
    homes.values().filter(|home| *home == node).count()
}

fn moved(before: &Homes, after: &Homes) -> usize {
    before.iter().filter(|(user, home)| after.get(user) != Some(home)).count()
}
