//! How it is shown.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{List, ListState, Paragraph},
};

use super::{keys, model::Model};
use crate::{
    control::{GroupStatus, WorkerStatus},
    group::WorkerState,
};

/// The columns of a bar of connections.
const BAR_COLUMNS: usize = 16;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let one_line = Constraint::Length(1);
    let areas = Layout::vertical([one_line, one_line, Constraint::Min(0), one_line]);
    let [title_area, header_area, body_area, foot_area] = areas.areas(frame.area());

    frame.render_widget(Paragraph::new(title(model)), title_area);
    frame.render_widget(Paragraph::new(header()), header_area);
    let (lines, selected) = body(model);
    let list = List::new(lines).highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(list, body_area, &mut ListState::default().with_selected(selected));
    frame.render_widget(Paragraph::new(foot(model)), foot_area);
}

fn title(model: &Model) -> Line<'static> {
    let status = model.status();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds as u64));
    Line::from(format!("reuseport-lb {} · pid {} · up {uptime}", status.version, status.pid)).bold()
}

fn foot(model: &Model) -> Line<'static> {
    match model.notice() {
        Some((notice, true)) => Line::from(notice.to_owned()).red(),
        Some((notice, false)) => Line::from(notice.to_owned()),
        None => Line::from(keys::HELP).dim(),
    }
}

/// The lines of the groups and workers, and which of them is the selected worker's.
fn body(model: &Model) -> (Vec<Line<'static>>, Option<usize>) {
    let (mut lines, mut selected, mut place) = (Vec::new(), None, 0);
    for group in &model.status().groups {
        lines.push(Line::default());
        lines.push(group_line(model, group));
        let most = group.workers.iter().map(|worker| worker.connections.active).max().unwrap_or(0);
        for worker in &group.workers {
            if place == model.selected() {
                selected = Some(lines.len());
            }
            place += 1;
            lines.push(worker_line(worker, model.rate(&group.name, worker.id), most));
        }
    }
    (lines, selected)
}

fn group_line(model: &Model, group: &GroupStatus) -> Line<'static> {
    let GroupStatus { name, protocol, listen, mode, policy, workers, .. } = group;
    let active: u64 = workers.iter().map(|worker| worker.connections.active).sum();
    let rate: f64 = workers.iter().filter_map(|worker| model.rate(name, worker.id)).sum();
    let text =
        format!("{name} · {listen} {protocol} · {policy} · {mode} · {active} active · {rate:.1} new/s");
    Line::from(text).bold()
}

fn header() -> Line<'static> {
    let texts = [
        "WORKER", "PID", "STATE", "WEIGHT", "NEW/s", "ACTIVE", "", "PENDING", "QUEUED", "RESTARTS", "STALLS",
    ];
    Line::from(cells(&texts).concat()).dim()
}

fn worker_line(worker: &WorkerStatus, rate: Option<f64>, most: u64) -> Line<'static> {
    let WorkerStatus { id, pid, state, weight, connections, restarts, stalls, .. } = worker;
    let texts = [
        &id.to_string(),
        &pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        state.as_str(),
        &weight.to_string(),
        &rate.map_or_else(|| "-".into(), |rate| format!("{rate:.1}")),
        &connections.active.to_string(),
        &bar(connections.active, most),
        &connections.pending.to_string(),
        &connections.queued.to_string(),
        &restarts.to_string(),
        &stalls.count.to_string(),
    ];
    let [id, pid, state_word, weight, rate, active, bar, pending, queued, restarts, stalls] = cells(&texts);
    Line::from(vec![
        Span::raw([id, pid].concat()),
        Span::styled(state_word, Style::new().fg(colour(*state))),
        Span::raw([weight, rate, active].concat()),
        Span::raw(bar).cyan(),
        Span::raw([pending, queued, restarts, stalls].concat()),
    ])
}

/// Texts in columns: words and bars to the left, numbers to the right.
fn cells(texts: &[&str; 11]) -> [String; 11] {
    let [id, pid, state, weight, rate, active, bar, pending, queued, restarts, stalls] = texts;
    [
        format!("{id:>6}"),
        format!("{pid:>9}  "),
        format!("{state:<8}"),
        format!("{weight:>8}"),
        format!("{rate:>10}"),
        format!("{active:>8} "),
        format!("{bar:<BAR_COLUMNS$}"),
        format!("{pending:>8}"),
        format!("{queued:>8}"),
        format!("{restarts:>10}"),
        format!("{stalls:>8}"),
    ]
}

