//! What a stranger was probably meant to be: pure comparisons of what came with what is configured, best first, as
//! sentences for the remedy of a refusal.

use std::net::IpAddr;

use crate::types::{Peer, SiteConfig};

/// Hints in one remedy at most.
const MAX_HINTS: usize = 3;

/// How a text differs from a known name; the closest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    Same,
    Blanks,
    Case,
    LookAlike,
    /// So many characters.
    Typing(usize),
}

impl Likeness {
    fn of(text: &str, name: &str) -> Option<Self> {
        if text == name {
            return Some(Self::Same);
        }
        let (bare, bare_name) = (without_blanks(text), without_blanks(name));
        if bare.is_empty() {
            return None;
        }
        if bare == bare_name {
            return Some(Self::Blanks);
        }
        if bare.to_uppercase() == bare_name.to_uppercase() {
            return Some(Self::Case);
        }
        if skeleton(&bare) == skeleton(&bare_name) {
            return Some(Self::LookAlike);
        }
        let distance = strsim::levenshtein(&bare.to_uppercase(), &bare_name.to_uppercase());
        let longest = bare.chars().count().max(bare_name.chars().count());
        (distance * 3 <= longest).then_some(Self::Typing(distance))
    }

    /// To be put behind the known name.
    const fn words(self) -> &'static str {
        match self {
            Self::Same | Self::Typing(_) => "",
            Self::Blanks => ", which differs only in blanks or invisible characters",
            Self::Case => ", which differs only in upper and lower case",
            Self::LookAlike => ", which differs only in characters that look alike",
        }
    }
}

/// Whether `c` shows nothing: blanks, controls, and the characters without a width that texts are pasted with.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

fn without_blanks(text: &str) -> String {
    text.chars().filter(|c| !is_blank(*c)).take(64).collect()
}

/// The text with every character replaced by one that stands for all that look like it.
fn skeleton(text: &str) -> String {
    let stands_for = |c: char| match c {
        'O' | 'Q' | 'О' | 'Ο' => '0',
        'I' | 'L' | '|' | '!' | 'І' | 'Ι' => '1',
        'Z' => '2',
        'З' => '3',
        'S' | '$' | 'Ѕ' => '5',
        'G' => '6',
        'B' | 'В' | 'Β' => '8',
        'А' | 'Α' => 'A',
        'С' => 'C',
        'Е' | 'Ε' => 'E',
        'Н' | 'Η' => 'H',
        'К' | 'Κ' => 'K',
        'М' | 'Μ' => 'M',
        'Ν' => 'N',
        'Р' | 'Ρ' => 'P',
        'Т' | 'Τ' => 'T',
        'Х' | 'Χ' => 'X',
        'У' | 'Υ' => 'Y',
        '-' | '.' | '\u{2010}'..='\u{2015}' => '_',
        other => other,
    };
    text.to_uppercase().chars().map(stands_for).collect()
}

/// Hints on a called AE title that no local AE has.
pub(super) fn on_called(site: &SiteConfig, called: &str, calling: &str) -> Vec<String> {
    let mut hints = Vec::new();
    if is_swapped(site, called, calling) {
        hints.push("calling and called AE title look exchanged at the sender".to_owned());
    }
    let known = site.local_aes.iter().map(|ae| (Likeness::of(called, ae.ae_title.as_str()), ae.ae_title.as_str()));
    if let Some((likeness, name)) = best(known) {
        let how = likeness.words();
        hints.push(format!("correct the called AE title at the sender (the nearest known is `{name}`{how})"));
    }
    hints
}

/// Hints on a caller at `address` that is no peer of ours, or none at that address.
pub(super) fn on_calling(
    site: &SiteConfig,
    calling: &str,
    called: &str,
    address: IpAddr,
    peer_addresses: impl Fn(&Peer) -> Vec<IpAddr>,
) -> Vec<String> {
    let mut hints = Vec::new();
    if is_swapped(site, called, calling) {
        hints.push("calling and called AE title look exchanged at the sender".to_owned());
    }
    let senders = || site.peers.iter().filter(|peer| peer.may_store);
    let known = senders().map(|peer| (Likeness::of(calling, peer.ae_title.as_str()), peer));
    if let Some((likeness, peer)) = best(known)
        && likeness != Likeness::Same
    {
        let (name, host, how) = (&peer.ae_title, host_words(&peer.host), likeness.words());
        hints.push(format!("correct the calling AE title at the sender (the nearest known is `{name}` {host}{how})"));
    }
    let lives_here = |peer: &&Peer| peer.host != "*" && peer_addresses(peer).contains(&address);
    for peer in site.peers.iter().filter(lives_here).filter(|peer| peer.ae_title.as_str() != calling) {
        let (name, title) = (&peer.name, &peer.ae_title);
        hints.push(format!("{address} is known as peer `{name}` with the AE title `{title}`"));
    }
    hints.truncate(MAX_HINTS);
    hints
}

fn host_words(host: &str) -> String {
    if host == "*" { "from anywhere".to_owned() } else { format!("from {host}") }
}

/// Whether the sender gives our title as its own and its own, or another peer's, as ours.
fn is_swapped(site: &SiteConfig, called: &str, calling: &str) -> bool {
    site.local_aes.iter().any(|ae| ae.ae_title.as_str() == calling)
        && site.peers.iter().any(|peer| peer.ae_title.as_str() == called)
}

