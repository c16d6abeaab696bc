use std::{collections::BTreeMap, time::Duration};

use rstest::rstest;

use super::{super::problem::Origin, *};

type Map = BTreeMap<&'static str, &'static str>;

fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hilum.toml");
    fs_err::write(&path, text).unwrap();
    (folder, path)
}

/// Loads `text` as a file.
fn load(text: &str, vars: &Map) -> Result<Config, ConfigErrors> {
    let (_folder, path) = write(text);
    Config::load(Some(&path), vars)
}

/// The problems of `text`, with the file called `hilum.toml`.
fn problems(text: &str, vars: &Map) -> String {
    let (folder, path) = write(text);
    let errors = Config::load(Some(&path), vars).unwrap_err();
    errors.to_string().replace(&format!("{}/", folder.path().display()), "")
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/hilum.example.toml")
}

#[test]
fn the_example_equals_the_defaults() {
    let from_example = Config::load(Some(&example()), &Map::new()).unwrap();
    let defaults = Config::load(None, &Map::new()).unwrap();
    assert_eq!(from_example, defaults);
}

#[test]
fn the_example_mentions_every_key_in_its_section() {
    let text = fs_err::read_to_string(example()).unwrap();
    for (section, keys) in sections() {
        assert!(!keys.is_empty());
        let (_, rest) = text.split_once(&format!("\n[{section}]\n")).unwrap();
        let body = rest.split("\n[").next().unwrap();
        for key in keys {
            let mentioned = body
                .lines()
                .any(|line| line.trim_start_matches("# ").split_once('=').is_some_and(|(word, _)| word.trim() == *key));
            assert!(mentioned, "config/hilum.example.toml does not show `{key}` of [{section}]");
        }
    }
}

/// Every key that the example only shows as a comment is a key that works.
#[test]
fn the_examples_commented_keys_work() {
    let text = fs_err::read_to_string(example()).unwrap();
    let commented: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    for (line, section) in [
        ("manufacturer_name = ", "node"),
        ("utc_offset = ", "node"),
        ("texts_dir = ", "node"),
        ("url = ", "database"),
        ("max_connections_per_address = ", "dicom"),
        ("sop_classes = ", "policy"),
        ("transfer_syntaxes = ", "policy"),
        ("user_identity = ", "policy"),
        ("max_pdu_length_bytes = ", "policy"),
        ("max_associations = ", "policy"),
        ("max_associations_per_minute = ", "policy"),
        ("max_bytes_per_second = ", "policy"),
    ] {
        let line = commented.iter().find(|comment| comment.starts_with(line)).unwrap();
        load(&format!("[{section}]\n{line}\n"), &Map::new()).unwrap();
    }
}

#[test]
fn all_sections_are_listed() {
    assert_eq!(sections().map(|(name, _)| name), field_names::<RawConfig>());
}

