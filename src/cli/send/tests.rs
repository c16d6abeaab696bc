//! Sending against our own acceptor.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{net::TcpListener, sync::Barrier, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    dimse::{
        Acceptor, AcceptorOptions, Admission, AssociationEnd, AssociationHandler, AssociationRequest, DataSetStream,
        NegotiatedContext, NegotiationPolicy, NotEstablished, Rejection, StoreFailure, StoreRequest, storage_policy,
    },
    report::samples::{SampleSource, Syntax},
    types::Uid,
};

/// What the peer is to do.
#[derive(Debug, Default)]
struct Behaviour {
    /// Refuse this object with "out of resources".
    refuse: Option<&'static str>,
    /// Reject every association for good.
    reject_associations: bool,
    /// Panic on this object, the first so many times it comes: a failure response, then an abort.
    break_off: Option<(&'static str, usize)>,
    /// Wait in the first object of each association until so many associations are there.
    together: Option<Barrier>,
}

#[derive(Default)]
struct Peer {
    behaviour: Behaviour,
    associations: AtomicUsize,
    broken: AtomicUsize,
    stored: std::sync::Mutex<Vec<(String, Vec<u8>)>>,
    kill: CancellationToken,
}

impl Peer {
    fn stored_uids(&self) -> Vec<String> {
        self.stored.lock().unwrap().iter().map(|(uid, _)| uid.clone()).collect()
    }
}

impl AssociationHandler for Peer {
    type Association = bool;

    async fn admit(&self, request: &AssociationRequest) -> Result<Admission, Rejection> {
        if self.behaviour.reject_associations {
            return Err(Rejection::called_ae_title_not_recognized(
                "`OTHER`".to_owned(),
                request.called_ae_title.to_string(),
                "call `OTHER`".to_owned(),
            ));
        }
        Ok(storage_policy().into())
    }

    fn rejected(&self, _: &AssociationRequest, _: &Rejection) {}

    fn not_established(&self, _: &NotEstablished) {}

    fn accepted(&self, _: &AssociationRequest, _: &NegotiationPolicy, _: &[NegotiatedContext]) -> bool {
        self.associations.fetch_add(1, Ordering::SeqCst);
        true
    }

    async fn store(
        &self,
        is_first: &mut bool,
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> Result<(), StoreFailure> {
        let uid = request.affected_sop_instance_uid.to_string();
        if std::mem::take(is_first)
            && let Some(barrier) = &self.behaviour.together
        {
            barrier.wait().await;
        }
        if let Some((victim, times)) = self.behaviour.break_off
            && uid == victim
            && self.broken.fetch_add(1, Ordering::SeqCst) < times
        {
            panic!("the peer breaks off");
        }
        if self.behaviour.refuse == Some(uid.as_str()) {
            return Err(StoreFailure::out_of_resources("disk full"));
        }
        let mut bytes = Vec::new();
        while let Some(fragment) = data.next().await? {
            bytes.extend_from_slice(&fragment);
        }
        self.stored.lock().unwrap().push((uid, bytes));
        Ok(())
    }

    fn ended(&self, _: bool, _: AssociationEnd) {}
}

async fn start(behaviour: Behaviour) -> (Arc<Peer>, Address, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let peer = Arc::new(Peer { behaviour, ..Peer::default() });
    let acceptor = Acceptor::new(listener, AcceptorOptions::default(), Arc::clone(&peer));
    let task = tokio::spawn(acceptor.run(peer.kill.clone()));
    (peer, Address { host: address.ip().to_string(), port: address.port() }, task)
}

async fn stop(peer: &Peer, task: JoinHandle<()>) {
    peer.kill.cancel();
    task.await.unwrap();
}

fn options(to: Address) -> SendOptions {
    let title = |text| AeTitle::new(text).unwrap();
    SendOptions { retry_pause: Duration::from_millis(5), ..SendOptions::new(to, title("PEER"), title("TESTER")) }
}

/// Writes `count` synthetic files and gives their SOP Instance UIDs.
fn write_files(folder: &Path, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| {
            let uid = format!("1.2.3.{number}");
            let syntax = if number % 2 == 0 { Syntax::ExplicitLittle } else { Syntax::ImplicitLittle };
            fs_err::write(folder.join(format!("{number:03}.dcm")), SampleSource::new(&uid).part10(syntax)).unwrap();
            uid
        })
        .collect()
}

/// The data set of a file, found without our own code.
fn data_set(part10: &[u8]) -> &[u8] {
    // (0002,0000) UL 4: the length of the rest of the group, at byte 140.
    let length = u32::from_le_bytes(part10[140..144].try_into().unwrap()) as usize;
    &part10[144 + length..]
}

fn ignore(_: &SendEvent<'_>) {}

#[tokio::test]
async fn files_arrive_unchanged_on_several_associations() {
    let folder = tempfile::tempdir().unwrap();
    let uids = write_files(folder.path(), 12);
    fs_err::create_dir(folder.path().join("below")).unwrap();
    fs_err::write(folder.path().join("below/notes.txt"), "not DICOM").unwrap();
    let log = folder.path().join("acknowledged.log");
    let (peer, to, task) = start(Behaviour { together: Some(Barrier::new(3)), ..Behaviour::default() }).await;

    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let options = SendOptions { associations: 3, log_acknowledged: Some(log.clone()), ..options(to) };
    let summary = send_files(&[folder.path().to_owned()], options, move |event| {
        seen.lock().unwrap().push(format!("{event:?}").split(' ').next().unwrap_or_default().to_owned());
    })
    .await
    .unwrap();
    stop(&peer, task).await;

    assert_eq!(summary.sent.len(), 12, "{summary:?}");
    assert!(summary.failed.is_empty());
    let skipped: BTreeSet<_> = summary.skipped.iter().filter_map(|file| file.path.file_name()?.to_str()).collect();
    assert_eq!(skipped, BTreeSet::from(["acknowledged.log", "notes.txt"]));
    assert_eq!(peer.associations.load(Ordering::SeqCst), 3);
    let expected: BTreeSet<_> = uids.iter().cloned().collect();
    assert_eq!(peer.stored_uids().into_iter().collect::<BTreeSet<_>>(), expected);
    for (uid, bytes) in peer.stored.lock().unwrap().iter() {
        let number = uid.rsplit('.').next().unwrap().parse::<usize>().unwrap();
        let file = fs_err::read(folder.path().join(format!("{number:03}.dcm"))).unwrap();
        assert_eq!(bytes, data_set(&file), "{uid}");
    }
    let logged: BTreeSet<_> = fs_err::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(logged, expected);
    let events = events.lock().unwrap();
    assert_eq!(events.first().unwrap(), "Found");
    assert_eq!(events.iter().filter(|event| *event == "Sent").count(), 12);
}

#[tokio::test]
async fn a_refused_object_is_reported_and_the_others_arrive() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 4);
    let log = folder.path().join("acknowledged");
    let (peer, to, task) = start(Behaviour { refuse: Some("1.2.3.1"), ..Behaviour::default() }).await;
    let options = SendOptions { log_acknowledged: Some(log.clone()), ..options(to) };
    let summary = send_files(&[folder.path().to_owned()], options, ignore).await.unwrap();
    stop(&peer, task).await;

