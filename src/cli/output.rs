//! What the commands write: texts and tables on standard output, errors on standard error.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
};

use clap::builder::styling::{AnsiColor, Style};
use time::{OffsetDateTime, UtcOffset, macros::format_description};

/// Writes `text` to standard output, ended by a line feed. A reader that has gone (`| head`) is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(end.as_bytes()))
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes `value` as JSON to standard output.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Writes the one message about a failure to standard error.
pub(super) fn print_error(message: &str, hint: Option<&str>) {
    let coloured = io::stderr().is_terminal() && !no_color();
    let paint = |word: &str, color: AnsiColor| {
        let style = if coloured { Style::new().bold().fg_color(Some(color.into())) } else { Style::new() };
        format!("{style}{word}{style:#}")
    };
    let mut text = format!("{} {}\n", paint("error:", AnsiColor::Red), visible_lines(message));
    if let Some(hint) = hint {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {}", paint("hint:", AnsiColor::Cyan), visible_lines(hint));
    }
    // There is nobody else to tell when this fails.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether the user asked for plain text (<https://no-color.org>).
pub(super) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// `text` without control characters, which could command a terminal or forge a line: what comes from peers.
pub(super) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn visible_lines(text: &str) -> String {
    text.trim_end().split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// A table with aligned columns; the last column is as long as it is.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self { headings: headings.iter().map(|heading| (*heading).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row: one cell for each heading. Empty cells show as `-`.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cell = |text: String| if text.is_empty() { "-".to_owned() } else { visible(&text) };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// The table as text; `nothing` when it has no rows.
    pub(super) fn render(&self, nothing: &str) -> String {
        if self.rows.is_empty() {
            return format!("{nothing}\n");
        }
        let width = |column_idx: usize| {
            let cells = std::iter::once(&self.headings).chain(&self.rows).filter_map(|row| row.get(column_idx));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = String::new();
        for row in std::iter::once(&self.headings).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A time for people: UTC, whole seconds.
pub(super) fn time_text(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC)
        .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z"))
        .unwrap_or_else(|_| at.to_string())
}

/// A time for programs: RFC 3339.
pub(super) fn time_json(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// A number of bytes for people.
pub(super) fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// `1 file`, `2 files`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `yes` or `no`.
pub(super) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_can_command_the_terminal() {
        let mut table = Table::new(&["NAME", "WORDS"]);
        table.row(["pacs".to_owned(), "a\u{1b}[31m\nb".to_owned()]);
        table.row(["a-long-name".to_owned(), String::new()]);
        insta::assert_snapshot!(table.render("none"), @r"
        NAME         WORDS
        pacs         a [31m b
        a-long-name  -
        ");
        assert_eq!(Table::new(&["NAME"]).render("no peers"), "no peers\n");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(bytes_text(999), "999 B");
        assert_eq!(bytes_text(10_000_000), "10.0 MB");
        assert_eq!(bytes_text(2_340_000_000), "2.34 GB");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(0, "file"), "0 files");
        let at = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
        assert_eq!(time_text(at), "2026-09-21 14:13:20Z");
    }
}
