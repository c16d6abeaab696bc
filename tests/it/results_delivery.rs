//! Results reach every kind of destination once, whatever it answers: the ledger, alternatives, destinations that are left
//! alone, Storage Commitment, web servers, folders, and the sender itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::{outage::SmallDisk, support::*};

const SC: &str = "1.2.840.10008.5.1.4.1.1.7";
const SR: &str = "1.2.840.10008.5.1.4.1.1.88.33";
const ENHANCED_SR: &str = "1.2.840.10008.5.1.4.1.1.88.22";
const SEGMENTATION: &str = "1.2.840.10008.5.1.4.1.1.66.4";

/// Of a radiograph: a heat map and one report.
const ONE_REPORT: &str = "{ report_classes = [\"comprehensive\"], text_companion = false, segmentation = \"none\" }";

/// A peer with the title of its name and a destination that leads to it, with [`ONE_REPORT`] unless `keys` name results.
fn with_peer(site: Site, name: &str, title: &str, port: u16, keys: &str) -> Site {
    let results = if keys.contains("results =") { String::new() } else { format!("results = {ONE_REPORT}") };
    site.with(&format!(
        "[[peer]]\nname = \"{name}\"\nae_title = \"{title}\"\nhost = \"127.0.0.1\"\nport = {port}\nmay_store = true\n\n\
         [[destination]]\nname = \"{name}\"\nkind = \"dicom\"\npeer = \"{name}\"\ncalling_ae_title = \"HILUM\"\n\
         {results}\n{keys}"
    ))
}

/// One server for each (name, further keys of its script), and a site whose studies go to all of them.
fn scripted(servers: &[(&str, Value)], keys: impl Fn(&str) -> String) -> (ScriptedDestinations, Site) {
    let mut site = Site::new("HILUM").sender("SCANNER");
    let mut script = Vec::new();
    for (name, of_server) in servers {
        let (port, title) = (free_port(), name.to_uppercase());
        site = with_peer(site, name, &title, port, &keys(name));
        let mut server = json!({ "name": name, "port": port, "title": title, "classes": [SC, SR, ENHANCED_SR] });
        server.as_object_mut().expect("an object").extend(of_server.as_object().expect("an object").clone());
        script.push(server);
    }
    (ScriptedDestinations::start(Value::Array(script)), site)
}

fn rules(rules: Value) -> Value {
    json!({ "rules": rules })
}

/// State, attempts and last status of each delivery to a destination, by SOP class.
fn ledger(node: &Node, destination: &str) -> BTreeMap<String, (String, i64, Value)> {
    let rows = node.database.rows(&format!(
        "select sop_class_uid, state, attempts, last_status from delivery join result on result.id = result_id \
         where destination = '{destination}'"
    ));
    let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
    rows.iter()
        .map(|row| {
            let attempts = row["attempts"].as_i64().expect("a number");
            (text(row, "sop_class_uid"), (text(row, "state"), attempts, row["last_status"].clone()))
        })
        .collect()
}

/// Every attempt of a delivery has its row.
fn assert_every_attempt_is_noted(node: &Node) {
    let lacking = node.database.rows(
        "select d.destination, d.attempts, count(a.*) as noted, count(a.ended_at) as ended from delivery d \
         left join delivery_attempt a on a.delivery_id = d.id group by d.id \
         having count(a.*) <> d.attempts or count(a.ended_at) <> d.attempts",
    );
    assert!(lacking.is_empty(), "{lacking:#?}");
}

/// Nothing is sent to these destinations until [`let_go`].
fn hold(node: &Node, destinations: &[&str]) {
    for name in destinations {
        node.database.execute(&format!(
            "insert into destination_state (destination, state, failures, next_probe_at, words) \
             values ('{name}', 'closed', 1, now() + interval '1 hour', 'held by a test')"
        ));
    }
}

fn let_go(node: &Node) {
    node.database.execute("update destination_state set next_probe_at = now() where words = 'held by a test'");
}

