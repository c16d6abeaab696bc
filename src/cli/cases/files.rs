//! Which images are to be imported, and what is known of them besides their pixels.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Deepest folder below the given one that is looked into.
const MAX_DEPTH: usize = 16;

/// An image file with what a list says of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::cli) struct Listed {
    pub(in crate::cli) path: PathBuf,
    pub(in crate::cli) label: Option<String>,
    pub(in crate::cli) patient: Option<String>,
    pub(in crate::cli) study: Option<String>,
    pub(in crate::cli) view: Option<String>,
    /// Origin and licence.
    pub(in crate::cli) source: Option<String>,
}

/// The files of a folder, in the order of their names, or of a list in CSV.
pub(in crate::cli) fn find(path: &Path) -> anyhow::Result<Vec<Listed>> {
    if fs_err::metadata(path)?.is_dir() {
        let mut files = Vec::new();
        below(path, 0, &mut files)?;
        return Ok(files);
    }
    let is_list = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    if is_list { read_list(path) } else { Ok(vec![Listed { path: path.to_owned(), ..Listed::default() }]) }
}

fn below(folder: &Path, depth: usize, files: &mut Vec<Listed>) -> anyhow::Result<()> {
    anyhow::ensure!(depth <= MAX_DEPTH, "{} lies more than {MAX_DEPTH} folders deep", folder.display());
    let mut entries: Vec<PathBuf> =
        fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        let kind = fs_err::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            below(&path, depth + 1, files)?;
        } else if kind.is_file() {
            files.push(Listed { path, ..Listed::default() });
        }
    }
    Ok(())
}

/// Reads a list with a heading line; file names are relative to the list's folder. Columns that are not known are left
/// alone.
fn read_list(list: &Path) -> anyhow::Result<Vec<Listed>> {
    let folder = list.parent().unwrap_or(Path::new(""));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(fs_err::File::open(list)?);
    let about = || format!("read {}", list.display());
    let headings: BTreeMap<String, usize> = reader
        .headers()
        .with_context(about)?
        .iter()
        .enumerate()
        .map(|(idx, name)| (name.to_lowercase(), idx))
        .collect();
    for needed in ["file", "label", "patient"] {
        anyhow::ensure!(
            headings.contains_key(needed),
            "{} has no column `{needed}`; the first line names the columns: file, label, patient, and if known study, view, source, licence",
            list.display()
        );
    }
    let mut listed = Vec::new();
    for row in reader.records() {
        let row = row.with_context(about)?;
        let cell = |name: &str| {
            let cell = headings.get(name).and_then(|idx| row.get(*idx))?;
            (!cell.is_empty()).then(|| cell.to_owned())
        };
        let Some(file) = cell("file") else {
            anyhow::bail!("{} names no file in line {}", list.display(), row.position().map_or(0, csv::Position::line));
        };
        let origin: Vec<String> = [cell("source"), cell("licence")].into_iter().flatten().collect();
        listed.push(Listed {
            path: folder.join(file),
            label: cell("label"),
            patient: cell("patient"),
            study: cell("study"),
            view: cell("view"),
            source: (!origin.is_empty()).then(|| origin.join(", ")),
        });
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_files_beside_it_and_may_have_other_columns() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.csv");
        fs_err::write(
            &list,
            "label,file,age,patient,view,source,licence\nCOVID-19, a/1.png ,50,P1,PA,somewhere,CC BY\n,2.dcm,,,,,\n",
        )
        .unwrap();
        let listed = find(&list).unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].path, folder.path().join("a/1.png"));
        assert_eq!(listed[0].source.as_deref(), Some("somewhere, CC BY"));
        assert_eq!((listed[0].label.as_deref(), listed[0].study.as_deref()), (Some("COVID-19"), None));
        assert_eq!(listed[1], Listed { path: folder.path().join("2.dcm"), ..Listed::default() });
    }

    #[test]
    fn a_list_without_its_columns_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.csv");
        fs_err::write(&list, "file,label\na,b\n").unwrap();
        assert!(find(&list).unwrap_err().to_string().contains("no column `patient`"));
        fs_err::write(&list, "file,label,patient\n,b,c\n").unwrap();
        assert!(find(&list).unwrap_err().to_string().contains("no file in line 2"));
    }

    #[test]
    fn a_folder_is_walked_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("b")).unwrap();
        for name in ["c.png", "b/2.png", "a.png"] {
            fs_err::write(folder.path().join(name), "x").unwrap();
        }
        let names: Vec<PathBuf> = find(folder.path()).unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(names, ["a.png", "b/2.png", "c.png"].map(|name| folder.path().join(name)));
    }
}
