//! The room over TLS: certificates that are right and every way in which they are wrong, in both roles.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rstest::rstest;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    testing::{PATIENCE, RawPeer, application_context, associate_rq, proposed_context, user_information},
    *,
};
use crate::{
    tls::{
        ExpectedServer, TlsMaterial,
        testing::{Ca, Signed, write},
    },
    types::{AeTitle, Sha256Digest, Uid},
};

/// Admits everybody that does not come without TLS to the port for TLS, and tells what happens.
struct Watcher {
    seen: mpsc::Sender<Seen>,
    quotas: Vec<Quota>,
}

#[derive(Debug)]
enum Seen {
    Accepted(Box<AssociationRequest>),
    Rejected(Rejection),
    Failed(Box<NotEstablished>),
    Other,
}

impl AssociationHandler for Watcher {
    type Association = ();

    async fn admit(&self, request: &AssociationRequest) -> Result<Admission, Rejection> {
        if request.security == Security::PlainOnTlsPort {
            return Err(Rejection::not_authorized("TLS", "none", "turn it on"));
        }
        Ok(Admission {
            quotas: self.quotas.clone(),
            identity_accepted: request.user_identity.is_some(),
            max_pdu_length: Some(20_000),
            ..storage_policy().into()
        })
    }

    fn rejected(&self, _: &AssociationRequest, rejection: &Rejection) {
        self.seen.try_send(Seen::Rejected(rejection.clone())).unwrap();
    }

    fn not_established(&self, failure: &NotEstablished) {
        self.seen.try_send(Seen::Failed(Box::new(failure.clone()))).unwrap();
    }

    fn accepted(&self, request: &AssociationRequest, _: &NegotiationPolicy, _: &[NegotiatedContext]) {
        self.seen.try_send(Seen::Accepted(Box::new(request.clone()))).unwrap();
    }

    async fn store(&self, (): &mut (), _: StoreRequest, data: &mut DataSetStream<'_>) -> Result<(), StoreFailure> {
        while data.next().await?.is_some() {}
        Ok(())
    }

    fn ended(&self, (): (), _: AssociationEnd) {
        self.seen.try_send(Seen::Other).unwrap();
    }
}

/// An acceptor with a plain port and one for TLS.
struct Node {
    plain_port: u16,
    tls_port: u16,
    seen: mpsc::Receiver<Seen>,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    /// How often a handshake asked for the configuration.
    n_handshakes: Arc<AtomicUsize>,
}

impl Node {
    async fn start(material: TlsMaterial, options: AcceptorOptions, quotas: Vec<Quota>) -> Self {
        let (sender, seen) = mpsc::channel(1000);
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (plain_port, tls_port) = (plain.local_addr().unwrap().port(), tls.local_addr().unwrap().port());
        let n_handshakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&n_handshakes);
        let config = material.server().unwrap();
        let acceptor = Acceptor::new(plain, options, Arc::new(Watcher { seen: sender, quotas })).with_tls(
            tls,
            Arc::new(move || {
                counter.fetch_add(1, Ordering::SeqCst);
                Arc::clone(&config)
            }),
        );
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(acceptor.run(shutdown.clone()));
        Self { plain_port, tls_port, seen, shutdown, running, n_handshakes }
    }

    async fn next(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("nothing happens").unwrap()
    }

    async fn failure(&mut self) -> NotEstablished {
        match self.next().await {
            Seen::Failed(failure) => *failure,
            other => panic!("{other:?}"),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.running).await.expect("the acceptor does not stop").unwrap();
    }
}

fn material(ca: &Ca, own: &Signed) -> TlsMaterial {
    let folder = tempfile::tempdir().unwrap();
    TlsMaterial::load(&write(folder.path(), ca, own)).unwrap()
}

/// A node whose certificate is for `localhost`.
async fn node(ca: &Ca) -> Node {
    let own = ca.sign("hilum", &["localhost", "127.0.0.1"]);
    Node::start(material(ca, &own), AcceptorOptions::default(), Vec::new()).await
}

fn requestor(port: u16, tls: Option<TlsClient>) -> AssociationRequestor {
    let title = |text| AeTitle::new(text).unwrap();
    AssociationRequestor::new(title("CT01"), title("HILUM"), "127.0.0.1", port)
        .with_timeouts(RequestorTimeouts { connect: PATIENCE, acse: PATIENCE, dimse: PATIENCE })
        .with_tls(tls)
        .propose_verification()
}

#[expect(clippy::unnecessary_wraps, reason = "it is what the requestor takes")]
fn client(material: &TlsMaterial, expected: ExpectedServer) -> Option<TlsClient> {
    Some(TlsClient { config: material.client(expected).unwrap() })
}

