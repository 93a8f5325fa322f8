//! Metrics: what Prometheus scrapes is what `status` says.

use std::{collections::BTreeMap, net::SocketAddr};

use openmetrics_parser::{
    PrometheusType, PrometheusValue, openmetrics::parse_openmetrics, prometheus::parse_prometheus,
};
use reuseport_lb::{
    adopt,
    control::{GroupStatus, WorkerStatus},
    group::WorkerState,
};
use reuseport_lb_ebpf::outcome::Outcome;
use reuseport_lb_tests::{Daemon, GroupExt, Launch, connections, eventually, hold, http, in_netns};
use tokio::net::TcpStream;

const PORT: u16 = 9464;

/// A scrape: each sample by its name and labels, and each metric's type.
struct Scrape {
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
    types: BTreeMap<String, PrometheusType>,
}

impl Scrape {
    /// Over TCP, as Prometheus does.
    async fn of(port: u16) -> Self {
        Self::parse(&scrape_as(port, "text/plain;version=0.0.4").await)
    }

    fn parse(text: &str) -> Self {
        let exposition = parse_prometheus(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        for (name, family) in exposition.families {
            assert!(!family.help.is_empty(), "{name} has no help");
            for sample in family.iter_samples() {
                let labels = sample.get_labelset().expect("a sample of a family");
                let labels = labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
                let number = match &sample.value {
                    PrometheusValue::Gauge(number) | PrometheusValue::Unknown(number) => number.as_f64(),
                    PrometheusValue::Counter(counter) => counter.value.as_f64(),
                    other => panic!("{name} has the value {other:?}"),
                };
                samples.insert((name.clone(), labels), number);
            }
            types.insert(name, family.family_type);
        }
        Self { samples, types }
    }

    fn number(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let key = (format!("reuseport_lb_{name}"), labels);
        *self.samples.get(&key).unwrap_or_else(|| panic!("no {key:?} in {:#?}", self.samples))
    }

    /// Sees that all numbers of the group are those of its status.
    #[expect(clippy::float_cmp, reason = "counts are far below the first that a float cannot hold")]
    fn assert_agrees_with(&self, group: &GroupStatus) {
        let name = group.name.as_str();
        let of_group = |metric| self.number(metric, &[("group", name)]);
        let count = |state| group.workers.iter().filter(|worker| worker.state == state).count();
        assert_eq!(of_group("group_workers"), group.workers.len() as f64);
        assert_eq!(of_group("group_eligible_workers"), count(WorkerState::Active) as f64);
        for outcome in Outcome::ALL {
            let number = self.number("runs_total", &[("group", name), ("outcome", outcome.name())]);
            assert_eq!(number, group.outcomes.count(*outcome) as f64, "{outcome:?}");
        }
        for worker in &group.workers {
            let WorkerStatus { id, state, weight, connections, restarts, stalls, .. } = worker;
            let id = id.to_string();
            let labels = [("group", name), ("worker", id.as_str())];
            for (metric, expected) in [
                ("worker_weight", f64::from(*weight)),
                ("worker_active_connections", connections.active as f64),
                ("worker_pending_connections", connections.pending as f64),
                ("worker_queued_connections", connections.queued as f64),
                ("worker_selected_total", connections.selected_total as f64),
                ("worker_migrated_in_total", connections.migrated_in_total as f64),
                ("worker_restarts_total", *restarts as f64),
                ("worker_stalls_total", stalls.count as f64),
                ("worker_stalled_seconds_total", stalls.seconds_total),
            ] {
                assert_eq!(self.number(metric, &labels), expected, "{metric} of worker {id}");
            }
            for other in WorkerState::ALL {
                let labels = [labels[0], labels[1], ("state", other.as_str())];
                let expected = f64::from(u8::from(other == state));
                assert_eq!(self.number("worker_state", &labels), expected, "{other} of worker {id}");
            }
        }
    }
}

/// The text of a scrape in the format that is asked for.
async fn scrape_as(port: u16, accept: &str) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect(address).await.expect("the port is open");
    http::send_get_accepting(&mut stream, "/metrics", accept).await.expect("a request");
    let response = http::receive(&mut stream).await.expect("a response");
    assert_eq!(response.status, 200, "{response:?}");
    let format = accept.split(';').next().expect("a type");
    let content_type = response.header("content-type").expect("a type");
    assert!(content_type.starts_with(format), "{content_type} for {accept}");
    String::from_utf8(response.body).expect("text")
}

async fn start(netns: &std::sync::Arc<reuseport_lb_tests::Netns>) -> Daemon {
    Launch::policy("round-robin").workers(3).arg("--metrics").arg(PORT.to_string()).start(netns).await
}

