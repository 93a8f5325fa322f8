//! A worker that takes nothing, or whose accept queue is full, is passed over, whatever the policy, and comes back by itself.

use std::collections::BTreeMap;

use reuseport_lb::worker::affinity;
use reuseport_lb_tests::Launch;

mod full;
mod stalled;

const WORKERS: u16 = 4;
/// One of the workers on the first CPU, when they are pinned.
const STOPPED: u16 = 0;

/// The policies, with what share of this thread's connections each of four workers has.
fn launches() -> BTreeMap<&'static str, (Launch, f64)> {
    let cpus = affinity::allowed().expect("the CPUs of this test").len();
    // Four workers by turns: those of the first CPU.
    let local = (0..usize::from(WORKERS)).filter(|worker| worker % cpus == 0).count();
    let launch = |policy| Launch::policy(policy).workers(WORKERS).stall_after("200ms");
    let quarter = 1.0 / f64::from(WORKERS);
    BTreeMap::from([
        ("hash", (launch("hash"), quarter)),
        ("consistent-hash", (launch("consistent-hash"), quarter)),
        ("bounded", (launch("consistent-hash").arg("--balance-factor=1.25"), quarter)),
        ("least-loaded", (launch("least-loaded"), quarter)),
        ("power-of-two", (launch("power-of-two"), quarter)),
        ("round-robin", (launch("round-robin"), quarter)),
        ("random", (launch("random"), quarter)),
        ("cpu-local", (launch("cpu-local").arg("--pin-workers"), 1.0 / local as f64)),
    ])
}