/// A scripted peer and dcmqrscp: each answer leads to the right state, and each object arrives once and in order.
#[test]
fn heavy_every_answer_ends_in_the_right_state() {
    let (peers, site) = scripted(
        &[
            ("full", rules(json!([{ "class": SC, "times": 2, "do": "0xA700" }]))),
            ("has", rules(json!([{ "do": "0x0111" }]))),
            ("coerces", rules(json!([{ "do": "0xB000" }]))),
            ("refuses", rules(json!([{ "class": SR, "do": "0xC000" }]))),
            ("unknown", rules(json!([{ "class": SR, "do": "0x0122" }]))),
            ("aborts", rules(json!([{ "class": SC, "times": 2, "do": "abort" }]))),
            ("stalls", rules(json!([{ "class": SC, "times": 1, "do": "stall" }]))),
            ("cuts", rules(json!([{ "class": SC, "times": 1, "do": "truncate" }]))),
            ("forgets", rules(json!([{ "class": SR, "times": 1, "do": "keep_and_truncate" }]))),
            ("narrow", json!({ "classes": [SC] })),
        ],
        |_| String::new(),
    );
    let archive = QueryScp::start();
    let all =
        ["full", "has", "coerces", "refuses", "unknown", "aborts", "stalls", "cuts", "forgets", "narrow", "archive"];
    let site = with_peer(site, "archive", "ARCHIVE", archive.port, "").route("cxr-untrained", 1, &all);
    let options = NodeOptions::default().setting("HILUM__DELIVER__RESPONSE_TIMEOUT_SECONDS", 3);
    let node = Node::start_with(&site, options);
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.database.wait_for_rows(21, "select id from delivery where state in ('delivered', 'dead')");
    node.database.wait_for_rows(1, "select id from delivery where state = 'waiting' and attempts > 0");

    let delivered = |attempts: i64, status: u16| ("delivered".to_owned(), attempts, json!(status));
    for (name, sc, sr) in [
        ("full", delivered(3, 0), delivered(1, 0)),
        ("has", delivered(1, 0x0111), delivered(1, 0x0111)),
        ("coerces", delivered(1, 0xB000), delivered(1, 0xB000)),
        ("refuses", delivered(1, 0), ("dead".to_owned(), 1, json!(0xC000))),
        ("unknown", delivered(1, 0), ("dead".to_owned(), 1, json!(0x0122))),
        ("aborts", delivered(3, 0), delivered(1, 0)),
        ("stalls", delivered(2, 0), delivered(1, 0)),
        ("cuts", delivered(2, 0), delivered(1, 0)),
        ("forgets", delivered(1, 0), delivered(2, 0x0111)),
        ("archive", delivered(1, 0), delivered(1, 0)),
    ] {
        let expected = BTreeMap::from([(SC.to_owned(), sc.clone()), (SR.to_owned(), sr.clone())]);
        assert_eq!(ledger(&node, name), expected, "{name}");
        // The picture goes first, and holds nothing back when it has to wait. Nothing is kept twice.
        let kept = match (sc.1 > 1, sr.0 == "dead") {
            (_, true) => vec![SC],
            (true, false) => vec![SR, SC],
            (false, false) => vec![SC, SR],
        };
        if name != "archive" {
            assert_eq!(peers.kept(name), kept, "{name}");
        }
    }
    let narrow = node
        .database
        .row("select last_words, last_status from delivery where destination = 'narrow' and state = 'waiting'");
    let words = narrow["last_words"].as_str().expect("words");
    assert!(words.contains("accepts no presentation context for SOP class 1.2.840.10008.5.1.4.1.1.88.33"), "{words}");
    assert_every_attempt_is_noted(&node);

    // Told, explained, and restarted one by one and together.
    let dead = |name: &str| -> String {
        let query = format!("select id from delivery where destination = '{name}' and state = 'dead'");
        node.database.row(&query)["id"].as_str().expect("an id").to_owned()
    };
    let (refused, unknown) = (dead("refuses"), dead("unknown"));
    let told = node.hilum_ok(&["deliveries", "--explain", &refused]);
    assert!(told.contains("0xC000") && told.contains("what to do: look into its log"), "{told}");
    let told = node.hilum_ok(&["deliveries", "--explain", &unknown]);
    assert!(told.contains("enable the SOP class at the destination"), "{told}");
    peers.tell("refuses", json!([]));
    let told = node.hilum_ok(&["deliveries", "--restart", &refused]);
    assert!(told.contains("the delivery to `refuses` is tried again"), "{told}");
    node.database.wait_for_rows(1, &format!("select id from delivery where id = '{refused}' and state = 'delivered'"));
    peers.tell("unknown", json!([]));
    node.hilum_ok(&["deliveries", "--restart-dead", "unknown"]);
    node.database.wait_for_rows(1, &format!("select id from delivery where id = '{unknown}' and state = 'delivered'"));
    assert_eq!(
        (peers.kept("refuses"), peers.kept("unknown")),
        (vec![SC.into(), SR.into()], vec![SC.into(), SR.into()])
    );
    let output = node.hilum(&["deliveries", "--restart", &unknown]);
    assert!(!output.status.success() && said(&output).contains("is delivered: there is nothing"), "{}", said(&output));

    // The page and the command line know the same.
    let of_commands: Value = serde_json::from_str(&node.hilum_ok(&["deliveries", "--json"])).expect("JSON");
    let of_page = node.get("/api/deliveries").json();
    let ids = |list: &Value| -> BTreeSet<String> {
        let all = list.as_array().expect("a list").iter();
        all.filter(|one| one["ledger"].as_array().is_some_and(|ledger| !ledger.is_empty()))
            .map(|one| one["delivery_id"].to_string())
            .collect()
    };
    assert_eq!((ids(&of_commands).len(), ids(&of_page).len()), (22, 22));
    assert!(node.get(&format!("/studies/{}", sample.study_instance_uid)).text().contains("to be tried again"));
}

