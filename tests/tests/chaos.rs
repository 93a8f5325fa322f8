//! Anything at any moment: see `reuseport_lb_tests::chaos`, and CONTRIBUTING.md for longer runs and for seeds.

use reuseport_lb_tests::{
    chaos::{self, Plan},
    in_netns_for,
};

#[test]
fn whatever_happens_only_what_a_killed_worker_had_accepted_is_lost() {
    let plan = Plan::from_env();
    in_netns_for(plan.duration + chaos::REST, async move |netns| chaos::run(&netns, plan).await);
}
