//! TLS with other people's programs: dcmtk, pynetdicom and Orthanc, as callers and as called. The certificates are made
//! with the commands that docs/operations.md shows.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::json;

use super::{results_delivery::secret_file, support::*};

/// A certificate authority of openssl's in a folder.
struct Ca {
    folder: PathBuf,
}

/// A certificate with its key.
struct Signed {
    certificate: PathBuf,
    key: PathBuf,
}

#[track_caller]
fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = run(Command::new("openssl").current_dir(folder).args(arguments));
    assert!(output.status.success(), "openssl {arguments:?}:\n{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Ca {
    fn new(folder: PathBuf) -> Self {
        openssl(
            &folder,
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "3650",
                "-subj",
                "/CN=Test CA",
                "-keyout",
                "ca-key.pem",
                "-out",
                "ca.pem",
            ],
        );
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    fn sign(&self, name: &str, days: &str) -> Signed {
        let file = |end: &str| format!("{name}{end}");
        openssl(
            &self.folder,
            &[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                &format!("/CN={name}"),
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-addext",
                "extendedKeyUsage=serverAuth,clientAuth",
                "-keyout",
                &file("-key.pem"),
                "-out",
                &file(".csr"),
            ],
        );
        openssl(
            &self.folder,
            &[
                "x509",
                "-req",
                "-in",
                &file(".csr"),
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca-key.pem",
                "-CAcreateserial",
                "-days",
                days,
                "-copy_extensions",
                "copy",
                "-out",
                &file(".pem"),
            ],
        );
        let (certificate, key) = (self.folder.join(file(".pem")), self.folder.join(file("-key.pem")));
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs_err::set_permissions(&key, private).expect("our own file");
        Signed { certificate, key }
    }
}