/// A form that the destination does not take is replaced by the next one, at once and on the same association.
#[test]
fn heavy_the_next_form_is_sent_when_the_first_is_not_taken() {
    let (peers, site) = scripted(
        &[
            ("status", rules(json!([{ "class": SR, "do": "0x0122" }]))),
            ("context", json!({ "classes": [SC, ENHANCED_SR] })),
            ("neither", json!({ "classes": [SC] })),
            ("first", json!({})),
        ],
        |_| String::new(),
    );
    let all = ["status", "context", "neither", "first"];
    let node = Node::start(&site.route("cxr-untrained", 1, &all));
    hold(&node, &all);
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.database.wait_for_rows(8, "select id from delivery where state = 'waiting' and attempts = 0");

    // The same report in another class, as a run with several classes makes it.
    let report = node.database.row(&format!("select archive_key from result where sop_class_uid = '{SR}'"));
    let key = report["archive_key"].as_str().expect("a key");
    fs_err::copy(node.archived(key), node.archived(&format!("{key}.next"))).expect("a copy");
    node.database.execute(&format!(
        "with other as (
             insert into result (id, run_id, kind, ordinal, sop_class_uid, sop_instance_uid, series_instance_uid,
                                 transfer_syntax_uid, archive_key, sha256, size_bytes, device_uid)
             select gen_random_uuid(), run_id, kind, 900, '{ENHANCED_SR}', '2.25.4711', '2.25.4712',
                    transfer_syntax_uid, archive_key || '.next', sha256, size_bytes, device_uid
             from result where sop_class_uid = '{SR}' returning id, run_id)
         insert into delivery (id, result_id, run_id, destination, send_order, chain, rank, state)
         select gen_random_uuid(), other.id, other.run_id, d.destination, d.send_order, d.chain, 1, 'spare'
         from other cross join delivery d join result x on x.id = d.result_id where x.sop_class_uid = '{SR}'"
    ));
    let_go(&node);
    node.database.wait_for_rows(
        10,
        "select id from delivery where state in ('delivered', 'replaced', 'unneeded') and destination <> 'neither'
         union all select id from delivery where destination = 'neither' and state = 'delivered'",
    );
    let states = |name: &str| -> Vec<(String, String)> {
        ledger(&node, name).into_iter().map(|(class, (state, ..))| (class, state)).collect()
    };
    let of = |sc: &str, enhanced: &str, sr: &str| -> Vec<(String, String)> {
        [(SC, sc), (ENHANCED_SR, enhanced), (SR, sr)].map(|(class, state)| (class.into(), state.into())).to_vec()
    };
    for name in ["status", "context"] {
        node.database.wait_for_rows(
            3,
            &format!("select id from delivery where destination = '{name}' and state in ('delivered', 'replaced')"),
        );
        assert_eq!(states(name), of("delivered", "delivered", "replaced"), "{name}");
        assert_eq!(peers.kept(name), [SC, ENHANCED_SR], "{name}");
        // No pause came between: one association carried everything.
        assert_eq!(ledger(&node, name)[ENHANCED_SR].1, 1, "{name}");
    }
    assert_eq!(states("first"), of("delivered", "unneeded", "delivered"));
    assert_eq!(peers.kept("first"), [SC, SR]);
    node.database.wait_for_rows(
        1,
        "select id from delivery where destination = 'neither' and state = 'waiting' and attempts > 0",
    );
    assert_eq!(states("neither"), of("delivered", "spare", "waiting"), "the preferred form is tried again");
}

