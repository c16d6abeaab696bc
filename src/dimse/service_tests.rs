//! C-FIND and Storage Commitment against a scripted raw peer, and the room against itself.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use dicom_dictionary_std::{tags, uids};
use rstest::rstest;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    commitment::{COMMITMENT, COMMITMENT_INSTANCE},
    testing::{
        PATIENCE, RawPeer, application_context, associate_rq, command, command_number, item, pdu, pdv,
        proposed_context, user_information,
    },
    *,
};
use crate::types::{AeTitle, CommitmentReport, CommitmentRequest, FailureReason, SopReference, Uid};

const IMPLICIT: &str = uids::IMPLICIT_VR_LITTLE_ENDIAN;
const FIND: &str = uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND;

fn reference(number: usize) -> SopReference {
    SopReference {
        sop_class_uid: Uid::new(uids::CT_IMAGE_STORAGE).unwrap(),
        sop_instance_uid: Uid::new(&format!("1.2.{number}")).unwrap(),
    }
}

fn request(n_instances: usize) -> CommitmentRequest {
    CommitmentRequest {
        transaction_uid: Uid::new("2.25.7").unwrap(),
        instances: (0..n_instances).map(reference).collect(),
    }
}

fn report() -> CommitmentReport {
    CommitmentReport {
        transaction_uid: Uid::new("2.25.7").unwrap(),
        committed: vec![reference(1)],
        failed: vec![(reference(2), FailureReason::NO_SUCH_OBJECT_INSTANCE)],
    }
}

// --- an acceptor that keeps commitments ---

#[derive(Debug)]
enum Seen {
    Associated(uuid::Uuid),
    Asked(CommitmentRequest),
    Reported(CommitmentReport),
    Refused(RefusedOperation),
    Ended(EndReason),
}

/// Keeps everything but transaction 2.25.13, and panics at 2.25.666.
struct Keeper {
    seen: mpsc::Sender<Seen>,
}

impl Keeper {
    fn keep(&self, transaction_uid: &Uid, seen: Seen) -> Result<(), ServiceFailure> {
        match transaction_uid.as_str() {
            "2.25.13" => return Err(ServiceFailure::processing_failure("Postgres is away: try again later")),
            "2.25.666" => panic!("the handler of this test panics"),
            _ => {}
        }
        self.seen.try_send(seen).unwrap();
        Ok(())
    }
}

impl AssociationHandler for Keeper {
    type Association = ();

    async fn admit(&self, _: &AssociationRequest) -> Result<Admission, Rejection> {
        Ok(storage_policy().into())
    }

    fn rejected(&self, _: &AssociationRequest, _: &Rejection) {}

    fn not_established(&self, _: &NotEstablished) {}

    fn accepted(&self, request: &AssociationRequest, _: &NegotiationPolicy, _: &[NegotiatedContext]) {
        self.seen.try_send(Seen::Associated(request.association_id)).unwrap();
    }

    async fn store(&self, (): &mut (), _: StoreRequest, _: &mut DataSetStream<'_>) -> Result<(), StoreFailure> {
        Err(StoreFailure::processing_failure("nothing is stored here"))
    }

    async fn commit(&self, (): &mut (), request: CommitmentRequest) -> Result<(), ServiceFailure> {
        self.keep(&request.transaction_uid.clone(), Seen::Asked(request))
    }

    async fn commitment_reported(&self, (): &mut (), report: CommitmentReport) -> Result<(), ServiceFailure> {
        self.keep(&report.transaction_uid.clone(), Seen::Reported(report))
    }

    fn operation_refused(&self, (): &(), refused: &RefusedOperation) {
        self.seen.try_send(Seen::Refused(refused.clone())).unwrap();
    }

    fn ended(&self, (): (), end: AssociationEnd) {
        self.seen.try_send(Seen::Ended(end.reason)).unwrap();
    }
}

