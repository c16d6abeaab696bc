//! Reading a data set: a list in CSV beside its images.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use csv::{ReaderBuilder, StringRecord, Trim};
use sha2::{Digest as _, Sha256};

use super::sample::{DataSet, Sample, Split, read};
use crate::types::Sha256Digest;

/// Columns that are known; `source` is another name of `site`.
const COLUMNS: [&str; 10] = ["file", "label", "patient", "view", "mask", "site", "source", "split", "age", "sex"];

/// Oldest age that is believed, in years.
const MAX_AGE_YEARS: f64 = 150.0;

/// Why a list is no data set: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list `{}` cannot be used:\n{}", list.display(), problems.join("\n"))]
pub struct DataSetError {
    /// Which list.
    pub list: PathBuf,
    /// Each with line, column and remedy, in the order of the lines.
    pub problems: Vec<String>,
}

impl DataSet {
    /// Reads a list, or the only list (`*.csv`) of a folder. The first line names the columns, in any order:
    ///
    /// | column | |
    /// | --- | --- |
    /// | `file` | image (DICOM, PNG, JPEG), relative to the list's folder; needed |
    /// | `label` | class; needed where there is no mask |
    /// | `patient` | whose image it is; an image without is a patient of its own |
    /// | `view`, `sex` | as they are |
    /// | `mask` | lung mask, relative to the list's folder |
    /// | `site` or `source` | where the image comes from |
    /// | `split` | `train`, `validation` or `test` |
    /// | `age` | in years, or as DICOM writes it (`062Y`, `018M`) |
    ///
    /// Other columns are left alone. Every file is read once, for the digest; whether it holds a picture is not looked at
    /// (`hilum dataset check` does).
    ///
    /// # Errors
    /// [`DataSetError`] with every problem of the list.
    pub fn read(path: &Path) -> Result<Self, DataSetError> {
        let list = list_of(path).map_err(|problem| DataSetError { list: path.to_owned(), problems: vec![problem] })?;
        let failed = |problems| DataSetError { list: list.clone(), problems };
        let bytes = read(&list).map_err(|error| failed(vec![error.to_string()]))?;
        let mut reading =
            Reading::new(list.parent().unwrap_or(Path::new("")), &bytes).map_err(|problem| failed(vec![problem]))?;
        reading.rows(&bytes);
        let Reading { samples, problems, hasher, .. } = reading;
        if !problems.is_empty() {
            return Err(failed(problems));
        }
        if samples.is_empty() {
            return Err(failed(vec![
                "it names no image: give a line for each image below the line of column names".to_owned(),
            ]));
        }
        Ok(Self { sha256: Sha256Digest(hasher.finalize().into()).to_string(), list, samples })
    }
}

/// The list itself, or the only one of a folder.
fn list_of(path: &Path) -> Result<PathBuf, String> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let entries = fs_err::read_dir(path).map_err(|error| error.to_string())?;
    let is_list = |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let mut lists: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_list(path)).collect();
    match (lists.pop(), lists.len()) {
        (Some(list), 0) => Ok(list),
        (None, _) => {
            Err("the folder holds no list: put a CSV with the columns file, label, patient, … into it".to_owned())
        }
        (Some(_), more) => Err(format!("the folder holds {} lists (*.csv): name the one that is meant", more + 1)),
    }
}

/// A list while it is read.
struct Reading<'a> {
    folder: &'a Path,
    columns: HashMap<&'static str, usize>,
    samples: Vec<Sample>,
    problems: Vec<String>,
    /// The first line that names a file.
    line_of_file: HashMap<PathBuf, u64>,
    hasher: Sha256,
}

impl<'a> Reading<'a> {
    /// Reads the line of column names.
    fn new(folder: &'a Path, bytes: &[u8]) -> Result<Self, String> {
        let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(bytes);
        let headings = reader.headers().map_err(|error| format!("line 1: {error}"))?;
        let mut columns = HashMap::new();
        for (idx, heading) in headings.iter().enumerate() {
            let heading = heading.to_lowercase();
            let Some(known) = COLUMNS.into_iter().find(|column| *column == heading) else { continue };
            if columns.insert(known, idx).is_some() {
                return Err(format!("line 1 names the column `{known}` twice: leave one of them out"));
            }
        }
        if !columns.contains_key("file") {
            let hint = if headings.iter().any(|heading| heading.contains(';')) {
                "the columns are separated by semicolons; write commas"
            } else {
                "the first line names the columns: file, label, patient, and if known view, mask, site, split, age, sex"
            };
            return Err(format!("line 1 names no column `file`: {hint}"));
        }
        if columns.contains_key("site") && columns.contains_key("source") {
            // A list that has both means the site.
            columns.remove("source");
        }
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        Ok(Self { folder, columns, samples: Vec::new(), problems: Vec::new(), line_of_file: HashMap::new(), hasher })
    }