/// A destination that is down for a day costs others nothing, and gets everything once and in order.
#[test]
fn heavy_a_day_without_a_destination_costs_nothing() {
    let (mut down, site) = scripted(&[("down", json!({}))], |_| "maximum_associations = 2".to_owned());
    down.stop();
    let port = free_port();
    let up = ScriptedDestinations::start(json!([{ "name": "up", "port": port, "title": "UP", "classes": [SC, SR] }]));
    let site = with_peer(site, "up", "UP", port, "").route("cxr-untrained", 1, &["down", "up"]);
    let node = Node::start(&site);
    let folder = node.scratch("sent");
    let samples: Vec<Sample> = (0..3).map(|_| Radiograph::default().write(&folder)).collect();
    node.send("SCANNER", &[&folder]);
    node.database.wait_for_rows(6, "select id from delivery where destination = 'up' and state = 'delivered'");
    assert_eq!(up.kept("up"), [SC, SR].repeat(3), "study by study, the picture before the report");

    // From the first question on: the lanes that failed have ended then.
    let open = "select failures from destination_state where destination = 'down' and state = 'open' and failures >= 7";
    node.database.wait_for_rows(1, open);
    let attempts = "select sum(attempts) as sum from delivery where destination = 'down'";
    let spent = node.database.row(attempts);
    let status = node.hilum_ok(&["destination", "status"]);
    assert!(status.contains("left alone") && status.contains("connection refused"), "{status}");
    assert!(node.get("/").text().contains("left alone until it answers"));
    wait_for("the alarm is counted", PATIENCE, || (node.metric("hilum_destinations_open") > 0.5).then_some(()));
    let doctor = said(&node.hilum(&["doctor"]));
    assert!(doctor.contains("destination `down`") && doctor.contains("left alone after"), "{doctor}");
    // A day goes by, in the books.
    node.database.execute(
        "update delivery set created_at = created_at - interval '1 day', \
         next_attempt_at = next_attempt_at - interval '1 day' where destination = 'down'",
    );
    let failures = node.database.row(open)["failures"].as_i64().expect("a number");
    wait_for("it is asked again", PATIENCE, || {
        let rows = node.database.rows(open);
        rows.first().filter(|row| row["failures"].as_i64() > Some(failures + 1)).map(drop)
    });
    assert_eq!(node.database.row(attempts), spent, "a destination that is left alone costs no attempts");

    down.start_again();
    for sample in &samples {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
    }
    let kept = down.kept("down");
    assert_eq!(kept.len(), 6);
    let of_study = |sample: &Sample| -> Vec<String> {
        let rows = node.database.rows(&format!(
            "select sop_class_uid from delivery join result x on x.id = result_id join run r on r.id = x.run_id \
             join workup w on w.id = r.workup_id where study_instance_uid = '{}' and destination = 'down' \
             order by delivered_at",
            sample.study_instance_uid
        ));
        rows.iter().map(|row| row["sop_class_uid"].as_str().expect("a class").to_owned()).collect()
    };
    for sample in &samples {
        assert_eq!(of_study(sample), [SC, SR]);
    }
    assert_eq!(up.log("up", "kept").len(), 6, "the destination that worked got something again");
    node.database.wait_for_rows(0, "select * from destination_state");

    // More than a week is given up, and a person takes it up again.
    down.stop();
    let late = Radiograph::default().write(&node.scratch("late"));
    node.send("SCANNER", &[&late.path]);
    node.database.wait_for_rows(1, open);
    node.database.execute(
        "update delivery set created_at = created_at - interval '8 days' where destination = 'down' and state = 'waiting'",
    );
    let dead = "select last_words from delivery where destination = 'down' and state = 'dead'";
    let words = node.database.wait_for_rows(2, dead).remove(0);
    assert!(words["last_words"].as_str().is_some_and(|words| words.contains("--restart-dead down")), "{words}");
    node.wait_for_workup(&late.study_instance_uid, "answered");
    down.start_again();
    node.hilum_ok(&["deliveries", "--restart-dead", "down"]);
    node.database.wait_for_rows(0, dead);
    node.database.wait_for_rows(8, "select id from delivery where destination = 'down' and state = 'delivered'");
    assert_every_attempt_is_noted(&node);

    // One that is taken out of the site costs nothing either, says so, and gets what it is owed when it is back.
    down.stop();
    let last = Radiograph::default().write(&node.scratch("last"));
    node.send("SCANNER", &[&last.path]);
    node.database.wait_for_rows(1, open);
    let without = Site::new("HILUM").sender("SCANNER");
    node.apply(&with_peer(without, "up", "UP", port, "").route("cxr-untrained", 1, &["up"]));
    node.database.execute("update delivery set next_attempt_at = now() where state = 'waiting'");
    let told = "select last_words from delivery where destination = 'down' and state = 'waiting' \
                and last_words like '%is no longer configured; add it again%'";
    node.database.wait_for_rows(2, told);
    let spent = node.database.row(attempts);
    node.database.execute("update delivery set next_attempt_at = now(), last_words = '' where state = 'waiting'");
    node.database.wait_for_rows(2, told);
    assert_eq!(node.database.row(attempts), spent);
    down.start_again();
    node.apply(&site);
    node.wait_for_workup(&last.study_instance_uid, "answered");
    node.database.wait_for_rows(10, "select id from delivery where destination = 'down' and state = 'delivered'");
}

