//! `hilum dataset`: lists of labelled images.

mod anonymous;
mod export;

use std::{fmt::Write as _, path::PathBuf};

use clap::{Args, Subcommand};

use super::{
    Global,
    on_data::progress_bar,
    output::{Table, print, print_json, visible},
};
use crate::train::{DataSet, Duplicate, Findings, check};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Finds what is wrong with a data set before anything is trained on it
    Check(CheckOptions),
    /// Writes images of the archive, without what names patients, and their list
    Export(export::Options),
}

#[derive(Debug, Args)]
pub(super) struct CheckOptions {
    /// The list of images in CSV, or the folder that holds it
    #[arg(value_name = "LIST")]
    list: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Check(options) => {
            let found = tokio::task::spawn_blocking(move || {
                let data = DataSet::read(&options.list)?;
                let bar = progress_bar(data.samples.len(), "looking at");
                let found = check(&data, |_| bar.inc(1));
                bar.finish_and_clear();
                anyhow::Ok((found, options.json))
            });
            let (found, json) = found.await??;
            if json {
                print_json(&found)?;
            } else {
                print(&words(&found))?;
            }
            anyhow::ensure!(
                found.unreadable.is_empty() && found.patients_on_two_sides.is_empty(),
                "the data set cannot be used as it is: see the warnings"
            );
            Ok(())
        }
        Action::Export(options) => export::run(global, options).await,
    }
}

fn words(found: &Findings) -> String {
    let mut text = format!("{} images of {} patients, sha256:{}\n", found.images, found.patients, found.sha256);
    for table in &found.tables {
        let headings: Vec<&str> = ["LABEL"].into_iter().chain(table.values.iter().map(String::as_str)).collect();
        let mut by_label = Table::new(&headings);
        for (label, counts) in &table.rows {
            by_label.row([label.clone()].into_iter().chain(counts.iter().map(ToString::to_string)));
        }
        let v = table.cramers_v.map_or_else(String::new, |v| format!(" (Cramér's V {v:.2})"));
        // Writing to a String cannot fail.
        let _ = write!(text, "\nby {}{v}\n{}", table.column, by_label.render("nothing"));
    }
    let mut listed = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = write!(text, "\n{title}\n");
            for line in lines {
                let _ = writeln!(text, "  {}", visible(&line));
            }
        }
    };
    let pair = |pair: &Duplicate| {
        let other = if pair.contradictions.is_empty() {
            String::new()
        } else {
            format!("; another {}", pair.contradictions.join(" and "))
        };
        format!("{} and {} ({} of 256 bits differ{other})", pair.one, pair.other, pair.differing_bits)
    };
    listed("cannot be read", found.unreadable.clone());
    listed("the same pixels", found.duplicates.iter().map(pair).collect());
    listed("look the same", found.near_duplicates.iter().map(pair).collect());
    listed("patients in more than one split", found.patients_on_two_sides.clone());
    listed("warnings", found.warnings.clone());
    if found.warnings.is_empty() {
        text.push_str("\nno warnings\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Table as Counted;

    #[test]
    fn what_was_found_is_said() {
        let found = Findings {
            sha256: "ab".to_owned(),
            images: 3,
            patients: 2,
            images_without_patient: 0,
            unreadable: vec!["`x.png` cannot be read".to_owned()],
            duplicates: vec![Duplicate {
                one: "a.png".to_owned(),
                other: "b.png".to_owned(),
                differing_bits: 0,
                contradictions: vec!["patient", "split"],
            }],
            near_duplicates: Vec::new(),
            patients_on_two_sides: vec!["p1".to_owned()],
            tables: vec![Counted {
                column: "site",
                values: vec!["here".to_owned(), "there".to_owned()],
                rows: vec![("covid".to_owned(), vec![2, 0]), ("normal".to_owned(), vec![0, 1])],
                cramers_v: Some(0.875),
            }],
            warnings: vec!["mind this".to_owned()],
        };
        insta::assert_snapshot!(words(&found), @r"
        3 images of 2 patients, sha256:ab

        by site (Cramér's V 0.88)
        LABEL   here  there
        covid   2     0
        normal  0     1

        cannot be read
          `x.png` cannot be read

        the same pixels
          a.png and b.png (0 of 256 bits differ; another patient and split)

        patients in more than one split
          p1

        warnings
          mind this
        ");
    }
}