#[test]
fn every_problem_of_a_file_is_reported_at_once() {
    let text = r#"[node]
name = "a name that is too long for a station"

[dicom]
listen = "localhost"
max_asociations = 10
max_pdu_length_bytes = 1024
message_timeout_seconds = "ten"

[http]
listen = "0.0.0.0:8088"

[telemtry]
"#;
    insta::assert_snapshot!(problems(text, &Map::new()), @r#"
    the node's configuration has 7 problems:
      hilum.toml:2:1: `node.name`: got string "a name that is too long for a station"; give at most 16 characters without backslash and control characters
      hilum.toml:5:1: `dicom.listen`: got string "localhost"; give an IP address and a port, such as "127.0.0.1:11112" or "[::]:11112"
      hilum.toml:6:1: `dicom.max_asociations`: unknown key; did you mean `max_associations`?
      hilum.toml:7:1: `dicom.max_pdu_length_bytes`: got integer `1024`; give a whole number from 4096 to 1048576
      hilum.toml:8:1: `dicom.message_timeout_seconds`: got string "ten"; give a whole number from 1 to 86400
      hilum.toml:11:1: `http.listen`: 0.0.0.0:8088 can be reached from other machines, and the page has no sign-in yet; give a loopback address, such as "127.0.0.1:8088", and an SSH tunnel to those who need it
      hilum.toml:13:2: `telemtry`: unknown key; remove it; this file knows `node`, `database`, `dicom`, `tls`, `policy`, `archive`, `retention`, `assemble`, `inference`, `deliver`, `http`, `log`
    "#);
}

#[test]
fn syntax_errors_do_not_hide_other_problems() {
    let text = "[dicom\nlisten = \"0.0.0.0:104\"\n[deliver]\nmaximum_age_days = 0\ninitial_backoff_seconds =\n";
    insta::assert_snapshot!(problems(text, &Map::new()), @r#"
    the node's configuration has 3 problems:
      hilum.toml:1:7: unclosed table; TOML wants `]` here
      hilum.toml:4:1: `deliver.maximum_age_days`: got integer `0`; give a whole number from 1 to 365
      hilum.toml:5:26: no value, or a text without quotes; write texts in double quotes
    "#);
}

#[rstest]
#[case::wrong_section(
    "[node]\nlisten = \"0.0.0.0:104\"",
    "did you mean `listen` in [dicom] or `listen` in [tls] or `listen` in [http]?"
)]
#[case::unknown_key("[log]\ncolour = 1", "`log.colour`: unknown key; remove it; [log] knows `format`, `level`")]
#[case::section_is_value("dicom = 5", "`dicom`: is not a section; write [dicom] and its keys below it")]
#[case::section_is_list("[[dicom]]\nlisten = \"0.0.0.0:104\"", "`dicom`: is not a section")]
#[case::negative("[dicom]\nmax_associations = -1", "got integer `-1`; give a whole number from 1 to 4096")]
#[case::zero("[dicom]\nmax_associations = 0", "got integer `0`; give a whole number from 1 to 4096")]
#[case::float("[dicom]\nmax_associations = 1.5", "got floating point `1.5`; give a whole number from 1 to 4096")]
#[case::size("[dicom]\nmax_object_bytes = \"big\"", "got string \"big\"; give a size from \"1 MiB\" to \"1 TiB\"")]
#[case::size_range("[dicom]\nmax_object_bytes = 1", "got integer `1`; give a size from \"1 MiB\" to \"1 TiB\"")]
#[case::boolean("[database]\nmanaged = \"yes\"", "`database.managed`: got string \"yes\"; give true or false")]
#[case::variant("[log]\nformat = \"xml\"", "`log.format`: unknown variant `xml`; give `human` or `json`")]
#[case::device("[inference]\ndevice = \"cuda\"", "`cuda` is not a device; give `cpu` or `cuda:0`")]
#[case::devices("[inference]\ndevice = [\"cuda:0\", \"cuda:0\"]", "`cuda:0` is listed twice")]
#[case::level("[log]\nlevel = \"verbose\"", "got string \"verbose\"; give off, error, warn, info, debug or trace")]
#[case::directive("[log]\nlevel = \"info,hilum=loud\"", "got string \"info,hilum=loud\"")]
#[case::empty_path("[node]\ndata_dir = \" \"", "`node.data_dir`: got string \" \"; give a path")]
#[case::empty_name("[node]\nname = \"\"", "`node.name`: got string \"\"; give 1 to 16 characters")]
#[case::backslash("[node]\ninstitution_name = 'a\\b'", "give at most 64 characters without backslash")]
#[case::offset("[node]\nutc_offset = \"CET\"", "give an offset from UTC from \"-12:00\" to \"+14:00\"")]
#[case::same_port("[dicom]\nlisten = \"0.0.0.0:8088\"", "`dicom.listen` takes port 8088 already")]
#[case::results_reserve(
    "[archive]\nminimum_free_bytes = \"1 GiB\"\nresults_minimum_free_bytes = \"2 GiB\"",
    "2 GiB is more than"
)]
#[case::backoff("[deliver]\ninitial_backoff_seconds = 9\nmaximum_backoff_seconds = 8", "9 is more than")]
#[case::restart("[inference]\nrestart_backoff_minimum_seconds = 90", "90 is more than")]
#[case::two_sources(
    "[database]\nmanaged = true\nurl = \"postgres://h/d\"",
    "`database.url`, `database.managed` are given"
)]
#[case::tls_same_port(
    "[tls]\nlisten = \"0.0.0.0:11112\"\ncertificate_file = \"c\"\nprivate_key_file = \"k\"\nca_files = [\"a\"]",
    "`dicom.listen` takes port 11112 already"
)]
#[case::tls_without_key(
    "[tls]\nlisten = \"0.0.0.0:2762\"\nca_files = [\"a\"]",
    "a listener for TLS needs a certificate and its key"
)]
#[case::tls_without_ca(
    "[tls]\nlisten = \"0.0.0.0:2762\"\ncertificate_file = \"c\"\nprivate_key_file = \"k\"",
    "no CA is trusted"
)]
#[case::tls_half_a_pair("[tls]\ncertificate_file = \"c.pem\"", "`tls.certificate_file`: comes without its key")]
#[case::policy("[policy]\nmax_associations = 0", "has policy.max_associations = 0")]
#[case::per_address("[dicom]\nmax_connections_per_address = 0", "give a whole number from 1 to 8192")]
#[case::no_file("[database]\nurl_file = \"no/such/file\"", "failed to open file `no/such/file`: No such file")]
#[case::duplicate("[log]\nlevel = \"info\"\nlevel = \"warn\"", "hilum.toml:3:1: duplicate key")]
fn bad_configurations_are_explained(#[case] text: &str, #[case] expected: &str) {
    let text = problems(text, &Map::new());
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("has a problem:"), "exactly one problem: {text}");
}