    assert_eq!(summary.sent.len(), 3);
    assert_eq!(peer.associations.load(Ordering::SeqCst), 1);
    let [failed] = summary.failed.as_slice() else { panic!("{summary:?}") };
    assert_eq!(failed.path.file_name().unwrap(), "001.dcm");
    assert_eq!(failed.status, Some(0xA700));
    assert_eq!(failed.reason, "0xA700 (refused: out of resources): disk full");
    assert!(!fs_err::read_to_string(log).unwrap().lines().any(|uid| uid == "1.2.3.1"));
    let text = describe(&summary);
    assert!(text.starts_with("sent 3 of 4 files ("), "{text}");
    assert!(text.contains("001.dcm: 0xA700 (refused: out of resources): disk full"), "{text}");
}

/// A peer at the level of bytes: accepts connections and closes them in the middle of the first object, the first
/// `times` times; then hands over to a real acceptor.
async fn cut_off(times: usize, behind: Address) -> (Address, JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut n_connections = 0;
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = tokio::net::TcpStream::connect((behind.host.as_str(), behind.port)).await.unwrap();
            n_connections += 1;
            if n_connections > times {
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
                continue;
            }
            // The association request and its answer, then the beginning of the first object, and no more.
            for (from, to) in [(true, false), (false, true)] {
                let mut header = [0; 6];
                let (source, target) = if from { (&mut client, &mut server) } else { (&mut server, &mut client) };
                assert_ne!(from, to);
                source.read_exact(&mut header).await.unwrap();
                let length = u32::from_be_bytes(header[2..6].try_into().unwrap()) as usize;
                let mut body = vec![0; length];
                source.read_exact(&mut body).await.unwrap();
                target.write_all(&header).await.unwrap();
                target.write_all(&body).await.unwrap();
            }
            let mut beginning = [0; 100];
            client.read_exact(&mut beginning).await.unwrap();
            server.write_all(&beginning).await.unwrap();
        }
    });
    (Address { host: address.ip().to_string(), port: address.port() }, task)
}

#[tokio::test]
async fn what_a_broken_association_left_is_sent_on_another() {
    let folder = tempfile::tempdir().unwrap();
    let uids = write_files(folder.path(), 5);
    let (peer, behind, task) = start(Behaviour::default()).await;
    let (to, cutter) = cut_off(2, behind).await;
    let retries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&retries);
    let summary = send_files(&[folder.path().to_owned()], options(to), move |event| {
        if matches!(event, SendEvent::Retrying { .. }) {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await
    .unwrap();
    cutter.abort();
    stop(&peer, task).await;

    assert_eq!(summary.sent.len(), 5, "{summary:?}");
    assert_eq!(retries.load(Ordering::SeqCst), 2);
    assert_eq!(peer.stored_uids(), uids);
}

#[tokio::test]
async fn retries_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 3);
    let (peer, behind, task) = start(Behaviour::default()).await;
    let (to, cutter) = cut_off(usize::MAX, behind).await;
    let summary = send_files(&[folder.path().to_owned()], options(to), ignore).await.unwrap();
    cutter.abort();
    stop(&peer, task).await;
    assert!(summary.sent.is_empty());
    assert_eq!(summary.failed.len(), 3, "{summary:?}");
    assert!(summary.failed.iter().all(|file| file.reason.contains("ended during C-STORE")), "{summary:?}");
}

