//! What the associations of a local AE title or of a peer may do, as administrators set it.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Uid;

/// Root of every transfer syntax of the standard (PS3.6 annex A).
const TRANSFER_SYNTAX_ROOT: &str = "1.2.840.10008.1.2";
/// Range of [`AssociationPolicy::max_pdu_length_bytes`].
const MAX_PDU_LENGTHS: std::ops::RangeInclusive<u32> = 4096..=1_048_576;

/// Limits of the associations of a local AE title (of all peers together) or of a peer. What neither of the two sets
/// is taken from the node's policy; where both say something, the tighter holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AssociationPolicy {
    /// Storage SOP classes that are accepted; an object of another class has no presentation context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sop_classes: Option<Vec<Uid>>,
    /// Transfer syntaxes that are accepted, the preferred one first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer_syntaxes: Option<Vec<Uid>>,
    /// Who must be named in the association request (PS3.7 section D.3.3.7). That of the peer replaces that of the
    /// local AE title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_identity: Option<UserIdentityPolicy>,
    /// Longest P-DATA-TF that is accepted and announced, 4096 to 1,048,576 bytes (PS3.8 section D.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pdu_length_bytes: Option<u32>,
    /// Associations open at the same time, at least 1; one more is rejected transiently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_associations: Option<u32>,
    /// Associations begun within a minute, at least 1; one more is rejected transiently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_associations_per_minute: Option<u32>,
    /// Data set bytes received in a second, at least 1024. Nothing is refused: a faster sender is read more slowly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second: Option<u64>,
}

/// Who must be named in an association request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserIdentityPolicy {
    /// What must be given.
    pub required: RequiredIdentity,
    /// Who is let in.
    #[serde(default)]
    pub users: Vec<IdentityUser>,
}

/// What an association request must give as its user identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequiredIdentity {
    /// Nothing: lets a peer off what its local AE title asks for.
    None,
    /// One of the names (identity type 1 or 2; the passcode is not looked at).
    Username,
    /// One of the names with its passcode (identity type 2).
    UsernameAndPasscode,
}

/// A user with exactly one source of the passcode, where one is required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityUser {
    /// As in the primary field of the user identity, UTF-8.
    pub name: String,
    /// Salted Argon2 hash of the passcode, as `hilum hash-passcode` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passcode_hash: Option<PasscodeHash>,
    /// A file on the node that holds the passcode, or its hash, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passcode_file: Option<PathBuf>,
}

/// A salted hash in PHC string format. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PasscodeHash(String);

/// The text is not an Argon2 hash. It is not repeated: it may be the passcode itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the passcode hash (not shown) is no Argon2 hash: run `hilum hash-passcode` and give what it prints")]
pub struct PasscodeHashError;

/// What stands for a hash that is not shown.
const HIDDEN_HASH: &str = "$argon2$not-shown";

impl PasscodeHash {
    /// The hash in PHC string format.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PasscodeHash {
    type Error = PasscodeHashError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.starts_with("$argon2") { Ok(Self(text)) } else { Err(PasscodeHashError) }
    }
}

impl From<PasscodeHash> for String {
    fn from(hash: PasscodeHash) -> Self {
        hash.0
    }
}

impl fmt::Debug for PasscodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl AssociationPolicy {
    /// Without the hashes, for people.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut policy = self.clone();
        let users = policy.user_identity.iter_mut().flat_map(|identity| &mut identity.users);
        for hash in users.filter_map(|user| user.passcode_hash.as_mut()) {
            HIDDEN_HASH.clone_into(&mut hash.0);
        }
        policy
    }

    /// What is wrong, each with its remedy.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut report = |problem: &str, remedy: &str| problems.push((problem.to_owned(), remedy.to_owned()));
        for (key, list) in [("sop_classes", &self.sop_classes), ("transfer_syntaxes", &self.transfer_syntaxes)] {
            let Some(list) = list else { continue };
            if list.is_empty() {
                report(&format!("has an empty policy.{key}"), "list at least one UID, or leave the key out");
            }
            let mut seen = std::collections::BTreeSet::new();
            for uid in list.iter().filter(|uid| !seen.insert(*uid)) {
                report(&format!("has {uid} twice in policy.{key}"), "remove one of the two");
            }
        }
        for uid in self.transfer_syntaxes.iter().flatten() {
            let rest = uid.as_str().strip_prefix(TRANSFER_SYNTAX_ROOT);
            if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                report(
                    &format!("has {uid} in policy.transfer_syntaxes, which is no transfer syntax of the standard"),
                    "give UIDs such as \"1.2.840.10008.1.2.1\" (explicit VR little endian)",
                );
            }
        }
        if self.max_pdu_length_bytes.is_some_and(|length| !MAX_PDU_LENGTHS.contains(&length)) {
            report("has a policy.max_pdu_length_bytes out of range", "give a whole number from 4096 to 1048576");
        }
        for (key, number) in [
            ("max_associations", self.max_associations),
            ("max_associations_per_minute", self.max_associations_per_minute),
        ] {
            if number == Some(0) {
                report(&format!("has policy.{key} = 0"), "give at least 1, or disable the AE title instead");
            }
        }
        if self.max_bytes_per_second.is_some_and(|rate| rate < 1024) {
            report("has a policy.max_bytes_per_second below 1024", "give at least 1024 bytes in a second");
        }
        if let Some(identity) = &self.user_identity {
            identity.report(&mut report);
        }
        problems
    }
}