#[test]
fn a_good_file_sets_what_it_says() {
    let text = r#"
        dicom = { listen = "[::1]:104", max_object_bytes = 2097152 }
        [node]
        name = "HILUM EAST"
        utc_offset = "-03:30"
        [database]
        url = "postgresql://hilum:hunter2@db/hilum"
        [deliver]
        maximum_age_days = 3
    "#;
    let config = load(text, &Map::new()).unwrap();
    assert_eq!(config.dicom.listen, "[::1]:104".parse().unwrap());
    assert_eq!(config.dicom.max_object_bytes.bytes(), 2 << 20);
    assert_eq!(&*config.node.name, "HILUM EAST");
    assert_eq!(config.node.utc_offset.unwrap().whole_minutes(), -210);
    assert_eq!(config.deliver.maximum_age, Duration::from_hours(72));
    let DatabaseSource::External { url, url_file: None } = &config.database.source else { panic!("not external") };
    assert_eq!(url.expose(), "postgresql://hilum:hunter2@db/hilum");
}

#[test]
fn the_environment_wins_over_the_file() {
    let vars = Map::from([
        ("HILUM__DICOM__LISTEN", "127.0.0.1:0"),
        ("HILUM__DICOM__MAX_ASSOCIATIONS", "7"),
        ("HILUM__DICOM__MAX_OBJECT_BYTES", "8 MiB"),
        ("HILUM__DATABASE__MANAGED", "true"),
        ("HILUM__NODE__NAME", "42"),
        ("HILUM__NODE__INSTITUTION_NAME", ""),
        ("HILUM_ROLE", "not ours"),
        ("PATH", "/bin"),
    ]);
    let config = load("[dicom]\nmax_associations = 5\nidle_timeout_seconds = 9\n", &vars).unwrap();
    assert_eq!(config.dicom.listen, "127.0.0.1:0".parse().unwrap());
    assert_eq!(config.dicom.max_associations, 7);
    assert_eq!(config.dicom.idle_timeout, Duration::from_secs(9));
    assert_eq!(config.dicom.max_object_bytes, super::super::ByteSize::from_mebibytes(8));
    assert_eq!(config.database.source, DatabaseSource::Managed);
    assert_eq!(&*config.node.name, "42", "a text that looks like a number stays a text");
}

