//! The ring alone: what a look-up costs, and how long a large pool takes to build.
//! Run with `cargo bench --bench ring`.

use divan::{Bencher, black_box};
use ringway::ring::{Member, Ring, Seed};

fn main() {
    divan::main();
}

fn pool(nodes: usize) -> Vec<String> {
    (0..nodes).map(|number| format!("node-{number}")).collect()
}

fn build(ids: &[String]) -> Ring {
    let members: Vec<Member<'_>> = ids.iter().map(|id| Member { id, weight: 1 }).collect();
    Ring::build(Seed::new("ringway"), 256, &members)
}

#[divan::bench(args = [10, 1000], sample_count = 20)]
fn building(bencher: Bencher<'_, '_>, nodes: usize) {
    let ids = pool(nodes);
    bencher.bench(|| build(&ids));
}

#[divan::bench(args = [10, 1000])]
fn look_up(bencher: Bencher<'_, '_>, nodes: usize) {
    let ring = build(&pool(nodes));
    let mut number = 0u64;
    bencher.bench_local(|| {
        // A cheap sequence that visits the whole circle, so that the caches do not help.
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ring.owner(black_box(number))
    });
}

#[divan::bench(args = [10, 1000])]
fn hash_and_walk_to_the_second_node(bencher: Bencher<'_, '_>, nodes: usize) {
    let ring = build(&pool(nodes));
    let mut number = 0u64;
    bencher.bench_local(|| {
        number += 1;
        let hash = ring.hash_key(black_box(&number.to_le_bytes()));
        ring.walk(hash).nth(1)
    });
}
