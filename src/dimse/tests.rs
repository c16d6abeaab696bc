//! The room against itself and against a scripted raw peer, over loopback.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use dicom_dictionary_std::uids;
use proptest::prelude::*;
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    pdu_io::{Pdu, PduLimits, PduStream, max_fragment_bytes},
    testing::{
        PATIENCE, RawPeer, application_context, associate_rq, command, command_number, item, pdu, pdv,
        proposed_context, user_information,
    },
    upper_layer::UpperLayer,
    *,
};
use crate::types::{AeTitle, Uid};

const CT: &str = uids::CT_IMAGE_STORAGE;
const EXPLICIT: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;
const IMPLICIT: &str = uids::IMPLICIT_VR_LITTLE_ENDIAN;

/// What the handler does with one object.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    Store,
    RefuseAtOnce,
    RefuseAtEnd,
    SucceedAtOnce,
    Panic,
    /// Reads one fragment, then waits until told to go on.
    Wait,
    /// Reads everything, then never ends.
    Hang,
}

#[derive(Debug)]
enum Seen {
    Rejected(Rejection),
    NotEstablished(NotEstablished),
    Unheard(Unheard),
    Accepted(AssociationRequest, Vec<NegotiatedContext>),
    Stored(StoreRequest, Vec<u8>),
    StreamFailed(EndReason),
    Waiting,
    Ended(AssociationEnd),
}

struct Recorder {
    behaviours: Mutex<VecDeque<Behaviour>>,
    seen: mpsc::Sender<Seen>,
    go_on: Notify,
    refused: Mutex<Vec<RefusedObject>>,
}

impl Recorder {
    fn see(&self, event: Seen) {
        self.seen.try_send(event).unwrap();
    }
}

impl AssociationHandler for Recorder {
    type Association = ();

    async fn admit(&self, request: &AssociationRequest) -> Result<Admission, Rejection> {
        if request.called_ae_title.text != "HILUM" {
            return Err(Rejection::called_ae_title_not_recognized(
                "`HILUM`",
                format!("`{}`", request.called_ae_title),
                "correct the called AE title",
            ));
        }
        if request.calling_ae_title.text == "STRANGER" {
            return Err(Rejection::calling_ae_title_not_recognized("a known peer", "`STRANGER`", "add the peer"));
        }
        Ok(storage_policy().into())
    }

    fn rejected(&self, _: &AssociationRequest, rejection: &Rejection) {
        self.see(Seen::Rejected(rejection.clone()));
    }

    fn not_established(&self, failure: &NotEstablished) {
        self.see(Seen::NotEstablished(failure.clone()));
    }

    fn unheard(&self, _: SocketAddr, why: Unheard) {
        self.see(Seen::Unheard(why));
    }

    fn refused(&self, (): &(), refused: &RefusedObject) {
        self.refused.lock().unwrap().push(refused.clone());
    }

    fn accepted(&self, request: &AssociationRequest, _: &NegotiationPolicy, negotiated: &[NegotiatedContext]) {
        self.see(Seen::Accepted(request.clone(), negotiated.to_vec()));
    }