/// A report waits for the segmentation that it refers to, but not for ever.
#[test]
fn heavy_a_segmentation_holds_back_its_report_for_five_refusals() {
    let refused = |times: u32| json!({ "classes": [SC, SR, SEGMENTATION], "rules": [{ "class": SEGMENTATION, "times": times, "do": "0x0110" }] });
    let (peers, site) = scripted(&[("twice", refused(2)), ("always", refused(1000))], |_| {
        "results = { report_classes = [\"comprehensive\"], text_companion = false, segmentation = \"all\" }".to_owned()
    });
    let node = Node::start(&site.route("cxr-untrained", 1, &["twice", "always"]));
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.database.wait_for_rows(5, "select id from delivery where state = 'delivered'");
    assert_eq!(peers.kept("twice"), [SEGMENTATION, SC, SR]);
    assert_eq!(peers.kept("always"), [SC, SR]);
    assert!(ledger(&node, "always")[SEGMENTATION].1 >= 5, "{:?}", ledger(&node, "always"));
    assert_eq!(ledger(&node, "always")[SEGMENTATION].0, "waiting");
}

/// Destinations are asked to keep what they got: the report comes either way, late, in part, never, or not at all.
#[test]
fn heavy_destinations_promise_to_keep_results() {
    let commits = |mode: &str, after: f64, lose: u32| json!({ "commitment": { "mode": mode, "after": after, "lose": lose, "report_title": "HILUM" } });
    let mut node = Node::prepare(NodeOptions::default());
    let mut servers = vec![
        ("same", commits("same", 0.2, 0)),
        ("new", commits("new", 0.3, 0)),
        ("late", commits("new", 15.0, 0)),
        ("part", commits("same", 0.2, 1)),
        ("loses", commits("same", 0.2, 99)),
        ("silent", commits("silent", 0.0, 0)),
        ("none", json!({})),
        ("must", commits("same", 0.2, 2)),
    ];
    for (name, server) in &mut servers {
        if let Some(commitment) = server.get_mut("commitment") {
            commitment["report_to"] = json!(node.dicom_port);
            commitment["twice"] = json!(*name == "new");
        }
    }
    let (peers, site) = scripted(&servers, |name| match name {
        "must" => "commitment = \"required\"".to_owned(),
        "silent" => "commitment = \"optional\"\ncommitment_timeout_seconds = 2".to_owned(),
        _ => "commitment = \"optional\"".to_owned(),
    });
    let all = ["same", "new", "late", "part", "loses", "silent", "none", "must"];
    node.hilum_ok(&["migrate"]);
    node.apply(&site.route("cxr-untrained", 1, &all));
    node.run();
    node.wait_until_ready();
    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    let ended = "commitment in ('committed', 'failed', 'unanswered', 'unsupported')";
    node.database.wait_for_rows(14, &format!("select id from delivery where destination <> 'late' and {ended}"));
    let states = |name: &str| -> Vec<String> {
        let rows = node.database.rows(&format!(
            "select commitment from delivery where destination = '{name}' and state = 'delivered' order by commitment"
        ));
        rows.iter().map(|row| row["commitment"].as_str().expect("a state").to_owned()).collect()
    };
    for (name, expected) in [
        ("same", ["committed", "committed"]),
        ("new", ["committed", "committed"]),
        ("part", ["committed", "committed"]),
        ("loses", ["committed", "failed"]),
        ("silent", ["unanswered", "unanswered"]),
        ("none", ["unsupported", "unsupported"]),
        ("must", ["committed", "failed"]),
        ("late", ["asked", "asked"]),
    ] {
        assert_eq!(states(name), expected, "{name}");
    }
    // What is not kept is sent once more, and no more than that.
    for name in ["part", "loses", "must"] {
        let lost = peers.log(name, "reported").iter().find(|line| line["lost"] == 1).cloned();
        assert!(lost.is_some(), "{name} has lost nothing");
        assert_eq!(peers.log(name, "").iter().filter(|line| line["did"] == "0x0111").count(), 1, "{name}");
        assert_eq!(peers.kept(name).len(), 2, "{name}");
    }
    assert_eq!(peers.log("silent", "asked").len(), 2, "asked once more when no report came in time");
    // Who reports twice is told twice that it is well.
    let reports = peers.log("new", "reported");
    assert!(reports.len() >= 2 && reports.iter().all(|line| line["status"] == "0000"), "{reports:?}");
    assert_eq!(node.database.count("select 1 from refusal where kind = 'operation'"), 0);

    // The report survives the node, and comes when it is back.
    node.kill_9();
    node.start_again();
    node.database.wait_for_rows(2, "select id from delivery where destination = 'late' and commitment = 'committed'");
    wait_for("the peer hears our answer", PATIENCE, || {
        peers.log("late", "reported").iter().any(|line| line["status"] == "0000").then_some(())
    });

    // Somebody is told, and a study that must be committed waits for it.
    assert_eq!(node.wait_for_workup(&sample.study_instance_uid, "analysing")["state"], "analysing");
    wait_for("the alarm is counted", PATIENCE, || (node.metric("hilum_deliveries_not_committed") > 3.5).then_some(()));
    let doctor = said(&node.hilum(&["doctor"]));
    assert!(doctor.contains("4 delivered, and the destination does not promise to keep them"), "{doctor}");
    let told = node.hilum_ok(&["deliveries"]);
    assert!(told.contains("not committed: `MUST` does not keep it: 0x0112 (no such object instance)"), "{told}");
    node.hilum_ok(&["deliveries", "--restart-dead", "must"]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    let events = node.database.count("select 1 from event where kind = 'not_committed'");
    assert_eq!(events, 4, "two that were lost, two that nobody answered for");
}

/// A web server with OAuth 2.0 that answers what it is told.
struct WebServer {
    port: u16,
    state: Arc<Mutex<WebState>>,
}

#[derive(Default)]
struct WebState {
    /// Tokens given so far; only the last one is good.
    tokens: usize,
    /// What happened to each POST, in order.
    log: Vec<String>,
    kept: Vec<Vec<u8>>,
}

impl WebServer {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(WebState::default()));
        let of_thread = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_thread);
                std::thread::spawn(move || while serve(&stream, &state).is_some() {});
            }
        });
        Self { port, state }
    }

    fn log(&self) -> Vec<String> {
        self.state.lock().expect("no panic holds it").log.clone()
    }
}

