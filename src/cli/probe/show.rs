//! What was found out, for people.

use std::{collections::BTreeSet, fmt::Write as _};

use super::super::output::{Table, time_text, visible};
use crate::{
    db::refusal::OfferRow,
    dimse::{sop_class_name, status, transfer_syntax_name},
    types::PeerProbe,
};

fn syntaxes(uids: &[String]) -> String {
    let names: Vec<_> = uids.iter().map(|uid| transfer_syntax_name(uid)).collect();
    names.join(", ")
}

fn implementation(class_uid: Option<&str>, version_name: Option<&str>, max_pdu_length_bytes: u64) -> String {
    let max_pdu = match max_pdu_length_bytes {
        0 => "PDUs of any length".to_owned(),
        length => format!("PDUs of up to {length} bytes"),
    };
    let version_name = version_name.unwrap_or("without a version name");
    visible(&format!("implementation {version_name} ({}), {max_pdu}", class_uid.unwrap_or("no class UID")))
}

/// The outcome of a probe; `changes` since the one before, `None` for the first.
pub(super) fn probe(name: &str, found: &PeerProbe, changes: Option<&[String]>) -> String {
    let class_uid = found.implementation_class_uid.as_deref();
    let version = found.implementation_version_name.as_deref();
    let mut text = format!(
        "peer `{name}`: `{}` at {}:{}, called as `{}`\n{}\n",
        found.called_ae_title,
        found.host,
        found.port,
        found.calling_ae_title,
        implementation(class_uid, version, found.max_pdu_length_bytes.into())
    );
    // Writing to a String cannot fail.
    let _ = match (found.echo_status, found.echo_milliseconds) {
        (Some(answer), Some(time)) => writeln!(text, "C-ECHO: {} in {time:.1} ms", status::InWords(answer)),
        _ => writeln!(text, "C-ECHO: no answer"),
    };
    for (sop_class, roles) in &found.roles {
        let roles = match (roles.scu, roles.scp) {
            (true, true) => "SCU and SCP",
            (true, false) => "SCU only",
            (false, true) => "SCP only",
            (false, false) => "no role",
        };
        let _ = writeln!(text, "role granted for {}: {roles}", visible(&sop_class_name(sop_class)));
    }
    let mut table = Table::new(&["SOP CLASS", "ACCEPTED IN"]);
    for (sop_class, accepted) in &found.accepted {
        table.row([sop_class_name(sop_class), syntaxes(accepted)]);
    }
    let _ = write!(text, "\n{}", table.render("it accepts none of the proposed SOP classes"));
    if !found.refused.is_empty() {
        let _ = writeln!(text, "\nrefused:");
        for (sop_class, answer) in &found.refused {
            let _ = writeln!(text, "  {}: {answer}", sop_class_name(sop_class));
        }
    }
    for failure in &found.failures {
        let _ = writeln!(text, "\nopen: {}", visible(failure));
    }
    let _ = match changes {
        None => writeln!(text, "\nthis is the first probe of this peer"),
        Some([]) => writeln!(text, "\nnothing has changed since the last probe"),
        Some(changes) => writeln!(text, "\nsince the last probe:\n{}", changes.join("\n")),
    };
    text
}