    async fn store(
        &self,
        (): &mut (),
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> Result<(), StoreFailure> {
        let behaviour = self.behaviours.lock().unwrap().pop_front().unwrap_or(Behaviour::Store);
        match behaviour {
            Behaviour::RefuseAtOnce => return Err(StoreFailure::out_of_resources("no space left")),
            Behaviour::SucceedAtOnce => return Ok(()),
            Behaviour::Panic => panic!("the handler of this test panics"),
            _ => {}
        }
        let mut bytes = Vec::new();
        loop {
            match data.next().await {
                Ok(Some(fragment)) => bytes.extend_from_slice(&fragment),
                Ok(None) => break,
                Err(error) => {
                    self.see(Seen::StreamFailed(error.0.clone()));
                    return Err(error.into());
                }
            }
            if behaviour == Behaviour::Wait && bytes.len() < 200_000 {
                self.see(Seen::Waiting);
                self.go_on.notified().await;
            }
        }
        match behaviour {
            Behaviour::RefuseAtEnd => return Err(StoreFailure::cannot_understand("naïve data")),
            Behaviour::Hang => std::future::pending().await,
            _ => {}
        }
        self.see(Seen::Stored(request, bytes));
        Ok(())
    }

    fn ended(&self, (): (), end: AssociationEnd) {
        self.see(Seen::Ended(end));
    }
}

/// An acceptor on a free port.
struct Node {
    address: SocketAddr,
    handler: Arc<Recorder>,
    seen: mpsc::Receiver<Seen>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Node {
    async fn start(options: AcceptorOptions, behaviours: &[Behaviour]) -> Self {
        let (sender, seen) = mpsc::channel(1000);
        let handler = Arc::new(Recorder {
            behaviours: Mutex::new(behaviours.iter().copied().collect()),
            seen: sender,
            go_on: Notify::new(),
            refused: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = Acceptor::new(listener, options, Arc::clone(&handler));
        let address = acceptor.local_address().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(acceptor.run(shutdown.clone()));
        Self { address, handler, seen, shutdown, running }
    }

    async fn next(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("nothing happens").unwrap()
    }

    /// Skips to the end of an association.
    async fn end(&mut self) -> AssociationEnd {
        loop {
            if let Seen::Ended(end) = self.next().await {
                return end;
            }
        }
    }

    fn requestor(&self) -> AssociationRequestor {
        requestor("TESTER", "HILUM", self.address.port())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.running).await.expect("the acceptor does not stop").unwrap();
    }
}

fn requestor(calling: &str, called: &str, port: u16) -> AssociationRequestor {
    AssociationRequestor::new(AeTitle::new(calling).unwrap(), AeTitle::new(called).unwrap(), "127.0.0.1", port)
        .propose_verification()
        .propose(CT, &[EXPLICIT])
}

/// Bytes that do not repeat at the length of a fragment.
fn object(length: usize) -> Vec<u8> {
    (0..length).map(|idx| (idx % 251) as u8 ^ (idx / 251) as u8).collect()
}

fn source(data: &[u8]) -> StoreSource<&[u8]> {
    StoreSource {
        priority: crate::dimse::Priority::Medium,
        sop_class_uid: Uid::new(CT).unwrap(),
        sop_instance_uid: Uid::new("1.2.3.4").unwrap(),
        transfer_syntax_uid: Uid::new(EXPLICIT).unwrap(),
        data,
        length: data.len() as u64,
    }
}

fn ct_items() -> Vec<u8> {
    [application_context(), proposed_context(1, CT, &[EXPLICIT]), user_information(16384)].concat()
}

fn store_command() -> Vec<u8> {
    command(&[
        (0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x0100, &[1, 0]),
        (0x0110, &[9, 0]),
        (0x0700, &[0, 0]),
        (0x0800, &[1, 0]),
        (0x1000, b"1.2.3.4\0"),
    ])
}

fn echo_command(message_id: u8) -> Vec<u8> {
    command(&[(0x0100, &[0x30, 0]), (0x0110, &[message_id, 0]), (0x0800, &[1, 1])])
}

/// The command of a P-DATA-TF with one PDV.
fn response(pdu: Option<(u8, Vec<u8>)>) -> Vec<u8> {
    let (pdu_type, body) = pdu.expect("a response");
    assert_eq!(pdu_type, 4, "P-DATA-TF");
    assert_eq!(body[5], 3, "one whole command");
    body[6..].to_vec()
}

fn fast() -> AcceptorOptions {
    AcceptorOptions {
        association_request_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(200),
        message_timeout: Duration::from_millis(300),
        ..AcceptorOptions::default()
    }
}

// --- both sides of the room ---

#[tokio::test]
async fn echo_and_store_arrive_whole_and_are_counted() {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut association = node.requestor().establish().await.unwrap();
    let Seen::Accepted(request, negotiated) = node.next().await else { panic!() };
    assert_eq!(request.calling_ae_title.title, Some(AeTitle::new("TESTER").unwrap()));
    assert_eq!(request.implementation.class_uid.as_deref(), Some(IMPLEMENTATION_CLASS_UID));
    assert_eq!(request.implementation.version_name.as_deref(), Some("HILUM_0_1_0"));
    assert_eq!(negotiated, association.contexts());
    assert_eq!(association.peer().class_uid.as_deref(), Some(IMPLEMENTATION_CLASS_UID));
    assert_eq!(association.peer().max_pdu_length, 128 * 1024);

    assert_eq!(association.echo().await.unwrap(), status::SUCCESS);
    let lengths = [0, 1, 131_066, 131_067, 1_000_001];
    for length in lengths {
        let stored = association.store(source(&object(length))).await.unwrap();
        assert_eq!(stored, StoreResponse { status: status::SUCCESS, error_comment: None });
        let Seen::Stored(request, bytes) = node.next().await else { panic!() };
        assert!(bytes == object(length), "{length} bytes");
        assert_eq!(request.transfer_syntax_uid.as_str(), EXPLICIT);
        assert_eq!(request.affected_sop_class_uid.as_str(), CT);
        assert_eq!(request.affected_sop_instance_uid.as_str(), "1.2.3.4");
    }
    assert_eq!(association.echo().await.unwrap(), status::SUCCESS);
    association.release().await.unwrap();
    let end = node.end().await;
    assert_eq!(end.reason, EndReason::Released);
    assert_eq!((end.n_objects_stored, end.n_objects_failed), (5, 0));
    assert_eq!(end.n_bytes_received, lengths.iter().sum::<usize>() as u64);
    node.stop().await;
}

#[rstest]
#[case::smallest(1018)]
#[case::odd(1019)]
#[case::usual(16_384)]
#[tokio::test]
async fn the_requestor_keeps_to_the_peers_maximum(#[case] max_pdu_length: u32) {
    let mut node = Node::start(AcceptorOptions { max_pdu_length, ..AcceptorOptions::default() }, &[]).await;
    let mut association = node.requestor().establish().await.unwrap();
    assert_eq!(association.peer().max_pdu_length, max_pdu_length);
    node.next().await;
    for length in [1011, 1012, 1013, 1014, 16_378, 100_000] {
        assert_eq!(association.store(source(&object(length))).await.unwrap().status, status::SUCCESS);
        let Seen::Stored(_, bytes) = node.next().await else { panic!() };
        assert!(bytes == object(length), "{length} bytes");
    }
    association.release().await.unwrap();
    node.stop().await;
}

#[rstest]
#[case(Behaviour::RefuseAtOnce, status::OUT_OF_RESOURCES, "no space left")]
#[case(Behaviour::RefuseAtEnd, status::CANNOT_UNDERSTAND, "na?ve data")]
#[case(Behaviour::SucceedAtOnce, status::PROCESSING_FAILURE, "the data set was not read to its end")]
#[tokio::test]
async fn a_failed_store_is_answered_and_the_association_goes_on(
    #[case] behaviour: Behaviour,
    #[case] status: u16,
    #[case] comment: &str,
) {
    let mut node = Node::start(AcceptorOptions::default(), &[behaviour]).await;
    let mut association = node.requestor().establish().await.unwrap();
    let refused = association.store(source(&object(500_000))).await.unwrap();
    assert_eq!(refused, StoreResponse { status, error_comment: Some(comment.to_owned()) });
    assert_eq!(association.store(source(&object(1000))).await.unwrap().status, status::SUCCESS);
    association.release().await.unwrap();
    let end = node.end().await;
    assert_eq!((end.n_objects_stored, end.n_objects_failed), (1, 1));
    assert_eq!(end.n_bytes_received, 501_000);
    let told = node.handler.refused.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].failure.status, told[0].n_bytes), (status, 500_000));
    assert_eq!(told[0].affected_sop_instance_uid, "1.2.3.4");
    node.stop().await;
}