impl Signed {
    /// As `openssl x509 -fingerprint` prints it, without the colons.
    fn fingerprint(&self) -> String {
        let folder = self.certificate.parent().expect("a folder");
        let file = self.certificate.to_str().expect("a plain path");
        let text = openssl(folder, &["x509", "-in", file, "-noout", "-fingerprint", "-sha256"]);
        text.split('=').nth(1).expect("a fingerprint").trim().replace(':', "").to_lowercase()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// dcmtk's `storescu` over TLS.
#[track_caller]
fn storescu_tls(port: u16, calling: &str, ca: &Ca, own: &Signed, file: &Path) -> Output {
    let options = ["+tls", text(&own.key), text(&own.certificate), "+cf", text(&ca.file())].map(str::to_owned);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    storescu(port, calling, "HILUM", &options, &[file])
}

/// What the newest refusal of `calling` says.
#[track_caller]
fn refusal(node: &Node, calling: &str, received: &str) -> String {
    let query = format!(
        "select expected, received, remedy from refusal \
         where kind = 'association' and calling_ae_title = '{calling}' and strpos(received, '{received}') > 0 limit 1"
    );
    node.database.wait_for_rows(1, &query).remove(0).to_string()
}

/// A node with a port for TLS, its certificate and those who call it.
struct Secured {
    node: Node,
    tls_port: u16,
    ca: Ca,
    own: Signed,
}

impl Secured {
    /// `site` gets the folder's CA to make certificates with.
    fn start(site: impl FnOnce(&Ca) -> Site) -> Self {
        let tls_port = free_port();
        let folder = shared_folder().join(format!("tls-{tls_port}"));
        fs_err::create_dir_all(&folder).expect("a folder");
        let ca = Ca::new(folder);
        let own = ca.sign("hilum", "365");
        let options = NodeOptions::default()
            .setting("HILUM__TLS__LISTEN", format!("127.0.0.1:{tls_port}"))
            .setting("HILUM__TLS__CERTIFICATE_FILE", text(&own.certificate))
            .setting("HILUM__TLS__PRIVATE_KEY_FILE", text(&own.key))
            .setting("HILUM__TLS__CA_FILES", format!("[{:?}]", text(&ca.file())));
        let site = site(&ca);
        let node = Node::start_with(&site, options);
        Self { node, tls_port, ca, own }
    }
}

/// The arguments with which `hilum` calls over TLS with this certificate.
fn tls_arguments<'a>(own: &'a Signed, ca: &'a Path) -> [&'a str; 6] {
    ["--tls-ca", text(ca), "--tls-certificate", text(&own.certificate), "--tls-key", text(&own.key)]
}

#[test]
fn dcmtk_and_pynetdicom_store_over_tls_and_every_refusal_is_explained() {
    let mut scanner = None;
    let secured = Secured::start(|ca| {
        let own = scanner.insert(ca.sign("scanner", "365"));
        let bound = format!("require_tls = true\ntls_certificate_sha256 = [\"{}\"]", own.fingerprint());
        Site::new("HILUM").sender("OTHER").sender("SCANNER").with(&bound)
    });
    let scanner = scanner.expect("made above");
    let Secured { node, tls_port, ca, .. } = &secured;
    let image = Radiograph::default().write(&node.scratch("images"));
    let file = image.path.as_path();

    let stored = storescu_tls(*tls_port, "SCANNER", ca, &scanner, file);
    assert!(stored.status.success(), "{}", said(&stored));
    assert_eq!(node.archived_objects().len(), 1);

    // The certificate of somebody else, though signed by the same CA.
    let other = ca.sign("other", "365");
    assert!(!storescu_tls(*tls_port, "SCANNER", ca, &other, file).status.success());
    let words = refusal(node, "SCANNER", "`other`");
    assert!(words.contains(&scanner.fingerprint()) && words.contains("tls_certificate_sha256"), "{words}");
    // It is good for whom no certificate is bound to; pynetdicom speaks TLS, too.
    let arguments = ["tls", text(&ca.file()), text(&other.certificate), text(&other.key)].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = negotiate(*tls_port, "OTHER", "HILUM", &arguments);
    assert!(said(&output).contains("echo 0x0000"), "{}", said(&output));

    // Without TLS where it is required, and without TLS on the port for TLS.
    assert!(!storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[file]).status.success());
    assert!(refusal(node, "SCANNER", "one without TLS").contains("over TLS from `SCANNER`"));
    assert!(!storescu(*tls_port, "OTHER", "HILUM", &[], &[file]).status.success());
    assert!(refusal(node, "OTHER", "without TLS").contains("over TLS on this port"));
    // TLS on the port without.
    assert!(!storescu_tls(node.dicom_port, "SCANNER", ca, &scanner, file).status.success());
    assert!(refusal(node, "", "first byte 0x16").contains("[tls]"));
    // No certificate, and one of another CA.
    let anonymous = storescu(*tls_port, "SCANNER", "HILUM", &["+tla", "+cf", text(&ca.file())], &[file]);
    assert!(!anonymous.status.success(), "{}", said(&anonymous));
    assert!(refusal(node, "", "no certificate").contains("tls.ca_files"));
    let stranger_folder = node.scratch("stranger");
    let stranger = Ca::new(stranger_folder).sign("scanner", "365");
    assert!(!storescu_tls(*tls_port, "SCANNER", ca, &stranger, file).status.success());
    assert!(refusal(node, "", "a CA that is not trusted").contains("tls.ca_files"));

    assert_eq!(node.archived_objects().len(), 1, "nothing of all that was stored");
    assert!(node.metric("hilum_associations_rejected_total{reason=\"security\"}") >= 6.0);
    node.assert_clean_log();
}

