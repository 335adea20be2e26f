//! The tour: each step sends real requests, says what it saw, and whether that is what it should be.

use super::client::{get, send};
use super::nodes::DemoNode;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

const USERS: usize = 300;

/// Who served each user.
type Homes = BTreeMap<usize, String>;

/// Takes the tour. Gives whether every step held.
pub(super) async fn take(proxy: SocketAddr, nodes: &mut [DemoNode]) -> io::Result<bool> {
    let mut held = true;
    let mut step = |title: &str, said: String, ok: bool| {
        println!("{} {title}\n     {said}", if ok { "ok  " } else { "FAIL" });
        held &= ok;
    };

    let homes = visit(proxy).await?;
    let again = visit(proxy).await?;
    let shares: Vec<String> = nodes.iter().map(|node| format!("{} {}", node.id, count(&homes, node.id))).collect();
    step(
        "Every user has a home.",
        format!(
            "{USERS} users came twice; {} met another node the second time. Users per node: {}.",
            moved(&homes, &again),
            shares.join(", ")
        ),
        moved(&homes, &again) == 0 && nodes.iter().all(|node| count(&homes, node.id) > 0),
    );

    let size = 8 << 20;
    let head = format!(
        "POST /upload HTTP/1.1\r\nhost: {proxy}\r\nx-user-id: alice\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n"
    );
    let uploaded = send(proxy, &head, &vec![b'x'; size]).await?;
    step(
        "Bodies stream through.",
        format!("The node said: {}", uploaded.body.trim()),
        uploaded.body.contains(&format!("got {size} bytes")),
    );

    let before: u64 = nodes.iter().map(DemoNode::served).sum();
    let smuggled = send(proxy, &format!("GET / HTTP/1.1\r\nhost: {proxy}\r\nhost: elsewhere\r\n\r\n"), &[]).await?;
    let after: u64 = nodes.iter().map(DemoNode::served).sum();
    step(
        "What has two meanings is refused.",
        format!("A request with two Host fields got {}; {} requests reached a node.", smuggled.status, after - before),
        smuggled.status == 400 && before == after,
    );

    let gone = nodes[1].id;
    nodes[1].stop().await;
    let without = visit(proxy).await?;
    let (orphans, others): (Vec<usize>, Vec<usize>) = (0..USERS).partition(|user| homes[user] == gone);
    let disturbed = others.iter().filter(|user| homes[user] != without[user]).count();
    let served = orphans.iter().filter(|user| without[user] != gone && !without[user].is_empty()).count();
    step(
        "A node dies; nobody else notices.",
        format!(
            "{gone} is gone: {served} of its {} users were served by the next node, {disturbed} of the other {} moved.",
            orphans.len(),
            others.len()
        ),
        disturbed == 0 && served == orphans.len(),
    );

    nodes[1].restart().await?;
    let back = visit(proxy).await?;
    step(
        "It comes back; its users come home.",
        format!("{} of {USERS} users are where they began.", USERS - moved(&homes, &back)),
        moved(&homes, &back) == 0,
    );
    Ok(held)
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