/// What differs from an earlier probe: `+` now accepted, `-` no longer, `~` changed.
pub(super) fn changes(before: &PeerProbe, now: &PeerProbe) -> Vec<String> {
    let pairs = |probe: &PeerProbe| -> BTreeSet<(String, String)> {
        let pair = |(sop_class, uids): (&String, &Vec<String>)| {
            uids.iter().map(|uid| (sop_class.clone(), uid.clone())).collect::<Vec<_>>()
        };
        probe.accepted.iter().flat_map(pair).collect()
    };
    let (old, new) = (pairs(before), pairs(now));
    // What was not asked this time, or before, is no change.
    let asked = |probe: &PeerProbe, sop_class: &str| {
        probe.accepted.contains_key(sop_class) || probe.refused.contains_key(sop_class)
    };
    let line = |sign: &str, (sop_class, uid): &(String, String)| {
        format!("{sign} {} in {}", sop_class_name(sop_class), transfer_syntax_name(uid))
    };
    let added = new.difference(&old).filter(|(sop_class, _)| asked(before, sop_class)).map(|pair| line("+", pair));
    let removed = old.difference(&new).filter(|(sop_class, _)| asked(now, sop_class)).map(|pair| line("-", pair));
    let mut lines: Vec<String> = added.chain(removed).collect();
    let mut compare = |what: &str, before: String, now: String| {
        if before != now {
            lines.push(visible(&format!("~ {what}: {before}, now {now}")));
        }
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    compare(
        "implementation version",
        text(&before.implementation_version_name),
        text(&now.implementation_version_name),
    );
    compare("implementation class", text(&before.implementation_class_uid), text(&now.implementation_class_uid));
    compare("maximum PDU length", before.max_pdu_length_bytes.to_string(), now.max_pdu_length_bytes.to_string());
    let echo =
        |probe: &PeerProbe| probe.echo_status.map_or("no answer".to_owned(), |one| status::InWords(one).to_string());
    compare("C-ECHO", echo(before), echo(now));
    lines
}

/// What the peer proposed in its own latest request to us.
pub(super) fn offer(offer: &OfferRow) -> String {
    let max_pdu = u64::try_from(offer.max_pdu_length_bytes).unwrap_or_default();
    let class_uid = offer.implementation_class_uid.as_deref();
    let mut text = format!(
        "\nits latest request to us, {} from {} to `{}`: {}\n",
        time_text(offer.at),
        offer.peer_address,
        visible(&offer.called_ae_title),
        implementation(class_uid, offer.implementation_version_name.as_deref(), max_pdu)
    );
    let mut table = Table::new(&["OFFERS", "IN", "ACCEPTED IN"]);
    for context in &offer.contexts.0 {
        let accepted = context.accepted.as_deref().map(|uid| transfer_syntax_name(uid).into_owned());
        table.row([
            sop_class_name(&context.abstract_syntax),
            syntaxes(&context.transfer_syntaxes),
            accepted.unwrap_or_else(|| "refused".to_owned()),
        ]);
    }
    let _ = write!(text, "{}", table.render("it proposed nothing"));
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dicom_dictionary_std::uids;
    use time::OffsetDateTime;

    use super::*;

    fn sample() -> PeerProbe {
        let explicit = uids::EXPLICIT_VR_LITTLE_ENDIAN.to_owned();
        PeerProbe {
            at: OffsetDateTime::UNIX_EPOCH,
            called_ae_title: "PACS".into(),
            calling_ae_title: "HILUM".into(),
            host: "192.0.2.1".into(),
            port: 104,
            implementation_class_uid: Some("1.2.3".into()),
            implementation_version_name: Some("PACS_1".into()),
            max_pdu_length_bytes: 16384,
            echo_status: Some(0),
            echo_milliseconds: Some(1.25),
            accepted: BTreeMap::from([(uids::CT_IMAGE_STORAGE.into(), vec![explicit, uids::JPEG2000.into()])]),
            refused: BTreeMap::from([(uids::MR_IMAGE_STORAGE.into(), "abstract syntax not supported".into())]),
            roles: BTreeMap::new(),
            proposed_contexts: 3,
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_probe_reads_as_a_table() {
        insta::assert_snapshot!(probe("pacs", &sample(), Some(&[])), @"
        peer `pacs`: `PACS` at 192.0.2.1:104, called as `HILUM`
        implementation PACS_1 (1.2.3), PDUs of up to 16384 bytes
        C-ECHO: 0x0000 (success) in 1.2 ms

        SOP CLASS                                     ACCEPTED IN
        CT Image Storage (1.2.840.10008.5.1.4.1.1.2)  Explicit VR Little Endian, JPEG 2000

        refused:
          MR Image Storage (1.2.840.10008.5.1.4.1.1.4): abstract syntax not supported

        nothing has changed since the last probe
        ");
    }

    #[test]
    fn what_has_changed_is_said_and_what_was_not_asked_is_no_change() {
        let before = sample();
        assert!(changes(&before, &before).is_empty());
        let mut now = sample();
        now.accepted = BTreeMap::from([
            (uids::CT_IMAGE_STORAGE.into(), vec![uids::EXPLICIT_VR_LITTLE_ENDIAN.into()]),
            (uids::MR_IMAGE_STORAGE.into(), vec![uids::IMPLICIT_VR_LITTLE_ENDIAN.into()]),
            (uids::RT_DOSE_STORAGE.into(), vec![uids::IMPLICIT_VR_LITTLE_ENDIAN.into()]),
        ]);
        now.refused.clear();
        now.implementation_version_name = None;
        now.echo_status = None;
        assert_eq!(
            changes(&before, &now),
            [
                "+ MR Image Storage (1.2.840.10008.5.1.4.1.1.4) in Implicit VR Little Endian",
                "- CT Image Storage (1.2.840.10008.5.1.4.1.1.2) in JPEG 2000",
                "~ implementation version: PACS_1, now none",
                "~ C-ECHO: 0x0000 (success), now no answer",
            ]
        );
    }
}
