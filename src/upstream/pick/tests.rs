use super::*;
use crate::ring::{Member, Ring, Seed};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Known {
    state: NodeState,
    fitness: Result<bool, Skip>,
    load: u32,
    weight: u32,
    has_key: bool,
}

const WELL: Known = Known { state: NodeState::Up, fitness: Ok(false), load: 0, weight: 1, has_key: true };

impl Nodes for Vec<Known> {
    fn count(&self) -> usize {
        self.len()
    }
    fn state(&self, node: usize) -> NodeState {
        self[node].state
    }
    fn fitness(&self, node: usize) -> Result<bool, Skip> {
        self[node].fitness
    }
    fn load(&self, node: usize) -> u32 {
        self[node].load
    }
    fn weight(&self, node: usize) -> u32 {
        self[node].weight
    }
    fn has_reached_key(&self, node: usize) -> bool {
        self[node].has_key
    }
}

const PLAIN: PickRules = PickRules { max_per_node: 100, bounded_load: None, panic_threshold: 0.0 };

fn found(nodes: &[Known], rules: &PickRules) -> Result<(usize, Option<Skip>), PickError> {
    let nodes = nodes.to_vec();
    pick(0..nodes.len(), &nodes, rules).map(|pick| (pick.node, pick.spilled))
}

#[test]
fn each_reason_passes_a_node_over() {
    let rules = PickRules { bounded_load: Some(1250), ..PLAIN };
    for (first, reason) in [
        (Known { state: NodeState::Down, ..WELL }, Skip::Down),
        (Known { state: NodeState::Drain, ..WELL }, Skip::Drain),
        (Known { fitness: Err(Skip::Unhealthy), ..WELL }, Skip::Unhealthy),
        (Known { fitness: Err(Skip::Ejected), ..WELL }, Skip::Ejected),
        (Known { load: 100, ..WELL }, Skip::Full),
        (Known { has_key: false, ..WELL }, Skip::SlowStart),
        (Known { load: 20, ..WELL }, Skip::BoundedLoad),
    ] {
        assert_eq!(found(&[first, WELL], &rules), Ok((1, Some(reason))));
    }
    assert_eq!(found(&[WELL, WELL], &rules), Ok((0, None)));
    assert_eq!(found(&[], &rules), Err(PickError::Unavailable));
    assert_eq!(found(&[Known { load: 100, ..WELL }], &rules), Err(PickError::Full));
}

#[test]
fn a_node_on_its_slow_start_is_better_than_none() {
    let slow = Known { has_key: false, ..WELL };
    assert_eq!(found(&[slow.clone(), slow.clone()], &PLAIN), Ok((0, None)));
    let down = Known { state: NodeState::Down, ..WELL };
    assert_eq!(found(&[down, slow], &PLAIN), Ok((1, Some(Skip::Down))));
}

#[test]
fn where_nobody_is_under_the_bound_the_least_loaded_takes_it() {
    let rules = PickRules { bounded_load: Some(1000), max_per_node: 1000, panic_threshold: 0.0 };
    // The one under its bound is on its slow start; of the others the least loaded one counts.
    let nodes = [
        Known { load: 40, ..WELL },
        Known { load: 60, weight: 2, ..WELL },
        Known { load: 1, weight: 6, has_key: false, ..WELL },
    ];
    assert_eq!(found(&nodes, &rules), Ok((2, Some(Skip::BoundedLoad))));
    assert_eq!(found(&nodes[..2], &PickRules { bounded_load: Some(1), ..rules }), Ok((1, Some(Skip::BoundedLoad))));
    let second = [nodes[1].clone(), nodes[0].clone()];
    assert_eq!(found(&second, &PickRules { bounded_load: Some(1), ..rules }), Ok((0, None)), "the owner itself");
}

#[test]
fn bounds_are_by_weight() {
    let rules = PickRules { bounded_load: Some(1250), ..PLAIN };
    // Three quarters of the weight: at most ceil(1.25 * 3 / 4 * all), this one included.
    let nodes = |heavy, light| [Known { load: heavy, weight: 3, ..WELL }, Known { load: light, ..WELL }];
    assert_eq!(found(&nodes(14, 0), &rules), Ok((0, None)), "the fifteenth of at most 15");
    assert_eq!(found(&nodes(15, 0), &rules), Ok((1, Some(Skip::BoundedLoad))), "the sixteenth of at most 15");
    assert_eq!(found(&nodes(14, 4), &rules), Ok((0, None)), "18 of at most 18");
}

#[test]
fn in_panic_health_is_ignored_but_not_what_people_said() {
    let rules = PickRules { panic_threshold: 0.5, ..PLAIN };
    let sick = Known { fitness: Err(Skip::Unhealthy), ..WELL };
    assert_eq!(found(&[sick.clone(), WELL, WELL], &rules), Ok((1, Some(Skip::Unhealthy))), "two of three are well");
    assert_eq!(found(&[sick.clone(), sick.clone(), WELL], &rules), Ok((0, None)), "one of three is");
    let down = Known { state: NodeState::Down, ..sick.clone() };
    assert_eq!(found(&[down, sick.clone()], &rules), Ok((1, Some(Skip::Down))));
    assert_eq!(found(&[sick.clone(), sick], &PLAIN), Err(PickError::Unavailable), "without a threshold there is none");
}

