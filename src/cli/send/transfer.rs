//! Sending: workers with an association each take files from one queue, and put back what a broken association
//! left undone.

use std::{
    collections::VecDeque,
    io::{self, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncSeekExt as _, BufReader},
    task::JoinSet,
};

use super::{
    super::{Address, output::count},
    files::{self, Context, DicomFile, Group},
    fresh_uids::FreshUids,
};
use crate::{
    dimse::{
        Association, AssociationRequestor, RequestError, RequestorTimeouts, StoreResponse, StoreSource, TlsClient,
        status::{self, Category, InWords},
    },
    types::{AeTitle, Uid},
};

/// Read ahead from a file: several PDUs of the usual length.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// How to send.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// Where the peer listens.
    pub to: Address,
    /// Its AE title.
    pub called: AeTitle,
    /// The AE title that we call as.
    pub calling: AeTitle,
    /// Associations at the same time, at least 1.
    pub associations: usize,
    /// Give studies, series and instances new UIDs; the same old one always gets the same new one.
    pub fresh_uids: bool,
    /// A file to which the SOP Instance UID of each object is appended once its Success is there.
    pub log_acknowledged: Option<PathBuf>,
    /// How to call over TLS, if at all.
    pub tls: Option<TlsClient>,
    /// How long to wait for the peer.
    pub timeouts: RequestorTimeouts,
    /// Attempts to associate without any progress, and to send one file, before giving up; at least 1.
    pub maximum_attempts: u32,
    /// Pause before an association is tried again; doubles each time.
    pub retry_pause: Duration,
}

impl SendOptions {
    /// One association, own UIDs, three attempts half a second apart.
    #[must_use]
    pub fn new(to: Address, called: AeTitle, calling: AeTitle) -> Self {
        Self {
            to,
            called,
            calling,
            associations: 1,
            fresh_uids: false,
            log_acknowledged: None,
            tls: None,
            timeouts: RequestorTimeouts::default(),
            maximum_attempts: 3,
            retry_pause: Duration::from_millis(500),
        }
    }
}

/// What happens while sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendEvent<'a> {
    /// The files are known.
    Found {
        /// How many.
        files: usize,
        /// Size of their data sets together.
        bytes: u64,
    },
    /// The peer has the object.
    Sent {
        /// Which file.
        path: &'a Path,
        /// Size of its data set.
        bytes: u64,
    },
    /// The file is given up.
    Failed {
        /// Which file.
        path: &'a Path,
        /// Why, in words.
        reason: &'a str,
        /// Size of its data set.
        bytes: u64,
    },
    /// An association failed or broke and another one is tried.
    Retrying {
        /// Why, in words.
        reason: &'a str,
    },
}

/// A file that the peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentFile {
    /// Which file.
    pub path: PathBuf,
    /// (0008,0018) as sent.
    pub sop_instance_uid: Uid,
    /// (0020,000D) as sent; known with fresh UIDs only, because nothing else needs it read.
    pub study_instance_uid: Option<Uid>,
    /// The status in words when it was a warning.
    pub remark: Option<String>,
}

/// A file that the peer does not have, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedFile {
    /// Which file.
    pub path: PathBuf,
    /// The status of the peer, if it answered one.
    pub status: Option<u16>,
    /// Why, in words.
    pub reason: String,
}

/// Something in a folder that is not a DICOM file for sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedFile {
    /// Which.
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendSummary {
    /// In the order of the peer's answers.
    pub sent: Vec<SentFile>,
    /// In the order in which they were given up.
    pub failed: Vec<FailedFile>,
    /// In the order in which they were found.
    pub skipped: Vec<SkippedFile>,
    /// Size of the data sets that were sent.
    pub bytes: u64,
    /// From the first association to the end of the last.
    pub elapsed: Duration,
}