struct Node {
    address: SocketAddr,
    open: OpenAssociations,
    seen: mpsc::Receiver<Seen>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        let (sender, seen) = mpsc::channel(100);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = Acceptor::new(listener, AcceptorOptions::default(), Arc::new(Keeper { seen: sender }));
        let (address, open) = (acceptor.local_address().unwrap(), acceptor.open_associations());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(acceptor.run(shutdown.clone()));
        Self { address, open, seen, shutdown, running }
    }

    async fn next(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("nothing happens").unwrap()
    }

    async fn associated(&mut self) -> uuid::Uuid {
        match self.next().await {
            Seen::Associated(id) => id,
            other => panic!("{other:?}"),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.running).await.expect("the acceptor does not stop").unwrap();
    }
}

fn requestor(port: u16) -> AssociationRequestor {
    AssociationRequestor::new(AeTitle::new("TESTER").unwrap(), AeTitle::new("PACS").unwrap(), "127.0.0.1", port)
}

fn quick(port: u16) -> AssociationRequestor {
    let limit = Duration::from_secs(3);
    requestor(port).with_timeouts(RequestorTimeouts { connect: PATIENCE, acse: PATIENCE, dimse: limit })
}

#[tokio::test]
async fn a_request_is_kept_and_its_report_comes_on_the_same_association() {
    let mut node = Node::start().await;
    let mut association = requestor(node.address.port()).propose_commitment().establish().await.unwrap();
    let id = node.associated().await;
    let response = association.request_commitment(&request(3000)).await.unwrap();
    assert_eq!(response, CommitmentResponse { status: status::SUCCESS, error_comment: None });
    let Seen::Asked(asked) = node.next().await else { panic!() };
    assert_eq!(asked, request(3000));
    assert!(node.open.contains(id));

    assert!(association.next_report(Duration::from_millis(20)).await.unwrap().is_none(), "nothing is there yet");
    let open = node.open.clone();
    let reporting = tokio::spawn(async move { open.report(id, report(), PATIENCE).await });
    let received = association.next_report(PATIENCE).await.unwrap().expect("a report");
    assert_eq!(received.read().unwrap(), &report());
    association.answer_report(received, Ok(())).await.unwrap();
    assert_eq!(reporting.await.unwrap().map(|response| response.status), Some(status::SUCCESS));

    // a refused report is heard as such, and the association goes on
    let open = node.open.clone();
    let reporting = tokio::spawn(async move { open.report(id, report(), PATIENCE).await });
    let received = association.next_report(PATIENCE).await.unwrap().expect("a report");
    association.answer_report(received, Err(ServiceFailure::new(0x0115, "not mine"))).await.unwrap();
    let response = reporting.await.unwrap().unwrap();
    assert_eq!((response.status, response.error_comment.as_deref()), (0x0115, Some("not mine")));
    assert_eq!(association.request_commitment(&request(1)).await.unwrap().status, status::SUCCESS);

    association.release().await.unwrap();
    while !matches!(node.next().await, Seen::Ended(EndReason::Released)) {}
    assert!(!node.open.contains(id), "an ended association takes no report");
    assert_eq!(node.open.report(id, report(), PATIENCE).await, None);
    node.stop().await;
}