#[test]
fn problems_of_the_environment_name_the_variable() {
    let vars = Map::from([
        ("HILUM__DICOM__MAX_ASSOCIATIONS", "many"),
        ("HILUM__DICOM__LISTENS", "127.0.0.1:104"),
        ("HILUM__COLOUR__OF", "blue"),
        ("HILUM__DICOM", "x"),
        ("HILUM__LOG__LEVEL", "warn"),
        ("HILUM__log__level", "info"),
    ]);
    insta::assert_snapshot!(problems("[dicom]\nmax_associations = 5\n", &vars), @r#"
    the node's configuration has 5 problems:
      environment variable HILUM__COLOUR__OF: `colour`: unknown key; remove it; this file knows `node`, `database`, `dicom`, `tls`, `policy`, `archive`, `retention`, `assemble`, `inference`, `deliver`, `http`, `log`
      environment variable HILUM__DICOM: the name does not name a section and a key; write HILUM__SECTION__KEY, such as HILUM__DICOM__LISTEN
      environment variable HILUM__DICOM__LISTENS: `dicom.listens`: unknown key; did you mean `listen`?
      environment variable HILUM__DICOM__MAX_ASSOCIATIONS: `dicom.max_associations`: got string "many"; give a whole number from 1 to 4096
      environment variable HILUM__log__level: `log.level`: HILUM__LOG__LEVEL sets it too; unset one of the two
    "#);
}

#[test]
#[cfg(unix)]
fn a_variable_that_is_not_utf8_is_a_problem() {
    use std::os::unix::ffi::OsStringExt;
    struct Broken;
    impl Vars for Broken {
        fn vars(&self) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
            vec![("HILUM__NODE__NAME".into(), std::ffi::OsString::from_vec(vec![0xff]))]
        }
    }
    let text = Config::load(None, &Broken).unwrap_err().to_string();
    assert!(text.contains("environment variable HILUM__NODE__NAME: the value is not UTF-8"), "{text}");
}

#[test]
fn the_database_url_comes_from_its_file() {
    let (folder, path) = write("");
    let secret_file = folder.path().join("database-url");
    fs_err::write(&secret_file, "postgres://hilum:hunter2@db/hilum\n").unwrap();
    let secret_path = secret_file.to_str().unwrap().to_owned();
    let vars = BTreeMap::from([("HILUM__DATABASE__URL_FILE".to_owned(), secret_path.clone())]);
    let config = Config::load(Some(&path), &vars).unwrap();
    let DatabaseSource::External { url, url_file } = &config.database.source else { panic!("not external") };
    assert_eq!(url.expose(), "postgres://hilum:hunter2@db/hilum");
    assert_eq!(url_file.as_deref(), Some(&*secret_file));
    let effective = effective_toml(&config);
    assert!(effective.contains(&secret_path) && !effective.contains("hunter2"), "{effective}");
}