/// Answers one request; `None` at the end of the connection.
fn serve(mut stream: &TcpStream, state: &Mutex<WebState>) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let (status, headers, answer) = {
        let mut state = state.lock().ok()?;
        answer(&head, &header, &body, &mut state)
    };
    let answer = answer.to_string();
    let length = answer.len();
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n{answer}").ok()
}

fn answer(
    head: &str,
    header: &dyn Fn(&str) -> Option<String>,
    body: &[u8],
    state: &mut WebState,
) -> (u16, &'static str, Value) {
    let authorization = header("authorization").unwrap_or_default();
    if head.starts_with("POST /token ") {
        let form = String::from_utf8_lossy(body).into_owned();
        let good =
            authorization == "Basic aGlsdW06czNjcmV0" && form == "grant_type=client_credentials&scope=dicom+store";
        if !good {
            return (401, "", json!({ "error": "invalid_client" }));
        }
        state.tokens += 1;
        let token = format!("token-{}", state.tokens);
        return (200, "", json!({ "access_token": token, "token_type": "Bearer", "expires_in": 3600 }));
    }
    if !head.starts_with("POST /dicom-web/studies ") {
        return (200, "", json!([]));
    }
    // The first token ends before its time.
    if state.log.is_empty() || authorization != format!("Bearer token-{}", state.tokens) {
        state.log.push("401".to_owned());
        return (401, "", json!({}));
    }
    let boundary = header("content-type").and_then(|kind| Some(kind.split_once("boundary=")?.1.to_owned()));
    let boundary = boundary.expect("a boundary");
    let start = format!("--{boundary}\r\nContent-Type: application/dicom\r\n\r\n");
    let end = format!("\r\n--{boundary}--\r\n");
    let file = body.strip_prefix(start.as_bytes()).and_then(|rest| rest.strip_suffix(end.as_bytes()));
    let file = file.expect("one part").to_vec();
    let object = dicom_object::from_reader(file.as_slice()).expect("a Part 10 file");
    let (class, instance) =
        (object.meta().media_storage_sop_class_uid(), object.meta().media_storage_sop_instance_uid());
    let item = |tag: &str, reason: Option<u16>| {
        let mut item = json!({ "00081155": { "vr": "UI", "Value": [instance.trim_end_matches('\0')] } });
        if let Some(reason) = reason {
            item[tag] = json!({ "vr": "US", "Value": [reason] });
        }
        json!({ "vr": "SQ", "Value": [item] })
    };
    let tried = state.log.iter().filter(|line| line.starts_with(class.trim_end_matches('\0'))).count();
    let (did, answered) = match (class.trim_end_matches('\0'), tried) {
        (SC, 0) => ("busy", (429, "Retry-After: 1\r\n", json!({}))),
        (SC, 1) => ("0xA700", (202, "", json!({ "00081198": item("00081197", Some(0xA700)) }))),
        (SR, 0) => ("0x0110", (409, "", json!({ "00081198": item("00081197", Some(0x0110)) }))),
        _ => {
            state.kept.push(file.clone());
            ("kept", (200, "", json!({ "00081199": item("00081196", None) })))
        }
    };
    state.log.push(format!("{} {did}", class.trim_end_matches('\0')));
    answered
}

