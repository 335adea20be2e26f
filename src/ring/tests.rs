use super::*;
use proptest::prelude::*;

fn ring<'a>(seed: &str, virtual_nodes: u32, members: &[(&'a str, u32)]) -> (Ring, Vec<&'a str>) {
    let list: Vec<Member<'_>> = members.iter().map(|&(id, weight)| Member { id, weight }).collect();
    (Ring::build(Seed::new(seed), virtual_nodes, &list), members.iter().map(|&(id, _)| id).collect())
}

/// Recorded once. A release that changes a line here moves keys of every user who upgrades.
#[test]
fn golden_assignments_never_change() {
    let (plain, ids) = ring("ringway", 256, &[("app-1", 1), ("app-2", 2), ("app-3", 1), ("app-4", 1)]);
    let recorded: String = include_str!("golden.txt").to_owned();
    let mut now = String::new();
    for number in 0..64 {
        let key = format!("user-{number}");
        let hash = plain.hash_key(key.as_bytes());
        let order: Vec<&str> = plain.walk(hash).map(|member| ids[member]).collect();
        now += &format!("{key} {hash:016x} {}\n", order.join(" "));
    }
    assert_eq!(now, recorded);
}

#[test]
fn a_digest_tells_rings_apart_that_assign_keys_otherwise() {
    let digest = |seed: &str, members: &[(&str, u32)]| {
        let (ring, ids) = ring(seed, 16, members);
        ring.digest(|member| ids[member])
    };
    let first = digest("s", &[("a", 1), ("b", 2)]);
    assert_eq!(first, digest("s", &[("b", 2), ("a", 1)]), "in any order");
    for (seed, members) in [("t", [("a", 1), ("b", 2)]), ("s", [("a", 2), ("b", 1)]), ("s", [("a", 1), ("c", 2)])] {
        assert_ne!(first, digest(seed, &members), "{seed} {members:?}");
    }
}

#[test]
fn an_empty_ring_owns_nothing() {
    let (none, _) = ring("s", 256, &[]);
    assert_eq!(none.owner(7), None);
    assert_eq!(none.walk(7).count(), 0);
    let (weightless, _) = ring("s", 256, &[("a", 0)]);
    assert_eq!(weightless.owner(7), None);
    assert_eq!(weightless.shares(), [0.0]);
}

#[test]
fn one_point_owns_everything() {
    let (one, _) = ring("s", 1, &[("a", 1)]);
    assert_eq!(one.shares(), [1.0]);
    for hash in [0, 1, u64::MAX / 2, u64::MAX] {
        assert_eq!(one.owner(hash), Some(0));
    }
}

#[test]
fn a_point_takes_at_most_16_bytes() {
    for count in [1, 2, 3, 7, 100, 1000] {
        let ids: Vec<String> = (0..count).map(|n| format!("node-{n}")).collect();
        let members: Vec<Member<'_>> = ids.iter().map(|id| Member { id, weight: 1 }).collect();
        let ring = Ring::build(Seed::new("s"), 256, &members);
        assert!(ring.size() <= 16 * ring.points(), "{} bytes for {} points", ring.size(), ring.points());
    }
}

#[test]
fn a_joining_node_takes_about_its_share_and_only_from_others() {
    for count in [2usize, 5, 10, 50] {
        let ids: Vec<String> = (0..=count).map(|n| format!("node-{n}")).collect();
        let members: Vec<(&str, u32)> = ids.iter().map(|id| (id.as_str(), 1)).collect();
        let (before, before_ids) = ring("ringway", 256, &members[..count]);
        let (after, after_ids) = ring("ringway", 256, &members);
        let change = Change::between((&before, &before_ids), (&after, &after_ids));
        let ideal = 1.0 / (count as f64 + 1.0);
        assert!((change.moved - ideal).abs() < ideal / 4.0, "{count} nodes: {} moved", change.moved);
        for transfer in &change.transfers {
            assert_eq!(transfer.to.as_deref(), Some(ids[count].as_str()));
        }
    }
}

