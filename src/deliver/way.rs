//! A way to a destination: found by its configuration, opened, used for one delivery after the other.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use super::{
    Caller, Verdict,
    dicom::{self, DicomWay},
    folder::FolderWay,
    stow::StowWay,
    web::{Tokens, WebTarget},
};
use crate::{
    archive::Archive,
    db::{Db, delivery::DueDelivery},
    types::{AeTitle, Destination, DestinationKind, Peer, SiteConfig},
};

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    /// The DICOM status of the destination.
    pub(super) status: Option<u16>,
    pub(super) words: String,
    /// The destination's own text, which may name the patient: kept with the event in Postgres, never logged or shown.
    pub(super) peer_comment: Option<String>,
    /// The way is of no more use, or every other delivery would fare the same.
    pub(super) broken: bool,
    /// The destination accepts no presentation context for this form.
    pub(super) no_context: bool,
    /// The destination wants to be left alone for so long.
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    pub(super) fn new(verdict: Verdict, words: String) -> Self {
        Self { verdict, status: None, words, peer_comment: None, broken: false, no_context: false, retry_after: None }
    }

    /// Later, on another way.
    pub(super) fn broken(words: String) -> Self {
        Self { broken: true, ..Self::new(Verdict::Retry, words) }
    }
}

/// What every way needs.
#[derive(Clone)]
pub(super) struct Carrier {
    pub(super) db: Db,
    pub(super) archive: Archive,
    pub(super) caller: Caller,
    pub(super) tokens: Tokens,
}

/// A result's file.
pub(super) struct ResultFile {
    pub(super) file: tokio::fs::File,
    pub(super) length: u64,
}

impl Carrier {
    /// The stored file: what was rendered is what is sent.
    pub(super) async fn open(&self, delivery: &DueDelivery) -> Result<ResultFile, Answer> {
        let path = self.archive.path(&delivery.archive_key).map_err(|error| unreadable(&error.into()))?;
        let opened = async {
            let file = tokio::fs::File::open(&path).await.context("open")?;
            let length = file.metadata().await?.len();
            anyhow::Ok(ResultFile { file, length })
        };
        opened.await.map_err(|error| unreadable_at(&path, &error))
    }
}

/// As [`unreadable`]; but when not even the folder of the file is there, which came with its first file and goes with its last,
/// a disk is away.
fn unreadable_at(path: &Path, error: &anyhow::Error) -> Answer {
    if path.parent().is_some_and(Path::is_dir) {
        return unreadable(error);
    }
    let words = format!(
        "the result's file cannot be read, nor is its folder there: is the disk of the archive mounted? {error:#}"
    );
    Answer::new(Verdict::Retry, words)
}

/// Too many open files or a disk that is away is not the end of a result; a missing or foreign file is.
pub(super) fn unreadable(error: &anyhow::Error) -> Answer {
    let words = format!("the result's file cannot be read: {error:#}");
    let gone = error.downcast_ref::<io::Error>().is_none_or(|error| {
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
    });
    Answer::new(if gone { Verdict::Dead } else { Verdict::Retry }, words)
}

/// Where a way leads.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A DICOM node.
    Peer { peer: Peer, calling: AeTitle },
    /// A DICOMweb service.
    Web(WebTarget),
    /// A folder.
    Folder(PathBuf),
}

impl Target {
    /// Where the results of a study go that `sender` has sent to our `local`, or why that is not known, in words.
    pub(super) fn of(site: &SiteConfig, destination: &Destination, sender: &str, local: &str) -> Result<Self, String> {
        let name = &destination.name;
        match destination.kind {
            DestinationKind::Dicom => {
                let peer = site.peers.iter().find(|peer| Some(&peer.name) == destination.peer.as_ref());
                let (Some(peer), Some(calling)) = (peer, &destination.calling_ae_title) else {
                    let peer = destination.peer.as_deref().unwrap_or_default();
                    return Err(format!("destination `{name}` names peer `{peer}`, which is not configured"));
                };
                Ok(Self::Peer { peer: peer.clone(), calling: calling.clone() })
            }
            DestinationKind::ReturnToSender => {
                let is_called =
                    |peer: &&Peer| peer.ae_title.as_str() == sender && peer.host != "*" && peer.port.is_some();
                let called: Vec<&Peer> = site.peers.iter().filter(is_called).collect();
                let peer = match called[..] {
                    [peer] => peer,
                    [] => {
                        return Err(format!(
                            "destination `{name}` returns results to `{sender}`, and no peer with this title has a host and \
                             port to call: run `hilum peer add NAME --ae-title {sender} --host HOST --port PORT`"
                        ));
                    }
                    // One patient's results must not go to another room's machine.
                    [one, other, ..] => {
                        return Err(format!(
                            "destination `{name}` returns results to `{sender}`, and peers `{}` and `{}` both have this \
                             title: give each machine a title of its own, or only one of them a port",
                            one.name, other.name
                        ));
                    }
                };
                let calling = match &destination.calling_ae_title {
                    Some(calling) => calling.clone(),
                    None => AeTitle::new(local).map_err(|error| error.to_string())?,
                };
                Ok(Self::Peer { peer: peer.clone(), calling })
            }
            DestinationKind::Dicomweb => {
                let url = destination.url.as_deref().unwrap_or_default();
                WebTarget::new(url, destination.authentication.clone()).map(Self::Web)
            }
            DestinationKind::Folder => {
                let folder = destination.folder.clone();
                folder.map(Self::Folder).ok_or_else(|| format!("destination `{name}` names no folder"))
            }
        }
    }