#[tokio::test]
async fn a_report_crosses_a_request_and_nothing_is_lost() {
    let mut node = Node::start().await;
    let mut association = requestor(node.address.port()).propose_commitment().establish().await.unwrap();
    let id = node.associated().await;
    let open = node.open.clone();
    let reporting = tokio::spawn(async move { open.report(id, report(), PATIENCE).await });
    // The report is on the wire before we ask: it comes where the answer to N-ACTION should be.
    timeout(PATIENCE, association.messages.wait()).await.unwrap().unwrap();
    assert_eq!(association.request_commitment(&request(2)).await.unwrap().status, status::SUCCESS);
    let received = association.next_report(PATIENCE).await.unwrap().expect("the report was kept");
    association.answer_report(received, Ok(())).await.unwrap();
    assert_eq!(reporting.await.unwrap().map(|response| response.status), Some(status::SUCCESS));
    association.release().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_peer_that_leaves_does_not_keep_the_reporter_waiting() {
    let mut node = Node::start().await;
    let association = requestor(node.address.port()).propose_commitment().establish().await.unwrap();
    let id = node.associated().await;
    let open = node.open.clone();
    let reporting = tokio::spawn(async move { open.report(id, report(), PATIENCE * 10).await });
    drop(association);
    assert_eq!(timeout(PATIENCE, reporting).await.expect("it waits for ever").unwrap(), None);
    node.stop().await;
}

#[tokio::test]
async fn our_report_on_a_new_association_has_the_roles_turned_round() {
    let mut node = Node::start().await;
    let mut association = requestor(node.address.port()).propose_commitment_report().establish().await.unwrap();
    assert!(association.scp_role_refused.is_empty());
    node.associated().await;
    assert_eq!(association.report_commitment(&report()).await.unwrap().status, status::SUCCESS);
    let Seen::Reported(reported) = node.next().await else { panic!() };
    assert_eq!(reported, report());
    let unknown = CommitmentReport { transaction_uid: Uid::new("2.25.13").unwrap(), ..report() };
    let response = association.report_commitment(&unknown).await.unwrap();
    assert_eq!(response.error_comment.as_deref(), Some("Postgres is away: try again later"));
    association.release().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_handler_that_refuses_or_panics_is_answered() {
    let mut node = Node::start().await;
    let mut association = requestor(node.address.port()).propose_commitment().establish().await.unwrap();
    node.associated().await;
    let of = |uid: &str| CommitmentRequest { transaction_uid: Uid::new(uid).unwrap(), ..request(1) };
    let response = association.request_commitment(&of("2.25.13")).await.unwrap();
    assert_eq!(response.status, status::PROCESSING_FAILURE);
    assert_eq!(response.error_comment.as_deref(), Some("Postgres is away: try again later"));
    assert_eq!(association.request_commitment(&of("2.25.666")).await.unwrap().status, status::PROCESSING_FAILURE);
    for comment in ["Postgres is away: try again later", "internal error"] {
        let Seen::Refused(refused) = node.next().await else { panic!("nobody hears of it") };
        assert_eq!((&*refused.operation, refused.sop_class_uid.as_str()), ("N-ACTION", COMMITMENT));
        assert_eq!(refused.failure.comment, comment);
    }
    assert!(matches!(node.next().await, Seen::Ended(EndReason::HandlerFailed)));
    node.stop().await;
}

// --- a peer that says wrong things to the acceptor ---

fn commitment_items() -> Vec<u8> {
    [
        application_context(),
        proposed_context(1, COMMITMENT, &[IMPLICIT]),
        proposed_context(3, uids::VERIFICATION, &[IMPLICIT]),
        user_information(0),
    ]
    .concat()
}

fn padded(uid: &str) -> Vec<u8> {
    let mut bytes = uid.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes
}

fn action(class: &str, instance: &str, action: u8, data_set_type: u8) -> Vec<u8> {
    command(&[
        (0x0003, &padded(class)),
        (0x0100, &[0x30, 1]),
        (0x0110, &[5, 0]),
        (0x0800, &[data_set_type, 1]),
        (0x1001, &padded(instance)),
        (0x1008, &[action, 0]),
    ])
}

fn event(event: u8) -> Vec<u8> {
    command(&[
        (0x0002, &padded(COMMITMENT)),
        (0x0100, &[0, 1]),
        (0x0110, &[5, 0]),
        (0x0800, &[0, 0]),
        (0x1000, &padded(COMMITMENT_INSTANCE)),
        (0x1002, &[event, 0]),
    ])
}

/// The command of a P-DATA-TF with one PDV.
fn heard(pdu: Option<(u8, Vec<u8>)>) -> Vec<u8> {
    let (pdu_type, body) = pdu.expect("a response");
    assert_eq!(pdu_type, 4, "P-DATA-TF");
    body[6..].to_vec()
}

const NO_LIST: &[u8] = b"";
const TRANSACTION_ONLY: &[u8] = &[8, 0, 0x95, 0x11, 4, 0, 0, 0, b'1', b'.', b'2', 0];

#[rstest]
#[case::another_class(1, action("1.2.3", COMMITMENT_INSTANCE, 1, 0), TRANSACTION_ONLY, 0x8130, 0x0118, "N-ACTION")]
#[case::wrong_context(3, action(COMMITMENT, COMMITMENT_INSTANCE, 1, 0), TRANSACTION_ONLY, 0x8130, 0x0118, "N-ACTION")]
#[case::another_instance(1, action(COMMITMENT, "1.2.3", 1, 0), TRANSACTION_ONLY, 0x8130, 0x0112, "N-ACTION")]
#[case::another_action(1, action(COMMITMENT, COMMITMENT_INSTANCE, 7, 0), TRANSACTION_ONLY, 0x8130, 0x0123, "N-ACTION")]
#[case::no_list(1, action(COMMITMENT, COMMITMENT_INSTANCE, 1, 0), TRANSACTION_ONLY, 0x8130, 0x0115, "N-ACTION")]
#[case::empty(1, action(COMMITMENT, COMMITMENT_INSTANCE, 1, 0), NO_LIST, 0x8130, 0x0115, "N-ACTION")]
#[case::garbage(1, action(COMMITMENT, COMMITMENT_INSTANCE, 1, 0), b"garbage!", 0x8130, 0x0115, "N-ACTION")]
#[case::another_event(1, event(3), TRANSACTION_ONLY, 0x8100, 0x0113, "N-EVENT-REPORT")]
#[case::report_on_the_wrong_context(3, event(1), TRANSACTION_ONLY, 0x8100, 0x0118, "N-EVENT-REPORT")]
#[case::find_here(1, command(&[(0x0100, &[0x20, 0]), (0x0110, &[5, 0]), (0x0800, &[0, 0])]), b"xx", 0x8020, 0x0211, "C-FIND")]
#[case::n_get(1, command(&[(0x0100, &[0x10, 1]), (0x0110, &[5, 0]), (0x0800, &[0, 0])]), b"xx", 0x8110, 0x0211, "N-GET")]
#[tokio::test]
async fn wrong_requests_are_refused_with_a_status_and_the_association_goes_on(
    #[case] context_id: u8,
    #[case] command_set: Vec<u8>,
    #[case] data_set: &[u8],
    #[case] field: u16,
    #[case] status: u16,
    #[case] operation: &str,
) {
    let mut node = Node::start().await;
    let mut peer = RawPeer::associate(node.address, &commitment_items()).await;
    peer.send(&pdu(4, &[pdv(context_id, 3, &command_set), pdv(context_id, 2, data_set)].concat())).await;
    let answer = heard(peer.receive().await);
    assert_eq!(command_number(&answer, 0x0100), Some(field));
    assert_eq!(command_number(&answer, 0x0120), Some(5));
    assert_eq!(command_number(&answer, 0x0900), Some(status));
    node.associated().await;
    let Seen::Refused(refused) = node.next().await else { panic!("nobody hears of it") };
    assert_eq!((&*refused.operation, refused.failure.status), (operation, status));
    peer.send(&pdu(5, &[0; 4])).await;
    assert_eq!(peer.receive().await, Some((6, vec![0; 4])));
    node.stop().await;
}

#[tokio::test]
async fn an_action_without_a_data_set_is_refused_at_once_and_a_list_without_end_is_not_held() {
    let node = Node::start().await;
    let mut peer = RawPeer::associate(node.address, &commitment_items()).await;
    peer.send(&pdu(4, &pdv(1, 3, &action(COMMITMENT, COMMITMENT_INSTANCE, 1, 1)))).await;
    assert_eq!(command_number(&heard(peer.receive().await), 0x0900), Some(0x0212));
    peer.send(&pdu(4, &pdv(1, 3, &action(COMMITMENT, COMMITMENT_INSTANCE, 1, 0)))).await;
    for _ in 0..50 {
        peer.send(&pdu(4, &pdv(1, 0, &vec![0; 100_000]))).await;
    }
    peer.send(&pdu(4, &pdv(1, 2, &[]))).await;
    assert_eq!(command_number(&heard(peer.receive().await), 0x0900), Some(0x0213));
    node.stop().await;
}

/// Responses that answer no report of ours, or another one.
#[rstest]
#[case::never_sent(false, 0x8100, 1)]
#[case::other_message_id(true, 0x8100, 9)]
#[case::other_operation(true, 0x8130, 1)]
#[tokio::test]
async fn a_response_to_nothing_ends_the_association(#[case] is_reported: bool, #[case] field: u16, #[case] id: u8) {
    let mut node = Node::start().await;
    let mut peer = RawPeer::associate(node.address, &commitment_items()).await;
    let association_id = node.associated().await;
    let reporting = is_reported.then(|| {
        let open = node.open.clone();
        tokio::spawn(async move { open.report(association_id, report(), PATIENCE).await })
    });
    if is_reported {
        assert_eq!(command_number(&heard(peer.receive().await), 0x0100), Some(0x0100));
        assert_eq!(peer.receive().await.expect("the lists").0, 4);
    }
    let response = command(&[(0x0100, &field.to_le_bytes()), (0x0120, &[id, 0]), (0x0800, &[1, 1]), (0x0900, &[0, 0])]);
    peer.send(&pdu(4, &pdv(1, 3, &response))).await;
    peer.expect_abort(2, 6).await;
    if let Some(reporting) = reporting {
        assert_eq!(timeout(PATIENCE, reporting).await.unwrap().unwrap(), None);
    }
    node.stop().await;
}

// --- the requestor against scripted acceptors ---

async fn scripted<F, T>(script: impl FnOnce(RawPeer) -> F + Send + 'static) -> (u16, JoinHandle<T>)
where
    F: Future<Output = T> + Send,
    T: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, tokio::spawn(async move { script(RawPeer(listener.accept().await.unwrap().0)).await }))
}

/// Accepts context 1 in implicit, with these user items.
async fn accept(peer: &mut RawPeer, user_items: &[u8]) {
    assert_eq!(peer.receive().await.expect("a request").0, 1);
    let result = item(0x21, &[&[1, 0, 0, 0][..], &item(0x40, IMPLICIT.as_bytes())].concat());
    let user = [item(0x51, &[0; 4]), item(0x52, b"1.2.3.4"), user_items.to_vec()].concat();
    let mut bytes = associate_rq(1, &[application_context(), result, item(0x50, &user)].concat());
    bytes[0] = 2;
    peer.send(&bytes).await;
}

/// A C-FIND-RSP to message 1.
fn found(status: u16, identifier: Option<&[u8]>) -> Vec<u8> {
    let command_set = command(&[
        (0x0100, &[0x20, 0x80]),
        (0x0120, &[1, 0]),
        (0x0800, if identifier.is_some() { &[0, 0] } else { &[1, 1] }),
        (0x0900, &status.to_le_bytes()),
    ]);
    let data_set = identifier.map(|bytes| pdu(4, &pdv(1, 2, bytes))).unwrap_or_default();
    [pdu(4, &pdv(1, 3, &command_set)), data_set].concat()
}

fn study(uid: &str, instances: &str) -> Vec<u8> {
    let element = |tag: [u8; 4], value: &[u8]| [&tag[..], &(value.len() as u32).to_le_bytes(), value].concat();
    [element([0x20, 0, 0x0D, 0], &padded(uid)), element([0x20, 0, 0x08, 0x12], instances.as_bytes())].concat()
}

/// The message id that a C-FIND-RQ has, after its identifier was read.
async fn asked(peer: &mut RawPeer) -> Option<u16> {
    let command_set = heard(peer.receive().await);
    assert_eq!(command_number(&command_set, 0x0100), Some(0x0020));
    assert_eq!(peer.receive().await.expect("an identifier").0, 4);
    command_number(&command_set, 0x0110)
}

fn query() -> FindQuery {
    FindQuery::new(QueryLevel::Study).matching(tags::PATIENT_ID, "7").returning(tags::STUDY_INSTANCE_UID)
}

#[tokio::test]
async fn matches_arrive_one_after_the_other() {
    let (port, script) = scripted(|mut peer| async move {
        accept(&mut peer, &[]).await;
        assert_eq!(asked(&mut peer).await, Some(1));
        peer.send(&found(0xFF00, Some(&study("1.2.1", "12")))).await;
        peer.send(&found(0xFF01, Some(&study("1.2.2", "")))).await;
        peer.send(&found(0, None)).await;
        assert_eq!(peer.receive().await.expect("a release").0, 5);
        peer.send(&pdu(6, &[0; 4])).await;
    })
    .await;
    let mut association = requestor(port).propose_find().establish().await.unwrap();
    let mut matches = association.find(&query(), FindLimits::default()).await.unwrap();
    let first = matches.next().await.unwrap().unwrap();
    assert_eq!(first.text(tags::STUDY_INSTANCE_UID), Some("1.2.1"));
    assert_eq!(first.count(tags::NUMBER_OF_STUDY_RELATED_INSTANCES), Some(12));
    assert!(matches.end().is_none());
    let second = matches.next().await.unwrap().unwrap();
    assert_eq!(second.text(tags::NUMBER_OF_STUDY_RELATED_INSTANCES), None);
    assert!(matches.next().await.unwrap().is_none());
    assert!(matches.next().await.unwrap().is_none(), "the end stays the end");
    let end = FindEnd { status: 0, error_comment: None, limit_reached: false };
    assert_eq!(matches.end(), Some(&end));
    association.release().await.unwrap();
    script.await.unwrap();
}

/// Sends pending responses until C-CANCEL comes, then the final one.
async fn endless(mut peer: RawPeer) -> u64 {
    accept(&mut peer, &[]).await;
    asked(&mut peer).await;
    let mut n_sent = 0;
    loop {
        peer.send(&found(0xFF00, Some(&study("1.2.1", "12")))).await;
        n_sent += 1;
        if let Ok(Some((4, body))) = timeout(Duration::from_millis(1), peer.receive()).await {
            assert_eq!(command_number(&body[6..], 0x0100), Some(0x0FFF), "C-CANCEL-RQ");
            assert_eq!(command_number(&body[6..], 0x0120), Some(1));
            break;
        }
    }
    peer.send(&found(0xFE00, None)).await;
    peer.receive().await;
    n_sent
}

#[rstest]
#[case::number(FindLimits { max_matches: 5, ..FindLimits::default() }, 5)]
#[case::bytes(FindLimits { max_bytes: 100, ..FindLimits::default() }, 4)]
#[tokio::test]
async fn an_endless_answer_is_cancelled(#[case] limits: FindLimits, #[case] n_expected: usize) {
    let (port, script) = scripted(endless).await;
    let mut association = requestor(port).propose_find().establish().await.unwrap();
    let mut matches = association.find(&query(), limits).await.unwrap();
    let mut n_matches = 0;
    while matches.next().await.unwrap().is_some() {
        n_matches += 1;
    }
    assert_eq!(n_matches, n_expected);
    assert_eq!(matches.end(), Some(&FindEnd { status: 0xFE00, error_comment: None, limit_reached: true }));
    association.abort().await;
    assert!(script.await.unwrap() > n_expected as u64);
}

#[tokio::test]
async fn a_person_may_cancel() {
    let (port, script) = scripted(endless).await;
    let mut association = requestor(port).propose_find().establish().await.unwrap();
    let mut matches = association.find(&query(), FindLimits::default()).await.unwrap();
    assert!(matches.next().await.unwrap().is_some());
    let end = matches.cancel().await.unwrap();
    assert_eq!(end, FindEnd { status: 0xFE00, error_comment: None, limit_reached: false });
    association.abort().await;
    script.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_ignores_the_cancel_is_aborted() {
    let (port, script) = scripted(|mut peer| async move {
        accept(&mut peer, &[]).await;
        asked(&mut peer).await;
        peer.send(&found(0xFF00, Some(&study("1.2.1", "12")))).await;
        assert_eq!(command_number(&heard(peer.receive().await), 0x0100), Some(0x0FFF));
        peer.receive().await
    })
    .await;
    let mut association = quick(port).propose_find().establish().await.unwrap();
    let mut matches = association.find(&query(), FindLimits::default()).await.unwrap();
    assert!(matches.next().await.unwrap().is_some());
    let error = matches.cancel().await.unwrap_err();
    assert!(matches!(error, RequestError::TimedOut { .. }), "{error}");
    assert_eq!(script.await.unwrap(), Some((7, vec![0; 4])));
}

/// Wrong answers to a C-FIND, and our words.
#[rstest]
#[case::pending_without_identifier(found(0xFF00, None), "pending response without an identifier")]
#[case::broken_identifier(found(0xFF00, Some(b"\x08\0\x05\0\xFF\xFF\0\0")), "longer than what holds it")]
#[case::long_identifier(found(0xFF00, Some(&vec![0; 60_000])), "an identifier of more than 50000 bytes")]
#[case::other_message_id(
    pdu(4, &pdv(1, 3, &command(&[(0x0100, &[0x20, 0x80]), (0x0120, &[2, 0]), (0x0800, &[1, 1]), (0x0900, &[0, 0])]))),
    "answers no request")]