#[tokio::test]
async fn a_panicking_handler_is_answered_and_the_association_aborted() {
    let mut node = Node::start(AcceptorOptions::default(), &[Behaviour::Panic]).await;
    let mut association = node.requestor().establish().await.unwrap();
    assert_eq!(association.store(source(&object(300_000))).await.unwrap().status, status::PROCESSING_FAILURE);
    assert_eq!(node.end().await.reason, EndReason::HandlerFailed);
    let error = association.echo().await.unwrap_err();
    assert!(matches!(error, RequestError::Ended { .. }), "{error}");
    // the acceptor lives on
    let mut association = node.requestor().establish().await.unwrap();
    assert_eq!(association.echo().await.unwrap(), status::SUCCESS);
    association.release().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_handler_that_never_ends_is_stopped_and_answered() {
    let options = AcceptorOptions { message_timeout: Duration::from_millis(100), ..AcceptorOptions::default() };
    let mut node = Node::start(options, &[Behaviour::Hang]).await;
    let mut association = node.requestor().establish().await.unwrap();
    let response = association.store(source(&object(1000))).await.unwrap();
    assert_eq!(response.status, status::PROCESSING_FAILURE);
    assert_eq!(node.end().await.reason, EndReason::TimedOut(TimeLimit::Message));
    node.stop().await;
}

#[tokio::test]
async fn one_association_too_many_is_rejected_as_transient() {
    let mut node = Node::start(AcceptorOptions { max_associations: 1, ..AcceptorOptions::default() }, &[]).await;
    let first = node.requestor().establish().await.unwrap();
    node.next().await;
    let error = node.requestor().establish().await.err().unwrap();
    assert!(error.is_transient());
    assert!(
        error.to_string().contains("(transient, service provider (presentation)): local limit exceeded"),
        "{error}"
    );
    let Seen::Rejected(rejection) = node.next().await else { panic!() };
    assert_eq!(rejection.reason, RejectReason::LocalLimitExceeded);
    assert_eq!(rejection.expected, "at most 1 associations at once");
    first.release().await.unwrap();
    node.end().await;
    // The permit is given back when the connection is closed, shortly after `ended`.
    let mut again = node.requestor().establish().await;
    while again.is_err() {
        again = node.requestor().establish().await;
    }
    again.unwrap().release().await.unwrap();
    node.stop().await;
}

#[rstest]
#[case("STRANGER", "HILUM", "does not know our calling AE title `STRANGER`: have it added there")]
#[case("TESTER", "HILLUM", "does not answer to the called AE title `HILLUM`: correct the title")]
#[tokio::test]
async fn rejections_name_their_remedy(#[case] calling: &str, #[case] called: &str, #[case] words: &str) {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let error = requestor(calling, called, node.address.port()).establish().await.err().unwrap();
    assert!(!error.is_transient());
    assert!(error.to_string().contains(words), "{error}");
    assert!(matches!(node.next().await, Seen::Rejected(_)));
    node.stop().await;
}

#[tokio::test]
async fn an_association_request_of_148_kilobytes_is_accepted() {
    let mut node = Node::start(AcceptorOptions { max_pdu_length: 16_384, ..AcceptorOptions::default() }, &[]).await;
    let transfer_syntaxes: Vec<String> =
        (0..45).map(|idx| format!("1.2.840.10008.1.2.4.9999.{idx:02}")).chain([EXPLICIT.to_owned()]).collect();
    let transfer_syntaxes: Vec<&str> = transfer_syntaxes.iter().map(String::as_str).collect();
    let items: Vec<u8> = (0..120u8)
        .flat_map(|idx| {
            let abstract_syntax =
                if idx == 119 { CT.to_owned() } else { format!("1.2.840.10008.5.1.4.1.1.9999.{idx}") };
            proposed_context(idx * 2 + 1, &abstract_syntax, &transfer_syntaxes)
        })
        .collect();
    let items = [application_context(), items, user_information(0)].concat();
    assert!(items.len() > 148_000, "{}", items.len());
    let mut peer = RawPeer::associate(node.address, &items).await;
    let Seen::Accepted(_, negotiated) = node.next().await else { panic!() };
    assert_eq!(negotiated.iter().filter(|context| context.transfer_syntax_uid().is_some()).count(), 1);
    peer.send(&pdu(5, &[0; 4])).await;
    assert_eq!(peer.receive().await, Some((6, vec![0; 4])));
    node.stop().await;
}

#[tokio::test]
async fn an_association_request_beyond_the_limit_is_aborted_before_it_is_buffered() {
    let options = AcceptorOptions { max_association_request_bytes: 1000, ..AcceptorOptions::default() };
    let mut node = Node::start(options, &[]).await;
    let mut peer = RawPeer::connect(node.address).await;
    peer.send(&[1, 0, 0, 0, 3, 233]).await;
    peer.expect_abort(2, 6).await;
    let Seen::NotEstablished(failure) = node.next().await else { panic!() };
    assert_eq!(
        failure.reason.to_string(),
        "aborted by us: the peer's A-ASSOCIATE-RQ has 1001 bytes: at most 1000 are allowed"
    );
    node.stop().await;
}

// --- shutdown ---

#[tokio::test]
async fn shutdown_lets_the_current_object_finish() {
    let mut node = Node::start(AcceptorOptions::default(), &[Behaviour::Wait]).await;
    let mut association = node.requestor().establish().await.unwrap();
    let idle = node.requestor().establish().await.unwrap();
    let data = object(300_000);
    let storing = tokio::spawn(async move {
        let status = association.store(source(&data)).await.map(|response| response.status);
        (association, status)
    });
    while !matches!(node.next().await, Seen::Waiting) {}
    node.shutdown.cancel();
    // the idle association ends at once
    let end = node.end().await;
    assert_eq!((end.reason, end.n_objects_stored), (EndReason::ShutDown, 0));
    drop(idle);
    assert!(!node.running.is_finished());
    node.handler.go_on.notify_one();
    loop {
        match node.next().await {
            Seen::Waiting => node.handler.go_on.notify_one(),
            Seen::Stored(_, bytes) => break assert_eq!(bytes.len(), 300_000),
            other => panic!("{other:?}"),
        }
    }
    let (mut association, status) = timeout(PATIENCE, storing).await.unwrap().unwrap();
    assert_eq!(status.unwrap(), status::SUCCESS);
    let end = node.end().await;
    assert_eq!((end.reason, end.n_objects_stored), (EndReason::ShutDown, 1));
    let error = association.echo().await.unwrap_err();
    assert!(matches!(error, RequestError::Ended { .. }), "{error}");
    drop(association);
    node.stop().await;
}

#[tokio::test]
async fn the_grace_time_is_the_end_of_patience() {
    let options = AcceptorOptions { shutdown_grace: Duration::from_millis(50), ..AcceptorOptions::default() };
    let mut node = Node::start(options, &[Behaviour::Wait]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    peer.send(&pdu(4, &[pdv(1, 3, &store_command()), pdv(1, 0, &[0; 100])].concat())).await;
    while !matches!(node.next().await, Seen::Waiting) {}
    node.shutdown.cancel();
    node.handler.go_on.notify_one();
    let Seen::StreamFailed(reason) = node.next().await else { panic!() };
    assert_eq!(reason, EndReason::ShutDown);
    peer.expect_abort(0, 0).await;
    let end = node.end().await;
    assert_eq!((end.reason, end.n_objects_failed, end.n_bytes_received), (EndReason::ShutDown, 1, 100));
    node.stop().await;
}

// --- time limits and lost peers ---

#[tokio::test]
async fn a_silent_connection_is_closed_by_artim() {
    let mut node = Node::start(fast(), &[]).await;
    let mut peer = RawPeer::connect(node.address).await;
    peer.send(&associate_rq(1, &ct_items())[..50]).await;
    assert_eq!(peer.receive().await, None);
    let Seen::NotEstablished(failure) = node.next().await else { panic!() };
    assert_eq!(failure.reason, EndReason::TimedOut(TimeLimit::AssociationRequest));
    node.stop().await;
}

#[tokio::test]
async fn an_idle_association_and_a_slow_message_are_aborted() {
    let mut node = Node::start(fast(), &[]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    peer.expect_abort(0, 0).await;
    assert_eq!(node.end().await.reason, EndReason::TimedOut(TimeLimit::Idle));
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    peer.send(&pdu(4, &pdv(1, 3, &store_command()))).await;
    peer.expect_abort(0, 0).await;
    let end = node.end().await;
    assert_eq!((end.reason, end.n_objects_failed), (EndReason::TimedOut(TimeLimit::Message), 1));
    let told = node.handler.refused.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        !told[0].answered && told[0].failure.remedy.is_some_and(|remedy| remedy.contains("message_timeout")),
        "{told:?}"
    );
    node.stop().await;
}

#[rstest]
#[case::between_fragments(0)]
#[case::inside_a_pdu(7)]
#[tokio::test]
async fn a_peer_that_vanishes_in_an_object_reaches_the_handler(#[case] n_bytes_of_next: usize) {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    peer.send(&pdu(4, &[pdv(1, 3, &store_command()), pdv(1, 0, &[1; 100])].concat())).await;
    peer.send(&pdu(4, &pdv(1, 2, &[1; 100]))[..n_bytes_of_next]).await;
    drop(peer);
    assert!(matches!(node.next().await, Seen::Accepted(..)));
    let Seen::StreamFailed(reason) = node.next().await else { panic!() };
    assert!(matches!(reason, EndReason::ConnectionLost { .. }), "{reason}");
    let end = node.end().await;
    assert_eq!((end.n_objects_stored, end.n_objects_failed, end.n_bytes_received), (0, 1, 100));
    node.stop().await;
}

#[tokio::test]
async fn an_abort_in_an_object_reaches_the_handler_in_words() {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    peer.send(&pdu(4, &[pdv(1, 3, &store_command()), pdv(1, 0, &[1; 100])].concat())).await;
    peer.send(&pdu(7, &[0, 0, 2, 2])).await;
    assert!(matches!(node.next().await, Seen::Accepted(..)));
    let Seen::StreamFailed(reason) = node.next().await else { panic!() };
    assert_eq!(reason.to_string(), "aborted by the service provider: unexpected PDU");
    assert_eq!(node.end().await.reason, reason);
    node.stop().await;
}

#[tokio::test]
async fn a_port_probe_is_told_and_nothing_more() {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    drop(RawPeer::connect(node.address).await);
    assert!(matches!(node.next().await, Seen::Unheard(Unheard::Silent)));
    let association = node.requestor().establish().await.unwrap();
    assert!(matches!(node.next().await, Seen::Accepted(..)), "the next event is the association");
    association.abort().await;
    let end = node.end().await;
    assert_eq!(end.reason.to_string(), "aborted by the service user (the peer's application)");
    node.stop().await;
}

// --- peers that are wrong or unusual ---

/// Bytes instead of an A-ASSOCIATE-RQ, the reason of our abort, and words of ours.
#[rstest]
#[case::http(b"GET / HTTP/1.1\r\n\r\n".to_vec(), 1, "unknown type 0x47")]
#[case::reserved_type(pdu(8, &[0; 4]), 1, "unknown type 0x08")]
#[case::data_first(pdu(4, &pdv(1, 3, b"x")), 2, "sent P-DATA-TF while we are awaiting an A-ASSOCIATE-RQ")]
#[case::release_first(pdu(5, &[0; 4]), 2, "A-RELEASE-RQ")]
#[case::too_short(pdu(1, &[0; 20]), 6, "ends before its AE titles")]
#[case::cut_item(associate_rq(1, &[0x10, 0, 0, 99, b'1']), 6, "an item is longer than what holds it")]
#[case::no_application_context(associate_rq(1, &proposed_context(1, CT, &[EXPLICIT])), 6, "application context")]
#[case::no_abstract_syntax(
    associate_rq(1, &[application_context(), item(0x20, &[1, 0, 0, 0])].concat()), 6, "abstract syntax")]