#[rstest]
#[case::good("postgres://hilum:hunter2@db/hilum", "")]
#[case::wrong_scheme("mysql://hilum:hunter2@db/hilum", "")]
#[case::as_a_path("", "postgres://hilum:hunter2@db/hilum")]
#[case::both("postgres://hilum:hunter2@db/hilum", "postgres://hilum:hunter2@db/hilum")]
fn secrets_never_show(#[case] url: &str, #[case] url_file: &str) {
    let database: Table = [("url", url), ("url_file", url_file)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    let shown = match load(&format!("[database]\n{database}"), &Map::new()) {
        Ok(config) => format!("{config:?}\n{config:#?}\n{}", effective_toml(&config)),
        Err(errors) => format!("{errors}\n{errors:?}"),
    };
    assert!(shown.contains("database"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[rstest]
#[case::unclosed("[database]\nurl = \"postgres://u:hunter2@h/d\n")]
#[case::unquoted("[database]\nurl = postgres://u:hunter2@h/d\n")]
#[case::list("[database]\nurl = [\"postgres://u:hunter2@h/d\"]\n")]
#[case::misspelt("[database]\nurll = \"postgres://u:hunter2@h/d\"\n")]
#[case::no_section("database = \"postgres://u:hunter2@h/d\"\n")]
#[case::root_key("url = \"postgres://u:hunter2@h/d\"\n")]
fn a_secret_in_a_broken_file_is_not_shown(#[case] text: &str) {
    let shown = problems(text, &Map::new());
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_secret_in_a_bad_url_file_is_not_shown() {
    let (folder, path) = write("[database]\nurl_file = \"PLACE\"\n");
    let secret_file = folder.path().join("database-url");
    fs_err::write(&secret_file, "password=hunter2").unwrap();
    fs_err::write(&path, format!("[database]\nurl_file = {:?}\n", secret_file.to_str().unwrap())).unwrap();
    let text = Config::load(Some(&path), &Map::new()).unwrap_err().to_string();
    assert!(text.contains("holds no Postgres URL") && !text.contains("hunter2"), "{text}");
}

#[test]
fn the_effective_configuration_reads_back_the_same() {
    let vars = Map::from([("HILUM__DATABASE__MANAGED", "true"), ("HILUM__NODE__UTC_OFFSET", "+05:30")]);
    let config =
        load("[deliver]\nmaximum_age_days = 2\n[archive]\nminimum_free_bytes = \"1500 MiB\"\n", &vars).unwrap();
    let again = load(&effective_toml(&config), &Map::new()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn development_stays_on_this_machine_and_in_its_folder() {
    let config = Config::defaults_for_dev(Path::new("data"));
    assert!(config.dicom.listen.ip().is_loopback() && config.http.listen.ip().is_loopback());
    assert_eq!(config.dicom.listen.port(), 11112);
    assert_eq!(config.node.data_dir, Path::new("data"));
    assert_eq!(config.database.source, DatabaseSource::Managed);
    assert!(config.database.migrate_on_start);
    assert_eq!(load(&effective_toml(&config), &Map::new()).unwrap(), config, "it passes its own validation");
}

#[test]
fn only_what_influences_results_changes_their_digest() {
    let digest = |text: &str| load(text, &Map::new()).unwrap().results_digest();
    let defaults = digest("");
    for influences in [
        "[node]\nname = \"OTHER\"",
        "[node]\ninstitution_name = \"General Hospital\"",
        "[node]\nmanufacturer_name = \"Other\"",
        "[node]\nutc_offset = \"+01:00\"",
        "[inference]\nmax_decoded_bytes = \"1 GiB\"",
        "[inference]\noptimise = false",
        "[inference]\ndevice = \"cuda:0\"",
    ] {
        assert_ne!(digest(influences), defaults, "{influences}");
    }
    for does_not in [
        "[node]\ndata_dir = \"elsewhere\"",
        "[inference]\nthreads = 3\nmax_batch = 1\nconcurrent_runs = 7",
        "[dicom]\nlisten = \"0.0.0.0:104\"",
        "[log]\nlevel = \"debug\"",
    ] {
        assert_eq!(digest(does_not), defaults, "{does_not}");
    }
    let on_gpus = digest("[inference]\ndevice = [\"cuda:0\", \"cuda:1\"]");
    assert_eq!(on_gpus, digest("[inference]\ndevice = \"cuda:0\""), "one more GPU gives the same results");
}

#[test]
fn a_missing_file_is_one_problem() {
    let errors = Config::load(Some(Path::new("no/such/hilum.toml")), &Map::new()).unwrap_err();
    assert_eq!(errors.problems.len(), 1);
    assert_eq!(errors.problems[0].origin, Origin::WholeFile { path: "no/such/hilum.toml".into() });
}

#[test]
fn a_file_that_is_not_utf8_says_where() {
    let (_folder, path) = write("");
    fs_err::write(&path, b"[node]\nname = \"H\xd6PITAL\"\n").unwrap();
    let text = Config::load(Some(&path), &Map::new()).unwrap_err().to_string();
    assert!(text.contains("line 2 is not UTF-8"), "{text}");
}