async fn fails(requestor: AssociationRequestor) -> String {
    requestor.establish().await.err().expect("an association that must not be").to_string()
}

#[tokio::test]
async fn an_association_over_tls_brings_the_callers_certificate() {
    let ca = Ca::new("CA");
    let mut node = node(&ca).await;
    let own = ca.sign("ct-1", &["ct-1.example.org"]);
    let tls = client(&material(&ca, &own), ExpectedServer::default());
    let mut association = requestor(node.tls_port, tls.clone()).establish().await.unwrap();
    assert_eq!(association.echo().await.unwrap(), status::SUCCESS);
    assert_eq!(association.peer().max_pdu_length, 20_000, "the policy's length is announced");
    let Seen::Accepted(request) = node.next().await else { panic!() };
    assert_eq!(request.security, Security::Tls { peer_certificate: Some(own.der.clone()) });
    association.release().await.unwrap();
    // A second call proves itself anew: nothing is resumed.
    requestor(node.tls_port, tls).establish().await.unwrap().release().await.unwrap();
    assert_eq!(node.n_handshakes.load(Ordering::SeqCst), 2);
    // The plain port goes on beside it.
    requestor(node.plain_port, None).establish().await.unwrap().release().await.unwrap();
    node.stop().await;
}

/// The caller's certificate: its CA is ours or not, and it ends so many days from now.
#[rstest]
#[case::expired(true, -1, "has expired", "renew")]
#[case::wrong_ca(false, 100, "a CA that is not trusted", "tls.ca_files")]
#[tokio::test]
async fn a_caller_with_a_bad_certificate_is_refused_in_words(
    #[case] right_ca: bool,
    #[case] days: i64,
    #[case] received: &str,
    #[case] remedy: &str,
) {
    let (ca, other) = (Ca::new("CA"), Ca::new("another CA"));
    let mut node = node(&ca).await;
    let own = if right_ca { &ca } else { &other }.sign_for("ct-1", &["ct-1"], days);
    let folder = tempfile::tempdir().unwrap();
    // It trusts the node's CA in either case.
    let caller = TlsMaterial::load(&write(folder.path(), &ca, &own)).unwrap();
    let error = fails(requestor(node.tls_port, client(&caller, ExpectedServer::default()))).await;
    assert!(error.contains("HILUM"), "{error}");
    let failure = node.failure().await;
    assert_eq!(failure.step, FailedStep::Tls);
    let words = failure.reason.to_string();
    assert!(words.contains(received), "{words}");
    assert!(failure.expected.contains("trusted CA") && failure.remedy.contains(remedy), "{failure:?}");
    node.stop().await;
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused_unless_it_may() {
    let ca = Ca::new("CA");
    let mut strict = node(&ca).await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = write(folder.path(), &ca, &ca.sign("hilum", &["127.0.0.1"]));
    let nobody = crate::tls::TlsSettings { certificate_and_key: None, ..settings.clone() };
    let anonymous = client(&TlsMaterial::load(&nobody).unwrap(), ExpectedServer::default());
    fails(requestor(strict.tls_port, anonymous.clone())).await;
    let failure = strict.failure().await;
    assert!(failure.reason.to_string().contains("no certificate"), "{failure:?}");
    strict.stop().await;

    settings.require_client_certificate = false;
    let relaxed = TlsMaterial::load(&settings).unwrap();
    let mut relaxed = Node::start(relaxed, AcceptorOptions::default(), Vec::new()).await;
    let association = requestor(relaxed.tls_port, anonymous).establish().await.unwrap();
    let Seen::Accepted(request) = relaxed.next().await else { panic!() };
    assert_eq!(request.security, Security::Tls { peer_certificate: None });
    association.release().await.unwrap();
    relaxed.stop().await;
}

/// Our call to a node whose certificate is wrong in some way, or of which other things are expected.
#[tokio::test]
async fn a_server_with_a_wrong_certificate_is_not_sent_anything() {
    let (ca, other) = (Ca::new("CA"), Ca::new("another CA"));
    let server = ca.sign("pacs", &["pacs.example.org"]);
    let mut node = Node::start(material(&ca, &server), AcceptorOptions::default(), Vec::new()).await;
    let caller = material(&ca, &ca.sign("hilum", &["hilum"]));
    let named = |name: &str| ExpectedServer { subject_name: Some(name.to_owned()), ..ExpectedServer::default() };
    let pinned = |der: &[u8]| ExpectedServer { certificate_sha256: vec![Sha256Digest::of(der)], subject_name: None };
    let port = node.tls_port;
    let call = |expected| requestor(port, client(&caller, expected));

    let error = fails(call(ExpectedServer::default())).await;
    assert!(error.contains("for another name") && error.contains("tls_subject_name"), "{error}");
    let error = fails(call(named("ris.example.org"))).await;
    assert!(error.contains("`pacs.example.org`") && error.contains("not one for `ris.example.org`"), "{error}");
    let error = fails(call(pinned(b"another"))).await;
    assert!(error.contains("not a pinned one"), "{error}");
    // It trusts another CA than the server's.
    let folder = tempfile::tempdir().unwrap();
    let stranger = TlsMaterial::load(&write(folder.path(), &other, &ca.sign("hilum", &["hilum"]))).unwrap();
    let error = fails(requestor(node.tls_port, client(&stranger, named("pacs.example.org")))).await;
    assert!(error.contains("a CA that is not trusted"), "{error}");
    for _ in 0..4 {
        assert_eq!(node.failure().await.step, FailedStep::Tls);
    }

    for expected in [named("pacs.example.org"), named("PACS"), pinned(&server.der)] {
        call(expected).establish().await.unwrap().release().await.unwrap();
    }
    // A pinned certificate needs no CA, but must be in force.
    requestor(node.tls_port, client(&stranger, pinned(&server.der)))
        .establish()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    node.stop().await;
    let old = ca.sign_for("pacs", &["pacs"], -1);
    let expired = Node::start(material(&ca, &old), AcceptorOptions::default(), Vec::new()).await;
    let error = fails(requestor(expired.tls_port, client(&caller, pinned(&old.der)))).await;
    assert!(error.contains("has expired"), "{error}");
    expired.stop().await;
}

#[tokio::test]
async fn tls_and_plain_on_each_others_ports_are_told_apart() {
    let ca = Ca::new("CA");
    let mut node = node(&ca).await;
    let tls = client(&material(&ca, &ca.sign("ct-1", &["ct-1"])), ExpectedServer::default());
    fails(requestor(node.plain_port, tls.clone())).await;
    let failure = node.failure().await;
    assert!(failure.reason.to_string().contains("first byte 0x16"), "{failure:?}");
    assert!(failure.remedy.contains("[tls]"), "{failure:?}");

    // In words of DICOM, because that is what the peer speaks.
    let error = fails(requestor(node.tls_port, None)).await;
    assert!(error.contains("rejects the association (permanent"), "{error}");
    assert!(matches!(node.next().await, Seen::Rejected(_)));

    let mut garbage = RawPeer::connect(([127, 0, 0, 1], node.tls_port).into()).await;
    garbage.send(b"GET / HTTP/1.1\r\n\r\n").await;
    let failure = node.failure().await;
    assert!(failure.reason.to_string().contains("not TLS"), "{failure:?}");
    node.stop().await;

    // We call a DICOM peer over TLS that has none.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    let answer = tokio::spawn(async move {
        let (stream, _) = plain.accept().await.unwrap();
        let mut peer = RawPeer(stream);
        peer.send(&[7, 0, 0, 0, 0, 4, 0, 0, 2, 1]).await;
        peer.0
    });
    let error = fails(requestor(port, tls)).await;
    assert!(error.contains("bytes that are not TLS") && error.contains("turn TLS off"), "{error}");
    drop(answer.await.unwrap());
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_ended_and_does_not_hold_the_node_up() {
    let ca = Ca::new("CA");
    let own = ca.sign("hilum", &["127.0.0.1"]);
    let options =
        AcceptorOptions { association_request_timeout: Duration::from_millis(300), ..AcceptorOptions::default() };
    let mut node = Node::start(material(&ca, &own), options, Vec::new()).await;
    let mut slow = RawPeer::connect(([127, 0, 0, 1], node.tls_port).into()).await;
    slow.send(&[0x16, 3, 1, 0x40, 0]).await;
    let failure = node.failure().await;
    assert_eq!(failure.reason, EndReason::TimedOut(TimeLimit::AssociationRequest));
    assert_eq!(slow.receive().await, None, "the connection is closed");
    node.stop().await;
}