#[case::no_contexts(associate_rq(1, &application_context()), 6, "no presentation context is proposed")]
#[case::even_id(
    associate_rq(1, &[application_context(), proposed_context(2, CT, &[EXPLICIT])].concat()), 6, "id 2 is even")]
#[case::twice(
    associate_rq(1, &[application_context(), proposed_context(1, CT, &[EXPLICIT]).repeat(2)].concat()),
    6, "id 1 is proposed twice")]
#[tokio::test]
async fn what_is_no_association_request_is_aborted_with_the_reason(
    #[case] bytes: Vec<u8>,
    #[case] reason: u8,
    #[case] words: &str,
) {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::connect(node.address).await;
    peer.send(&bytes).await;
    peer.expect_abort(2, reason).await;
    let Seen::NotEstablished(failure) = node.next().await else { panic!() };
    assert!(failure.reason.to_string().contains(words), "{}", failure.reason);
    node.stop().await;
}

#[rstest]
#[case::version(associate_rq(2, &ct_items()), [0, 1, 2, 2])]
#[case::application_context(
    associate_rq(1, &[item(0x10, b"1.2.3"), proposed_context(1, CT, &[EXPLICIT])].concat()), [0, 1, 1, 2])]
#[tokio::test]
async fn foreign_protocols_are_rejected_with_the_standards_reason(#[case] bytes: Vec<u8>, #[case] answer: [u8; 4]) {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::connect(node.address).await;
    peer.send(&bytes).await;
    assert_eq!(peer.receive().await, Some((3, answer.to_vec())));
    assert!(matches!(node.next().await, Seen::Rejected(_)));
    node.stop().await;
}

