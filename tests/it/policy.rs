//! Negotiation as policy: who gets how many associations, in what, and under which name.

use std::process::Command;

use super::support::*;

#[track_caller]
fn says(output: &std::process::Output, wanted: &str) {
    let text = said(output);
    assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
}

/// The refusal of `calling` that has these words.
#[track_caller]
fn refusal(node: &Node, calling: &str, words: &str) -> serde_json::Value {
    let query = format!(
        "select expected, received, remedy from refusal \
         where kind = 'association' and calling_ae_title = '{calling}' and strpos(expected || received, '{words}') > 0 \
         limit 1"
    );
    node.database.wait_for_rows(1, &query).remove(0)
}

/// The hash that `hilum hash-passcode` prints.
fn hash(node: &Node, passcode: &str) -> String {
    use std::{io::Write as _, process::Stdio};
    let mut command: Command = node.command(&["hash-passcode"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("hilum starts");
    writeln!(child.stdin.take().expect("a pipe"), "{passcode}").expect("hilum reads");
    let output = child.wait_with_output().expect("hilum ends");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn a_request_of_120_contexts_with_45_transfer_syntaxes_is_accepted() {
    let node = Node::start(&Site::new("HILUM").sender("SCANNER"));
    let output = negotiate(node.dicom_port, "SCANNER", "HILUM", &["large"]);
    // CT, CR and DX for presentation are what a node stores.
    says(&output, "accepted 3 rejected 117");
    says(&output, "established 1");
    node.assert_clean_log();
}

#[test]
fn a_user_identity_is_asked_for_and_never_shown() {
    let mut node = Node::prepare(NodeOptions::default());
    node.hilum_ok(&["migrate"]);
    let site = Site::new("HILUM").sender("OPEN").sender("SCANNER").with(&format!(
        "policy.user_identity = {{ required = \"username_and_passcode\", users = [{{ name = \"ct\", passcode_hash = \"{}\" }}] }}",
        hash(&node, "open sesame")
    ));
    node.apply(&site);
    node.run();
    node.wait_until_ready();
    let with = |passcode: &str| negotiate(node.dicom_port, "SCANNER", "HILUM", &["identity", "ct", passcode]);
    let good = with("open sesame");
    says(&good, "echo 0x0000");
    says(&good, "positive response True");
    // Permanent, service provider (ACSE), no reason given.
    says(&with("open barley"), "rejected 1 2 1");
    refusal(&node, "SCANNER", "a user name or passcode that is not");
    says(&negotiate(node.dicom_port, "SCANNER", "HILUM", &["many", "1"]), "rejected 1 2 1");
    // Nobody asks the other peer.
    says(&negotiate(node.dicom_port, "OPEN", "HILUM", &["many", "1"]), "echo 0x0000");
    let everywhere = [node.log(), node.hilum_ok(&["peer", "list", "--json"]), node.hilum_ok(&["refusals"])].concat();
    for secret in ["sesame", "barley", "$argon2id$v="] {
        assert!(!everywhere.contains(secret), "`{secret}` is shown");
    }
    assert!(node.metric("hilum_associations_rejected_total{reason=\"security\"}") >= 2.0);
}

#[test]
fn one_peer_at_its_limit_does_not_keep_the_others_out() {
    let site = Site::new("HILUM").sender("OTHER").sender("SCANNER").with("policy.max_associations = 2");
    let node = Node::start(&site);
    let output = negotiate(node.dicom_port, "SCANNER", "HILUM", &["many", "3"]);
    // Transient, service provider (presentation), local limit exceeded.
    says(&output, "rejected 2 3 2");
    says(&output, "established 2");
    let refused = refusal(&node, "SCANNER", "at most 2 associations of peer `scanner` at once");
    assert!(refused["remedy"].as_str().unwrap().contains("max_associations"), "{refused}");
    // Without a limit of its own, one peer has half of the node's associations: 32 work, and no more.
    says(&negotiate(node.dicom_port, "OTHER", "HILUM", &["many", "33"]), "established 32");
    // A minute's worth of associations, changed while the node runs.
    node.apply(&Site::new("HILUM").sender("SCANNER").with("policy.max_associations_per_minute = 1"));
    wait_for("the node takes the new limit over", PATIENCE, || {
        said(&negotiate(node.dicom_port, "SCANNER", "HILUM", &["many", "2"])).contains("rejected 2 3 2").then_some(())
    });
    refusal(&node, "SCANNER", "at most 1 new associations of peer `scanner` in a minute");
    node.assert_clean_log();
}

#[test]
fn two_local_aes_on_one_port_have_policies_and_routes_of_their_own() {
    // `HILUM` takes radiographs, `SECOND` has a route for nothing but CT and takes explicit VR only.
    let site = Site::new("HILUM")
        .local_ae("SECOND")
        .with("policy.transfer_syntaxes = [\"1.2.840.10008.1.2.1\"]")
        .sender("SCANNER")
        .route("cxr-untrained", 1, &[])
        .with(
            "[[route]]\nname = \"ct\"\norder = 5\ncalled_ae_title = \"SECOND\"\nmodalities = [\"CT\"]\n\
             pipeline = \"chest_radiograph\"\nbundle = \"cxr-untrained\"\nquiet_seconds = 1\nmax_wait_seconds = 600",
        );
    let node = Node::start(&site);
    let folder = node.scratch("images");
    let image = Radiograph::default().write(&folder);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&image.path]);
    // dcmtk proposes implicit VR too: that is what `SECOND` does not take.
    let refused = storescu(node.dicom_port, "SCANNER", "SECOND", &["-xi"], &[&image.path]);
    assert!(!refused.status.success(), "{}", said(&refused));
    storescu_ok(node.dicom_port, "SCANNER", "SECOND", &["-xe"], &[&image.path]);
    let workups = node.database.wait_for_rows(
        2,
        "select local_ae_title, state from workup where state <> 'receiving' order by local_ae_title",
    );
    assert_eq!(workups[0]["local_ae_title"], "HILUM");
    assert_ne!(workups[0]["state"], "not_routed", "{workups:?}");
    assert_eq!((&workups[1]["local_ae_title"], &workups[1]["state"]), (&"SECOND".into(), &"not_routed".into()));
}
