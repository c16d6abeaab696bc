//! The command line as a whole.

use clap::{CommandFactory, Parser as _};

use super::*;
use crate::types::SiteConfig;

/// A site with one of everything.
pub(super) fn site() -> SiteConfig {
    toml::from_str(
        r#"
        [[local_ae]]
        ae_title = "HILUM"
        description = "Chest imaging AI"
        [[local_ae]]
        ae_title = "OLD"
        enabled = false
        [[peer]]
        name = "dx-room-1"
        ae_title = "DX_ROOM_1"
        host = "192.0.2.21"
        may_store = true
        contact = "ext. 4711"
        [[peer]]
        name = "pacs"
        ae_title = "PACS"
        host = "pacs.example.org"
        port = 104
        [[destination]]
        name = "pacs"
        kind = "dicom"
        peer = "pacs"
        calling_ae_title = "HILUM"
        [[route]]
        name = "chest"
        order = 10
        called_ae_title = "HILUM"
        calling_ae_titles = ["DX_ROOM_1"]
        modalities = ["CR", "DX"]
        pipeline = "chest_radiograph"
        bundle = "cxr-untrained"
        quiet_seconds = 20
        max_wait_seconds = 600
        destinations = ["pacs"]
        "#,
    )
    .unwrap()
}

#[test]
fn the_command_line_is_consistent() {
    CommandLine::command().debug_assert();
}

#[test]
fn every_option_is_documented() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "`{}` says nothing of itself", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "`{} {}` is not documented", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&CommandLine::command());
}

fn parsed(line: &str) -> Result<CommandLine, clap::error::ErrorKind> {
    CommandLine::try_parse_from(line.split_whitespace()).map_err(|error| error.kind())
}

#[rstest::rstest]
#[case("hilum serve --config a.toml")]
#[case("hilum --config a.toml serve")]
#[case("hilum infer-child")]
#[case("hilum dev --data-dir d --demo-image f.dcm --once --dicom-port 0 --http-port 0")]
#[case("hilum check-config --print")]
#[case("hilum query pacs --study-instance-uid 1.2 --level series --json")]
#[case("hilum commit pacs a.dcm b.dcm --wait 5")]
#[case("hilum commit pacs --study 1.2.3 --calling HILUM --json")]
#[case("hilum commitments --restart-dead CT_1")]
#[case("hilum apply site.toml --dry-run --database-url postgres:///x")]
#[case("hilum local-ae add HILUM --disabled --description x")]
#[case("hilum local-ae list --json")]
#[case("hilum peer add pacs --ae-title PACS --host pacs --port 104 --may-store --contact me")]
#[case("hilum peer add any --ae-title ANY --host *")]
#[case("hilum peer test pacs --calling X")]
#[case("hilum destination add pacs --peer pacs --calling-ae-title HILUM --send-not-analysed")]
#[case("hilum route add r --called-ae-title H --modalities CR,DX --pipeline chest_radiograph --bundle b --order -1")]
#[case("hilum route test r --calling X --modality DX")]
#[case(
    "hilum peer add ct --ae-title CT --host h --may-store --port 104 --count-at-source --refuse-duplicates --duplicate-status 0xC111"
)]
#[case(
    "hilum route add r --called-ae-title H --modalities CR --pipeline chest_radiograph --bundle b --required series>=2 --late-images ignore"
)]
#[case("hilum study complete 1.2.3 --local-ae HILUM")]
#[case("hilum retention --dry-run")]
#[case("hilum studies --study 1.2.3 --json --limit 5")]
#[case("hilum run show 00000000-0000-0000-0000-000000000000")]
#[case("hilum deliveries --restart-dead pacs")]
#[case("hilum timeline 1.2.3")]
#[case("hilum echo [::1]:104 --called X --calling Y --timeout 3")]
#[case("hilum send a b --to h:104 --called X --associations 4 --fresh-uids --log-acknowledged l")]
#[case("hilum model init --models-dir m --name n")]
#[case("hilum --dev data/dev studies")]
fn good_lines_are_understood(#[case] line: &str) {
    assert!(parsed(line).is_ok(), "{line}");
}

