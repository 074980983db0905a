//! What pfs does often, by the clock: `cargo bench`, or `cargo bench -- lookup` for some of it.

mod fixtures;

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fixtures::{ACTS, Act};

fn acts(criterion: &mut Criterion) {
    for (name, prepare) in ACTS {
        // Prepared where it is run, so that acts that are filtered out cost nothing.
        let mut prepared = None;
        criterion.bench_function(name, |bencher| match prepared.get_or_insert_with(prepare) {
            Act::Again(act) => bencher.iter(act),
            Act::Afresh(fresh) => bencher.iter_batched(fresh, |job| job(), BatchSize::PerIteration),
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = acts
}
criterion_main!(benches);