#[test]
fn the_look_up_agrees_with_a_plain_search() {
    let (ring, _) = ring("s", 64, &[("a", 1), ("b", 3), ("c", 1)]);
    let slow = |hash: u64| {
        let point = ring.hashes.iter().position(|&point| point >= hash).unwrap_or(0);
        ring.owners[point] as usize
    };
    let mut edges: Vec<u64> = ring.hashes.iter().flat_map(|&h| [h.wrapping_sub(1), h, h.wrapping_add(1)]).collect();
    edges.extend([0, 1, u64::MAX, 1 << 63]);
    for hash in edges {
        assert_eq!(ring.owner(hash), Some(slow(hash)), "hash {hash:016x}");
    }
}

fn pools() -> impl Strategy<Value = Vec<(String, u32)>> {
    prop::collection::btree_map("[a-z]{1,8}(-[0-9]{1,3})?", 1u32..4, 2..12).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_leaving_node_moves_only_its_own_keys(pool in pools(), leaver in any::<prop::sample::Index>(), hashes in prop::collection::vec(any::<u64>(), 200)) {
        let leaver = leaver.index(pool.len());
        let members: Vec<(&str, u32)> = pool.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
        let mut rest = members.clone();
        rest.remove(leaver);
        let (before, before_ids) = ring("s", 64, &members);
        let (after, after_ids) = ring("s", 64, &rest);
        for hash in hashes {
            let mut walk = before.walk(hash).map(|member| before_ids[member]);
            let old = walk.next().unwrap();
            let new = after_ids[after.owner(hash).unwrap()];
            // The keys of the leaver go to the next node of the walk; all others stay.
            let expected = if old == members[leaver].0 { walk.next().unwrap() } else { old };
            prop_assert_eq!(new, expected);
        }
        let change = Change::between((&before, &before_ids), (&after, &after_ids));
        for transfer in &change.transfers {
            prop_assert_eq!(transfer.from.as_deref(), Some(members[leaver].0));
        }
        prop_assert!((change.moved - before.shares()[leaver]).abs() < 1e-9);
    }

    #[test]
    fn the_order_of_the_file_is_irrelevant(pool in pools(), hashes in prop::collection::vec(any::<u64>(), 200)) {
        let members: Vec<(&str, u32)> = pool.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
        let reversed: Vec<(&str, u32)> = members.iter().rev().copied().collect();
        let (one, one_ids) = ring("s", 32, &members);
        let (two, two_ids) = ring("s", 32, &reversed);
        for hash in hashes {
            let first: Vec<&str> = one.walk(hash).map(|member| one_ids[member]).collect();
            let second: Vec<&str> = two.walk(hash).map(|member| two_ids[member]).collect();
            prop_assert_eq!(first, second);
        }
    }

    #[test]
    fn shares_follow_weights(pool in pools()) {
        let members: Vec<(&str, u32)> = pool.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
        let total: u32 = members.iter().map(|&(_, weight)| weight).sum();
        let (ring, _) = ring("s", 1024, &members);
        let shares = ring.shares();
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (share, (_, weight)) in shares.iter().zip(&members) {
            let ideal = f64::from(*weight) / f64::from(total);
            prop_assert!((share - ideal).abs() < ideal / 4.0, "share {share}, ideal {ideal}");
        }
    }

    #[test]
    fn a_walk_meets_every_weighted_node_once(pool in pools(), hash in any::<u64>()) {
        let members: Vec<(&str, u32)> = pool.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
        let (ring, _) = ring("s", 16, &members);
        let mut met: Vec<usize> = ring.walk(hash).collect();
        prop_assert_eq!(Some(met[0]), ring.owner(hash));
        met.sort_unstable();
        prop_assert_eq!(met, (0..members.len()).collect::<Vec<_>>());
    }
}
