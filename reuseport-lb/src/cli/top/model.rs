//! What is shown: two looks at the daemon, of which the rates are the difference, and the selected worker.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::keys::Key;
use crate::{
    control::{
        DrainRequest, GroupStatus, Status, WorkerStatus,
        client::{Client, Error},
    },
    group::{WEIGHT_RANGE, WorkerId},
};

/// What is shown.
pub(super) struct Model {
    status: Status,
    looked: Instant,
    /// New connections a second of each worker, between the last two looks.
    rates: BTreeMap<(String, WorkerId), f64>,
    selected: usize,
    notice: Option<String>,
    lost: Option<String>,
}

/// What the user wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Quit,
    Look,
    Change(Change),
}

/// A change of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    group: String,
    worker: WorkerId,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Drain,
    Undrain,
    Weight(u16),
}

impl Change {
    /// Has the daemon make the change.
    pub(super) async fn send(self, client: &Client) -> Result<WorkerStatus, Error> {
        let (group, worker) = (Some(self.group.as_str()), self.worker);
        match self.what {
            What::Drain => client.drain(group, worker, DrainRequest::default()).await,
            What::Undrain => client.undrain(group, worker).await,
            What::Weight(weight) => client.set_weight(group, worker, weight).await,
        }
    }
}

impl Model {
    /// After the first look, which gives no rates yet.
    pub(super) fn new(status: Status, looked: Instant) -> Self {
        Self { status, looked, rates: BTreeMap::new(), selected: 0, notice: None, lost: None }
    }

    /// After another look.
    pub(super) fn update(&mut self, status: Status, looked: Instant) {
        let passed = looked.saturating_duration_since(self.looked);
        let before: BTreeMap<_, _> = workers(&self.status)
            // Counters of another daemon have begun anew.
            .filter(|_| self.status.pid == status.pid)
            .map(|(group, worker)| ((group.name.clone(), worker.id), worker.connections.selected_total))
            .collect();
        self.rates = workers(&status)
            .filter_map(|(group, worker)| {
                let key = (group.name.clone(), worker.id);
                let rate = rate(*before.get(&key)?, worker.connections.selected_total, passed)?;
                Some((key, rate))
            })
            .collect();
        self.selected = self.selected.min(workers(&status).count().saturating_sub(1));
        (self.status, self.looked, self.lost) = (status, looked, None);
    }

    /// After a look in vain. What was seen last stays.
    pub(super) fn lost(&mut self, why: String) {
        self.rates.clear();
        self.lost = Some(why);
    }

    /// Shows a line, until the next key.
    pub(super) fn tell(&mut self, notice: String) {
        self.notice = Some(notice);
    }

    /// What a key does.
    pub(super) fn pressed(&mut self, key: Key) -> Option<Order> {
        self.notice = None;
        let last = workers(&self.status).count().saturating_sub(1);
        match key {
            Key::Quit => Some(Order::Quit),
            Key::Up => {
                self.selected = self.selected.saturating_sub(1);
                None
            }
            Key::Down => {
                self.selected = (self.selected + 1).min(last);
                None
            }
            Key::Drain => self.change(|_| Some(What::Drain)),
            Key::Undrain => self.change(|_| Some(What::Undrain)),
            Key::Heavier => self.change(|worker| weight(worker.weight.saturating_add(1))),
            Key::Lighter => self.change(|worker| weight(worker.weight.saturating_sub(1))),
        }
    }

    fn change(&self, what: impl FnOnce(&WorkerStatus) -> Option<What>) -> Option<Order> {
        let (group, worker) = workers(&self.status).nth(self.selected)?;
        let what = what(worker)?;
        Some(Order::Change(Change { group: group.name.clone(), worker: worker.id, what }))
    }

    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    /// The place of the selected worker among all workers of all groups.
    pub(super) fn selected(&self) -> usize {
        self.selected
    }

    /// New connections a second, where that is known.
    pub(super) fn rate(&self, group: &str, worker: WorkerId) -> Option<f64> {
        self.rates.get(&(group.to_owned(), worker)).copied()
    }

