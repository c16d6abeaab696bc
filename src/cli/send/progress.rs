//! How far sending is: a bar on a terminal, now and then a line elsewhere.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    super::output::{bytes_text, count, no_color, print, visible},
    SendEvent,
};

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// The display.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    files: usize,
    done: usize,
    last_line: Instant,
}

impl Progress {
    /// A bar if standard error is a terminal.
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::no_length);
        Self { bar, state: Mutex::new(State { files: 0, done: 0, last_line: Instant::now() }) }
    }

    /// Shows one event.
    pub(super) fn show(&self, event: &SendEvent<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = state.line_for(event, self.bar.is_none()) {
            match &self.bar {
                Some(bar) => bar.println(line),
                // A terminal that has gone does not stop the sending.
                None => drop(print(&line)),
            }
        }
        let Some(bar) = &self.bar else { return };
        match event {
            SendEvent::Found { bytes, .. } => {
                bar.set_length(*bytes);
                bar.set_style(style());
            }
            SendEvent::Sent { bytes, .. } | SendEvent::Failed { bytes, .. } => bar.inc(*bytes),
            SendEvent::Retrying { .. } => {}
        }
        bar.set_message(format!("{} of {}", state.done, count(state.files, "file")));
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl State {
    /// Counts the event, and says it if it is worth a line.
    fn line_for(&mut self, event: &SendEvent<'_>, plain: bool) -> Option<String> {
        match event {
            SendEvent::Found { files, bytes } => {
                self.files = *files;
                plain.then(|| format!("sending {} ({})", count(*files, "file"), bytes_text(*bytes)))
            }
            SendEvent::Sent { .. } => {
                self.done += 1;
                if !plain || self.last_line.elapsed() < LINE_INTERVAL || self.done == self.files {
                    return None;
                }
                self.last_line = Instant::now();
                Some(format!("{} of {} done", self.done, count(self.files, "file")))
            }
            SendEvent::Failed { path, reason, .. } => {
                self.done += 1;
                // The summary names it; on a terminal it is worth knowing at once.
                (!plain).then(|| format!("failed: {}: {}", path.display(), visible(reason)))
            }
            SendEvent::Retrying { reason } => Some(format!("trying again: {}", visible(reason))),
        }
    }
}

fn style() -> ProgressStyle {
    let bar = if no_color() { "{bar:30}" } else { "{bar:30.cyan}" };
    let template = format!("{{msg}} {bar} {{bytes}} of {{total_bytes}}, {{bytes_per_sec}}, {{eta}} left");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn without_a_terminal_there_are_few_lines() {
        let mut state = State { files: 0, done: 0, last_line: Instant::now() };
        let found = SendEvent::Found { files: 3, bytes: 3_000_000 };
        assert_eq!(state.line_for(&found, true).unwrap(), "sending 3 files (3.0 MB)");
        let path = Path::new("a.dcm");
        assert_eq!(state.line_for(&SendEvent::Sent { path, bytes: 1 }, true), None);
        state.last_line = Instant::now().checked_sub(LINE_INTERVAL).unwrap();
        assert_eq!(state.line_for(&SendEvent::Sent { path, bytes: 1 }, true).unwrap(), "2 of 3 files done");
        let retrying = SendEvent::Retrying { reason: "connection lost" };
        assert_eq!(state.line_for(&retrying, true).unwrap(), "trying again: connection lost");
        assert_eq!(state.line_for(&SendEvent::Failed { path, reason: "full", bytes: 1 }, true), None);
        assert_eq!(state.done, 3);
    }
}