#[case::other_operation(
    pdu(4, &pdv(1, 3, &command(&[(0x0100, &[1, 0x80]), (0x0120, &[1, 0]), (0x0800, &[1, 1]), (0x0900, &[0, 0])]))),
    "answers no request")]
#[case::data_first(pdu(4, &pdv(1, 2, b"xx")), "data where a command must be")]
#[case::cut_off([found(0xFF00, Some(b"")), found(0xFF00, Some(b""))].concat()[..90].to_vec(), "closed")]
#[case::gone(Vec::new(), "closed the connection")]
#[tokio::test]
async fn wrong_answers_to_a_query_end_the_association(#[case] answer: Vec<u8>, #[case] words: &str) {
    let is_closing = words.contains("closed");
    let (port, script) = scripted(move |mut peer| async move {
        accept(&mut peer, &[]).await;
        asked(&mut peer).await;
        peer.send(&answer).await;
        if is_closing {
            return;
        }
        assert_eq!(peer.receive().await.expect("an abort").0, 7);
    })
    .await;
    let limits = FindLimits { max_identifier_bytes: 50_000, ..FindLimits::default() };
    let mut association = requestor(port).propose_find().establish().await.unwrap();
    let mut matches = association.find(&query(), limits).await.unwrap();
    let error = loop {
        match matches.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the query should fail: {words}"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains(words), "{error}");
    script.await.unwrap();
}

/// Answers a list of queries, each with some identifiers.
async fn archive(mut peer: RawPeer, answers: Vec<(u16, Vec<Vec<u8>>)>) {
    accept(&mut peer, &[]).await;
    for (message_id, (status, identifiers)) in (1_u16..).zip(answers) {
        assert_eq!(asked(&mut peer).await, Some(message_id));
        let numbered = |mut bytes: Vec<u8>| {
            // the message id that is responded to, as `found` writes it
            let at = bytes.windows(8).position(|window| window == [0, 0, 0x20, 1, 2, 0, 0, 0]).expect("it is there");
            bytes[at + 8] = message_id as u8;
            bytes
        };
        for identifier in identifiers {
            peer.send(&numbered(found(0xFF00, Some(&identifier)))).await;
        }
        peer.send(&numbered(found(status, None))).await;
    }
    assert_eq!(peer.receive().await.expect("a release").0, 5);
    peer.send(&pdu(6, &[0; 4])).await;
}

fn series(uid: &str, instances: &str) -> Vec<u8> {
    let element = |tag: [u8; 4], value: &[u8]| [&tag[..], &(value.len() as u32).to_le_bytes(), value].concat();
    [element([0x20, 0, 0x0E, 0], &padded(uid)), element([0x20, 0, 0x09, 0x12], instances.as_bytes())].concat()
}

#[rstest]
#[case::study_level(vec![(0, vec![study("1.2.1", "12")])], Some((12, CountSource::Study)))]
#[case::unknown(vec![(0, vec![])], None)]
#[case::another_study(vec![(0, vec![study("9.9", "12")])], None)]
#[case::series_level(
    vec![(0, vec![study("1.2.1", "")]), (0, vec![series("1.3", "5 "), series("1.4", "7 ")])],
    Some((12, CountSource::Series)))]