impl UserIdentityPolicy {
    fn report(&self, report: &mut impl FnMut(&str, &str)) {
        if self.required != RequiredIdentity::None && self.users.is_empty() {
            report("requires a user identity and names no users", "add users to policy.user_identity");
        }
        let mut seen = std::collections::BTreeSet::new();
        for user in &self.users {
            let name = user.name.as_str();
            if name.is_empty() {
                report("has a user without a name", "give the name that the sender gives");
            }
            if !seen.insert(name) {
                report(&format!("has the user `{name}` twice"), "remove one of the two");
            }
            let sources = usize::from(user.passcode_hash.is_some()) + usize::from(user.passcode_file.is_some());
            if self.required == RequiredIdentity::UsernameAndPasscode && sources != 1 {
                report(
                    &format!("has {sources} passcodes for the user `{name}`"),
                    "give either passcode_hash (run `hilum hash-passcode`) or passcode_file",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA";

    fn policy(text: &str) -> Result<AssociationPolicy, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_policy_that_says_nothing_is_good_and_empty() {
        assert_eq!(policy("").unwrap(), AssociationPolicy::default());
        assert!(AssociationPolicy::default().problems().is_empty());
        assert_eq!(serde_json::to_string(&AssociationPolicy::default()).unwrap(), "{}");
    }

    #[test]
    fn every_problem_of_a_policy_is_reported() {
        let policy = policy(
            r#"
            sop_classes = []
            transfer_syntaxes = ["1.2.840.10008.1.2", "1.2.840.10008.1.2", "1.2.840.10008.1.20", "1.2.3"]
            max_pdu_length_bytes = 100
            max_associations = 0
            max_bytes_per_second = 5
            user_identity = { required = "username_and_passcode", users = [{ name = "ct" }, { name = "ct" }] }
            "#,
        )
        .unwrap();
        let problems: Vec<String> = policy.problems().into_iter().map(|(problem, _)| problem).collect();
        for part in [
            "empty policy.sop_classes",
            "1.2.840.10008.1.2 twice",
            "1.2.3 in",
            "1.2.840.10008.1.20 in",
            "max_pdu_length_bytes out of range",
            "max_associations = 0",
            "below 1024",
            "user `ct` twice",
            "0 passcodes for the user `ct`",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:#?}");
        }
    }

    #[test]
    fn a_hash_is_kept_but_not_shown() {
        let text = format!(
            "user_identity = {{ required = \"username_and_passcode\", users = [{{ name = \"ct\", passcode_hash = \"{HASH}\" }}] }}"
        );
        let policy = policy(&text).unwrap();
        assert!(policy.problems().is_empty());
        assert!(!format!("{policy:?}").contains("aGFzaA"));
        let kept = serde_json::to_string(&policy).unwrap();
        assert!(kept.contains(HASH));
        assert_eq!(serde_json::from_str::<AssociationPolicy>(&kept).unwrap(), policy);
        assert!(!serde_json::to_string(&policy.redacted()).unwrap().contains("aGFzaA"));
    }

    #[test]
    fn a_passcode_in_the_place_of_its_hash_is_refused_and_not_repeated() {
        let error = policy(
            "user_identity = { required = \"username\", users = [{ name = \"ct\", passcode_hash = \"secret\" }] }",
        )
        .unwrap_err();
        // TOML shows the line of the problem; our own words must not.
        assert!(error.contains("hilum hash-passcode"), "{error}");
        assert!(!PasscodeHashError.to_string().contains("secret"));
    }
}