    fn rows(&mut self, bytes: &[u8]) {
        let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(bytes);
        for record in reader.byte_records() {
            let at = |position: Option<&csv::Position>| position.map_or(0, csv::Position::line);
            let (line, words) = match record {
                Ok(record) => {
                    let line = at(record.position());
                    match StringRecord::from_byte_record(record) {
                        Ok(record) => {
                            self.row(line, &record);
                            continue;
                        }
                        Err(_) => (line, "is not UTF-8 text: save the list as UTF-8".to_owned()),
                    }
                }
                Err(error) => {
                    let words = match error.kind() {
                        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
                            "has {len} cells and the first line {expected_len}: give every column a cell, and put cells \
                             with commas into quotation marks"
                        ),
                        _ => format!("cannot be read: {error}"),
                    };
                    (at(error.position()), words)
                }
            };
            self.problems.push(format!("line {line} {words}"));
        }
    }

    /// Takes one row, or says everything that is wrong with it.
    fn row(&mut self, line: u64, record: &StringRecord) {
        let n_problems = self.problems.len();
        let cell = |name: &str| {
            let cell = self.columns.get(name).and_then(|idx| record.get(*idx))?;
            (!cell.is_empty()).then(|| cell.to_owned())
        };
        let mut problem =
            |column: &str, words: &str| self.problems.push(format!("line {line}, column `{column}`: {words}"));

        let (file, mask) =
            (cell("file").map(|file| self.folder.join(file)), cell("mask").map(|mask| self.folder.join(mask)));
        let label = cell("label");
        if label.is_none() && mask.is_none() {
            problem("label", "there is neither a label nor a mask: give one of them, or take the line out");
        }
        let split = cell("split").and_then(|text| match text.parse::<Split>() {
            Ok(split) => Some(split),
            Err(words) => {
                problem("split", &format!("`{text}` is no split: {words}, or leave it empty"));
                None
            }
        });
        let age_years = cell("age").and_then(|text| {
            let age = years(&text);
            if age.is_none() {
                problem(
                    "age",
                    &format!("`{text}` is no age: give years (62, 0.5) or a DICOM age (062Y), or leave it empty"),
                );
            }
            age
        });
        let Some(file) = file else {
            problem("file", "there is no file: give the image's path, relative to the list");
            return;
        };
        if let Some(first) = self.line_of_file.insert(file.clone(), line) {
            problem("file", &format!("`{}` is in line {first} already: take one of the two lines out", file.display()));
        }
        for (column, path) in [("file", Some(&file)), ("mask", mask.as_ref())] {
            match path.map(|path| read(path)) {
                Some(Ok(bytes)) => self.hasher.update(Sha256Digest::of(&bytes).0),
                Some(Err(error)) => problem(column, &error.to_string()),
                None => {}
            }
        }
        if self.problems.len() == n_problems {
            let patient = cell("patient").unwrap_or_else(|| file.display().to_string());
            self.samples.push(Sample {
                file,
                label,
                patient,
                view: cell("view"),
                mask,
                site: cell("site").or_else(|| cell("source")),
                split,
                age_years,
                sex: cell("sex"),
            });
        }
    }
}

/// Years, written as a number or as DICOM's age string (PS3.5 table 6.2-1).
fn years(text: &str) -> Option<f64> {
    let per_year = |unit: char| match unit.to_ascii_uppercase() {
        'Y' => Some(1.0),
        'M' => Some(12.0),
        'W' => Some(365.25 / 7.0),
        'D' => Some(365.25),
        _ => None,
    };
    let years = if let Ok(years) = text.parse::<f64>() {
        years
    } else {
        let unit = text.chars().last()?;
        text.strip_suffix(unit)?.trim().parse::<u32>().ok().map(f64::from)? / per_year(unit)?
    };
    (0.0..=MAX_AGE_YEARS).contains(&years).then_some(years)
}