/// Sends the DICOM files under `paths` (folders are searched) and tells `progress` what happens.
///
/// Every file's own transfer syntax is proposed; files are streamed, except with fresh UIDs, where one object for
/// each association is held in memory. What an association leaves undone when it breaks is sent on another one.
/// That a file is not sent is no error: the summary says so. An error means that nothing was sent: a path does not
/// exist, nothing was found, or the log of acknowledged objects cannot be opened.
pub async fn send_files(
    paths: &[PathBuf],
    options: SendOptions,
    progress: impl Fn(&SendEvent<'_>) + Send + Sync + 'static,
) -> anyhow::Result<SendSummary> {
    let log = match &options.log_acknowledged {
        Some(path) => Some(Mutex::new(fs_err::OpenOptions::new().create(true).append(true).open(path)?)),
        None => None,
    };
    let searched = paths.to_vec();
    let found = tokio::task::spawn_blocking(move || files::find(&searched)).await.context("search for files")??;
    if found.files.is_empty() && found.unusable.is_empty() {
        let skipped = count(found.skipped.len(), "other file");
        anyhow::bail!("there is no DICOM file in what was given ({skipped} skipped)");
    }

    let started = Instant::now();
    let summary = SendSummary { skipped: found.skipped, ..SendSummary::default() };
    let sender = Arc::new(Sender {
        fresh_uids: options.fresh_uids.then(FreshUids::new),
        options,
        progress: Box::new(progress),
        log,
        summary: Mutex::new(summary),
    });
    (sender.progress)(&SendEvent::Found {
        files: found.files.len() + found.unusable.len(),
        bytes: found.files.iter().map(|file| file.data_set_bytes).sum(),
    });
    for SkippedFile { path, reason } in found.unusable {
        sender.failed(FailedFile { path, status: None, reason }, 0);
    }
    for group in files::group(found.files) {
        send_group(&sender, group).await;
    }
    let mut summary = std::mem::take(&mut *lock(&sender.summary));
    summary.elapsed = started.elapsed();
    Ok(summary)
}

/// What all workers share.
struct Sender {
    options: SendOptions,
    progress: Box<dyn Fn(&SendEvent<'_>) + Send + Sync>,
    log: Option<Mutex<fs_err::File>>,
    fresh_uids: Option<FreshUids>,
    summary: Mutex<SendSummary>,
}

/// A file that waits, with the attempts it has had.
struct Waiting {
    file: DicomFile,
    attempts: u32,
}

/// The files that wait, and the contexts they need.
struct Queue {
    contexts: Vec<Context>,
    files: Mutex<VecDeque<Waiting>>,
}

impl Queue {
    fn take(&self) -> Option<Waiting> {
        lock(&self.files).pop_front()
    }
}

/// A poisoned lock holds plain lists and counters, which are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send_group(sender: &Arc<Sender>, group: Group) {
    let n_workers = sender.options.associations.clamp(1, group.files.len().max(1));
    let queue = Arc::new(Queue {
        contexts: group.contexts.into_iter().collect(),
        files: Mutex::new(group.files.into_iter().map(|file| Waiting { file, attempts: 0 }).collect()),
    });
    let mut workers = JoinSet::new();
    for _ in 0..n_workers {
        workers.spawn(work(Arc::clone(sender), Arc::clone(&queue)));
    }
    let mut reason = "the sending was interrupted".to_owned();
    while let Some(ended) = workers.join_next().await {
        if let Ok(Err(given_up)) = ended {
            reason = given_up;
        }
    }
    // Only when every worker has given up is anything left.
    while let Some(waiting) = queue.take() {
        let bytes = waiting.file.data_set_bytes;
        sender.failed(FailedFile { path: waiting.file.path, status: None, reason: reason.clone() }, bytes);
    }
}

/// Sends files until none waits. The error says why this worker gives up.
async fn work(sender: Arc<Sender>, queue: Arc<Queue>) -> Result<(), String> {
    let mut pause = sender.options.retry_pause;
    let mut failures = 0;
    while !lock(&queue.files).is_empty() {
        let error = match sender.associate(&queue).await {
            Ok(association) => match sender.send_on(association, &queue).await {
                Ok(()) => return Ok(()),
                Err(Broken { error, progressed }) => {
                    if progressed {
                        failures = 0;
                        pause = sender.options.retry_pause;
                    }
                    error
                }
            },
            Err(error) => error,
        };
        failures += 1;
        let reason = error.to_string();
        if !error.is_transient() || failures >= sender.options.maximum_attempts {
            return Err(reason);
        }
        (sender.progress)(&SendEvent::Retrying { reason: &reason });
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(())
}

/// An association ended before the queue did.
struct Broken {
    error: RequestError,
    /// The peer has answered for at least one object.
    progressed: bool,
}

/// The data set that is sent for a file.
struct Object {
    source: StoreSource<Box<dyn AsyncRead + Send + Unpin>>,
    study_instance_uid: Option<Uid>,
}

impl Sender {
    async fn associate(&self, queue: &Queue) -> Result<Association, RequestError> {
        let SendOptions { to, called, calling, timeouts, tls, .. } = &self.options;
        let requestor = AssociationRequestor::new(calling.clone(), called.clone(), to.host.as_str(), to.port)
            .with_timeouts(*timeouts)
            .with_tls(tls.clone());
        let propose = |requestor: AssociationRequestor, (sop_class, transfer_syntax): &Context| {
            requestor.propose(sop_class.as_str(), &[transfer_syntax.as_str()])
        };
        queue.contexts.iter().fold(requestor, propose).establish().await
    }

    /// Sends what waits, one after the other.
    async fn send_on(&self, mut association: Association, queue: &Queue) -> Result<(), Broken> {
        let mut progressed = false;
        while let Some(mut waiting) = queue.take() {
            let Object { source, study_instance_uid } = match self.open(&waiting.file).await {
                Ok(object) => object,
                Err(reason) => {
                    self.failed(
                        FailedFile { path: waiting.file.path, status: None, reason },
                        waiting.file.data_set_bytes,
                    );
                    continue;
                }
            };
            let sop_instance_uid = source.sop_instance_uid.clone();
            match association.store(source).await {
                Ok(response) => {
                    progressed = true;
                    self.answered(waiting.file, sop_instance_uid, study_instance_uid, &response);
                }
                // The association is as good as before: nothing was sent.
                Err(error @ RequestError::NoContext { .. }) => self.give_up(waiting.file, &error),
                // The file broke off, and with it the association, through no fault of the peer.
                Err(error @ RequestError::Source(_)) => {
                    self.give_up(waiting.file, &error);
                    match self.associate(queue).await {
                        Ok(another) => association = another,
                        Err(error) => return Err(Broken { error, progressed }),
                    }
                }
                Err(error) => {
                    waiting.attempts += 1;
                    if error.is_transient() && waiting.attempts < self.options.maximum_attempts {
                        lock(&queue.files).push_front(waiting);
                    } else {
                        self.give_up(waiting.file, &error);
                    }
                    return Err(Broken { error, progressed });
                }
            }
        }
        // Everything is answered: how the peer says goodbye changes nothing.
        if let Err(error) = association.release().await {
            tracing::debug!(%error, "the association did not end in order");
        }
        Ok(())
    }

    async fn open(&self, file: &DicomFile) -> Result<Object, String> {
        let DicomFile { sop_class_uid, transfer_syntax_uid, .. } = file.clone();
        if let Some(fresh_uids) = self.fresh_uids {
            let path = file.path.clone();
            let renamed = tokio::task::spawn_blocking(move || fresh_uids.rename(&path))
                .await
                .map_err(|error| format!("cannot be given fresh UIDs: {error}"))??;
            let source = StoreSource {
                priority: crate::dimse::Priority::Medium,
                sop_class_uid,
                sop_instance_uid: renamed.sop_instance_uid,
                transfer_syntax_uid,
                length: renamed.data_set.len() as u64,
                data: Box::new(io::Cursor::new(renamed.data_set)) as Box<dyn AsyncRead + Send + Unpin>,
            };
            return Ok(Object { source, study_instance_uid: Some(renamed.study_instance_uid) });
        }
        let opened = async {
            let mut data = fs_err::tokio::File::open(&file.path).await?;
            data.seek(SeekFrom::Start(file.data_set_offset)).await?;
            io::Result::Ok(data)
        };
        let data = opened.await.map_err(|error| error.to_string())?;
        let source = StoreSource {
            priority: crate::dimse::Priority::Medium,
            sop_class_uid,
            sop_instance_uid: file.sop_instance_uid.clone(),
            transfer_syntax_uid,
            length: file.data_set_bytes,
            data: Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, data)) as Box<dyn AsyncRead + Send + Unpin>,
        };
        Ok(Object { source, study_instance_uid: None })
    }

    fn answered(
        &self,
        file: DicomFile,
        sop_instance_uid: Uid,
        study_instance_uid: Option<Uid>,
        response: &StoreResponse,
    ) {
        let words = match &response.error_comment {
            Some(comment) if !comment.is_empty() => format!("{}: {comment}", InWords(response.status)),
            _ => InWords(response.status).to_string(),
        };
        let category = status::category(response.status);
        if !matches!(category, Category::Success | Category::Warning) {
            let failed = FailedFile { path: file.path, status: Some(response.status), reason: words };
            self.failed(failed, file.data_set_bytes);
            return;
        }
        if category == Category::Success
            && let Some(log) = &self.log
            // One write for the whole line, so that a kill leaves no half of it.
            && let Err(error) = lock(log).write_all(format!("{sop_instance_uid}\n").as_bytes())
        {
            tracing::warn!(%error, "the log of acknowledged objects cannot be written");
        }
        (self.progress)(&SendEvent::Sent { path: &file.path, bytes: file.data_set_bytes });
        let mut summary = lock(&self.summary);
        summary.bytes += file.data_set_bytes;
        summary.sent.push(SentFile {
            path: file.path,
            sop_instance_uid,
            study_instance_uid,
            remark: (category == Category::Warning).then_some(words),
        });
    }

    fn give_up(&self, file: DicomFile, error: &RequestError) {
        self.failed(FailedFile { path: file.path, status: None, reason: error.to_string() }, file.data_set_bytes);
    }

    fn failed(&self, file: FailedFile, bytes: u64) {
        (self.progress)(&SendEvent::Failed { path: &file.path, reason: &file.reason, bytes });
        lock(&self.summary).failed.push(file);
    }
}