/// Nothing is about to change by itself any more, so that two looks see the same: no handshake is counted as pending,
/// every worker is ready, and who drains is drained when its last connection is gone.
async fn settled(daemon: &Daemon) -> GroupStatus {
    let is_settled = |worker: &WorkerStatus| match worker.state {
        WorkerState::Active => true,
        WorkerState::Draining => worker.connections.active > 0,
        WorkerState::Drained => worker.connections.active == 0,
        _ => false,
    };
    daemon
        .wait("nothing changes any more", |group| {
            group.pending().iter().all(|count| *count == 0) && group.workers.iter().all(is_settled)
        })
        .await
}

#[test]
fn metrics_are_the_numbers_of_status_and_go_up_with_connections() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let client = daemon.client();
        let before = settled(&daemon).await;
        Scrape::of(PORT).await.assert_agrees_with(&before);

        let held = hold(&client, 6).await;
        connections(&client, 60, 4).await.assert_nothing_failed();
        daemon.tell(&["weight", "1", "3"]).await;
        daemon.tell(&["drain", "2"]).await;
        daemon.wait("only what is held is open", |group| group.active().iter().sum::<u64>() == 6).await;
        let loaded = settled(&daemon).await;
        let scrape = Scrape::of(PORT).await;
        scrape.assert_agrees_with(&loaded);
        let selected: u64 = loaded.selected().iter().sum();
        assert_eq!(selected - before.selected().iter().sum::<u64>(), 66);
        assert!(loaded.outcomes.selected >= 66, "{:?}", loaded.outcomes);
        drop(held);

        let died = loaded.worker(0).pid.expect("worker 0 runs");
        reuseport_lb_tests::process::Process::find(died)
            .expect("worker 0 runs")
            .signal(rustix::process::Signal::KILL);
        daemon
            .wait("worker 0 is back", |group| group.worker(0).restarts == 1 && group.worker(0).pid.is_some())
            .await;
        daemon.idle().await;
        let restarted = settled(&daemon).await;
        Scrape::of(PORT).await.assert_agrees_with(&restarted);
        daemon.stop().await;
    });
}

#[test]
fn what_is_scraped_is_what_the_types_promise() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let plain = Scrape::of(PORT).await;
        for (name, of_type) in &plain.types {
            let is_counter = *of_type == PrometheusType::Counter;
            assert_eq!(is_counter, name.ends_with("_total"), "{name} is a {of_type}");
        }
        let open = scrape_as(PORT, "application/openmetrics-text;version=1.0.0").await;
        let open = parse_openmetrics(&open).unwrap_or_else(|error| panic!("{error}\n{open}"));
        assert_eq!(open.families.len(), plain.types.len());

        // The same on the control socket, by request and by command.
        let response = daemon.control_request("GET", "/metrics", b"").await.expect("an answer");
        let by_request = Scrape::parse(&String::from_utf8(response.body).expect("text"));
        let by_command = Scrape::parse(&daemon.tell(&["metrics"]).await.stdout);
        for other in [by_request, by_command] {
            assert!(other.samples.keys().eq(plain.samples.keys()), "{:#?}", other.samples);
        }
        daemon.stop().await;
    });
}

#[test]
fn the_port_is_this_host_only_and_takes_nothing_but_get() {
    in_netns(async |netns| {
        let daemon = start(&netns).await;
        let listeners = netns.within(|| adopt::listeners(PORT).expect("the sockets"));
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
        assert_eq!(addresses, [SocketAddr::from(([127, 0, 0, 1], PORT))]);

        for (method, path, expected) in [
            ("POST", "/v1/shutdown", 404),
            ("GET", "/v1/status", 404),
            ("PUT", "/v1/groups/-/workers/0/drain", 404),
            ("POST", "/metrics", 405),
        ] {
            let mut stream = TcpStream::connect(addresses[0]).await.expect("the port is open");
            http::send_json(&mut stream, method, path, b"").await.expect("a request");
            let response = http::receive(&mut stream).await.expect("a response");
            assert_eq!(response.status, expected, "{method} {path}");
        }
        assert!(daemon.group().await.all_active());

        let taken = Launch::policy("hash").listen("127.0.0.1:8081").arg("--metrics").arg(PORT.to_string());
        let taken = taken.fail(&netns).await;
        taken.failed_with(&["cannot serve metrics on 127.0.0.1:9464", "in use", "--metrics"]);
        daemon.stop().await;
        eventually("the port is closed", async || match TcpStream::connect(addresses[0]).await {
            Err(_) => Ok(()),
            Ok(_) => Err("somebody listens"),
        })
        .await;
    });
}
