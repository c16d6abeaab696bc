//! A TOML file on its way to typed values: where each key stands, and every problem on the way. Serde alone stops
//! at the first problem; here each key is tried by itself, so that all of them are found.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, Visitor},
};
use toml::{Spanned, Table, Value, de::DeTable, de::DeValue};

use super::problem::{ConfigProblem, Origin};

/// A parsed file (or nothing), overlaid values, and the problems found so far.
#[derive(Debug)]
pub(super) struct Document {
    path: Option<PathBuf>,
    pub(super) table: Table,
    origins: BTreeMap<String, Origin>,
    /// What the environment said of a key, for keys that turn out to be texts.
    environment_texts: BTreeMap<String, String>,
    syntax_error_lines: BTreeSet<usize>,
    problems: Vec<ConfigProblem>,
}

impl Document {
    pub(super) fn empty() -> Self {
        Self {
            path: None,
            table: Table::new(),
            origins: BTreeMap::new(),
            environment_texts: BTreeMap::new(),
            syntax_error_lines: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Reads a file. One that cannot be read is a problem of the document like any other.
    pub(super) fn read(path: &Path) -> Self {
        match fs_err::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => Self::parse(&text, path),
            Ok(Err(error)) => {
                let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
                let line = 1 + String::from_utf8_lossy(valid).matches('\n').count();
                let reason = format!("line {line} is not UTF-8");
                Self::unreadable(path, reason, "save the file in UTF-8")
            }
            Err(error) => {
                Self::unreadable(path, error.to_string(), "check that the file exists and that this user may read it")
            }
        }
    }

    fn unreadable(path: &Path, reason: String, remedy: &str) -> Self {
        let mut document = Self { path: Some(path.to_owned()), ..Self::empty() };
        let origin = Origin::WholeFile { path: path.to_owned() };
        document.problems.push(ConfigProblem { origin, key: String::new(), reason, remedy: remedy.to_owned() });
        document
    }

    pub(super) fn parse(text: &str, path: &Path) -> Self {
        let mut document = Self { path: Some(path.to_owned()), ..Self::empty() };
        let places = Places { path, text };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let (line, column) = places.line_and_column(error.span().map_or(text.len(), |span| span.start));
            if !document.syntax_error_lines.insert(line) {
                continue; // what follows the first error in a line is its echo
            }
            let (reason, remedy) = match error.message().split_once(", expected ") {
                Some(("string values must be quoted", _)) => {
                    ("no value, or a text without quotes", "write texts in double quotes".to_owned())
                }
                Some((reason, expected)) => (reason, format!("TOML wants {expected} here")),
                None => (error.message(), "correct the TOML syntax".to_owned()),
            };
            let origin = Origin::File { path: path.to_owned(), line, column };
            document.problems.push(ConfigProblem { origin, key: String::new(), reason: reason.to_owned(), remedy });
        }
        places.collect(table.get_ref(), "", &mut document.origins);
        match Table::deserialize(toml::Deserializer::from(table)) {
            Ok(table) => document.table = table,
            Err(error) => {
                let (line, column) = places.line_and_column(error.span().map_or(0, |span| span.start));
                let origin = Origin::File { path: path.to_owned(), line, column };
                document.push(origin, "", error.message().to_owned(), "correct the value".to_owned());
            }
        }
        document
    }

    pub(super) fn has_syntax_errors(&self) -> bool {
        !self.syntax_error_lines.is_empty()
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Where the value of `key` (such as `dicom.listen`) comes from.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    pub(super) fn report(&mut self, key: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.push(self.origin_of(key), key, reason.into(), remedy.into());
    }

    pub(super) fn push(&mut self, origin: Origin, key: &str, reason: String, remedy: String) {
        if let Origin::File { line, .. } = &origin
            && self.syntax_error_lines.contains(line)
        {
            return; // the value is what the parser made of a broken line
        }
        self.problems.push(ConfigProblem { origin, key: key.to_owned(), reason, remedy });
    }

    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        self.problems
    }

    /// Sets `section.key` from an environment variable: TOML if it parses as a value, else a text.
    pub(super) fn overlay(&mut self, section: &str, key: &str, variable: &str, text: &str) {
        let value = DeValue::parse(text)
            .ok()
            .and_then(|value| Value::deserialize(toml::de::ValueDeserializer::from(value)).ok())
            .unwrap_or_else(|| Value::String(text.to_owned()));
        let path = format!("{section}.{key}");
        let origin = Origin::Environment { variable: variable.to_owned() };
        self.origins.entry(section.to_owned()).or_insert_with(|| origin.clone());
        if let Some(Origin::Environment { variable: other }) = self.origins.insert(path.clone(), origin) {
            self.report(&path, format!("{other} sets it too"), "unset one of the two");
        }
        self.environment_texts.insert(path, text.to_owned());
        let entry = self.table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(table) = entry {
            table.insert(key.to_owned(), value);
        }
    }

