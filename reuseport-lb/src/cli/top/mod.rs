//! `top`

use std::{io, path::Path, thread, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

use self::{
    keys::Key,
    model::{Model, Order},
};
use super::{env::Env, target};
use crate::{
    chain::chain,
    config::values,
    control::{Status, client::Client},
};

mod keys;
mod model;
mod view;

/// How often the keyboard's thread looks whether anybody still listens to it.
const KEYBOARD_POLL: Duration = Duration::from_millis(100);

/// The shortest interval: faster than the eye, and each look costs the daemon a dump of the accept queues.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Watch groups and workers live, and drain, undrain and weigh workers by key
#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    group: target::Group,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = values::duration)]
    interval: Duration,
}

impl Top {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        if env.terminal_columns.is_none() {
            bail!("top draws on a terminal, and this is none; `status` and `metrics` print the same once");
        }
        let client = Client::new(control);
        let looked = self.look(&client).await?;
        let mut model = Model::new(looked, Instant::now().into());
        let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
        let shown = self.show(&mut terminal, &client, &mut model).await;
        // The user's terminal comes first; what went wrong is told on it.
        let restored = ratatui::try_restore().context("cannot restore the terminal; `reset` does");
        shown.and(restored)
    }

    async fn look(&self, client: &Client) -> anyhow::Result<Status> {
        let mut status = client.status().await?;
        if self.group.name().is_some() {
            status.groups = vec![self.group.find(&status)?.clone()];
        }
        Ok(status)
    }

    async fn show(
        &self,
        terminal: &mut DefaultTerminal,
        client: &Client,
        model: &mut Model,
    ) -> anyhow::Result<()> {
        let mut keyboard = keyboard();
        let mut ticks = tokio::time::interval(self.interval.max(SHORTEST_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            terminal.draw(|frame| view::draw(frame, model))?;
            let order = tokio::select! {
                event = keyboard.recv() => match event {
                    Some(Ok(event)) => Key::of(&event).and_then(|key| model.pressed(key)),
                    Some(Err(error)) => return Err(error).context("cannot read the keyboard"),
                    None => Some(Order::Quit),
                },
                _ = ticks.tick() => Some(Order::Look),
            };
            match order {
                None => {}
                Some(Order::Quit) => return Ok(()),
                Some(Order::Look) => self.refresh(client, model).await,
                Some(Order::Change(change)) => {
                    let told = match change.send(client).await {
                        Ok(worker) => super::render::worker(&worker),
                        Err(error) => chain(&error),
                    };
                    self.refresh(client, model).await;
                    model.tell(told);
                }
            }
        }
    }

    async fn refresh(&self, client: &Client, model: &mut Model) {
        match self.look(client).await {
            Ok(status) => model.update(status, Instant::now().into()),
            // It may come back.
            Err(error) => model.lost(format!("{error:#}")),
        }
    }
}

/// What happens at the terminal. The thread ends soon after the receiver is dropped.
fn keyboard() -> mpsc::UnboundedReceiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while !sender.is_closed() {
            let event = match event::poll(KEYBOARD_POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let failed = event.is_err();
            if sender.send(event).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use crate::{cli::testing::run, control::testing::FakeDaemon};

    #[tokio::test]
    async fn without_a_terminal_it_says_what_to_use() {
        let daemon = FakeDaemon::start();
        let ran = run(&daemon.socket(), &["top"]).await;
        assert!(ran.failed(1).contains("`status`"), "{ran:?}");
    }
}