#[tokio::test]
async fn a_handler_that_fails_on_one_object_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 4);
    let (peer, to, task) = start(Behaviour { break_off: Some(("1.2.3.2", 1)), ..Behaviour::default() }).await;
    let summary = send_files(&[folder.path().to_owned()], options(to), ignore).await.unwrap();
    stop(&peer, task).await;
    let [failed] = summary.failed.as_slice() else { panic!("{summary:?}") };
    assert_eq!(failed.status, Some(0x0110));
    assert_eq!(summary.sent.len(), 3);
    assert_eq!(peer.associations.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_rejected_association_fails_every_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 3);
    let (peer, to, task) = start(Behaviour { reject_associations: true, ..Behaviour::default() }).await;
    let summary = send_files(&[folder.path().to_owned()], options(to), ignore).await.unwrap();
    stop(&peer, task).await;
    assert_eq!(summary.failed.len(), 3);
    assert!(summary.failed[0].reason.contains("does not answer to the called AE title `PEER`"), "{summary:?}");
}

#[tokio::test]
async fn a_sop_class_that_the_peer_refuses_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 2);
    // Secondary Capture, which our own acceptor does not take.
    let part10 = fs_err::read(folder.path().join("000.dcm")).unwrap();
    let mut object = crate::imaging::read_object(&part10).unwrap();
    object.meta_mut().media_storage_sop_class_uid = "1.2.840.10008.5.1.4.1.1.7".to_owned();
    object.write_to_file(folder.path().join("000.dcm")).unwrap();
    let (peer, to, task) = start(Behaviour::default()).await;
    let summary = send_files(&[folder.path().to_owned()], options(to), ignore).await.unwrap();
    stop(&peer, task).await;
    assert_eq!(summary.sent.len(), 1, "{summary:?}");
    assert!(summary.failed[0].reason.contains("abstract syntax not supported"), "{summary:?}");
}

#[tokio::test]
async fn fresh_uids_make_another_study() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 3);
    let (peer, to, task) = start(Behaviour::default()).await;
    let options = SendOptions { fresh_uids: true, ..options(to) };
    let summary = send_files(&[folder.path().to_owned()], options, ignore).await.unwrap();
    stop(&peer, task).await;
    assert_eq!(summary.sent.len(), 3, "{summary:?}");
    let studies: BTreeSet<_> = summary.sent.iter().map(|file| file.study_instance_uid.clone().unwrap()).collect();
    assert_eq!(studies.len(), 1, "one old study is one new study");
    let sent: BTreeSet<_> = summary.sent.iter().map(|file| file.sop_instance_uid.to_string()).collect();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|uid| uid.starts_with("2.25.")));
    assert_eq!(sent, peer.stored_uids().into_iter().collect());
}

#[tokio::test]
async fn what_cannot_be_sent_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let to = Address { host: "127.0.0.1".to_owned(), port: 1 };
    let absent = folder.path().join("absent");
    assert!(send_files(&[absent], options(to.clone()), ignore).await.is_err());
    let error = send_files(&[folder.path().to_owned()], options(to.clone()), ignore).await.unwrap_err();
    assert!(error.to_string().contains("no DICOM file"), "{error}");

    let text = folder.path().join("a.txt");
    fs_err::write(&text, "x".repeat(500)).unwrap();
    let summary = send_files(std::slice::from_ref(&text), options(to.clone()), ignore).await.unwrap();
    assert_eq!(summary.failed.len(), 1);
    assert!(summary.failed[0].reason.contains("no `DICM`"), "{summary:?}");

    fs_err::remove_file(&text).unwrap();
    write_files(folder.path(), 1);
    let summary = send_files(&[folder.path().to_owned()], options(to), ignore).await.unwrap();
    assert!(summary.failed[0].reason.contains("connection refused"), "{summary:?}");
}

#[test]
fn a_file_meta_says_what_the_file_is() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), 1);
    let path = folder.path().join("000.dcm");
    let bytes = fs_err::read(&path).unwrap();
    let file = files::read(&path).unwrap();
    assert_eq!(file.sop_instance_uid, Uid::new("1.2.3.0").unwrap());
    assert_eq!(file.transfer_syntax_uid.as_str(), "1.2.840.10008.1.2.1");
    assert_eq!(file.data_set_bytes as usize, data_set(&bytes).len());
    assert_eq!(&bytes[file.data_set_offset as usize..], data_set(&bytes));

    for (length, reason) in [(100, "shorter than 132"), (140, "unreadable"), (file.data_set_offset, "no data set")] {
        fs_err::write(&path, &bytes[..length as usize]).unwrap();
        let error = files::read(&path).unwrap_err();
        assert!(error.contains(reason), "{length}: {error}");
    }
}