#[rstest::rstest]
#[case("hilum local-ae add SEVENTEEN_LETTERS")]
#[case("hilum peer add pacs --ae-title PACS")]
#[case("hilum peer add pacs --ae-title PACS --host h --port 0")]
#[case("hilum peer add pacs --ae-title PACS --host h --port 65536")]
#[case("hilum route add r --called-ae-title H --pipeline chest_radiograph --bundle b")]
#[case("hilum route add r --called-ae-title H --modalities dx --pipeline chest_radiograph --bundle b")]
#[case("hilum route add r --called-ae-title H --modalities DX --pipeline ct --bundle b")]
#[case("hilum peer add ct --ae-title CT --host h --duplicate-status 0x0111")]
#[case("hilum peer add ct --ae-title CT --host h --refuse-duplicates --duplicate-status 70000")]
#[case(
    "hilum route add r --called-ae-title H --modalities CR --pipeline chest_radiograph --bundle b --required series"
)]
#[case(
    "hilum route add r --called-ae-title H --modalities CR --pipeline chest_radiograph --bundle b --late-images drop"
)]
#[case("hilum study complete 1.2.3 --local-ae SEVENTEEN_LETTERS")]
#[case("hilum studies --study not-a-uid")]
#[case("hilum studies --limit 0")]
#[case("hilum run show 5")]
#[case("hilum echo pacs --called X")]
#[case("hilum send --to h:104 --called X")]
#[case("hilum send a --to h:104 --called X --associations 0")]
#[case("hilum send a --to h:104 --called X --associations 65")]
#[case("hilum dev --data-dir d --once")]
#[case("hilum model check ../etc")]
#[case("hilum studies --database-url mysql://x")]
#[case("hilum --dev d --config c studies")]
#[case("hilum nonsense")]
#[case("hilum")]
fn bad_lines_are_refused(#[case] line: &str) {
    assert!(parsed(line).is_err(), "{line}");
}

#[test]
fn exit_codes_tell_the_kinds_of_failure_apart() {
    let bad_config = crate::config::parse_site("[[peer]]\nname = 5\n", Path::new("site.toml")).unwrap_err();
    assert_eq!(exit_code(&anyhow::Error::from(bad_config.clone())), 64);
    assert_eq!(exit_code(&anyhow::Error::from(bad_config).context("load")), 64);
    assert_eq!(exit_code(&Usage("both".to_owned()).into()), 2);
    assert_eq!(exit_code(&anyhow::anyhow!("failed")), 1);
}

#[test]
fn what_is_in_use_is_not_removed() {
    let mut changed = site();
    let error =
        super::site::remove(&mut changed, "peer", "pacs", |site| &mut site.peers, |peer| &peer.name).unwrap_err();
    insta::assert_snapshot!(error, @"
    peer `pacs` is in use and stays; without it
      destination `pacs` names peer `pacs`, which does not exist
    remove or change what uses it first
    ");
    let error = super::site::remove(&mut site(), "peer", "x", |site| &mut site.peers, |peer| &peer.name).unwrap_err();
    insta::assert_snapshot!(error, @"there is no peer `x`; known: `dx-room-1`, `pacs`");
    let mut changed = site();
    super::site::remove(&mut changed, "route", "chest", |site| &mut site.routes, |route| &route.name).unwrap();
    assert!(changed.routes.is_empty());
}

#[test]
fn an_added_entry_replaces_the_one_of_its_name() {
    let mut changed = site();
    let mut pacs = changed.peers[1].clone();
    pacs.port = Some(11112);
    super::site::upsert(&mut changed.peers, pacs.clone(), |peer| &peer.name);
    assert_eq!(changed.peers.len(), 2);
    assert_eq!(changed.peers[1].port, Some(11112));
    pacs.name = "other".to_owned();
    super::site::upsert(&mut changed.peers, pacs, |peer| &peer.name);
    assert_eq!(changed.peers.len(), 3);
}

#[test]
fn changes_are_told() {
    use crate::db::site::SiteDiff;
    let diff = SiteDiff { lines: vec!["+ peer `pacs`".to_owned(), "~ route `chest`".to_owned()] };
    insta::assert_snapshot!(super::site::describe(&diff, false), @"
    + peer `pacs`
    ~ route `chest`
    done; running nodes take it over without a restart
    ");
    insta::assert_snapshot!(super::site::describe(&diff, true), @"
    + peer `pacs`
    ~ route `chest`
    dry run: nothing has been changed
    ");
    insta::assert_snapshot!(super::site::describe(&SiteDiff::default(), true), @"everything is like that already; nothing changes");
}