#[tokio::test]
async fn unknown_items_and_padding_are_skipped() {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut context = vec![1, 0xFF, 0xFF, 0xFF];
    context.extend(item(0x99, b"unknown sub-item"));
    context.extend(item(0x30, b"1.2.840.10008.5.1.4.1.1.2\0"));
    context.extend(item(0x40, b"1.2.840.10008.1.2 "));
    let user = [
        item(0x53, &[0, 5, 0, 5]),
        item(0x56, b"broken extended negotiation"),
        item(0x57, b"broken common extended negotiation"),
        item(0x58, &[99, 1, 0xFF, 0xFF]),
        item(0x7A, b"private"),
        item(0x51, &30_000u32.to_be_bytes()),
        item(0x52, b"1.2.3.4\0"),
        item(0x55, b"PADDED_NAME \0"),
    ]
    .concat();
    let items = [
        item(0xEE, b"unknown item"),
        item(0x10, b"1.2.840.10008.3.1.1.1\0"),
        item(0x20, &context),
        item(0x21, b"a result has no place in a request"),
        item(0x50, &user),
        item(0x00, b""),
    ]
    .concat();
    let _peer = RawPeer::associate(node.address, &items).await;
    let Seen::Accepted(request, negotiated) = node.next().await else { panic!() };
    assert_eq!(negotiated[0].transfer_syntax_uid().map(Uid::as_str), Some(IMPLICIT));
    assert_eq!(request.implementation.class_uid.as_deref(), Some("1.2.3.4"));
    assert_eq!(request.implementation.version_name.as_deref(), Some("PADDED_NAME"));
    assert_eq!(request.implementation.max_pdu_length, 30_000);
    node.stop().await;
}

/// What breaks an established association, and the reason of our abort.
#[rstest]
#[case::oversize_header_alone(vec![4, 0, 0, 0, 0x40, 1], 6, "P-DATA-TF has 16385 bytes: at most 16384")]
#[case::unknown_pdu(pdu(9, b""), 1, "unknown type 0x09")]
#[case::second_request(associate_rq(1, &ct_items()), 2, "A-ASSOCIATE-RQ while we are exchanging data")]
#[case::unasked_release_response(pdu(6, &[0; 4]), 2, "A-RELEASE-RP")]
#[case::empty_p_data(pdu(4, b""), 6, "no presentation data value")]
#[case::pdv_too_long(pdu(4, &[0, 0, 0, 9, 1, 3, 0]), 6, "wrong length")]
#[case::pdv_too_short(pdu(4, &[0, 0, 0, 1, 1, 3]), 6, "wrong length")]
#[case::data_without_command(pdu(4, &pdv(1, 2, b"data")), 6, "data where a command must be")]
#[case::foreign_context(pdu(4, &pdv(77, 3, &echo_command(1))), 6, "context 77, which was not accepted")]
#[case::refused_context(pdu(4, &pdv(3, 3, &echo_command(1))), 6, "context 3, which was not accepted")]
#[case::no_command_set(pdu(4, &pdv(1, 3, b"garbage")), 6, "malformed at byte 0")]
#[case::endless_command(pdu(4, &pdv(1, 1, &[0; 16_000])).repeat(5), 6, "more than 65536 bytes")]
#[case::unasked_response(
    pdu(4, &pdv(1, 3, &command(&[(0x100, &[1, 0x80]), (0x120, &[1, 0]), (0x800, &[1, 1]), (0x900, &[0, 0])]))),
    6, "a request that we never made")]
#[case::command_in_data(
    pdu(4, &[pdv(1, 3, &store_command()), pdv(1, 3, &echo_command(1))].concat()), 6, "a command inside a data set")]
#[case::other_context_in_data(
    pdu(4, &[pdv(1, 3, &store_command()), pdv(3, 2, b"data")].concat()), 6, "changed the presentation context")]
#[case::release_in_data([pdu(4, &pdv(1, 3, &store_command())), pdu(5, &[0; 4])].concat(), 2, "middle of a message")]
#[tokio::test]
async fn breaches_of_protocol_are_aborted_with_the_reason(
    #[case] bytes: Vec<u8>,
    #[case] reason: u8,
    #[case] words: &str,
) {
    let mut node = Node::start(AcceptorOptions { max_pdu_length: 16_384, ..AcceptorOptions::default() }, &[]).await;
    let items = [
        application_context(),
        proposed_context(1, CT, &[EXPLICIT]),
        proposed_context(3, uids::MR_IMAGE_STORAGE, &[EXPLICIT]),
        user_information(16_384),
    ]
    .concat();
    let mut peer = RawPeer::associate(node.address, &items).await;
    peer.send(&bytes).await;
    peer.expect_abort(2, reason).await;
    let end = node.end().await;
    assert!(matches!(end.reason, EndReason::ProtocolError { .. }));
    assert!(end.reason.to_string().contains(words), "{}", end.reason);
    node.stop().await;
}

#[tokio::test]
async fn fragmented_commands_are_joined_and_ids_are_never_stale() {
    let node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    for message_id in [3, 200, 1] {
        let command = echo_command(message_id);
        let (last, first) = command.split_last().unwrap();
        for byte in first {
            peer.send(&pdu(4, &pdv(1, 1, &[*byte]))).await;
        }
        peer.send(&pdu(4, &pdv(1, 3, &[*last]))).await;
        let answer = response(peer.receive().await);
        assert_eq!(command_number(&answer, 0x0100), Some(0x8030));
        assert_eq!(command_number(&answer, 0x0120), Some(u16::from(message_id)));
        assert_eq!(command_number(&answer, 0x0900), Some(0));
    }
    // several fragments of several messages in one PDU
    let command = echo_command(9);
    let (one, two) = command.split_at(10);
    peer.send(&pdu(4, &[pdv(1, 1, one), pdv(1, 3, two), pdv(1, 3, &echo_command(10))].concat())).await;
    assert_eq!(command_number(&response(peer.receive().await), 0x0120), Some(9));
    assert_eq!(command_number(&response(peer.receive().await), 0x0120), Some(10));
    node.stop().await;
}

