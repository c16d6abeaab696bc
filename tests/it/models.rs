//! Bundles and runs on the command line: tried, measured, repeated, urgent.

use crate::support::*;

fn only_run(node: &Node, study_instance_uid: &str) -> String {
    let row = node.database.row(&format!(
        "select run.id::text as id from run join workup on workup.id = run.workup_id where study_instance_uid = \
         '{study_instance_uid}'"
    ));
    row["id"].as_str().expect("an id").to_owned()
}

#[test]
fn heavy_a_run_is_repeated_bit_for_bit_and_a_difference_is_found() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    let run = only_run(&node, &sample.study_instance_uid);

    let said = node.hilum_ok(&["rerun", &run, "--verify"]);
    assert!(said.contains("identical, bit for bit"), "{said}");

    // As if the run had found something else.
    node.database.execute(&format!(
        "update run set outcome = jsonb_set(outcome, '{{images,0,fused,0}}', '0.123456') where id = '{run}'"
    ));
    let output = node.hilum(&["rerun", &run, "--verify"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("images[0].fused[0]: 0.123456 before") && said.contains("does not come out the same"),
        "{said}"
    );
    assert!(node.hilum(&["rerun", &run]).status.success(), "without --verify it only tells");

    let unknown = node.hilum(&["rerun", "018f0000-0000-7000-8000-000000000000"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("`hilum runs` lists them"));
    node.hilum_ok(&["model", "import", "--help"]);
}

#[test]
fn where_a_network_looked_is_drawn_on_demand() {
    let node = Node::start(&Site::usual(free_port()));
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.database.wait_for_rows(1, "select 1 from run where state = 'succeeded'");
    let run = only_run(&node, &sample.study_instance_uid);
    let folder = node.scratch("maps");
    let explain = |name: &str, options: &[&str]| {
        let file = folder.join(name);
        let all = [&["explain", &run, "--output", file.to_str().expect("a plain path")], options].concat();
        (node.hilum(&all), file)
    };
    let picture = |(output, file): (std::process::Output, std::path::PathBuf)| {
        assert!(output.status.success(), "{}", said(&output));
        let picture = image::open(file).expect("a PNG").into_rgb8();
        // Between the words above and below.
        let (width, height) = picture.dimensions();
        let inner = image::imageops::crop_imm(&picture, 0, height / 4, width, height / 2).to_image();
        assert!(inner.pixels().any(|pixel| pixel.0[0].abs_diff(pixel.0[2]) > 60), "there is colour");
        inner
    };
    let of_vgg = ["--member", "vgg16", "--method"];
    let gradients = picture(explain("1.png", &[&of_vgg[..], &["integrated_gradients", "--steps", "3"]].concat()));
    let hirescam = picture(explain("2.png", &[&of_vgg[..], &["hirescam"]].concat()));
    assert_ne!(gradients, hirescam);
    assert_ne!(
        picture(explain("3.png", &[&of_vgg[..], &["hirescam", "--class", "No COVID-19 pattern"]].concat())),
        hirescam
    );

    let refused = |made: (std::process::Output, std::path::PathBuf)| {
        assert!(!made.0.status.success() && !made.1.exists(), "{}", said(&made.0));
        said(&made.0)
    };
    assert!(refused(explain("4.png", &[&of_vgg[..], &["cam"]].concat())).contains("choose one of hirescam"));
    assert!(refused(explain("5.png", &["--member", "lenet"])).contains("it has resnet34, resnet50, resnet152, vgg16"));
    assert!(refused(explain("6.png", &["--class", "flu"])).contains("it has `COVID-19`, `No COVID-19 pattern`"));
    assert!(refused(explain("7.png", &["--image", "2"])).contains("there is no image 2"));
    let (again, _) = explain("1.png", &[]);
    assert!(said(&again).contains("is there already"), "{}", said(&again));
}

#[test]
fn the_bundle_of_the_tests_is_verified_and_described() {
    let node = Node::start(&Site::usual(free_port()));
    let said = node.hilum_ok(&["model", "verify", "cxr-untrained"]);
    for network in ["lung segmenter", "resnet34", "resnet50", "resnet152", "vgg16"] {
        assert!(said.contains(network), "{network}: {said}");
    }
    assert!(said.contains("2 logits") && said.contains("(hirescam)"), "{said}");
    let card = node.hilum_ok(&["model", "card", "cxr-untrained"]);
    assert!(card.contains("UNTRAINED TEST WEIGHTS") && card.contains("Not for clinical use"), "{card}");
    let measured = node.hilum_ok(&["bench", "cxr-untrained", "--repetitions", "1", "--threads", "1", "--json"]);
    let measured: serde_json::Value = serde_json::from_str(&measured).expect("JSON");
    assert_eq!(measured[0]["networks"].as_array().map(Vec::len), Some(5), "{measured}");
}

#[test]
fn an_urgent_run_waits_for_no_routine_one() {
    let pacs = StoreScp::start();
    let site = Site::usual(pacs.port).sender("URGENT");
    let node = Node::start_with(&site, NodeOptions::default().setting("HILUM__INFERENCE__CONCURRENT_RUNS", 1));
    let add = "route add urgent --order 1 --called-ae-title HILUM --calling-ae-titles URGENT --modalities CR,DX \
               --pipeline chest_radiograph --bundle cxr-untrained --quiet-seconds 1 --destinations pacs --priority stat";
    node.hilum_ok(&add.split_whitespace().collect::<Vec<_>>());

    // The only place for routine runs is taken by one that cannot go on: its row is locked.
    let inference = wait_for("the inference process runs", PATIENCE, || node.inference_process_id());
    signal(inference, "STOP");
    let folder = node.scratch("sent");
    let (routine, urgent) = (Radiograph::default().write(&folder), Radiograph::default().write(&folder));
    node.send("SCANNER", &[&routine.path]);
    node.database.wait_for_rows(1, "select id from run where state = 'queued'");
    std::thread::scope(|scope| {
        let lock = "begin; select from run where priority = 'routine' for update; select pg_sleep(20); commit";
        let locked = scope.spawn(|| node.database.execute(lock));
        let sleeping = "select pid from pg_stat_activity where query like '%pg_sleep(20)%' and wait_event = 'PgSleep' \
                        and datname = current_database()";
        node.database.wait_for_rows(1, sleeping);
        signal(inference, "CONT");
        node.send("URGENT", &[&urgent.path]);
        node.wait_for_workup(&urgent.study_instance_uid, "answered");
        assert!(!locked.is_finished(), "the routine run could go on: this shows nothing");
        let taken = "select r.priority from event e join run r on r.id = e.subject_id::uuid \
                     where e.subject_kind = 'run' and e.kind = 'running'";
        assert_eq!(node.database.row(taken)["priority"], "stat");
    });
    node.wait_for_workup(&routine.study_instance_uid, "answered");
}