    /// Asks whether it is there, at little cost: C-ECHO, a search for nothing, a file that goes again. Returns what was
    /// found, or what is wrong, in words.
    pub(super) async fn probe(&self, caller: &Caller, tokens: &Tokens) -> Result<String, String> {
        match self {
            Self::Peer { peer, calling } => dicom::probe(caller, calling, peer).await,
            Self::Web(target) => StowWay::probe(caller, tokens, target).await,
            Self::Folder(folder) => FolderWay::new(folder.clone()).probe().await,
        }
    }

    /// Opens it for deliveries in these forms.
    pub(super) async fn open(&self, carrier: &Carrier, forms: &[(String, String)]) -> Result<Way, String> {
        Ok(match self {
            Self::Peer { peer, calling } => Way::Dicom(Box::new(DicomWay::open(carrier, calling, peer, forms).await?)),
            Self::Web(target) => Way::Web(Box::new(StowWay::open(&carrier.caller, target).await?)),
            Self::Folder(folder) => Way::Folder(FolderWay::open(folder.clone()).await?),
        })
    }
}

/// A way that is open.
pub(super) enum Way {
    Dicom(Box<DicomWay>),
    Web(Box<StowWay>),
    Folder(FolderWay),
}

impl Way {
    /// Sends one result.
    pub(super) async fn send(&mut self, carrier: &Carrier, delivery: &DueDelivery) -> Answer {
        match self {
            Self::Dicom(way) => way.send(carrier, delivery).await,
            Self::Web(way) => way.send(carrier, delivery).await,
            Self::Folder(way) => way.send(carrier, delivery).await,
        }
    }

    /// Whether it takes this form.
    pub(super) fn takes(&self, delivery: &DueDelivery) -> bool {
        match self {
            Self::Dicom(way) => way.takes(delivery),
            Self::Web(_) | Self::Folder(_) => true,
        }
    }

    /// Ends it in order.
    pub(super) async fn close(self) {
        if let Self::Dicom(way) = self {
            way.close().await;
        }
    }

    /// Breaks it off.
    pub(super) async fn abort(self) {
        if let Self::Dicom(way) = self {
            way.abort().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_return_to_a_sender_that_can_be_called() {
        let title = |text: &str| AeTitle::new(text).unwrap();
        let destination = Destination::new("back", DestinationKind::ReturnToSender);
        let mut site = SiteConfig { peers: vec![Peer::new("ct", title("CT1"), "192.0.2.7")], ..SiteConfig::default() };
        let words = Target::of(&site, &destination, "CT1", "HILUM").unwrap_err();
        assert!(words.contains("hilum peer add NAME --ae-title CT1"), "{words}");
        site.peers[0].port = Some(104);
        let Target::Peer { peer, calling } = Target::of(&site, &destination, "CT1", "HILUM").unwrap() else { panic!() };
        assert_eq!((peer.name.as_str(), calling.as_str()), ("ct", "HILUM"));
        let known = Destination { calling_ae_title: Some(title("AI")), ..destination };
        let Target::Peer { calling, .. } = Target::of(&site, &known, "CT1", "HILUM").unwrap() else { panic!() };
        assert_eq!(calling.as_str(), "AI");
        assert!(Target::of(&site, &known, "CT2", "HILUM").is_err());
    }

    #[test]
    fn only_what_is_gone_for_good_is_dead() {
        let answer = |kind: io::ErrorKind| unreadable(&anyhow::Error::from(io::Error::from(kind))).verdict;
        assert_eq!(answer(io::ErrorKind::NotFound), Verdict::Dead);
        assert_eq!(answer(io::ErrorKind::PermissionDenied), Verdict::Retry);
        let folder = tempfile::tempdir().unwrap();
        let missing = anyhow::Error::from(io::Error::from(io::ErrorKind::NotFound));
        let answer = |path: &str| unreadable_at(&folder.path().join(path), &missing);
        assert_eq!(answer("gone.dcm").verdict, Verdict::Dead);
        let away = answer("2026/gone.dcm");
        assert!(
            away.verdict == Verdict::Retry && away.words.contains("is the disk of the archive mounted?"),
            "{away:?}"
        );
    }
}
