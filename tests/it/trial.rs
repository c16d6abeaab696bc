//! A second bundle beside a route's own: as a shadow, as a canary, compared, promoted and taken back.

use serde_json::Value;

use crate::support::*;

fn trial(node: &Node, rest: &str) -> String {
    node.hilum_ok(&["route", "trial", "route-10"].into_iter().chain(rest.split_whitespace()).collect::<Vec<_>>())
}

/// Role, bundle and state of the runs of a study, in this order, when `count` of them have ended.
fn ended(node: &Node, sample: &Sample, count: usize) -> Vec<[String; 3]> {
    let rows = node.database.wait_for_rows(
        count,
        &format!(
            "select run.role, run.bundle, run.state from run join workup on workup.id = workup_id \
             where study_instance_uid = '{}' and run.state in ('succeeded', 'not_analysed', 'parked') \
             order by run.role, run.bundle",
            sample.study_instance_uid
        ),
    );
    let text = |row: &Value, column: &str| row[column].as_str().expect("a text").to_owned();
    rows.iter().map(|row| ["role", "bundle", "state"].map(|column| text(row, column))).collect()
}

fn send(node: &Node) -> Sample {
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    sample
}

/// The bundles whose results the PACS got of a study.
fn delivered_bundles(node: &Node, sample: &Sample) -> Vec<String> {
    let rows = node.database.rows(&format!(
        "select distinct run.bundle from delivery join result on result.id = result_id join run on run.id = result.run_id \
         join workup on workup.id = workup_id where study_instance_uid = '{}' and delivery.state = 'delivered'",
        sample.study_instance_uid
    ));
    rows.iter().map(|row| row["bundle"].as_str().expect("a bundle").to_owned()).collect()
}

fn run(role: &str, bundle: &str, state: &str) -> [String; 3] {
    [role, bundle, state].map(str::to_owned)
}

#[test]
fn heavy_a_bundle_is_a_shadow_then_a_canary_then_promoted_and_taken_back() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    node.bundle("next", &[("percentile_high = 99.5", "percentile_high = 80.0")]);

    trial(&node, "--bundle next --mode shadow");
    let first = send(&node);
    assert_eq!(
        ended(&node, &first, 2),
        [run("live", "cxr-untrained", "succeeded"), run("shadow", "next", "succeeded")]
    );
    assert_eq!(delivered_bundles(&node, &first), ["cxr-untrained"]);
    assert_eq!(pacs.files().len(), SENT_OF_A_RADIOGRAPH, "those of one run");
    let page = node.get(&format!("/studies/{}", first.study_instance_uid)).text();
    assert!(page.contains("its results stay internal, nothing was sent"), "{page}");

    // The two saw the study in another light, and every place says how they agree.
    let compared: Value =
        serde_json::from_str(&node.hilum_ok(&["route", "compare", "route-10", "--json"])).expect("JSON");
    assert_eq!(compared["comparison"]["both_analysed"], 1, "{compared:#}");
    let difference = compared["comparison"]["outputs"]["largest_difference"].as_f64().expect("a number");
    assert!(difference > 0.0 && difference < 1.0, "{compared:#}");
    assert_eq!(node.get("/api/routes/route-10/trial").json(), compared);
    let told = node.hilum_ok(&["route", "compare", "route-10"]);
    assert!(told.contains("UNTRAINED TEST WEIGHTS") && told.contains("n = 1 images or series"), "{told}");
    assert!(told.contains(&first.study_instance_uid), "{told}");
    let page = node.get("/routes/route-10/trial").text();
    assert!(!page.contains("http-equiv=\"refresh\""), "a comparison is not made every ten seconds");
    assert!(page.contains("is tried as a shadow") && page.contains(&first.study_instance_uid), "{page}");
    assert!(node.get("/").text().contains("/routes/route-10/trial"));
    assert_eq!(node.get("/routes/nowhere/trial").status, 404);

    trial(&node, "--bundle next --mode canary --share-percent 100");
    let second = send(&node);
    let roles = [run("canary", "next", "succeeded"), run("shadow", "cxr-untrained", "succeeded")];
    assert_eq!(ended(&node, &second, 2), roles);
    assert_eq!(delivered_bundles(&node, &second), ["next"]);

    let made = node.hilum_ok(&["route", "promote", "route-10", "--reason", "agrees on two studies"]);
    assert!(made.contains("has bundle `next` instead of `cxr-untrained`"), "{made}");
    let third = send(&node);
    assert_eq!(ended(&node, &third, 1), [run("live", "next", "succeeded")]);
    node.hilum_ok(&["route", "rollback", "route-10", "--reason", "only a test"]);
    let history: Value = serde_json::from_str(&node.hilum_ok(&["route", "history", "--json"])).expect("JSON");
    assert_eq!(history[0]["kind"], "rollback");
    assert_eq!((&history[1]["kind"], &history[1]["reason"]), (&"promotion".into(), &"agrees on two studies".into()));
    assert_eq!(history[1]["comparison"]["comparison"]["both_analysed"], 2, "{history:#}");
    let fourth = send(&node);
    assert_eq!(ended(&node, &fourth, 1), [run("live", "cxr-untrained", "succeeded")]);
    node.assert_clean_log();
}

