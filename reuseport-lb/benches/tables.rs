//! How long the tables take to build: the time between a command and its commit, for the largest group.

use std::hint::black_box;

use criterion::{BatchSize, Criterion};
use reuseport_lb::policy::{Member, ring::Ring, shares::schedule};

const WORKERS: u16 = 1024;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    // Weights of which nothing divides out, so that the list is as long as it gets.
    for (name, heaviest) in [("equal", 1), ("weighted", 256)] {
        let all: Vec<Member> =
            (0..WORKERS).map(|slot| Member { slot, weight: slot % heaviest + 1 }).collect();
        let size = Ring::size_for(WORKERS);

        criterion.bench_function(&format!("ring/{name}/first fill"), |bencher| {
            bencher.iter_batched_ref(|| Ring::new(size), |ring| ring.rebuild(&all), BatchSize::LargeInput);
        });
        // Each drain is of a set that the ring has not seen before, so that nothing is remembered.
        criterion.bench_function(&format!("ring/{name}/drain one"), |bencher| {
            let filled = || {
                let mut ring = Ring::new(size);
                ring.rebuild(&all);
                ring
            };
            bencher.iter_batched_ref(filled, |ring| ring.rebuild(&all[1..]), BatchSize::LargeInput);
        });
        criterion.bench_function(&format!("ring/{name}/undrain one"), |bencher| {
            let drained = || {
                let mut ring = Ring::new(size);
                ring.rebuild(&all);
                ring.rebuild(&all[1..]);
                ring
            };
            bencher.iter_batched_ref(drained, |ring| ring.rebuild(&all), BatchSize::LargeInput);
        });
        criterion.bench_function(&format!("shares/{name}"), |bencher| {
            let mut list = Vec::new();
            bencher.iter(|| schedule(black_box(&all), &mut list));
        });
    }
    criterion.final_summary();
}