#[case::image_level(
    vec![(0, vec![study("1.2.1", "")]), (0, vec![series("1.3", "5 "), series("1.4", "")]),
         (0, vec![b"".to_vec(), b"".to_vec()]), (0, vec![b"".to_vec()])],
    Some((3, CountSource::Image)))]
#[tokio::test]
async fn instances_are_counted_at_the_level_that_the_peer_can(
    #[case] answers: Vec<(u16, Vec<Vec<u8>>)>,
    #[case] expected: Option<(u64, CountSource)>,
) {
    let (port, script) = scripted(move |peer| archive(peer, answers)).await;
    let counted = count_study_instances(requestor(port), &Uid::new("1.2.1").unwrap()).await.unwrap();
    assert_eq!(counted.map(|count| (count.instances, count.source)), expected);
    script.await.unwrap();
}

#[tokio::test]
async fn a_refused_count_is_told_with_its_status() {
    let (port, script) = scripted(move |peer| archive(peer, vec![(0xA700, vec![])])).await;
    let error = count_study_instances(requestor(port), &Uid::new("1.2.1").unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "`PACS` answers C-FIND with 0xA700 (refused: out of resources); look into its log");
    script.await.unwrap();
}

#[tokio::test]
async fn a_query_that_was_not_accepted_names_the_context() {
    let node = Node::start().await;
    let mut association = requestor(node.address.port()).propose_find().establish().await.unwrap();
    let error = association.find(&query(), FindLimits::default()).await.err().unwrap();
    assert!(
        matches!(&error, RequestError::NoContext { sop_class_uid, .. } if sop_class_uid.as_str() == FIND),
        "{error}"
    );
    association.release().await.unwrap();
    node.stop().await;
}

