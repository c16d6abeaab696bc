//! The languages of results: those that are built in and those of the site's folder.

use std::path::Path;

use anyhow::Context as _;

use crate::{report::Catalogue, types::SiteConfig};

/// Reads every `TAG.ftl` of the folder; without one the built-in languages are all.
///
/// # Errors
/// Names the folder or the file that cannot be used, and why.
pub fn languages(folder: Option<&Path>) -> anyhow::Result<Catalogue> {
    let mut files = Vec::new();
    if let Some(folder) = folder {
        let read = || format!("read the languages in `{}` (node.texts_dir)", folder.display());
        for entry in fs_err::read_dir(folder).with_context(read)? {
            let path = entry.with_context(read)?.path();
            if path.extension().is_none_or(|extension| extension != "ftl") {
                continue;
            }
            let text = fs_err::read_to_string(&path).with_context(read)?;
            let tag = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            // Each alone first: an error of the whole catalogue would not name the file.
            Catalogue::new(&[(tag.clone(), text.clone())])
                .with_context(|| format!("language file `{}`", path.display()))?;
            files.push((tag, text));
        }
    }
    files.sort();
    Ok(Catalogue::new(&files)?)
}

/// The destinations whose language nobody knows, in words: they get English.
#[must_use]
pub fn without_language(site: &SiteConfig, languages: &Catalogue) -> Vec<String> {
    let known: Vec<&str> = languages.tags().collect();
    site.destinations
        .iter()
        .filter(|destination| !known.contains(&destination.results.language.as_str()))
        .map(|destination| {
            format!(
                "destination `{}` gets results in English, because there is no language `{}`; there are: {}. Change its \
                 results.language, or put a file `{}.ftl` into node.texts_dir",
                destination.name,
                destination.results.language,
                known.join(", "),
                destination.results.language
            )
        })
        .collect()
}

/// The languages that pictures cannot show, in words: pictures are in English.
#[must_use]
pub fn not_in_pictures(languages: &Catalogue) -> Vec<String> {
    let said = languages.not_in_pictures().map(|(tag, characters)| {
        let some: Vec<String> = characters.iter().take(8).map(|c| format!("{c} (U+{:04X})", u32::from(*c))).collect();
        let more = if characters.len() > some.len() { ", …" } else { "" };
        format!(
            "pictures for language `{tag}` are written in English, because they cannot show {}{more}; its reports are in \
             `{tag}`",
            some.join(", ")
        )
    });
    said.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_adds_languages_and_names_the_file_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
        write("de.ftl", "not-for-diagnostic-use = NICHT ZUR DIAGNOSTIK\n");
        write("README.txt", "not a language");
        let of_folder = languages(Some(folder.path())).unwrap();
        assert_eq!(of_folder.tags().collect::<Vec<_>>(), ["de", "en", "zh"]);
        assert_eq!(languages(None).unwrap().tags().collect::<Vec<_>>(), ["en", "zh"]);

        assert_eq!(not_in_pictures(&of_folder), Vec::<String>::new());
        write("hi.ftl", "not-for-diagnostic-use = निदान\n");
        let words = not_in_pictures(&languages(Some(folder.path())).unwrap());
        assert!(words.len() == 1 && words[0].contains("`hi`") && words[0].contains("U+0928"), "{words:?}");

        write("fr.ftl", "report-serie = x\n");
        let error = format!("{:#}", languages(Some(folder.path())).unwrap_err());
        assert!(error.contains("fr.ftl") && error.contains("`report-serie`"), "{error}");
        let error = format!("{:#}", languages(Some(&folder.path().join("nowhere"))).unwrap_err());
        assert!(error.contains("node.texts_dir") && error.contains("nowhere"), "{error}");
    }

    #[test]
    fn a_destination_with_an_unknown_language_is_named() {
        let example = include_str!("../../config/site.example.toml");
        let site = crate::config::parse_site(example, Path::new("site.example.toml")).unwrap();
        let known = languages(None).unwrap();
        assert_eq!(without_language(&site, &known), Vec::<String>::new());
        let mut french = site;
        french.destinations[0].results.language = "fr".to_owned();
        let words = without_language(&french, &known);
        assert!(words.len() == 1 && words[0].contains("there is no language `fr`; there are: en, zh."), "{words:?}");
    }
}