/// Commands that are refused with a status, whatever follows them, and the association goes on.
#[rstest]
#[case::find(command(&[(0x0100, &[0x20, 0]), (0x0110, &[5, 0]), (0x0800, &[1, 0])]), 0x8020, status::UNRECOGNIZED_OPERATION)]
#[case::n_event_report_here(
    command(&[(0x0100, &[0, 1]), (0x0110, &[5, 0]), (0x0800, &[1, 0])]), 0x8100, status::NO_SUCH_SOP_CLASS)]
#[case::n_set(
    command(&[(0x0100, &[0x20, 1]), (0x0110, &[5, 0]), (0x0800, &[1, 0])]), 0x8120, status::UNRECOGNIZED_OPERATION)]
#[case::store_of_another_class(
    command(&[(0x0002, b"1.2.3\0"), (0x0100, &[1, 0]), (0x0110, &[5, 0]), (0x0800, &[1, 0]), (0x1000, b"1.2\0")]),
    0x8001, status::SOP_CLASS_NOT_SUPPORTED)]
#[case::store_without_instance(
    command(&[(0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"), (0x0100, &[1, 0]), (0x0110, &[5, 0]), (0x0800, &[1, 0])]),
    0x8001, status::INVALID_SOP_INSTANCE)]
#[case::store_as_path(
    command(&[(0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"), (0x0100, &[1, 0]), (0x0110, &[5, 0]), (0x0800, &[1, 0]),
      (0x1000, b"../../etc/passwd")]),
    0x8001, status::INVALID_SOP_INSTANCE)]
#[tokio::test]
async fn what_is_not_offered_is_refused_and_the_association_goes_on(
    #[case] command_set: Vec<u8>,
    #[case] field: u16,
    #[case] status: u16,
) {
    let mut node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    peer.send(&pdu(4, &pdv(1, 3, &command_set))).await;
    peer.send(&pdu(4, &pdv(1, 0, &[0; 5000]))).await;
    peer.send(&pdu(4, &pdv(1, 2, b""))).await;
    let answer = response(peer.receive().await);
    assert_eq!(command_number(&answer, 0x0100), Some(field));
    assert_eq!(command_number(&answer, 0x0120), Some(5));
    assert_eq!(command_number(&answer, 0x0900), Some(status));
    // C-CANCEL has no response: the next thing heard is the answer to the echo
    peer.send(&pdu(4, &pdv(1, 3, &command(&[(0x0100, &[0xFF, 0x0F]), (0x0120, &[5, 0]), (0x0800, &[1, 1])])))).await;
    peer.send(&pdu(4, &pdv(1, 3, &echo_command(6)))).await;
    assert_eq!(command_number(&response(peer.receive().await), 0x0100), Some(0x8030));
    peer.send(&pdu(5, &[0; 4])).await;
    assert_eq!(peer.receive().await, Some((6, vec![0; 4])));
    assert_eq!(node.end().await.reason, EndReason::Released);
    // Objects that never reach the store handler are told of all the same.
    let told: Vec<u16> = node.handler.refused.lock().unwrap().iter().map(|refused| refused.failure.status).collect();
    assert_eq!(told, if field == 0x8001 { vec![status] } else { Vec::new() });
    node.stop().await;
}

#[tokio::test]
async fn a_store_without_a_data_set_is_refused_at_once() {
    let node = Node::start(AcceptorOptions::default(), &[]).await;
    let mut peer = RawPeer::associate(node.address, &ct_items()).await;
    let elements: &[(u16, &[u8])] = &[
        (0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x0100, &[1, 0]),
        (0x0110, &[5, 0]),
        (0x0800, &[1, 1]),
        (0x1000, b"1.2.3.4\0"),
    ];
    peer.send(&pdu(4, &pdv(1, 3, &command(elements)))).await;
    assert_eq!(command_number(&response(peer.receive().await), 0x0900), Some(status::MISTYPED_ARGUMENT));
    node.stop().await;
}

// --- the requestor against scripted acceptors ---

/// Answers one connection by a script and returns what it heard.
async fn scripted<F, T>(script: impl FnOnce(RawPeer) -> F + Send + 'static) -> (u16, JoinHandle<T>)
where
    F: Future<Output = T> + Send,
    T: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, tokio::spawn(async move { script(RawPeer(listener.accept().await.unwrap().0)).await }))
}

/// An A-ASSOCIATE-AC for the contexts of [`requestor`]: Verification in implicit, CT as given.
fn associate_ac(max_length: u32, ct_result: &[u8]) -> Vec<u8> {
    let accepted = |id: u8, uid: &[u8]| item(0x21, &[&[id, 0, 0, 0][..], &item(0x40, uid)].concat());
    let items = [
        application_context(),
        item(0x77, b"unknown"),
        accepted(1, IMPLICIT.as_bytes()),
        ct_result.to_vec(),
        user_information(max_length),
    ]
    .concat();
    let mut bytes = associate_rq(1, &items);
    bytes[0] = 2;
    bytes
}

fn ct_accepted() -> Vec<u8> {
    item(0x21, &[&[3, 0, 0, 0][..], &item(0x40, EXPLICIT.as_bytes())].concat())
}

fn quick(port: u16) -> AssociationRequestor {
    let limit = Duration::from_millis(300);
    requestor("TESTER", "PACS", port).with_timeouts(RequestorTimeouts { connect: limit, acse: limit, dimse: limit })
}

#[tokio::test]
async fn nobody_listening_is_said_with_a_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = quick(port).establish().await.err().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot connect to `PACS` at 127.0.0.1:{port}: connection refused; \
             check that the peer is running and listens on that port"
        )
    );
    assert!(error.is_transient());
}

#[rstest]
#[case([0, 1, 1, 3], false, "permanent, service user): calling AE title not recognized; the peer does not know our")]
#[case([0, 1, 1, 7], false, "does not answer to the called AE title `PACS`")]
#[case([0, 2, 3, 1], true, "temporary congestion")]
#[case([0, 1, 9, 99], false, "reserved reason 99 of source 9")]
#[tokio::test]
async fn every_rejection_has_words(#[case] codes: [u8; 4], #[case] is_transient: bool, #[case] words: &str) {
    let (port, script) = scripted(move |mut peer| async move {
        assert_eq!(peer.receive().await.unwrap().0, 1);
        peer.send(&pdu(3, &codes)).await;
        peer.receive().await
    })
    .await;
    let error = quick(port).establish().await.err().unwrap();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(error.is_transient(), is_transient);
    assert_eq!(script.await.unwrap(), None, "we close the connection");
}