/// The patients that are on more than one side of the list's splits, sorted: what is learned of them would be tested on
/// them.
#[must_use]
pub fn patients_on_two_sides(samples: &[Sample]) -> Vec<&str> {
    let mut split_of: HashMap<&str, Split> = HashMap::new();
    let mut on_two_sides = HashSet::new();
    for sample in samples {
        let Some(split) = sample.split else { continue };
        if *split_of.entry(&sample.patient).or_insert(split) != split {
            on_two_sides.insert(sample.patient.as_str());
        }
    }
    let mut on_two_sides: Vec<&str> = on_two_sides.into_iter().collect();
    on_two_sides.sort_unstable();
    on_two_sides
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;

    /// A folder with two pictures, a mask, and this list.
    fn folder(list: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        for (name, shade) in [("a.png", 3), ("b.png", 90), ("mask.png", 255)] {
            GrayImage::from_fn(6, 4, |x, y| Luma([(x * 10 + y) as u8 ^ shade])).save(folder.path().join(name)).unwrap();
        }
        let path = folder.path().join("list.csv");
        fs_err::write(&path, list).unwrap();
        (folder, path)
    }

    fn problems(list: &str) -> Vec<String> {
        let (_folder, path) = folder(list);
        DataSet::read(&path).unwrap_err().problems
    }

    #[test]
    fn a_list_is_read_with_its_facts_in_any_order_of_columns() {
        let (folder, path) = folder(
            "licence,Label,file,patient,view,mask,source,split,age,sex\n\
             CC BY,covid, a.png ,p1,AP Supine,mask.png,here,train,62,F\n\
             CC BY,normal,b.png,,,,there,VAL,018M,\n",
        );
        let set = DataSet::read(&path).unwrap();
        assert_eq!(set.labels(), ["covid", "normal"]);
        let [one, other] = set.samples.as_slice() else { panic!("two are listed") };
        assert_eq!((one.patient.as_str(), one.split, one.age_years), ("p1", Some(Split::Train), Some(62.0)));
        assert_eq!(
            (one.view.as_deref(), one.site.as_deref(), one.sex.as_deref()),
            (Some("AP Supine"), Some("here"), Some("F"))
        );
        assert_eq!(one.mask, Some(folder.path().join("mask.png")));
        assert_eq!(other.patient, folder.path().join("b.png").display().to_string(), "a patient of its own");
        assert_eq!((other.split, other.age_years, other.mask.as_ref()), (Some(Split::Validation), Some(1.5), None));
        assert_eq!(set.of(Some(Split::Validation)).count(), 1);
        assert_eq!(set.of(None).count(), 2);
        // The folder stands for its only list, and the digest is that of the contents.
        let again = DataSet::read(folder.path()).unwrap();
        assert_eq!(again, set);
        fs_err::copy(folder.path().join("a.png"), folder.path().join("b.png")).unwrap();
        assert_ne!(DataSet::read(&path).unwrap().sha256, set.sha256);
    }

    #[test]
    fn images_and_masks_are_pixels() {
        let (_folder, path) = folder("file,label,mask\na.png,x,mask.png\nb.png,y,\n");
        let set = DataSet::read(&path).unwrap();
        let grey = set.samples[0].grey(false).unwrap();
        assert_eq!((grey.rows, grey.columns, grey.values[0]), (4, 6, 3.0));
        let mask = set.samples[0].lung_mask(4, 6).unwrap().unwrap();
        assert_eq!((mask.rows, mask.values.iter().filter(|value| **value > 0.5).count()), (4, 24));
        let error = set.samples[0].lung_mask(4, 7).unwrap_err().to_string();
        assert!(error.contains("6 x 4 pixels and its image 7 x 4"), "{error}");
        assert_eq!(set.samples[1].lung_mask(4, 6).unwrap(), None);
        fs_err::write(&set.samples[1].file, "rubbish").unwrap();
        let error = set.samples[1].grey(false).unwrap_err().to_string();
        assert!(error.contains("b.png") && error.contains("take it out of the list"), "{error}");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_line_and_column() {
        let found = problems(
            "file,label,patient,mask,split,age\n\
             a.png,covid,p1,,train,62\n\
             a.png,covid,p1,,sideways,-3\n\
             ,normal,p2,,,\n\
             missing.png,normal,p3,nowhere.png,,\n\
             b.png,,p4,,,old\n\
             b.png,normal\n",
        );
        let expected = [
            "line 3, column `split`: `sideways` is no split: expected `train`",
            "line 3, column `age`: `-3` is no age: give years",
            "line 3, column `file`: ",
            "line 4, column `file`: there is no file",
            "line 5, column `file`: ",
            "line 5, column `mask`: ",
            "line 6, column `label`: there is neither a label nor a mask",
            "line 6, column `age`: `old`",
            "line 7 has 2 cells and the first line 6",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
        assert!(found[2].contains("in line 2 already") && found[4].contains("bring the file back"), "{found:#?}");
    }

    #[test]
    fn lists_that_are_none_say_what_one_is() {
        assert!(
            problems("label,patient\nx,y\n")[0].contains("names no column `file`: the first line names the columns")
        );
        assert!(problems("file;label\na.png;x\n")[0].contains("write commas"));
        assert!(problems("file,label,file\na.png,x,b.png\n")[0].contains("`file` twice"));
        assert!(problems("file,label\n")[0].contains("it names no image"));
        let empty = tempfile::tempdir().unwrap();
        assert!(DataSet::read(empty.path()).unwrap_err().to_string().contains("holds no list"));
        let (folder, _) = folder("file,label\n");
        fs_err::write(folder.path().join("other.csv"), "").unwrap();
        assert!(DataSet::read(folder.path()).unwrap_err().to_string().contains("holds 2 lists"));
        assert!(DataSet::read(&folder.path().join("absent.csv")).unwrap_err().to_string().contains("cannot be read"));
        // Not UTF-8, but the lines beside it are looked at.
        fs_err::write(folder.path().join("latin.csv"), b"file,label\na.png,\xe9\nb.png,\n").unwrap();
        let found = DataSet::read(&folder.path().join("latin.csv")).unwrap_err().problems;
        assert!(found[0].contains("line 2 is not UTF-8") && found[1].starts_with("line 3"), "{found:?}");
    }

    #[test]
    fn patients_on_two_sides_of_a_split_are_found() {
        let (_folder, path) = folder("file,label,patient,split\na.png,x,p,train\nb.png,x,p,test\nmask.png,x,q,test\n");
        assert_eq!(patients_on_two_sides(&DataSet::read(&path).unwrap().samples), ["p"]);
    }
}