fn best<T>(candidates: impl Iterator<Item = (Option<Likeness>, T)>) -> Option<(Likeness, T)> {
    candidates.filter_map(|(likeness, candidate)| Some((likeness?, candidate))).min_by_key(|(likeness, _)| *likeness)
}

/// The remedy: the hints, then the command.
pub(super) fn remedy(hints: &[String], otherwise: &str) -> String {
    if hints.is_empty() { otherwise.to_owned() } else { format!("{}, or {otherwise}", hints.join("; ")) }
}

/// A stranger's text as one harmless word of a shell command that people may copy.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let printable: String = text.chars().map(|c| if is_blank(c) && c != ' ' { '?' } else { c }).collect();
    if !printable.is_empty() && !printable.starts_with('-') && printable.chars().all(plain) {
        printable
    } else {
        format!("'{}'", printable.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AeTitle, LocalAe};

    fn site() -> SiteConfig {
        let peer = |name: &str, ae_title: &str, host: &str, may_store| Peer {
            may_store,
            ..Peer::new(name, AeTitle::new(ae_title).unwrap(), host)
        };
        let local_ae = LocalAe::new(AeTitle::new("HILUM").unwrap());
        SiteConfig {
            local_aes: vec![local_ae],
            peers: vec![
                peer("ct", "CT01", "10.1.2.3", true),
                peer("dx", "DX_ROOM_1", "10.1.2.4", true),
                peer("roaming", "PORTABLE", "*", true),
                peer("pacs", "PACS", "10.9.9.9", false),
            ],
            ..SiteConfig::default()
        }
    }

    #[rstest::rstest]
    // Blanks and what cannot be seen: no-break space, tabulator, zero width space.
    #[case("CT01\u{a0}", "`CT01` from 10.1.2.3, which differs only in blanks or invisible characters")]
    #[case("CT 01", "`CT01` from 10.1.2.3, which differs only in blanks or invisible characters")]
    #[case("C\u{200b}T01\t", "`CT01` from 10.1.2.3, which differs only in blanks or invisible characters")]
    #[case("ct01", "`CT01` from 10.1.2.3, which differs only in upper and lower case")]
    #[case("portable", "`PORTABLE` from anywhere, which differs only in upper and lower case")]
    // The letter O, the Cyrillic С and Т, another dash.
    #[case("CTO1", "`CT01` from 10.1.2.3, which differs only in characters that look alike")]
    #[case("СТ01", "`CT01` from 10.1.2.3, which differs only in characters that look alike")]
    #[case("DX-ROOM-l", "`DX_ROOM_1` from 10.1.2.4, which differs only in characters that look alike")]
    #[case("CT1", "`CT01` from 10.1.2.3)")]
    #[case("CT02", "`CT01` from 10.1.2.3)")]
    fn a_title_that_is_almost_known(#[case] calling: &str, #[case] expected: &str) {
        let hints = on_calling(&site(), calling, "HILUM", "192.0.2.1".parse().unwrap(), |_| Vec::new());
        assert_eq!(hints.len(), 1, "{hints:?}");
        assert!(hints[0].contains(expected), "{hints:?}");
    }

    #[rstest::rstest]
    #[case("")]
    #[case("\u{a0}\u{200b}")]
    #[case("SOMETHING_ELSE")]
    // Known, but it may not store: no advice to call with its title.
    #[case("PACS1")]
    fn a_title_like_no_other_gets_no_hint(#[case] calling: &str) {
        let hints = on_calling(&site(), calling, "HILUM", "192.0.2.1".parse().unwrap(), |_| Vec::new());
        assert_eq!(hints, Vec::<String>::new());
    }

    #[test]
    fn several_hints_come_best_first() {
        let addresses = |peer: &Peer| peer.host.parse().into_iter().collect();
        let hints = on_calling(&site(), "CT1", "HILUM", "10.1.2.4".parse().unwrap(), addresses);
        assert!(hints[0].contains("nearest known is `CT01`"), "{hints:?}");
        assert_eq!(hints[1], "10.1.2.4 is known as peer `dx` with the AE title `DX_ROOM_1`");
        let hints = on_calling(&site(), "HILUM", "CT01", "10.1.2.3".parse().unwrap(), addresses);
        assert_eq!(hints[0], "calling and called AE title look exchanged at the sender");
        assert_eq!(hints[1], "10.1.2.3 is known as peer `ct` with the AE title `CT01`");
        let text = remedy(&hints, "run `hilum peer add …`");
        assert!(text.ends_with("with the AE title `CT01`, or run `hilum peer add …`"), "{text}");
    }

    #[test]
    fn a_called_title_is_compared_with_our_own() {
        assert!(on_called(&site(), "HILLUM", "CT01")[0].contains("the nearest known is `HILUM`)"));
        assert!(on_called(&site(), "hilum", "CT01")[0].contains("upper and lower case"));
        assert!(on_called(&site(), "CT01", "HILUM")[0].contains("exchanged"));
        assert!(on_called(&site(), "ANOTHER_NODE", "CT01").is_empty());
    }

    #[test]
    fn a_remedy_cannot_run_what_a_stranger_wrote() {
        assert_eq!(shell_word("CT01"), "CT01");
        assert_eq!(shell_word("$(reboot)"), "'$(reboot)'");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
        assert_eq!(shell_word("-x"), "'-x'");
        assert_eq!(shell_word("A\u{1b}B"), "'A?B'");
    }
}