    /// The line at the bottom, and whether it is bad news.
    pub(super) fn notice(&self) -> Option<(&str, bool)> {
        let lost = self.lost.as_deref().map(|lost| (lost, true));
        lost.or_else(|| self.notice.as_deref().map(|notice| (notice, false)))
    }
}

/// All workers with their groups, in the order in which they are shown.
fn workers(status: &Status) -> impl Iterator<Item = (&GroupStatus, &WorkerStatus)> {
    status.groups.iter().flat_map(|group| group.workers.iter().map(move |worker| (group, worker)))
}

/// A counter that has gone back was made anew: how much it has counted since is not known.
fn rate(before: u64, now: u64, passed: Duration) -> Option<f64> {
    let more = now.checked_sub(before)?;
    (!passed.is_zero()).then(|| more as f64 / passed.as_secs_f64())
}

fn weight(weight: u16) -> Option<What> {
    WEIGHT_RANGE.contains(&weight).then_some(What::Weight(weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{FakeDaemon, status};

    fn model() -> Model {
        Model::new(status(), Instant::now())
    }

    #[test]
    fn rates_are_what_was_selected_between_two_looks() {
        let (mut model, start) = (model(), Instant::now());
        model.looked = start;
        assert_eq!(model.rate("default", WorkerId(0)), None);
        let mut next = status();
        next.groups[0].workers[0].connections.selected_total += 30;
        next.groups[0].workers[2].connections.selected_total = 0;
        model.update(next.clone(), start + Duration::from_secs(2));
        assert_eq!(model.rate("default", WorkerId(0)), Some(15.0));
        assert_eq!(model.rate("default", WorkerId(1)), Some(0.0));
        assert_eq!(model.rate("default", WorkerId(2)), None, "the counter went back");

        next.pid += 1;
        next.groups[0].workers[0].connections.selected_total += 30;
        model.update(next, start + Duration::from_secs(3));
        assert_eq!(model.rate("default", WorkerId(0)), None, "another daemon");
    }

    #[test]
    fn the_selection_stays_on_a_worker() {
        let mut model = model();
        for _ in 0..5 {
            assert_eq!(model.pressed(Key::Down), None);
        }
        assert_eq!(model.selected(), 2);
        let mut fewer = status();
        fewer.groups[0].workers.truncate(2);
        model.update(fewer, Instant::now());
        assert_eq!(model.selected(), 1);
        model.pressed(Key::Up);
        model.pressed(Key::Up);
        assert_eq!(model.selected(), 0);
    }

    #[tokio::test]
    async fn keys_change_the_selected_worker() {
        let daemon = FakeDaemon::start();
        let client = daemon.client();
        let mut model = model();
        model.pressed(Key::Down);
        for (key, expected) in [
            (Key::Heavier, "worker 1 is active"),
            (Key::Drain, "worker 1 is draining"),
            (Key::Undrain, "worker 1 is active"),
        ] {
            let Some(Order::Change(change)) = model.pressed(key) else { panic!("{key:?} changes nothing") };
            let worker = change.send(&client).await.expect("the daemon does it");
            assert_eq!(worker.id, WorkerId(1));
            assert_eq!(worker.weight, 2, "the first key made it so");
            assert!(crate::cli::render::worker(&worker).starts_with(expected), "{key:?}: {worker:?}");
        }
        assert_eq!(model.pressed(Key::Lighter), None, "as shown, it has weight 1");
        assert_eq!(model.pressed(Key::Quit), Some(Order::Quit));
    }

    #[test]
    fn bad_news_come_before_good_ones_and_go_when_the_daemon_is_back() {
        let mut model = model();
        model.tell("worker 1 is active".into());
        assert_eq!(model.notice(), Some(("worker 1 is active", false)));
        model.lost("no daemon".into());
        assert_eq!(model.notice(), Some(("no daemon", true)));
        model.update(status(), Instant::now());
        assert_eq!(model.notice(), Some(("worker 1 is active", false)));
        model.pressed(Key::Up);
        assert_eq!(model.notice(), None);
    }
}
