//! Changes of a bundle's manifest that follow from measurements: calibration, operating point, performance.

use std::path::Path;

use serde::Serialize;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::{
    bundle::{MANIFEST_FILE_NAME, MAX_MANIFEST_BYTES, read_bounded},
    import::replace,
    init::lock_neighbourhood,
    manifest::{Calibration, Manifest, Performance},
};

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// How the fused output is calibrated.
    Calibration(Calibration),
    /// From which output an image is positive, and which outputs decide nothing (`None`: each decides).
    OperatingPoint {
        /// Between 0 and 1.
        threshold: f64,
        /// From the first to below the second number.
        grey_zone: Option<[f64; 2]>,
    },
    /// A measured figure; it replaces the one of the same measure, data and author.
    Performance(Performance),
}

/// Why a manifest was not changed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It cannot be read, has a form that cannot be changed, or would contradict itself.
    #[error("the manifest of the bundle in `{folder}` cannot be changed:\n{}", problems.join("\n"))]
    Manifest {
        /// The bundle's folder.
        folder: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
    /// Writing fails.
    #[error("the bundle cannot be written: {0}; check space and permissions")]
    Io(#[from] std::io::Error),
}

/// Makes the changes in the manifest of the bundle in `folder`, which is replaced in one step. Its comments stay, and so do
/// the weights and their digests; the bundle's own digest is another one afterwards, because results name what decided.
/// A change of calibration or operating point removes what `hilum evaluate` measured before it, and makes a `validated`
/// bundle `unvalidated`.
///
/// # Errors
/// [`EditError`] when the changed manifest would not be valid.
pub fn edit_manifest(folder: &Path, edits: &[Edit]) -> Result<(), EditError> {
    let failed = |problems| EditError::Manifest { folder: folder.display().to_string(), problems };
    let _lock = lock_neighbourhood(folder)?;
    let path = folder.join(MANIFEST_FILE_NAME);
    let text = read_bounded(&path, MAX_MANIFEST_BYTES)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
        .map_err(|reason| failed(vec![reason]))?;
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| failed(vec![error.to_string()]))?;
    if edits.iter().any(Edit::changes_decisions) {
        forget_what_was_measured(&mut document);
    }
    for edit in edits {
        make(&mut document, edit).map_err(|problem| failed(vec![problem]))?;
    }
    let changed = document.to_string();
    Manifest::parse(&changed).map_err(failed)?;
    replace(&path, changed.as_bytes())?;
    Ok(())
}

impl Edit {
    const fn changes_decisions(&self) -> bool {
        matches!(self, Self::Calibration(_) | Self::OperatingPoint { .. })
    }
}

/// Figures of ours are about the decisions before, and so is a validation.
fn forget_what_was_measured(document: &mut DocumentMut) {
    if let Some(figures) = document.get_mut("performance").and_then(Item::as_array_of_tables_mut) {
        let is_of_evaluation = |table: &Table| {
            table
                .get("reference")
                .and_then(Item::as_str)
                .is_some_and(|reference| reference.starts_with("hilum evaluate"))
        };
        figures.retain(|table| !is_of_evaluation(table));
        if figures.is_empty() {
            document.remove("performance");
        }
    }
    if document.get("status").and_then(Item::as_str) == Some("validated") {
        document.insert("status", value("unvalidated"));
    }
}

fn make(document: &mut DocumentMut, edit: &Edit) -> Result<(), String> {
    match edit {
        Edit::Calibration(calibration) => {
            let table = classification(document)?
                .get_mut("calibration")
                .and_then(Item::as_table_like_mut)
                .ok_or("`classification.calibration` is no table: write `[classification.calibration]`")?;
            table.clear();
            for (key, item) in &as_table(calibration)? {
                table.insert(key, item.clone());
            }
        }
        Edit::OperatingPoint { threshold, grey_zone } => {
            let table = classification(document)?;
            table.insert("threshold", value(*threshold));
            match grey_zone {
                Some(zone) => table.insert("grey_zone", value(Array::from_iter(*zone))),
                None => table.remove("grey_zone"),
            };
        }
        Edit::Performance(figure) => {
            let figures = document
                .entry("performance")
                .or_insert(Item::ArrayOfTables(ArrayOfTables::new()))
                .as_array_of_tables_mut()
                .ok_or("`performance` is written in a form that cannot be changed: write `[[performance]]` tables")?;
            let new = as_table(figure)?;
            let says = |table: &Table, key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
            let is_same =
                |table: &Table| ["measure", "data", "whose"].iter().all(|key| says(table, key) == says(&new, key));
            figures.retain(|table| !is_same(table));
            figures.push(new);
        }
    }
    Ok(())
}

