//! `hilum query`: asks a peer which studies, series or instances it has (C-FIND). Shows no names of patients.

use clap::{Args, ValueEnum};
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use serde_json::json;

use super::{
    Global, echo,
    failure::{Usage, hinted},
    output::{Table, print, print_json},
    peer, site, tls,
};
use crate::{
    dimse::{
        AssociationRequestor, FindEnd, FindLimits, FindQuery, Identifier, QueryLevel, RequestorTimeouts,
        status::{self, InWords},
    },
    types::{AeTitle, Uid},
};

/// What one line of the answer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Study,
    Series,
    Image,
}

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Name of the peer
    peer: String,
    /// The study with this UID
    #[arg(long, value_name = "UID")]
    study_instance_uid: Option<Uid>,
    /// The series with this UID; goes with --study-instance-uid
    #[arg(long, value_name = "UID", requires = "study_instance_uid")]
    series_instance_uid: Option<Uid>,
    /// Studies of this patient; `*` and `?` are wildcards
    #[arg(long, value_name = "ID")]
    patient_id: Option<String>,
    /// Studies with this accession number; `*` and `?` are wildcards
    #[arg(long, value_name = "NUMBER")]
    accession_number: Option<String>,
    /// What to list
    #[arg(long, value_enum, default_value_t = Level::Study)]
    level: Level,
    /// Call as this AE title [default: the first enabled local AE]
    #[arg(long, value_name = "TITLE")]
    calling: Option<AeTitle>,
    /// At most so many matches; the rest is cancelled
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Heading, keyword for JSON, attribute.
type Column = (&'static str, &'static str, Tag);

const STUDY_COLUMNS: &[Column] = &[
    ("STUDY INSTANCE UID", "study_instance_uid", tags::STUDY_INSTANCE_UID),
    ("DATE", "study_date", tags::STUDY_DATE),
    ("MODALITIES", "modalities_in_study", tags::MODALITIES_IN_STUDY),
    ("SERIES", "series", tags::NUMBER_OF_STUDY_RELATED_SERIES),
    ("INSTANCES", "instances", tags::NUMBER_OF_STUDY_RELATED_INSTANCES),
];
const SERIES_COLUMNS: &[Column] = &[
    ("SERIES INSTANCE UID", "series_instance_uid", tags::SERIES_INSTANCE_UID),
    ("NUMBER", "series_number", tags::SERIES_NUMBER),
    ("MODALITY", "modality", tags::MODALITY),
    ("INSTANCES", "instances", tags::NUMBER_OF_SERIES_RELATED_INSTANCES),
];
const IMAGE_COLUMNS: &[Column] = &[
    ("SOP INSTANCE UID", "sop_instance_uid", tags::SOP_INSTANCE_UID),
    ("NUMBER", "instance_number", tags::INSTANCE_NUMBER),
    ("SOP CLASS UID", "sop_class_uid", tags::SOP_CLASS_UID),
];

impl Level {
    const fn columns(self) -> &'static [Column] {
        match self {
            Self::Study => STUDY_COLUMNS,
            Self::Series => SERIES_COLUMNS,
            Self::Image => IMAGE_COLUMNS,
        }
    }
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let query = query(options)?;
    let site = site::load(global).await?;
    let (peer, address) = peer::find_callable(&site, &options.peer)?;
    let calling = peer::calling_as(&site, options.calling.clone())?;
    let timeout = echo::DEFAULT_TIMEOUT;
    let mut association =
        AssociationRequestor::new(calling, peer.ae_title.clone(), address.host.as_str(), address.port)
            .with_timeouts(RequestorTimeouts { connect: timeout, acse: timeout, dimse: timeout * 3 })
            .with_tls(tls::client_for(&global.load()?, peer)?)
            .propose_find()
            .establish()
            .await?;
    let limits = FindLimits { max_matches: options.limit as usize, ..FindLimits::default() };
    let mut matches = association.find(&query, limits).await?;
    let mut found = Vec::new();
    while let Some(identifier) = matches.next().await? {
        found.push(identifier);
    }
    let end = matches.end().cloned();
    // The question is answered: how the peer says goodbye is its own affair.
    let _ = association.release().await;
    if let Some(end) = &end
        && status::category(end.status) == status::Category::Failure
    {
        return Err(hinted(
            anyhow::anyhow!("peer `{}` answers C-FIND with {}", options.peer, InWords(end.status)),
            "look into its log; some archives answer at study level only, or want a Study Instance UID",
        ));
    }
    if options.json {
        print_json(&to_json(options.level, &found))
    } else {
        print(&table(options.level, &found, end.as_ref()))
    }
}