#[test]
fn new_certificate_files_are_used_without_a_restart_and_the_end_is_warned_about() {
    let secured = Secured::start(|_| Site::new("HILUM").sender("SCANNER"));
    let Secured { node, tls_port, ca, own } = &secured;
    let address = format!("127.0.0.1:{tls_port}");
    let ca_file = ca.file();
    let echo = |extra: &[&str]| {
        let mut arguments = vec!["echo", &address, "--called", "HILUM", "--calling", "SCANNER"];
        arguments.extend(tls_arguments(own, &ca_file));
        arguments.extend(extra);
        node.hilum(&arguments)
    };
    let answered = echo(&[]);
    assert!(said(&answered).contains("`HILUM` at 127.0.0.1"), "{}", said(&answered));
    let old = own.fingerprint();
    assert!(echo(&["--tls-fingerprint", &old]).status.success());
    let other_name = echo(&["--tls-name", "pacs.example.org"]);
    assert!(said(&other_name).contains("not one for `pacs.example.org`"), "{}", said(&other_name));
    assert!(node.metric("hilum_tls_certificate_expires_seconds") > 360.0 * 86_400.0);
    assert!(node.get("/readyz").text().contains("valid until"));

    // The same files with a certificate that ends soon.
    let short = ca.sign("short", "10");
    fs_err::copy(&short.certificate, &own.certificate).expect("our own file");
    fs_err::copy(&short.key, &own.key).expect("our own file");
    wait_for("the new certificate is used", PATIENCE, || {
        echo(&["--tls-fingerprint", &short.fingerprint()]).status.success().then_some(())
    });
    wait_for("its end is counted", PATIENCE, || {
        (node.metric("hilum_tls_certificate_expires_seconds") < 11.0 * 86_400.0).then_some(())
    });
    wait_for("its end is warned about", PATIENCE, || {
        node.log().contains("our TLS certificate expires on").then_some(())
    });
    assert!(node.get("/readyz").text().contains("warning: our TLS certificate expires on"));
    assert!(node.hilum_ok(&["check-config"]).contains("our TLS certificate expires on"));

    // A broken file changes nothing.
    fs_err::write(&own.certificate, "not a certificate").expect("our own file");
    wait_for("the broken file is told", PATIENCE, || node.log().contains("TLS files are not used").then_some(()));
    let still = node.hilum(&[
        "echo",
        &address,
        "--called",
        "HILUM",
        "--calling",
        "SCANNER",
        "--tls-fingerprint",
        &short.fingerprint(),
        "--tls-certificate",
        text(&short.certificate),
        "--tls-key",
        text(&short.key),
    ]);
    assert!(still.status.success(), "{}", said(&still));
    assert!(!node.hilum(&["check-config"]).status.success());
}

#[test]
fn images_come_and_results_go_over_tls() {
    let mut peers = None;
    let secured = Secured::start(|ca| {
        let (pacs, dcmtk) = (ca.sign("pacs", "365"), ca.sign("dcmtk", "365"));
        let orthanc = Orthanc::start_with(json!({
            "DicomTlsEnabled": true,
            "DicomTlsRemoteCertificateRequired": true,
            "DicomTlsCertificate": pacs.certificate,
            "DicomTlsPrivateKey": pacs.key,
            "DicomTlsTrustedCertificates": ca.file(),
        }));
        let site = Site::new("HILUM")
            .sender("SCANNER")
            .with("require_tls = true")
            .pacs("pacs", "PACS", orthanc.dicom_port)
            .with(&format!(
                "[[peer]]\nname = \"secure\"\nae_title = \"PACS\"\nhost = \"127.0.0.1\"\nport = {}\ntls = true\n\
                 tls_subject_name = \"pacs\"\n\n\
                 [[destination]]\nname = \"secure\"\nkind = \"dicom\"\npeer = \"secure\"\ncalling_ae_title = \"HILUM\"",
                orthanc.dicom_port
            ))
            .route("cxr-untrained", 1, &["secure"]);
        peers = Some((orthanc, dcmtk));
        site
    });
    let (orthanc, dcmtk) = peers.expect("made above");
    let Secured { node, tls_port, ca, own } = &secured;
    let tested = node.hilum_ok(&["destination", "test", "secure"]);
    assert!(tested.contains("`PACS` at 127.0.0.1"), "{tested}");
    // Orthanc's port speaks TLS only; without it nobody gets in.
    assert!(!node.hilum(&["destination", "test", "pacs"]).status.success());

    let image = Radiograph::default();
    let file = image.write(&node.scratch("images")).path;
    let (ca_file, to) = (ca.file(), format!("127.0.0.1:{tls_port}"));
    let mut arguments = vec!["send", "--to", &to, "--called", "HILUM", "--calling", "SCANNER", text(&file)];
    arguments.extend(tls_arguments(&dcmtk, &ca_file));
    node.hilum_ok(&arguments);
    node.wait_for_deliveries(&image.study_instance_uid, SENT_OF_A_RADIOGRAPH);
    assert_eq!(orthanc.instances_of(&image.study_instance_uid).len(), SENT_OF_A_RADIOGRAPH);
    node.assert_clean_log();

    // dcmtk's storescp takes what `hilum send` brings, by mutual TLS.
    let port = free_port();
    let folder = node.scratch("storescp");
    let mut storescp = spawn(
        Command::new("storescp")
            .args(["+tls", text(&dcmtk.key), text(&dcmtk.certificate), "+cf", text(&ca_file), "-od", text(&folder)])
            .arg(port.to_string()),
    );
    let to = format!("127.0.0.1:{port}");
    let mut arguments = vec!["send", "--to", &to, "--called", "ANY", text(&file)];
    arguments.extend(tls_arguments(own, &ca_file));
    wait_for("storescp takes the file over TLS", PATIENCE, || node.hilum(&arguments).status.success().then_some(()));
    assert!(fs_err::read_dir(&folder).expect("a folder").count() >= 1);
    let _ = storescp.kill();
    let _ = storescp.wait();
}

