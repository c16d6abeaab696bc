//! The sentences of reports and pictures in the languages that there are.
//!
//! A language is a file of messages in Fluent's syntax (<https://projectfluent.org>). English and Chinese are built
//! in; a site adds its own as a file. A message that a language lacks is taken from English, so that no report lacks a
//! sentence. Pictures are written in English where their fonts cannot show the language, for nobody can read boxes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, LazyLock},
};

use fluent_bundle::{FluentArgs, FluentResource, FluentValue, concurrent::FluentBundle};
use fluent_syntax::ast::Entry;

use crate::{imaging::TextFont, types::Sha256Digest};

/// The built-in languages: tag and messages.
const BUILT_IN: [(&str, &[&str]); 2] = [
    (
        "en",
        &[
            include_str!("texts/en/report.ftl"),
            include_str!("texts/en/picture.ftl"),
            include_str!("texts/en/objects.ftl"),
        ],
    ),
    (
        "zh",
        &[
            include_str!("texts/zh/report.ftl"),
            include_str!("texts/zh/picture.ftl"),
            include_str!("texts/zh/objects.ftl"),
        ],
    ),
];

/// The language that has every message.
pub(super) const ENGLISH: &str = "en";

/// The built-in languages. That they can be read is proved by a test; if they could not, messages would be their identifiers.
static BUILT_IN_LANGUAGES: LazyLock<Catalogue> =
    LazyLock::new(|| Catalogue::new(&[]).unwrap_or_else(|_| Catalogue { languages: Arc::default() }));

/// Why a file of messages cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextsError {
    /// Not a language tag.
    #[error("`{tag}` is not a language tag: {reason}; name the file after one, such as `fr.ftl`")]
    Tag {
        /// As given.
        tag: String,
        /// Fluent's words.
        reason: String,
    },
    /// Fluent cannot read it.
    #[error("the messages of language `{tag}` cannot be read: {reason}; see https://projectfluent.org for the syntax")]
    Syntax {
        /// The language.
        tag: String,
        /// What is wrong.
        reason: String,
    },
    /// A message that English does not know, so that nothing would ever say it.
    #[error("language `{tag}` has message `{message}`, which English does not have; rename or remove it")]
    Unknown {
        /// The language.
        tag: String,
        /// The message.
        message: String,
    },
}

/// A value of a message.
pub(crate) type Argument<'a> = (&'static str, FluentValue<'a>);

/// All languages that there are.
#[derive(Clone)]
pub struct Catalogue {
    languages: Arc<BTreeMap<String, Language>>,
}

struct Language {
    messages: FluentBundle<FluentResource>,
    /// Digest of the site's file, where it has one.
    file: Option<Sha256Digest>,
    /// Characters of the site's file that pictures cannot show.
    unwritable: BTreeSet<char>,
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.languages.keys()).finish()
    }
}

impl Catalogue {
    /// The built-in languages, and those of `more`: (tag, text of the file). A language of `more` that is built in
    /// replaces messages of it.
    ///
    /// # Errors
    /// [`TextsError`] names the language and what is wrong.
    pub fn new(more: &[(String, String)]) -> Result<Self, TextsError> {
        let mut languages = BTreeMap::new();
        for (tag, files) in BUILT_IN {
            let mut bundle = empty(tag)?;
            for file in files {
                add(&mut bundle, tag, file)?;
            }
            languages.insert(tag.to_owned(), Language { messages: bundle, file: None, unwritable: BTreeSet::new() });
        }
        for (tag, file) in more {
            let known = messages(tag, file)?;
            let english = languages.get(ENGLISH);
            if let Some(message) =
                known.iter().find(|id| english.is_none_or(|english| !english.messages.has_message(id)))
            {
                return Err(TextsError::Unknown { tag: tag.clone(), message: message.clone() });
            }
            let mut messages = match languages.remove(tag) {
                Some(language) => language.messages,
                None => empty(tag)?,
            };
            add(&mut messages, tag, file)?;
            let written: String = file.lines().filter(|line| !line.starts_with('#')).collect();
            let unwritable = TextFont::load().map(|font| font.unwritable(&written)).unwrap_or_default();
            languages
                .insert(tag.clone(), Language { messages, file: Some(Sha256Digest::of(file.as_bytes())), unwritable });
        }
        Ok(Self { languages: Arc::new(languages) })
    }