/// The query that the options describe.
fn query(options: &Options) -> Result<FindQuery, Usage> {
    let Options { study_instance_uid, series_instance_uid, patient_id, accession_number, level, .. } = options;
    if study_instance_uid.is_none() && patient_id.is_none() && accession_number.is_none() {
        return Err(Usage("give --study-instance-uid, --patient-id or --accession-number".to_owned()));
    }
    let missing = match level {
        Level::Study => None,
        Level::Series => study_instance_uid.is_none().then_some("--study-instance-uid"),
        Level::Image => series_instance_uid.is_none().then_some("--study-instance-uid and --series-instance-uid"),
    };
    if let Some(missing) = missing {
        return Err(Usage(format!("this level needs {missing} (PS3.4 section C.4.1.3.1.1)")));
    }
    let start = FindQuery::new(match level {
        Level::Study => QueryLevel::Study,
        Level::Series => QueryLevel::Series,
        Level::Image => QueryLevel::Image,
    });
    let wanted = level.columns().iter().fold(start, |query, (_, _, tag)| query.returning(*tag));
    let keys = [
        (tags::STUDY_INSTANCE_UID, study_instance_uid.as_ref().map(Uid::as_str)),
        (tags::SERIES_INSTANCE_UID, series_instance_uid.as_ref().map(Uid::as_str)),
        (tags::PATIENT_ID, patient_id.as_deref().filter(|_| *level == Level::Study)),
        (tags::ACCESSION_NUMBER, accession_number.as_deref().filter(|_| *level == Level::Study)),
    ];
    Ok(keys
        .into_iter()
        .filter_map(|(tag, value)| Some((tag, value?)))
        .fold(wanted, |query, (tag, value)| query.matching(tag, value)))
}

fn table(level: Level, found: &[Identifier], end: Option<&FindEnd>) -> String {
    let headings: Vec<&str> = level.columns().iter().map(|(heading, ..)| *heading).collect();
    let mut table = Table::new(&headings);
    for identifier in found {
        let cell = |(_, _, tag): &Column| identifier.text(*tag).unwrap_or_default().to_owned();
        table.row(level.columns().iter().map(cell));
    }
    let mut text = table.render("the peer has no match");
    if end.is_some_and(|end| end.limit_reached) {
        text.push_str("there may be more matches: raise --limit\n");
    }
    text
}

fn to_json(level: Level, found: &[Identifier]) -> Vec<serde_json::Value> {
    let value = |identifier: &Identifier| {
        let entries = level.columns().iter().map(|(_, key, tag)| ((*key).to_owned(), json!(identifier.text(*tag))));
        serde_json::Value::Object(entries.collect())
    };
    found.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{super::Command, super::CommandLine, *};

    fn options(line: &str) -> Options {
        match CommandLine::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Query(options) => options,
            _ => panic!("not `hilum query`"),
        }
    }

    #[test]
    fn a_query_needs_what_its_level_needs() {
        for (line, expected) in [
            ("hilum query pacs", Some("give --study-instance-uid")),
            ("hilum query pacs --patient-id 7", None),
            ("hilum query pacs --patient-id 7 --level series", Some("this level needs --study-instance-uid")),
            ("hilum query pacs --study-instance-uid 1.2 --level series", None),
            ("hilum query pacs --study-instance-uid 1.2 --level image", Some("and --series-instance-uid")),
            ("hilum query pacs --study-instance-uid 1.2 --series-instance-uid 1.3 --level image", None),
        ] {
            match (query(&options(line)), expected) {
                (Ok(_), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{line}: {error}"),
                (Ok(_), Some(words)) => panic!("{line} should say {words:?}"),
                (Err(error), None) => panic!("{line}: {error}"),
            }
        }
    }
}