#[tokio::test]
async fn a_peer_that_never_answers_is_aborted() {
    let (port, script) = scripted(|mut peer| async move {
        assert_eq!(peer.receive().await.unwrap().0, 1);
        peer.receive().await
    })
    .await;
    let error = quick(port).establish().await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "`PACS` does not answer the association request within 0.3 s; \
         check that a DICOM service listens on that port, without TLS"
    );
    assert_eq!(script.await.unwrap(), Some((7, vec![0, 0, 0, 0])));
}

#[tokio::test]
async fn a_context_that_is_not_accepted_is_named_with_its_answer() {
    // a refused context without the (insignificant) transfer syntax item, as some peers send it
    let (port, _script) = scripted(|mut peer| async move {
        peer.receive().await;
        peer.send(&associate_ac(0, &item(0x21, &[3, 0, 4, 0]))).await;
        assert_eq!(peer.receive().await.unwrap().0, 5);
        peer.send(&pdu(6, &[0; 4])).await;
        peer.receive().await
    })
    .await;
    let mut association = quick(port).establish().await.unwrap();
    assert!(!association.accepts(&Uid::new(CT).unwrap(), &Uid::new(EXPLICIT).unwrap()));
    let error = association.store(source(b"data")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "`PACS` accepts no presentation context for SOP class 1.2.840.10008.5.1.4.1.1.2 in transfer syntax \
         1.2.840.10008.1.2.1: proposed in 1.2.840.10008.1.2.1: transfer syntaxes not supported; \
         enable the SOP class and transfer syntax at the peer, or convert the object"
    );
    assert!(!error.is_transient());
    let mut unproposed = source(b"data");
    unproposed.sop_class_uid = Uid::new(uids::MR_IMAGE_STORAGE).unwrap();
    assert!(association.store(unproposed).await.unwrap_err().to_string().contains("we have not proposed it"));
    // such an error costs nothing
    association.release().await.unwrap();
}

#[rstest]
#[case::silence(vec![], "does not answer C-STORE within 0.3 s", vec![0, 0, 0, 0])]
#[case::wrong_message_id(
    pdu(4, &pdv(3, 3, &command(&[(0x100, &[1, 0x80]), (0x120, &[99, 0]), (0x800, &[1, 1]), (0x900, &[0, 0])]))),
    "answers no request", vec![0, 0, 2, 6])]
#[case::a_request(pdu(4, &pdv(3, 3, &echo_command(1))), "answers no request", vec![0, 0, 2, 6])]
#[case::oversize(vec![4, 0, 0, 1, 0, 1], "at most 65536 are allowed", vec![0, 0, 2, 6])]
#[tokio::test]
async fn bad_answers_to_a_store_end_the_association(
    #[case] answer: Vec<u8>,
    #[case] words: &str,
    #[case] abort: Vec<u8>,
) {
    let (port, script) = scripted(move |mut peer| async move {
        peer.receive().await;
        peer.send(&associate_ac(0, &ct_accepted())).await;
        assert_eq!(peer.receive().await.unwrap().1[5], 3, "the command");
        assert_eq!(peer.receive().await.unwrap().1[5], 2, "the data set");
        peer.send(&answer).await;
        peer.receive().await
    })
    .await;
    let mut association = quick(port).establish().await.unwrap();
    let error = association.store(source(b"data")).await.unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(script.await.unwrap(), Some((7, abort)));
    assert!(association.echo().await.is_err(), "the association is over");
}

#[tokio::test]
async fn pending_and_warning_statuses_and_comments_are_understood() {
    let answer = |status: u16| {
        let status = status.to_le_bytes();
        pdu(
            4,
            &pdv(
                3,
                3,
                &command(&[
                    (0x0100, &[1, 0x80]),
                    (0x0120, &[1, 0]),
                    (0x0800, &[1, 1]),
                    (0x0900, &status),
                    (0x0902, b"coerced "),
                ]),
            ),
        )
    };
    let (port, _script) = scripted(move |mut peer| async move {
        peer.receive().await;
        peer.send(&associate_ac(0, &ct_accepted())).await;
        peer.receive().await;
        peer.receive().await;
        peer.send(&[answer(0xFF00), answer(0xB000)].concat()).await;
        peer.receive().await
    })
    .await;
    let mut association = quick(port).establish().await.unwrap();
    let response = association.store(source(b"data")).await.unwrap();
    assert_eq!(response, StoreResponse { status: 0xB000, error_comment: Some("coerced".to_owned()) });
    association.abort().await;
}

#[tokio::test]
async fn a_source_that_ends_early_never_looks_complete() {
    let (port, script) = scripted(|mut peer| async move {
        peer.receive().await;
        peer.send(&associate_ac(10_000, &ct_accepted())).await;
        let mut last_fragment_seen = false;
        loop {
            match peer.receive().await {
                Some((4, body)) => last_fragment_seen |= body[5] == 2,
                end => return (last_fragment_seen, end),
            }
        }
    })
    .await;
    let mut association = quick(port).establish().await.unwrap();
    let data = object(200_000);
    let mut short = source(&data);
    short.length += 1;
    let error = association.store(short).await.unwrap_err();
    assert!(matches!(&error, RequestError::Source(error) if error.kind() == io::ErrorKind::UnexpectedEof), "{error}");
    assert_eq!(script.await.unwrap(), (false, Some((7, vec![0, 0, 0, 0]))));
}

#[tokio::test]
async fn a_peer_that_aborts_in_an_object_is_quoted() {
    let (port, _script) = scripted(|mut peer| async move {
        peer.receive().await;
        peer.send(&associate_ac(0, &ct_accepted())).await;
        peer.receive().await;
        peer.send(&pdu(7, &[0, 0, 2, 4])).await;
        // Reads on, so that our writes succeed and the abort is found where the response should be.
        while peer.receive().await.is_some() {}
    })
    .await;
    let mut association = quick(port).establish().await.unwrap();
    let error = association.store(source(&object(1_000_000))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the association with `PACS` ended during C-STORE: \
         aborted by the service provider: unrecognized PDU parameter"
    );
}

