//! Which class of a bundle a label of a list means.

use std::collections::BTreeMap;

use crate::types::ClassDefinition;

/// The class that each label means; labels that are left out mean none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap {
    of_label: BTreeMap<String, Option<usize>>,
}

/// A label that means no class, or a wish that makes no sense; each with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct LabelError {
    /// All of them.
    pub problems: Vec<String>,
}

/// Stands for all labels that are not named otherwise.
const ALL_OTHERS: &str = "*";

impl ClassMap {
    /// A label means the class that it names, whatever case and punctuation; `wishes` say what others mean (`*`: all
    /// others) and come first. A wish for nothing leaves its label out.
    ///
    /// Of a bundle without classes no label means one.
    ///
    /// # Errors
    /// [`LabelError`] naming every label without a class and every wish for a class that there is not.
    pub fn new(classes: &[ClassDefinition], labels: &[&str], wishes: &[(String, String)]) -> Result<Self, LabelError> {
        if classes.is_empty() {
            return Ok(Self { of_label: labels.iter().map(|label| ((*label).to_owned(), None)).collect() });
        }
        let names: Vec<&str> = classes.iter().map(|class| class.label.as_str()).collect();
        let named = |text: &str| names.iter().position(|name| plain(name) == plain(text));
        let listed = || names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let mut problems = Vec::new();
        let mut wish_of = BTreeMap::new();
        for (label, class) in wishes {
            let class_idx = named(class);
            if class_idx.is_none() && !class.is_empty() {
                problems.push(format!("`{label}={class}`: the bundle has no class `{class}`; it has {}", listed()));
            }
            if label != ALL_OTHERS && !labels.contains(&label.as_str()) {
                problems
                    .push(format!("`{label}={class}`: the list has no label `{label}`; it has {}", labels.join(", ")));
            }
            wish_of.insert(label.as_str(), class_idx);
        }
        let mut of_label = BTreeMap::new();
        for label in labels {
            let wished = wish_of.get(label).copied();
            let meant = wished.or_else(|| named(label).map(Some)).or_else(|| wish_of.get(ALL_OTHERS).copied());
            match meant {
                Some(class_idx) => {
                    of_label.insert((*label).to_owned(), class_idx);
                }
                None => problems.push(format!(
                    "label `{label}` is no class of the bundle ({}): say what it means with `--map \"{label}=CLASS\"`, or leave \
                     its images out with `--map \"{label}=\"`",
                    listed()
                )),
            }
        }
        if problems.is_empty() { Ok(Self { of_label }) } else { Err(LabelError { problems }) }
    }

    /// The class of a label; `None` where there is none, or it is left out.
    #[must_use]
    pub fn class_of(&self, label: Option<&str>) -> Option<usize> {
        self.of_label.get(label?).copied().flatten()
    }

    /// What each label is taken for, in words.
    #[must_use]
    pub fn words(&self, classes: &[ClassDefinition]) -> Vec<String> {
        self.of_label
            .iter()
            .map(|(label, class_idx)| match class_idx.and_then(|idx| classes.get(idx)) {
                Some(class) => format!("label `{label}` counts as class `{}`", class.label),
                None => format!("images with label `{label}` are left out"),
            })
            .collect()
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Code;

    fn classes() -> Vec<ClassDefinition> {
        let class = |label: &str| ClassDefinition {
            label: label.to_owned(),
            code: Code { value: "1".to_owned(), scheme: "99T".to_owned(), meaning: label.to_owned() },
        };
        vec![class("COVID-19"), class("Other")]
    }

    fn wish(label: &str, class: &str) -> (String, String) {
        (label.to_owned(), class.to_owned())
    }

    #[test]
    fn labels_mean_the_class_they_name_or_what_is_wished() {
        let labels = ["covid19", "normal", "pneumonia", "unsure"];
        let wishes = [wish("unsure", ""), wish("*", "other")];
        let map = ClassMap::new(&classes(), &labels, &wishes).unwrap();
        let found: Vec<Option<usize>> = labels.iter().map(|label| map.class_of(Some(label))).collect();
        assert_eq!(found, [Some(0), Some(1), Some(1), None]);
        assert_eq!(map.class_of(None), None);
        assert_eq!(map.words(&classes())[3], "images with label `unsure` are left out");
    }

    #[test]
    fn what_means_nothing_is_named_with_the_remedy() {
        assert_eq!(ClassMap::new(&[], &["covid"], &[]).unwrap().class_of(Some("covid")), None);
        let error = ClassMap::new(&classes(), &["covid", "normal"], &[wish("flu", "Influenza")]).unwrap_err();
        assert_eq!(error.problems.len(), 4, "{error}");
        assert!(error.problems[0].contains("no class `Influenza`; it has `COVID-19`, `Other`"), "{error}");
        assert!(error.problems[1].contains("no label `flu`"), "{error}");
        assert!(error.problems[2].contains("--map \"covid=CLASS\""), "{error}");
    }
}