    /// Takes the keys of `table` that `T` does not know out of it and reports them. `elsewhere` finds sections that
    /// do know a key.
    pub(super) fn refuse_unknown_keys<T: DeserializeOwned>(
        &mut self,
        path: &str,
        table: &mut Table,
        elsewhere: impl Fn(&str) -> Vec<String>,
    ) {
        let known = field_names::<T>();
        let unknown: Vec<String> = table.keys().filter(|key| !known.contains(&key.as_str())).cloned().collect();
        for key in unknown {
            table.remove(&key);
            let place = if path.is_empty() { "this file".to_owned() } else { format!("[{path}]") };
            let sections = elsewhere(&key);
            let remedy = match nearest(&key, known) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None if !sections.is_empty() => format!("did you mean {}?", sections.join(" or ")),
                None => format!("remove it; {place} knows {}", list(known)),
            };
            self.report(&join(path, &key), "unknown key", remedy);
        }
    }

    /// Decodes a table, key by key. Keys with problems are reported and left out; `None` when what remains is no
    /// `T` (a required key is missing or was left out).
    pub(super) fn decode<T: DeserializeOwned>(&mut self, path: &str, mut table: Table) -> Option<T> {
        let mut good = Table::new();
        for key in table.keys().cloned().collect::<Vec<_>>() {
            let Some(value) = table.remove(&key) else { continue };
            let key_path = join(path, &key);
            let problem = match problem_of::<T>(&key, &value) {
                None => None,
                Some(problem) => {
                    let text = self.environment_texts.get(&key_path).cloned().map(Value::String);
                    match text {
                        Some(text) if problem_of::<T>(&key, &text).is_none() => {
                            good.insert(key, text);
                            continue;
                        }
                        _ => Some(problem),
                    }
                }
            };
            match problem {
                None => {
                    good.insert(key, value);
                }
                Some(message) => {
                    let (reason, remedy) = reason_and_remedy(&message);
                    self.report(&key_path, reason, remedy);
                }
            }
        }
        T::deserialize(Value::Table(good)).ok()
    }
}

/// What serde says of one key of a `T` by itself.
fn problem_of<T: DeserializeOwned>(key: &str, value: &Value) -> Option<String> {
    let alone = Table::from_iter([(key.to_owned(), value.clone())]);
    let error = T::deserialize(Value::Table(alone)).err()?;
    let message = error.message();
    // Serde reads every given key before it asks for those that are missing: reaching that point means that this
    // one is good.
    (!message.starts_with("missing field")).then(|| message.to_owned())
}

/// Splits a message of serde or of our own value types into what is wrong and what to give instead.
fn reason_and_remedy(message: &str) -> (String, String) {
    let message = message.lines().next().unwrap_or_default();
    if let Some((reason, expected)) = message.split_once(", expected ") {
        let reason = ["invalid type: ", "invalid value: "]
            .iter()
            .find_map(|prefix| reason.strip_prefix(prefix))
            .map_or_else(|| reason.to_owned(), |found| format!("got {found}"));
        return (reason, format!("give {}", for_people(expected)));
    }
    match message.split_once(": ") {
        Some((reason, remedy)) => (reason.to_owned(), remedy.to_owned()),
        None => (message.to_owned(), "see the example file".to_owned()),
    }
}

/// Serde's names of plain types, in words.
fn for_people(expected: &str) -> &str {
    match expected {
        "a boolean" => "true or false",
        "a string" | "string" => "a text in double quotes",
        "a sequence" => "a list in square brackets",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "i32" => "a whole number from -2147483648 to 2147483647",
        other => other,
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

pub(super) fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The known word that was probably meant.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let similarity = |candidate: &str| strsim::jaro_winkler(&word.to_lowercase(), candidate);
    known
        .iter()
        .map(|candidate| (similarity(candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.85)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}

/// Turns byte offsets of a text into places of a file.
struct Places<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Places<'_> {
    /// Both counted from 1, columns in characters.
    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.get(line_start..).unwrap_or_default().chars().count();
        (line, column)
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        let (line, column) = self.line_and_column(span.start);
        Origin::File { path: self.path.to_owned(), line, column }
    }

    fn collect(&self, table: &DeTable<'_>, path: &str, origins: &mut BTreeMap<String, Origin>) {
        for (key, value) in table {
            let key_path = join(path, key.get_ref());
            origins.insert(key_path.clone(), self.origin(key.span()));
            self.collect_value(value, &key_path, origins);
        }
    }

    fn collect_value(&self, value: &Spanned<DeValue<'_>>, path: &str, origins: &mut BTreeMap<String, Origin>) {
        match value.get_ref() {
            DeValue::Table(table) => self.collect(table, path, origins),
            DeValue::Array(array) => {
                for (idx, element) in array.iter().enumerate() {
                    let element_path = format!("{path}[{idx}]");
                    origins.insert(element_path.clone(), self.origin(element.span()));
                    self.collect_value(element, &element_path, origins);
                }
            }
            _ => {}
        }
    }
}

/// The keys that a struct's `Deserialize` knows, with their serde names, in the order of declaration.
pub(super) fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The probe always ends in an error: it only wants to be asked for a struct.
    let _ = T::deserialize(FieldNameProbe(&mut names));
    names
}

struct FieldNameProbe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNameProbe<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(Self::Error::custom("names are known"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        let places = Places { path: Path::new("x"), text: "a\näö = 1\n" };
        assert_eq!(places.line_and_column(0), (1, 1));
        assert_eq!(places.line_and_column(2), (2, 1));
        assert_eq!(places.line_and_column(6), (2, 3));
        assert_eq!(places.line_and_column(999), (3, 1));
    }

    #[test]
    fn field_names_are_serdes_names() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only its field names matter")]
        struct Sample {
            #[serde(rename = "second_name")]
            renamed: u8,
            plain: Option<String>,
        }
        assert_eq!(field_names::<Sample>(), ["second_name", "plain"]);
        assert!(field_names::<String>().is_empty());
    }

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["max_associations", "listen", "max_pdu_length_bytes"];
        assert_eq!(nearest("max_asociations", &known), Some("max_associations"));
        assert_eq!(nearest("Listen", &known), Some("listen"));
        assert_eq!(nearest("colour", &known), None);
    }
}