#[tokio::test]
async fn a_release_collision_ends_in_a_release() {
    let (port, script) = scripted(|mut peer| async move {
        peer.receive().await;
        peer.send(&associate_ac(0, &ct_accepted())).await;
        assert_eq!(peer.receive().await.unwrap().0, 5, "A-RELEASE-RQ");
        peer.send(&pdu(5, &[0; 4])).await;
        assert_eq!(peer.receive().await.unwrap().0, 6, "the requestor answers first");
        peer.send(&pdu(6, &[0; 4])).await;
        peer.receive().await
    })
    .await;
    quick(port).establish().await.unwrap().release().await.unwrap();
    assert_eq!(script.await.unwrap(), None);
}

#[tokio::test]
async fn contexts_are_counted_before_anything_is_sent() {
    let mut many = requestor("TESTER", "PACS", 1);
    for idx in 0..127 {
        many = many.propose(&format!("1.2.3.{idx}"), &[EXPLICIT]);
    }
    let error = many.establish().await.err().unwrap();
    assert!(error.to_string().starts_with("129 presentation contexts are proposed"), "{error}");
    // what has been proposed already is not proposed again
    let twice = requestor("TESTER", "HILUM", 1).propose(CT, &[EXPLICIT]).propose_verification();
    let node = Node::start(AcceptorOptions::default(), &[]).await;
    drop(twice);
    let association = node.requestor().propose(CT, &[EXPLICIT]).establish().await.unwrap();
    assert_eq!(association.contexts().len(), 2);
    association.release().await.unwrap();
    node.stop().await;
}

// --- framing ---

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Sends `data` through the P-DATA writer and returns the bytes on the wire.
async fn written(data: Vec<u8>, max_pdu_length: u32) -> Vec<u8> {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    let limits = PduLimits { max_association_bytes: 1000, max_p_data_bytes: 1000 };
    let mut layer = UpperLayer::established_for_test(Box::new(ours), limits);
    layer.send_from(5, false, &mut &data[..], data.len() as u64, max_pdu_length).await.unwrap();
    layer.finish_message().await.unwrap();
    drop(layer);
    reading.await.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn p_data_of_any_length_respects_any_maximum(length in 0usize..300_000, max_pdu_length in prop_oneof![
        Just(0u32), 8u32..64, 1018u32..70_000, Just(131_072), Just(u32::MAX)
    ]) {
        // Small maxima make many PDUs: keep the number of bytes in proportion.
        let length = if max_pdu_length > 0 && max_pdu_length < 1018 { length % 3000 } else { length };
        let data = object(length);
        let bytes = on_runtime(written(data.clone(), max_pdu_length));
        let limit = if max_pdu_length == 0 { 131_072 } else { max_pdu_length as usize };
        let mut joined = Vec::new();
        let mut rest = &bytes[..];
        let mut last_seen = false;
        while !rest.is_empty() {
            prop_assert!(!last_seen, "nothing follows the last fragment");
            prop_assert_eq!(&rest[..2], &[4, 0]);
            let pdu_length = u32::from_be_bytes(rest[2..6].try_into().unwrap()) as usize;
            prop_assert!(pdu_length <= limit, "{} > {}", pdu_length, limit);
            let pdv_length = u32::from_be_bytes(rest[6..10].try_into().unwrap()) as usize;
            prop_assert_eq!(pdv_length + 4, pdu_length);
            prop_assert_eq!(rest[10], 5);
            last_seen = rest[11] == 2;
            prop_assert!(last_seen || (rest[11] == 0 && pdv_length.is_multiple_of(2)), "inner fragments are even");
            joined.extend_from_slice(&rest[12..6 + pdu_length]);
            rest = &rest[6 + pdu_length..];
        }
        prop_assert!(last_seen);
        prop_assert!(joined == data);
    }

    #[test]
    fn pdus_survive_any_cut_of_the_stream(cuts in proptest::collection::vec(1usize..40, 1..30)) {
        let bytes = [
            associate_rq(1, &ct_items()),
            pdu(4, &[pdv(1, 3, &echo_command(1)), pdv(3, 2, &object(100))].concat()),
            pdu(5, &[0; 4]),
            pdu(7, &[0, 0, 2, 1]),
        ].concat();
        let names = on_runtime(async {
            let (ours, mut theirs) = tokio::io::duplex(7);
            let limits = PduLimits { max_association_bytes: 1000, max_p_data_bytes: 1000 };
            let mut pdus = PduStream::new(Box::new(ours), limits);
            let writing = tokio::spawn(async move {
                let mut rest = &bytes[..];
                for cut in cuts.iter().cycle() {
                    let (now, later) = rest.split_at((*cut).min(rest.len()));
                    theirs.write_all(now).await.unwrap();
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
            });
            let mut names = Vec::new();
            while let Ok(pdu) = pdus.receive().await {
                if let Pdu::Data(pdvs) = &pdu {
                    assert_eq!(pdvs.len(), 2);
                    assert_eq!(&pdvs[1].data[..], &object(100)[..]);
                }
                names.push(pdu.name());
            }
            writing.await.unwrap();
            names
        });
        prop_assert_eq!(names, ["A-ASSOCIATE-RQ", "P-DATA-TF", "A-RELEASE-RQ", "A-ABORT"]);
    }

    #[test]
    fn hostile_pdus_never_panic(pdu_type in 1u8..8, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = receive_one(&pdu(pdu_type, &body));
    }

    #[test]
    fn damaged_association_requests_never_panic(at in 0usize..10_000, byte: u8) {
        let mut bytes = associate_rq(1, &ct_items());
        let n_bytes = bytes.len();
        bytes[6 + at % (n_bytes - 6)] = byte;
        let _ = receive_one(&bytes);
    }
}

fn receive_one(bytes: &[u8]) -> bool {
    on_runtime(async {
        let (ours, mut theirs) = tokio::io::duplex(100_000);
        theirs.write_all(bytes).await.unwrap();
        drop(theirs);
        let limits = PduLimits { max_association_bytes: 100_000, max_p_data_bytes: 100_000 };
        PduStream::new(Box::new(ours), limits).receive().await.is_ok()
    })
}

#[test]
fn fragments_are_even_and_fit() {
    for (max_pdu_length, expected) in [
        (0, Some(131_066)),
        (7, None),
        (8, Some(2)),
        (9, Some(2)),
        (1018, Some(1012)),
        (16_384, Some(16_378)),
        (131_072, Some(131_066)),
        (u32::MAX, Some(131_066)),
    ] {
        assert_eq!(max_fragment_bytes(max_pdu_length), expected, "{max_pdu_length}");
    }
}