fn colour(state: WorkerState) -> Color {
    match state {
        WorkerState::Active => Color::Green,
        WorkerState::Starting => Color::Cyan,
        WorkerState::Draining | WorkerState::Drained | WorkerState::Stopping => Color::Yellow,
        WorkerState::Stalled | WorkerState::Down => Color::Red,
    }
}

/// A bar in eighths of a column, as long as `part` is of `most`; whatever is not zero can be seen.
fn bar(part: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

    if most == 0 {
        return String::new();
    }
    let full = BAR_COLUMNS as u128 * 8;
    let eighths = (u128::from(part) * full / u128::from(most)) as usize;
    let eighths = eighths.max(usize::from(part > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

    use super::*;
    use crate::{cli::top::keys::Key, control::testing::status};

    fn drawn(model: &Model, columns: u16, lines: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).expect("a terminal");
        terminal.draw(|frame| draw(frame, model)).expect("drawn");
        terminal.backend().buffer().clone()
    }

    fn lines(buffer: &Buffer) -> Vec<String> {
        let width = usize::from(buffer.area.width);
        let cells: Vec<_> = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
        cells.chunks(width).map(|line| line.concat().trim_end().to_owned()).collect()
    }

    #[test]
    fn workers_have_rates_bars_and_states() {
        let start = Instant::now();
        let mut model = Model::new(status(), start);
        let mut next = status();
        next.groups[0].workers[0].connections.selected_total += 20;
        next.groups[0].workers[0].connections.active = 10;
        next.groups[0].workers[1].connections.queued = 2;
        next.uptime_seconds = 3725.9;
        next.pid = status().pid;
        model.update(next, start + Duration::from_secs(2));
        model.pressed(Key::Down);
        let buffer = drawn(&model, 110, 9);
        let pid = status().pid;
        assert_eq!(
            lines(&buffer),
            [
                &format!("reuseport-lb 0.1.0 · pid {pid} · up 1h 2m 5s"),
                "WORKER      PID  STATE     WEIGHT     NEW/s  ACTIVE                  PENDING  QUEUED  RESTARTS  STALLS",
                "",
                "default · 0.0.0.0:8080 tcp · consistent-hash on flow · supervised · 15 active · 10.0 new/s",
                "     0      100  active         1      10.0      10 ████████████████       0       0         0       0",
                "     1      101  active         1       0.0       5 ████████               0       2         0       0",
                "     2        -  down           1       0.0       0                        0       0         3       0",
                "",
                keys::HELP,
            ]
        );
        let reversed = |line| buffer[(0, line)].modifier.contains(Modifier::REVERSED);
        assert_eq!([4, 5, 6].map(reversed), [false, true, false], "worker 1 is selected");
        let down = &buffer[(17, 6)];
        assert_eq!((down.symbol(), down.fg), ("d", Color::Red));
    }

    #[test]
    fn with_more_workers_than_lines_the_selected_one_is_seen() {
        let mut status = status();
        let workers = &mut status.groups[0].workers;
        for id in 3..200 {
            let mut worker = workers[0].clone();
            worker.id = crate::group::WorkerId(id);
            workers.push(worker);
        }
        let mut model = Model::new(status, Instant::now());
        for _ in 0..150 {
            model.pressed(Key::Down);
        }
        let shown = lines(&drawn(&model, 110, 24));
        assert!(shown.iter().any(|line| line.trim_start().starts_with("150 ")), "{shown:#?}");
    }

    #[test]
    fn a_tiny_terminal_is_no_reason_to_panic() {
        let model = Model::new(status(), Instant::now());
        for (columns, lines) in [(1, 1), (5, 2), (20, 3), (400, 1)] {
            drawn(&model, columns, lines);
        }
    }

    #[test]
    fn what_went_wrong_is_told_in_place_of_the_keys() {
        let mut model = Model::new(status(), Instant::now());
        model.lost("no daemon is running at /x".into());
        assert_eq!(
            lines(&drawn(&model, 110, 9)).last().map(String::as_str),
            Some("no daemon is running at /x")
        );
    }

    #[test]
    fn whatever_is_not_zero_can_be_seen() {
        assert_eq!(bar(0, 0), "");
        assert_eq!(bar(0, 5), "");
        assert_eq!(bar(5, 5).chars().count(), BAR_COLUMNS);
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(1, 2), "████████");
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count(), BAR_COLUMNS);
    }
}