    /// The tags of all languages, in alphabetical order.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.languages.keys().map(String::as_str)
    }

    /// The languages that pictures cannot show, with the characters that are the cause.
    pub fn not_in_pictures(&self) -> impl Iterator<Item = (&str, &BTreeSet<char>)> {
        let languages = self.languages.iter().filter(|(_, language)| !language.unwritable.is_empty());
        languages.map(|(tag, language)| (tag.as_str(), &language.unwritable))
    }

    /// The sentences of a language; those of English when there is no such language.
    #[must_use]
    pub fn language(&self, tag: &str) -> Texts<'_> {
        let tag = self.languages.get_key_value(tag).map_or(ENGLISH, |(tag, _)| tag);
        Texts { catalogue: self, tag }
    }
}

/// The sentences of one language.
#[derive(Debug, Clone, Copy)]
pub struct Texts<'a> {
    catalogue: &'a Catalogue,
    tag: &'a str,
}

impl<'a> Texts<'a> {
    /// The language's tag.
    pub fn tag(self) -> &'a str {
        self.tag
    }

    /// The sentences for pictures: English where pictures cannot show the language.
    #[must_use]
    pub(super) fn in_pictures(self) -> Self {
        let shown = self.catalogue.languages.get(self.tag).is_none_or(|language| language.unwritable.is_empty());
        if shown { self } else { Texts { tag: ENGLISH, ..self } }
    }

    /// Digest of the site's file with the sentences; `None` of built-in ones. Part of what determines a result.
    pub(crate) fn file(self) -> Option<Sha256Digest> {
        self.catalogue.languages.get(self.tag)?.file
    }

    /// The message `id` with its arguments filled in, on one line. A message that no language has is its own
    /// identifier, which a test forbids.
    pub(crate) fn say(self, id: &str, arguments: &[Argument<'_>]) -> String {
        let arguments: FluentArgs<'_> = arguments.iter().cloned().collect();
        let of = |tag| self.say_in(tag, id, &arguments);
        of(self.tag).or_else(|| of(ENGLISH)).unwrap_or_else(|| id.to_owned())
    }

    /// The name of the language in English, for a Code Meaning; its tag where its file does not say it.
    pub(crate) fn language_name(self) -> String {
        self.say_in(self.tag, "language-name", &FluentArgs::new()).unwrap_or_else(|| self.tag.to_owned())
    }

    /// The message in this very language.
    fn say_in(self, tag: &str, id: &str, arguments: &FluentArgs<'_>) -> Option<String> {
        let bundle = &self.catalogue.languages.get(tag)?.messages;
        let pattern = bundle.get_message(id)?.value()?;
        let mut errors = Vec::new();
        let said = bundle.format_pattern(pattern, Some(arguments), &mut errors).into_owned();
        errors.is_empty().then_some(said)
    }
}

impl Texts<'static> {
    /// English, for what is said where no catalogue is at hand: the terminal and the status page.
    #[must_use]
    pub fn english() -> Self {
        Texts { catalogue: &BUILT_IN_LANGUAGES, tag: ENGLISH }
    }
}

fn empty(tag: &str) -> Result<FluentBundle<FluentResource>, TextsError> {
    let language = tag.parse();
    let language = language.map_err(|error| TextsError::Tag { tag: tag.to_owned(), reason: format!("{error}") })?;
    let mut bundle = FluentBundle::new_concurrent(vec![language]);
    // Marks of direction around arguments are characters that DICOM's character sets do not have.
    bundle.set_use_isolating(false);
    Ok(bundle)
}

fn parsed(tag: &str, file: &str) -> Result<FluentResource, TextsError> {
    FluentResource::try_new(file.to_owned()).map_err(|(_, errors)| {
        let reason = errors.first().map_or_else(String::new, ToString::to_string);
        TextsError::Syntax { tag: tag.to_owned(), reason }
    })
}

fn add(bundle: &mut FluentBundle<FluentResource>, tag: &str, file: &str) -> Result<(), TextsError> {
    bundle.add_resource_overriding(parsed(tag, file)?);
    Ok(())
}