/// Ends TLS before a plain port, as the gateway of a web server does. Returns its port.
fn gateway(own: &Signed, to: u16) -> u16 {
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{
            ServerConfig,
            pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        },
    };
    let certificate = CertificateDer::from_pem_file(&own.certificate).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config.expect("they belong together")));
    let listener = runtime().block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    runtime().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us ends the handshake.
                let Ok(mut outer) = acceptor.accept(stream).await else { return };
                let mut inner = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.expect("the server behind");
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    port
}

/// Orthanc's DICOMweb over https; a server that nobody vouches for gets nothing, the password least of all.
#[test]
fn heavy_results_go_to_a_web_server_over_tls() {
    let orthanc = Orthanc::start_dicomweb();
    let folder = temporary_folder();
    let password = secret_file(folder.path(), "password", "s3cret");
    let secured = Secured::start(|ca| {
        let trusted = gateway(&ca.sign("web", "365"), orthanc.http_port);
        let strangers = folder.path().join("strangers");
        fs_err::create_dir_all(&strangers).expect("a folder");
        let stranger = gateway(&Ca::new(strangers).sign("web", "365"), orthanc.http_port);
        let destination = |name: &str, port: u16| {
            format!(
                "[[destination]]\nname = \"{name}\"\nkind = \"dicomweb\"\nurl = \"https://localhost:{port}/dicom-web\"\n\
                 authentication = {{ basic = {{ user = \"hilum\", password_file = {password:?} }} }}"
            )
        };
        Site::new("HILUM")
            .sender("SCANNER")
            .with(&destination("web", trusted))
            .with(&destination("stranger", stranger))
            .route("cxr-untrained", 1, &["web", "stranger"])
    });
    let node = &secured.node;
    let tested = node.hilum_ok(&["destination", "test", "web"]);
    assert!(tested.contains("the web server answers with HTTP"), "{tested}");
    let refused = said(&node.hilum(&["destination", "test", "stranger"]));
    assert!(refused.contains("no TLS with localhost") && refused.contains("tls.ca_files"), "{refused}");

    let image = Radiograph::default().write(&node.scratch("images"));
    node.send("SCANNER", &[&image.path]);
    node.wait_for_deliveries(&image.study_instance_uid, SENT_OF_A_RADIOGRAPH);
    assert_eq!(orthanc.instances_of(&image.study_instance_uid).len(), SENT_OF_A_RADIOGRAPH);
    let words = "select words from destination_state where destination = 'stranger' and words like '%no TLS with%'";
    node.database.wait_for_rows(1, words);
    assert_eq!(
        node.database.count("select id from delivery where destination = 'stranger' and state = 'delivered'"),
        0
    );
}
