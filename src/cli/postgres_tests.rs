//! The commands against a real Postgres.

use std::path::PathBuf;

use uuid::Uuid;

use super::{store::Store, *};
use crate::{
    db::{
        self,
        managed::{ManagedPostgres, ManagedPostgresOptions},
    },
    report::samples::{SampleSource, analysed},
    types::{BundleStatus, RunRecord},
};

/// A folder that the server's user can enter.
fn open_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::Builder::new().prefix("hilum-test-cli").tempdir_in("/tmp").unwrap();
    fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

async fn run_line(url: &str, line: &str) -> anyhow::Result<()> {
    let words = ["hilum", "--database-url", url].into_iter().chain(line.split_whitespace());
    let CommandLine { global, command } = CommandLine::try_parse_from(words)?;
    Box::pin(run_command(&global, command)).await
}

async fn insert_run(store: &Store, record: &RunRecord) {
    let workup_id = db::testing::workup(&store.db, record.study_instance_uid.as_str()).await;
    sqlx::query(
        "insert into run (id, workup_id, revision, role, bundle, bundle_identity, configuration_sha256, result_key,
                          destinations, state, words, attempt, maximum_attempts, next_attempt_at, started_at, outcome)
         values ($1, $2, $3, 'live', 'cxr', $4, $5, $6, '{pacs}', 'succeeded', 'analysed', 1, 3, now(), $7, $8)",
    )
    .bind(record.run_id)
    .bind(workup_id)
    .bind(record.revision)
    .bind(sqlx::types::Json(&record.bundle))
    .bind(&record.configuration_sha256.0[..])
    .bind(&record.result_key.0[..])
    .bind(record.started_at)
    .bind(sqlx::types::Json(&record.outcome))
    .execute(store.db.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn administrators_configure_a_node_and_look_at_it() {
    // `make test` gives all tests one server, which it stops itself.
    let shared = std::env::var_os("HILUM_TEST_POSTGRES_FOLDER").map(PathBuf::from);
    let own = open_folder();
    let mut options = ManagedPostgresOptions::throw_away(shared.as_deref().unwrap_or(own.path()));
    options.database_name = format!("hilum_cli_{}", std::process::id());
    let server = ManagedPostgres::start(&options).await.unwrap();
    let url = server.connection_url();
    let run = async |line: &str| run_line(&url, line).await;
    let refused = async |line: &str| format!("{:#}", run_line(&url, line).await.unwrap_err());

    assert!(refused("peer list").await.contains("run `hilum migrate`"));
    run("migrate").await.unwrap();
    run("migrate").await.unwrap();

    // Each names the one before.
    run("local-ae add HILUM --description AI").await.unwrap();
    run("peer add pacs --ae-title PACS --host 127.0.0.1").await.unwrap();
    assert!(refused("destination add pacs --peer pacs --calling-ae-title HILUM").await.contains("no host and port"));
    run("peer add pacs --ae-title PACS --host 127.0.0.1 --port 1").await.unwrap();
    run("destination add pacs --peer pacs --calling-ae-title HILUM").await.unwrap();
    run("route add chest --called-ae-title HILUM --modalities CR,DX --pipeline chest_radiograph --bundle cxr \
         --destinations pacs")
    .await
    .unwrap();
    for list in ["local-ae list", "peer list --json", "destination list", "route list --json"] {
        run(list).await.unwrap();
    }
    run("route test chest --calling ANY --modality DX").await.unwrap();
    assert!(refused("route test chest --calling ANY --modality CT").await.contains("does not take"));
    assert!(refused("destination test pacs").await.contains("connection refused"));
    assert!(refused("peer remove pacs").await.contains("destination `pacs` names peer `pacs`"));
    assert!(refused("destination remove pacs").await.contains("route `chest` sends to destination `pacs`"));
    assert!(refused("local-ae remove HILUM").await.contains("route `chest` listens to local AE `HILUM`"));

    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/site.example.toml");
    let apply = format!("apply {}", example.display());
    run(&format!("{apply} --dry-run")).await.unwrap();
    let global = Global { database_url: Some(url.clone()), ..Global::default() };
    let site = super::site::load(&global).await.unwrap();
    assert_eq!(site.routes[0].name, "chest", "a dry run changes nothing");

    // Rules stay when a route is given anew without any.
    let again = "route add chest --called-ae-title HILUM --modalities CR,DX --pipeline chest_radiograph --bundle cxr \
                 --destinations pacs";
    let rules = async || super::site::load(&global).await.unwrap().routes[0].rules.len();
    run(&format!("{again} --rule {{when=\"gate_failed\",destinations=[\"pacs\"]}}")).await.unwrap();
    assert_eq!(rules().await, 1);
    run(&format!("{again} --quiet-seconds 5")).await.unwrap();
    assert_eq!(rules().await, 1);
    run(&format!("{again} --no-rules")).await.unwrap();
    assert_eq!(rules().await, 0);
    run(&apply).await.unwrap();
    assert_eq!(super::site::load(&global).await.unwrap(), normalised(crate::config::load_site(&example).unwrap()));

    // The read models.
    let store = Store::open(&global.load().unwrap()).await.unwrap();
    let record = analysed(BundleStatus::Untrained, &SampleSource::new("1.2.3"));
    insert_run(&store, &record).await;
    let config = global.load().unwrap();
    let shown = runs::text_of(&mut store.db.acquire().await.unwrap(), &config, record.run_id).await.unwrap();
    assert!(shown.ends_with(&crate::report::describe(&record)), "{shown}");
    store.close().await.unwrap();
    run("studies --json").await.unwrap();
    run("runs").await.unwrap();
    run("deliveries").await.unwrap();
    run("refusals").await.unwrap();
    refusals_are_counted_and_bounded(&global).await;
    assert!(refused("doctor --since 1h").await.contains("found, see above"));
    assert!(refused("doctor --peer nobody").await.contains("there is no peer `nobody`"));
    assert!(refused("doctor allow 4711").await.contains("there is no refusal 4711"));
    run(&format!("timeline {}", record.study_instance_uid)).await.unwrap();
    let restart = format!("run restart {}", record.run_id);
    assert!(refused(&restart).await.contains("only a parked run"));
    let store = Store::open(&global.load().unwrap()).await.unwrap();
    sqlx::query(
        "with r as (update run set state = 'parked' where id = $1 returning workup_id)
                 update workup set state = 'parked' where id = (select workup_id from r)",
    )
    .bind(record.run_id)
    .execute(store.db.pool())
    .await
    .unwrap();
    run(&restart).await.unwrap();
    let restarted = db::status::run(&mut store.db.acquire().await.unwrap(), record.run_id).await.unwrap().unwrap();
    assert_eq!(restarted.state, "queued");
    assert!(restarted.maximum_attempts > restarted.attempt, "{restarted:?}");
    store.close().await.unwrap();
    assert!(refused("timeline 1.2.3.4.5").await.contains("there is no study"));
    assert!(refused(&format!("run show {}", Uuid::nil())).await.contains("there is no run"));
    run("deliveries --restart-dead pacs").await.unwrap();
    assert!(refused("deliveries --restart-dead nowhere").await.contains("there is no destination `nowhere`"));

    if shared.is_none() {
        server.stop().await.unwrap();
    }
}

/// What is alike within an hour is one row, a row covers a day, and what is too old goes.
async fn refusals_are_counted_and_bounded(global: &Global) {
    use crate::{
        db::{
            association::{self, AssociationStart},
            refusal::{self, CountedRefusal, Whose},
        },
        types::{Refusal, RefusalKey, RefusalKind},
    };
    let now = time::OffsetDateTime::now_utc();
    let refused = |title: &str, minutes_ago: i64| {
        let at = now - time::Duration::minutes(minutes_ago);
        let last = Refusal {
            key: RefusalKey {
                kind: RefusalKind::Association,
                reason: "calling_ae_title",
                peer_address: "192.0.2.7".parse().unwrap(),
                calling_ae_title: title.to_owned(),
                called_ae_title: "HILUM".to_owned(),
                sop_class_uid: String::new(),
            },
            expected: "NUL\0".to_owned(),
            received: format!("{minutes_ago} minutes ago"),
            remedy: "r".to_owned(),
            harmless: false,
            example: None,
            at,
        };
        CountedRefusal { last, count: 2, first_at: at }
    };
    const DAY: i64 = 24 * 60;
    let store = Store::open(&global.load().unwrap()).await.unwrap();
    let mut connection = store.db.acquire().await.unwrap();
    refusal::record(&mut connection, "node", &[refused("OLD", 91 * DAY)]).await.unwrap();
    for minutes_ago in [200, 170, 100, 10, 5] {
        refusal::record(&mut connection, "node", &[refused("CT01", minutes_ago)]).await.unwrap();
    }
    refusal::record(&mut connection, "other-node", &[refused("CT01", 1)]).await.unwrap();
    // Every 30 minutes for two days: a row for each day, not one for ever.
    for step in (0..96).rev() {
        refusal::record(&mut connection, "busy", &[refused("BUSY", 3 * DAY + 30 * step)]).await.unwrap();
    }
    let long_ago = now - time::Duration::days(365);
    let rows = refusal::list(&mut connection, long_ago, &Whose::default(), 100).await.unwrap();
    let of = |title: &str| {
        rows.iter()
            .filter(|row| row.calling_ae_title == title)
            .map(|row| (row.count, &*row.received))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("CT01"),
        [(2, "1 minutes ago"), (4, "5 minutes ago"), (2, "100 minutes ago"), (4, "170 minutes ago")]
    );
    assert_eq!(of("OLD"), [], "it goes with the next new row");
    let busy: Vec<i64> = of("BUSY").iter().map(|(count, _)| *count).collect();
    assert!((2..=3).contains(&busy.len()) && busy.iter().sum::<i64>() == 192, "{busy:?}");
    let whose = Whose { ae_titles: vec!["BUSY".to_owned()], addresses: Vec::new() };
    let rows = refusal::list(&mut connection, long_ago, &whose, 100).await.unwrap();
    assert!(rows.iter().all(|row| row.calling_ae_title == "BUSY" && !row.mended));
    let recent =
        refusal::list(&mut connection, now - time::Duration::minutes(7), &Whose::default(), 100).await.unwrap();
    assert_eq!(recent.len(), 2);

    // A refusal is mended when its caller is accepted, also if that is written down first, until it is refused again.
    let accepted = |title: &str, minutes_ago: i64| AssociationStart {
        id: Uuid::new_v4(),
        node: "node".to_owned(),
        peer_address: "192.0.2.7".parse().unwrap(),
        calling_ae_title: title.to_owned(),
        called_ae_title: "HILUM".to_owned(),
        peer_implementation_class_uid: None,
        peer_implementation_version_name: None,
        started_at: now - time::Duration::minutes(minutes_ago),
    };
    let mut mended = Vec::new();
    for step in 0..6 {
        match step {
            0 => refusal::record(&mut connection, "node", &[refused("CT02", 40)]).await.unwrap(),
            1 => association::insert(&mut connection, &accepted("CT02", 41)).await.unwrap(),
            2 => association::insert(&mut connection, &accepted("CT03", 30)).await.unwrap(),
            3 => association::insert(&mut connection, &accepted("CT02", 20)).await.unwrap(),
            4 => refusal::record(&mut connection, "node", &[refused("CT02", 10), refused("CT03", 35)]).await.unwrap(),
            _ => association::insert(&mut connection, &accepted("CT02", 5)).await.unwrap(),
        }
        let rows =
            refusal::list(&mut connection, now - time::Duration::hours(1), &Whose::default(), 100).await.unwrap();
        let of = |title: &str| {
            rows.iter().filter(|row| row.calling_ae_title == title).map(|row| row.mended).collect::<Vec<_>>()
        };
        mended.push((of("CT02"), of("CT03")));
    }
    let [open, done] = [vec![false], vec![true]];
    assert_eq!(
        mended,
        [
            (open.clone(), vec![]),
            (open.clone(), vec![]),
            (open.clone(), vec![]),
            (done.clone(), vec![]),
            (open, done.clone()),
            (done.clone(), done),
        ]
    );
    drop(connection);
    store.close().await.unwrap();
}

/// In the order of the database.
fn normalised(mut site: crate::types::SiteConfig) -> crate::types::SiteConfig {
    site.local_aes.sort_by(|a, b| a.ae_title.cmp(&b.ae_title));
    site.peers.sort_by(|a, b| a.name.cmp(&b.name));
    site.destinations.sort_by(|a, b| a.name.cmp(&b.name));
    site
}

#[tokio::test]
async fn a_client_makes_no_database_out_of_a_typing_error() {
    let folder = open_folder();
    let global = Global { dev: Some(folder.path().join("nothing")), ..Global::default() };
    let error = super::site::load(&global).await.unwrap_err();
    assert!(error.to_string().contains("there is no Postgres below"), "{error}");
    assert!(error.downcast_ref::<Hinted>().unwrap().hint.contains("start the node once"));
    assert!(!folder.path().join("nothing").exists());

    let global = Global { database_url: Some("postgres:///x?host=/tmp/hilum-nowhere".to_owned()), ..Global::default() };
    let error = super::site::load(&global).await.unwrap_err();
    assert!(error.downcast_ref::<Hinted>().unwrap().hint.contains("check that Postgres runs"), "{error:#}");
}