fn classification(document: &mut DocumentMut) -> Result<&mut dyn toml_edit::TableLike, &'static str> {
    document
        .get_mut("classification")
        .and_then(Item::as_table_like_mut)
        .ok_or("`classification` is missing: the bundle decides nothing")
}

/// What serde makes of a part of the manifest, as a table without a place of its own.
fn as_table(part: &impl Serialize) -> Result<Table, String> {
    let text = toml::to_string(part).map_err(|error| error.to_string())?;
    let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
    let mut table = document.as_table().clone();
    table.set_position(None);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Bundle, Whose, init::test_bundle},
        *,
    };

    fn figure(value: f64) -> Performance {
        Performance {
            measure: "sensitivity".to_owned(),
            value,
            interval: [value - 0.05, value + 0.05],
            confidence_percent: 95.0,
            n: 40,
            data: "test split".to_owned(),
            whose: Whose::Makers,
            reference: "hilum evaluate".to_owned(),
        }
    }

    fn platt(slope: f64) -> Edit {
        Edit::Calibration(Calibration::Platt {
            slope,
            intercept: -0.25,
            id: "site-a".to_owned(),
            n: 120,
            date: "2026-11-29".to_owned(),
        })
    }

    #[test]
    fn calibration_operating_point_and_figures_are_written_and_comments_stay() {
        let folder = test_bundle();
        let path = folder.path().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("# a remark\n{text}")).unwrap();
        let before = Bundle::open(folder.path()).unwrap();
        let point = Edit::OperatingPoint { threshold: 0.31, grey_zone: Some([0.25, 0.4]) };
        let edits = [platt(1.5), point, Edit::Performance(figure(0.8)), Edit::Performance(figure(0.9))];
        edit_manifest(folder.path(), &edits).unwrap();
        let after = Bundle::open(folder.path()).unwrap();
        let classification = after.manifest().classification.as_ref().unwrap();
        assert_eq!(Edit::Calibration(classification.calibration.clone()), platt(1.5));
        assert_eq!((classification.threshold, classification.grey_zone), (0.31, Some([0.25, 0.4])));
        assert_eq!(after.manifest().performance, [figure(0.9)], "a figure takes the place of its predecessor");
        assert_ne!(after.identity().digest, before.identity().digest);
        assert_eq!(after.identity().members, before.identity().members);
        assert!(fs_err::read_to_string(&path).unwrap().starts_with("# a remark\n"));
        // And back.
        let point = Edit::OperatingPoint { threshold: 0.5, grey_zone: None };
        edit_manifest(folder.path(), &[Edit::Calibration(Calibration::None {}), point]).unwrap();
        let classification = Bundle::open(folder.path()).unwrap().manifest().classification.clone().unwrap();
        assert_eq!((classification.calibration, classification.grey_zone), (Calibration::None {}, None));
        let figures = Bundle::open(folder.path()).unwrap().manifest().performance.clone();
        assert_eq!(figures, [], "figures of decisions that are no more");
    }

    #[test]
    fn what_would_not_be_valid_changes_nothing() {
        let folder = test_bundle();
        let path = folder.path().join(MANIFEST_FILE_NAME);
        let before = fs_err::read_to_string(&path).unwrap();
        let error = edit_manifest(folder.path(), &[platt(-1.0)]).unwrap_err().to_string();
        assert!(error.contains("classification.calibration.slope` is -1"), "{error}");
        let grey = Edit::OperatingPoint { threshold: 0.5, grey_zone: Some([0.6, 0.7]) };
        assert!(edit_manifest(folder.path(), &[grey]).unwrap_err().to_string().contains("grey_zone"));
        assert_eq!(fs_err::read_to_string(&path).unwrap(), before);
        let nowhere = tempfile::tempdir().unwrap();
        assert!(matches!(edit_manifest(nowhere.path(), &[platt(1.0)]), Err(EditError::Manifest { .. })));
    }
}