pub(crate) fn secret_file(folder: &std::path::Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    fs_err::write(&file, text).expect("a file");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a file");
    file.to_str().expect("a plain path").to_owned()
}

/// Orthanc over STOW-RS with a password, a scripted server with OAuth 2.0, a folder that is missing and then full, and the
/// sender itself.
#[test]
fn heavy_results_go_to_web_servers_folders_and_back_to_the_sender() {
    let (orthanc, web) = (Orthanc::start_dicomweb(), WebServer::start());
    let sender_port = free_port();
    let sender = ScriptedDestinations::start(
        json!([{ "name": "sender", "port": sender_port, "title": "SCANNER", "classes": [SC, SR] }]),
    );
    let mut node = Node::prepare(NodeOptions::default());
    let folder = node.scratch("mounts").join("results");
    let secrets = node.scratch("secrets");
    let (password, secret) = (secret_file(&secrets, "password", "s3cret\n"), secret_file(&secrets, "client", "s3cret"));
    let site = Site::new("HILUM")
        .partner("scanner", "SCANNER", sender_port)
        .sender("OTHER")
        .with(&format!(
            "[[destination]]\nname = \"orthanc\"\nkind = \"dicomweb\"\nurl = \"http://127.0.0.1:{}/dicom-web/\"\n\
             authentication = {{ basic = {{ user = \"hilum\", password_file = {password:?} }} }}\nresults = {ONE_REPORT}",
            orthanc.http_port
        ))
        .with(&format!(
            "[[destination]]\nname = \"cloud\"\nkind = \"dicomweb\"\nurl = \"http://127.0.0.1:{0}/dicom-web\"\n\
             authentication = {{ oauth2 = {{ token_url = \"http://127.0.0.1:{0}/token\", client_id = \"hilum\", \
             client_secret_file = {secret:?}, scope = \"dicom store\" }} }}\nresults = {ONE_REPORT}",
            web.port
        ))
        .with(&format!(
            "[[destination]]\nname = \"files\"\nkind = \"folder\"\nfolder = {folder:?}\nresults = {ONE_REPORT}"
        ))
        .with(&format!("[[destination]]\nname = \"back\"\nkind = \"return_to_sender\"\nresults = {ONE_REPORT}"))
        .route("cxr-untrained", 1, &["orthanc", "cloud", "files", "back"]);
    node.hilum_ok(&["migrate"]);
    node.apply(&site);
    node.run();
    node.wait_until_ready();
    for name in ["orthanc", "cloud"] {
        let told = node.hilum_ok(&["destination", "test", name]);
        assert!(told.contains("the web server answers with HTTP"), "{told}");
    }
    let missing = said(&node.hilum(&["destination", "test", "files"]));
    assert!(missing.contains("create the folder, or mount it"), "{missing}");

    let sample = Radiograph::default().write(&node.scratch("sent"));
    node.send("SCANNER", &[&sample.path]);
    node.database.wait_for_rows(
        6,
        "select id from delivery where state = 'delivered' and destination in ('orthanc', 'cloud', 'back')",
    );
    assert_eq!(orthanc.instances_of(&sample.study_instance_uid).len(), 2);
    assert_eq!(sender.kept("sender"), [SC, SR]);
    let log = web.log();
    assert_eq!(log[..2], ["401".to_owned(), format!("{SC} busy")], "a pause is for all of them");
    let of = |class: &str| -> Vec<&str> {
        log.iter().filter_map(|line| line.strip_prefix(class)?.strip_prefix(' ')).collect()
    };
    assert_eq!((of(SC), of(SR)), (vec!["busy", "0xA700", "kept"], vec!["0x0110", "kept"]), "each is kept once");
    let files: BTreeSet<Vec<u8>> = node
        .database
        .rows("select archive_key from result")
        .iter()
        .map(|row| fs_err::read(node.archived(row["archive_key"].as_str().expect("a key"))).expect("a result"))
        .collect();
    let kept: BTreeSet<Vec<u8>> = web.state.lock().expect("no panic holds it").kept.iter().cloned().collect();
    assert_eq!(kept, files, "the bytes of the archive");
    assert_eq!(
        node.database.row("select count(*) as n from delivery where destination = 'files' and state = 'waiting'")["n"],
        2
    );

    // The folder comes, but there is no room in it; then there is.
    fs_err::create_dir_all(&folder).expect("a folder");
    let disk = SmallDisk::mount(&folder, 32);
    fs_err::write(folder.join("filler"), vec![0; (32 << 20) - (256 << 10)]).expect("a file that fills the disk");
    let full = "select words from destination_state where destination = 'files' and words like '%make room there%'";
    node.database.wait_for_rows(1, full);
    fs_err::remove_file(folder.join("filler")).expect("our file");
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    let written: BTreeSet<Vec<u8>> = fs_err::read_dir(folder.join(&sample.study_instance_uid))
        .expect("a folder of the study")
        .map(|entry| fs_err::read(entry.expect("an entry").path()).expect("a file"))
        .collect();
    assert_eq!(written, files, "whole files and nothing else");
    drop(disk);

    // A sender that cannot be called is told of, and does not hold up the others.
    let other = Radiograph::default().write(&node.scratch("other"));
    fs_err::create_dir_all(&folder).expect("a folder");
    node.send("OTHER", &[&other.path]);
    let explained = "select last_words from delivery where destination = 'back' and state = 'waiting' and attempts > 0";
    let words = node.database.wait_for_rows(2, explained).remove(0);
    let words = words["last_words"].as_str().expect("words");
    assert!(words.contains("hilum peer add NAME --ae-title OTHER"), "{words}");
    let told = said(&node.hilum(&["destination", "test", "back"]));
    assert!(told.contains("sender `scanner`: `SCANNER` answers C-ECHO") && told.contains("sender `other`:"), "{told}");
    // The first study's eight, and what went to the two web servers and the folder of the second.
    node.database.wait_for_rows(8 + 6, "select id from delivery where state = 'delivered'");

    // No secret is anywhere.
    let snapshot = fs_err::read_to_string(node.data_folder.join("site-snapshot.json")).expect("a snapshot");
    let list = node.hilum_ok(&["destination", "list", "--json"]);
    for text in [snapshot, list, node.log(), node.get("/").text()] {
        assert!(!text.contains("s3cret") && !text.contains("token-"), "{text}");
    }
}

/// Studies go side by side where the destination allows it, the results of each in their order.
#[test]
fn heavy_several_associations_keep_the_order_of_each_study() {
    let (peers, site) = scripted(&[("wide", json!({}))], |_| "maximum_associations = 4".to_owned());
    let node = Node::start(&site.route("cxr-untrained", 1, &["wide"]));
    hold(&node, &["wide"]);
    let folder = node.scratch("sent");
    let samples: Vec<Sample> = (0..4).map(|_| Radiograph::default().write(&folder)).collect();
    node.send("SCANNER", &[&folder]);
    node.database.wait_for_rows(8, "select id from delivery where state = 'waiting'");
    let_go(&node);
    for sample in &samples {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
        let deliveries = node.wait_for_deliveries(&sample.study_instance_uid, 2);
        let kinds: Vec<&str> = deliveries.iter().filter_map(|row| row["kind"].as_str()).collect();
        assert_eq!(kinds, ["sc", "sr"]);
    }
    assert_eq!(peers.kept("wide").len(), 8);
    let opened = node.database.count("select 1 from event where subject_kind = 'association' and kind = 'opened'");
    assert_eq!(opened, 4, "one association for each of four studies");
}
