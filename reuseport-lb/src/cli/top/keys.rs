//! The keys.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Leave.
    Quit,
    /// The worker above.
    Up,
    /// The worker below.
    Down,
    /// Drain the selected worker.
    Drain,
    /// Undrain the selected worker.
    Undrain,
    /// One more weight.
    Heavier,
    /// One less weight.
    Lighter,
}

/// What the keys do, for people.
pub(super) const HELP: &str = "q quit  ↑↓ select  d drain  u undrain  +- weight";

impl Key {
    /// The meaning of an event, if it has one.
    pub(super) fn of(event: &Event) -> Option<Self> {
        let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return None };
        if *kind == KeyEventKind::Release {
            return None;
        }
        Some(match code {
            // The terminal is raw, so Ctrl-C is no signal.
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Self::Quit,
            KeyCode::Char('q') | KeyCode::Esc => Self::Quit,
            KeyCode::Up | KeyCode::Char('k') => Self::Up,
            KeyCode::Down | KeyCode::Char('j') => Self::Down,
            KeyCode::Char('d') => Self::Drain,
            KeyCode::Char('u') => Self::Undrain,
            KeyCode::Char('+' | '=') => Self::Heavier,
            KeyCode::Char('-') => Self::Lighter,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_help_says() {
        let key = |code| Key::of(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        assert_eq!(key(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(key(KeyCode::Up), Some(Key::Up));
        assert_eq!(key(KeyCode::Down), Some(Key::Down));
        assert_eq!(key(KeyCode::Char('d')), Some(Key::Drain));
        assert_eq!(key(KeyCode::Char('u')), Some(Key::Undrain));
        assert_eq!(key(KeyCode::Char('+')), Some(Key::Heavier));
        assert_eq!(key(KeyCode::Char('-')), Some(Key::Lighter));
        assert_eq!(key(KeyCode::Char('c')), None);
        assert_eq!(key(KeyCode::Char('x')), None);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(Key::of(&Event::Key(interrupt)), Some(Key::Quit));
        assert_eq!(Key::of(&Event::Resize(80, 24)), None);
    }
}