#[test]
fn a_session_stays_with_its_node_while_it_drains_and_over_its_bound() {
    let rules = PickRules { bounded_load: Some(1000), ..PLAIN };
    let pinned = |known| pick_pinned(0, &vec![known, WELL], &rules).map(|pick| pick.node);
    assert_eq!(pinned(Known { state: NodeState::Drain, load: 99, has_key: false, ..WELL }), Ok(0));
    assert_eq!(pinned(Known { load: 100, ..WELL }), Err(Skip::Full));
    assert_eq!(pinned(Known { state: NodeState::Down, ..WELL }), Err(Skip::Down));
    assert_eq!(pinned(Known { fitness: Err(Skip::Ejected), ..WELL }), Err(Skip::Ejected));
}

fn known() -> impl Strategy<Value = Known> {
    let state = prop_oneof![5 => Just(NodeState::Up), 1 => Just(NodeState::Drain), 1 => Just(NodeState::Down)];
    let fitness = prop_oneof![
        5 => Just(Ok(false)),
        1 => Just(Ok(true)),
        1 => Just(Err(Skip::Unhealthy)),
        1 => Just(Err(Skip::Ejected)),
    ];
    (state, fitness, 0u32..12, 1u32..4, prop::bool::weighted(0.8))
        .prop_map(|(state, fitness, load, weight, has_key)| Known { state, fitness, load, weight, has_key })
}

fn ring(nodes: &[Known]) -> Ring {
    let ids: Vec<String> = (0..nodes.len()).map(|n| format!("n{n}")).collect();
    let members: Vec<Member<'_>> = ids.iter().zip(nodes).map(|(id, node)| Member { id, weight: node.weight }).collect();
    Ring::build(Seed::new("test"), 16, &members)
}

proptest! {
    /// The plain reading of the contract, for every vector of health and any place on the circle, its
    /// end included.
    #[test]
    fn it_is_the_first_eligible_in_the_keys_order(
        nodes in prop::collection::vec(known(), 0..8),
        hash in prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)],
        limit in 1u32..12,
    ) {
        let rules = PickRules { max_per_node: limit, bounded_load: None, panic_threshold: 0.0 };
        let ring = ring(&nodes);
        let order: Vec<usize> = ring.walk(hash).collect();
        let usable = |&&node: &&usize| {
            let Known { state, fitness, load, .. } = nodes[node];
            state == NodeState::Up && fitness.is_ok() && load < limit
        };
        let expected = order.iter().filter(usable).find(|&&node| nodes[node].has_key).or(order.iter().find(usable));
        match pick(order.iter().copied(), &nodes, &rules) {
            Ok(pick) => {
                prop_assert_eq!(Some(&pick.node), expected);
                prop_assert_eq!(pick.is_trial, nodes[pick.node].fitness == Ok(true));
                prop_assert_eq!(pick.spilled.is_none(), pick.node == order[0]);
            }
            Err(_) => prop_assert_eq!(expected, None),
        }
    }

    /// No node under the bound is passed over for it, and no node exceeds it while another one is under.
    #[test]
    fn bounded_load_starves_no_node_with_room(
        nodes in prop::collection::vec(known(), 1..8), hash: u64, factor in 1000u32..3000,
    ) {
        let rules = PickRules { max_per_node: u32::MAX, bounded_load: Some(factor), panic_threshold: 0.0 };
        let eligible: Vec<usize> = (0..nodes.len())
            .filter(|&node| nodes[node].state == NodeState::Up && nodes[node].fitness.is_ok())
            .collect();
        let load: u64 = eligible.iter().map(|&node| u64::from(nodes[node].load)).sum::<u64>() + 1;
        let weight: u64 = eligible.iter().map(|&node| u64::from(nodes[node].weight)).sum();
        let has_room = |node: usize| {
            let part = u64::from(factor) * load * u64::from(nodes[node].weight);
            u64::from(nodes[node].load) < part.div_ceil(1000 * weight).max(1)
        };
        let order: Vec<usize> = ring(&nodes).walk(hash).collect();
        let first = order.iter().copied().find(|&node| eligible.contains(&node) && nodes[node].has_key && has_room(node));
        match (pick(order.into_iter(), &nodes, &rules), first) {
            (Ok(pick), Some(first)) => prop_assert_eq!(pick.node, first),
            (Ok(_), None) => prop_assert!(eligible.iter().all(|&node| !nodes[node].has_key || !has_room(node))),
            (Err(_), _) => prop_assert!(eligible.is_empty()),
        }
    }
}