fn role_answer(scp: u8) -> Vec<u8> {
    let length = (COMMITMENT.len() as u16).to_be_bytes();
    item(0x54, &[&length[..], COMMITMENT.as_bytes(), &[0, scp]].concat())
}

#[rstest]
#[case::granted(role_answer(1), true)]
#[case::not_answered(Vec::new(), true)]
#[case::refused(role_answer(0), false)]
#[tokio::test]
async fn a_report_needs_the_role_unless_the_peer_says_nothing_of_it(#[case] role: Vec<u8>, #[case] is_told: bool) {
    let (port, script) = scripted(move |mut peer| async move {
        accept(&mut peer, &role).await;
        let (pdu_type, body) = peer.receive().await.expect("a message");
        if !is_told {
            return assert_eq!(pdu_type, 7);
        }
        assert_eq!(command_number(&body[6..], 0x1002), Some(2), "failures exist");
        peer.receive().await;
        let answer = command(&[(0x0100, &[0, 0x81]), (0x0120, &[1, 0]), (0x0800, &[1, 1]), (0x0900, &[0, 0])]);
        peer.send(&pdu(4, &pdv(1, 3, &answer))).await;
        peer.receive().await;
    })
    .await;
    let mut association = requestor(port).propose_commitment_report().establish().await.unwrap();
    match association.report_commitment(&report()).await {
        Ok(response) => assert!(is_told && response.status == status::SUCCESS),
        Err(error) => {
            assert!(!is_told && matches!(error, RequestError::RoleRefused { .. }), "{error}");
            assert!(error.to_string().contains("role of SCP"), "{error}");
        }
    }
    association.abort().await;
    script.await.unwrap();
}