#[tokio::test]
async fn one_address_cannot_take_every_connection() {
    let ca = Ca::new("CA");
    let own = ca.sign("hilum", &["127.0.0.1"]);
    let options = AcceptorOptions { max_connections_per_address: Some(2), ..AcceptorOptions::default() };
    let node = Node::start(material(&ca, &own), options, Vec::new()).await;
    let connect = || TcpStream::connect(("127.0.0.1", node.plain_port));
    let (first, second) = (connect().await.unwrap(), connect().await.unwrap());
    let mut third = RawPeer(connect().await.unwrap());
    assert_eq!(third.receive().await, None, "closed at once");
    drop((first, second));
    let mut again = requestor(node.plain_port, None).establish().await;
    while again.is_err() {
        again = requestor(node.plain_port, None).establish().await;
    }
    again.unwrap().release().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_peer_at_its_limit_is_rejected_transiently_and_may_come_again() {
    let ca = Ca::new("CA");
    let own = ca.sign("hilum", &["127.0.0.1"]);
    let quota = Quota {
        subject: "peer `ct`".into(),
        max_associations: Some(1),
        max_associations_per_minute: None,
        max_bytes_per_second: None,
    };
    let mut node = Node::start(material(&ca, &own), AcceptorOptions::default(), vec![quota]).await;
    let first = requestor(node.plain_port, None).establish().await.unwrap();
    assert!(matches!(node.next().await, Seen::Accepted(_)));
    let error = requestor(node.plain_port, None).establish().await.err().unwrap();
    assert!(error.is_transient(), "{error}");
    let Seen::Rejected(rejection) = node.next().await else { panic!() };
    assert_eq!(rejection.expected, "at most 1 associations of peer `ct` at once");
    first.release().await.unwrap();
    let mut again = requestor(node.plain_port, None).establish().await;
    while again.is_err() {
        again = requestor(node.plain_port, None).establish().await;
    }
    again.unwrap().release().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_sender_faster_than_its_rate_is_slowed_down_and_not_refused() {
    let ca = Ca::new("CA");
    let own = ca.sign("hilum", &["127.0.0.1"]);
    let quota = Quota {
        subject: "peer `ct`".into(),
        max_associations: None,
        max_associations_per_minute: None,
        max_bytes_per_second: Some(100_000),
    };
    // A message may take no longer than a second, but the pauses are ours.
    let options = AcceptorOptions { message_timeout: Duration::from_secs(1), ..AcceptorOptions::default() };
    let node = Node::start(material(&ca, &own), options, vec![quota]).await;
    let (ct, explicit) = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1");
    let mut association = requestor(node.plain_port, None).propose(ct, &[explicit]).establish().await.unwrap();
    let data = vec![0; 500_000];
    let started = std::time::Instant::now();
    let source = StoreSource {
        priority: crate::dimse::Priority::Medium,
        sop_class_uid: Uid::new(ct).unwrap(),
        sop_instance_uid: Uid::new("1.2.3").unwrap(),
        transfer_syntax_uid: Uid::new(explicit).unwrap(),
        data: data.as_slice(),
        length: data.len() as u64,
    };
    assert_eq!(association.store(source).await.unwrap().status, status::SUCCESS);
    // Five seconds' worth, of which one is free and the last fragment's is not waited for: longer than the limit and the second
    // that a handler has to clean up.
    assert!(started.elapsed() > Duration::from_secs(2), "{:?}", started.elapsed());
    association.release().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_user_identity_is_read_and_answered_when_asked_for() {
    let ca = Ca::new("CA");
    let mut node = node(&ca).await;
    // Type 2, response wanted, "ct" with "open sesame".
    let identity = [&[2, 1, 0, 2][..], b"ct", &[0, 11], b"open sesame"].concat();
    let items = |wanted: u8| {
        let mut identity = identity.clone();
        identity[1] = wanted;
        let mut user = user_information(16384);
        user.extend(testing::item(0x58, &identity));
        let length = (user.len() - 4) as u16;
        user[2..4].copy_from_slice(&length.to_be_bytes());
        [application_context(), proposed_context(1, "1.2.840.10008.1.1", &["1.2.840.10008.1.2"]), user].concat()
    };
    for (wanted, answered) in [(1, true), (0, false)] {
        let mut peer = RawPeer::connect(([127, 0, 0, 1], node.plain_port).into()).await;
        peer.send(&associate_rq(1, &items(wanted))).await;
        let (pdu_type, body) = peer.receive().await.unwrap();
        assert_eq!(pdu_type, 2);
        assert_eq!(body.windows(6).any(|bytes| bytes == [0x59, 0, 0, 2, 0, 0]), answered);
        let Seen::Accepted(request) = node.next().await else { panic!() };
        let identity = request.user_identity.clone().unwrap();
        assert_eq!(
            (identity.primary_field.as_slice(), identity.secondary_field.as_slice()),
            (&b"ct"[..], &b"open sesame"[..])
        );
        let shown = format!("{request:?}");
        assert!(!shown.contains("sesame") && !shown.contains("101, 115, 97, 109"), "{shown}");
        drop(peer);
        assert!(matches!(node.next().await, Seen::Other));
    }
    node.stop().await;
}