#[test]
fn a_canary_that_cannot_run_costs_no_study_its_answer() {
    let pacs = StoreScp::start();
    let options = NodeOptions::default().setting("HILUM__INFERENCE__MAXIMUM_ATTEMPTS", 1);
    let node = Node::start_with(&Site::usual(pacs.port), options);
    // Not there at all: every run of it fails.
    trial(&node, "--bundle gone --mode canary --share-percent 100");
    for _ in 0..3 {
        let sample = send(&node);
        let roles = [run("live", "cxr-untrained", "succeeded"), run("shadow", "gone", "parked")];
        assert_eq!(ended(&node, &sample, 2), roles);
        assert_eq!(delivered_bundles(&node, &sample), ["cxr-untrained"]);
    }
    // After three in a row it is tried no more, and the study says so.
    let sample = send(&node);
    assert_eq!(ended(&node, &sample, 1), [run("live", "cxr-untrained", "succeeded")]);
    let story = node.hilum_ok(&["timeline", &sample.study_instance_uid]);
    assert!(
        story.contains("bundle `gone` is not tried on this study: its last runs on this route are all parked"),
        "{story}"
    );
    let refused = node.hilum(&["route", "promote", "route-10", "--reason", "no"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("have analysed no study"), "{}", said(&refused));
}

#[test]
fn a_canary_is_not_begun_where_nobody_could_take_over_from_it() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    let first = send(&node);
    node.database.execute(
        "insert into run (id, workup_id, revision, role, bundle, destinations, state, words, attempt, maximum_attempts,
                          next_attempt_at)
         select gen_random_uuid(), (select id from workup), 100 + number, 'shadow', 'cxr-untrained', '{}', 'queued',
                'waiting', 0, 3, now() + interval '1 day'
         from generate_series(1, 200) number",
    );
    trial(&node, "--bundle gone --mode canary --share-percent 100");
    let second = send(&node);
    assert_eq!(ended(&node, &second, 1), [run("live", "cxr-untrained", "succeeded")]);
    assert_eq!(delivered_bundles(&node, &second), ["cxr-untrained"]);
    let story = node.hilum_ok(&["timeline", &second.study_instance_uid]);
    assert!(story.contains("too many runs that stay internal wait for their turn"), "{story}");
    // With one fewer it is begun.
    node.database.execute(&format!(
        "delete from run where revision = 101 and workup_id = (select id from workup where study_instance_uid = '{}')",
        first.study_instance_uid
    ));
    let third = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&third.path]);
    node.database.wait_for_rows(1, "select 1 from run where role = 'canary'");
}

#[test]
fn what_cannot_be_tried_is_refused_with_its_remedy() {
    let node = Node::start(&Site::usual(free_port()));
    let refused = |arguments: &[&str]| {
        let output = node.hilum(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let own = refused(&["route", "trial", "route-10", "--bundle", "cxr-untrained", "--mode", "shadow"]);
    assert!(own.contains("which is its own"), "{own}");
    let kind = refused(&["route", "trial", "route-10", "--bundle", "ct-lung-measurement", "--mode", "shadow"]);
    assert!(kind.contains("belongs to pipeline `chest_ct`"), "{kind}");
    let share = refused(&["route", "trial", "route-10", "--bundle", "next", "--mode", "canary"]);
    assert!(share.contains("--share-percent"), "{share}");
    let unknown = refused(&["route", "trial", "nowhere", "--bundle", "next", "--mode", "shadow"]);
    assert!(unknown.contains("there is no route `nowhere`; known: `route-10`"), "{unknown}");
    let nothing = refused(&["route", "compare", "route-10"]);
    assert!(nothing.contains("tries no bundle"), "{nothing}");
    let back = refused(&["route", "rollback", "route-10", "--reason", "no"]);
    assert!(back.contains("nothing to roll back"), "{back}");
}