/// The identifiers of the messages of a file.
fn messages(tag: &str, file: &str) -> Result<Vec<String>, TextsError> {
    let resource = parsed(tag, file)?;
    let ids = resource.entries().filter_map(|entry| match entry {
        Entry::Message(message) => Some(message.id.name.to_owned()),
        _ => None,
    });
    Ok(ids.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_lacks_no_sentence() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let ids = |tag: &str| {
            let (_, files) = BUILT_IN.into_iter().find(|(of, _)| *of == tag).unwrap();
            let mut ids: Vec<String> = files.iter().flat_map(|file| messages(tag, file).unwrap()).collect();
            ids.sort();
            let all = ids.len();
            ids.dedup();
            assert_eq!(ids.len(), all, "a message of {tag} is there twice");
            ids
        };
        assert_eq!(ids("en"), ids("zh"));
        assert_eq!(catalogue.tags().collect::<Vec<_>>(), ["en", "zh"]);
    }

    /// The names of the values of each message, such as `threshold`.
    fn values(tag: &str) -> BTreeMap<String, std::collections::BTreeSet<String>> {
        let (_, files) = BUILT_IN.into_iter().find(|(of, _)| *of == tag).unwrap();
        let lines = files.iter().flat_map(|file| file.lines()).filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.split_once(" = "))
            .map(|(id, pattern)| {
                let names = pattern.split("{ $").skip(1).filter_map(|rest| Some(rest.split_once(" }")?.0.to_owned()));
                (id.to_owned(), names.collect())
            })
            .collect()
    }

    /// A message whose value is not given falls back to English, silently.
    #[test]
    fn a_translation_needs_no_value_that_english_does_not_get() {
        let english = values("en");
        for (id, names) in values("zh") {
            // Where English says the words of the run, the reason is there too.
            let given = english[&id].iter().map(String::as_str).chain(["reason"]);
            let given: Vec<&str> = given.collect();
            assert!(names.iter().all(|name| given.contains(&name.as_str())), "{id}: {names:?}, given {given:?}");
            assert!(!names.contains("reason") || english[&id].contains("id"), "{id} has no reason");
        }
    }

    #[test]
    fn every_reason_has_its_sentence() {
        let catalogue = Catalogue::new(&[]).unwrap();
        for reason in crate::types::ReasonCode::ALL {
            for tag in ["en", "zh"] {
                let id = format!("reason-{}", reason.id().replace(['.', '_'], "-"));
                assert_ne!(catalogue.language(tag).say(&id, &[]), id);
            }
        }
        let said = catalogue.tags().count() * crate::types::ReasonCode::ALL.len();
        let there = ["en", "zh"].map(|tag| values(tag).keys().filter(|id| id.starts_with("reason-")).count());
        assert_eq!(there.iter().sum::<usize>(), said, "no sentence is left over");
    }

    #[test]
    fn a_site_adds_a_language_and_english_fills_what_it_lacks() {
        let german = "not-for-diagnostic-use = NICHT ZUR DIAGNOSTIK\n".to_owned();
        let catalogue = Catalogue::new(&[("de".to_owned(), german)]).unwrap();
        let german = catalogue.language("de");
        assert_eq!(german.say("not-for-diagnostic-use", &[]), "NICHT ZUR DIAGNOSTIK");
        assert_eq!(german.tag(), "de");
        assert_eq!(german.say("report-series", &[]), catalogue.language("en").say("report-series", &[]));
        assert_eq!(catalogue.language("xx").tag(), "en");
    }

    #[test]
    fn pictures_are_in_english_where_they_cannot_show_the_language() {
        let file = |tag: &str, notice: &str| (tag.to_owned(), format!("# हिन्दी\nnot-for-diagnostic-use = {notice}\n"));
        let korean = "진단용으로 사용하지 마십시오";
        let files = [file("ar", "ليس للتشخيص"), file("hi", "निदान"), file("ko", korean)];
        let catalogue = Catalogue::new(&files).unwrap();
        let said = |tag: &str| catalogue.language(tag).in_pictures().say("not-for-diagnostic-use", &[]);
        let english = catalogue.language("en").say("not-for-diagnostic-use", &[]);
        assert_eq!(["ar", "en", "hi", "ko"].map(said), [&english, &english, &english, korean]);
        assert_eq!(catalogue.language("hi").say("not-for-diagnostic-use", &[]), "निदान", "reports are in Hindi");
        assert_eq!(catalogue.not_in_pictures().map(|(tag, _)| tag).collect::<Vec<_>>(), ["ar", "hi"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let with =
            |tag: &str, text: &str| Catalogue::new(&[(tag.to_owned(), text.to_owned())]).unwrap_err().to_string();
        assert!(with("de", "report-serie = x\n").contains("`report-serie`"));
        assert!(with("de", "= x\n").contains("cannot be read"));
        assert!(with("not a tag", "report-series = x\n").contains("language tag"));
    }
}
