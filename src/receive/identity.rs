//! Whether the user identity of an association request is one that is let in (PS3.7 section D.3.3.7).

use std::path::Path;

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use sha2::{Digest as _, Sha256};

use crate::{
    dimse::{Rejection, UserIdentity, UserIdentityKind},
    tls,
    types::{IdentityUser, RequiredIdentity, UserIdentityPolicy},
};

/// As `hilum hash-passcode` makes them; no passcode has it.
const HASH_OF_NOTHING: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c2l4dGVlbiBieXRlcyBvaw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Decides. Reads files and computes hashes for tens of milliseconds: not on a network task. What the peer gave is not
/// repeated, neither to it nor in a log.
pub(super) fn verify(
    policy: &UserIdentityPolicy,
    given: Option<&UserIdentity>,
    subject: &str,
) -> Result<(), Rejection> {
    let expected = match policy.required {
        RequiredIdentity::None => return Ok(()),
        RequiredIdentity::Username => "a user name that is configured",
        RequiredIdentity::UsernameAndPasscode => "a user name that is configured, with its passcode",
    };
    let refuse = |received: &str, remedy: &str| {
        Err(Rejection::not_authorized(expected, format!("{received} from {subject}"), remedy))
    };
    let Some(given) = given else {
        return refuse("no user identity", "set the user identity at the sender, or change policy.user_identity");
    };
    if given.kind == UserIdentityKind::Other {
        return refuse(
            "a user identity of another type (Kerberos, SAML or JSON Web Token)",
            "let the sender give a user name and a passcode",
        );
    }
    let with_passcode = policy.required == RequiredIdentity::UsernameAndPasscode;
    if with_passcode && given.kind != UserIdentityKind::UsernameAndPasscode {
        return refuse("a user name without a passcode", "set the passcode at the sender");
    }
    let user = policy.users.iter().find(|user| user.name.as_bytes() == given.primary_field);
    let good = match (user, with_passcode) {
        (Some(_), false) => true,
        (Some(user), true) => passcode_is_good(user, &given.secondary_field),
        (None, with_passcode) => {
            if with_passcode {
                // As long as for a name that there is: a stranger shall not learn names by the clock either.
                let _ = matches_hash(HASH_OF_NOTHING, &given.secondary_field);
            }
            false
        }
    };
    if good {
        return Ok(());
    }
    // The same words for both: a stranger shall not learn which names there are.
    refuse(
        "a user name or passcode that is not",
        "correct both at the sender, or change policy.user_identity; `hilum hash-passcode` makes the hash of a new passcode",
    )
}

fn passcode_is_good(user: &IdentityUser, passcode: &[u8]) -> bool {
    match (&user.passcode_hash, &user.passcode_file) {
        (Some(hash), _) => matches_hash(hash.expose(), passcode),
        (None, Some(file)) => match read_passcode(file) {
            Ok(secret) if secret.starts_with("$argon2") => matches_hash(&secret, passcode),
            // Digests take the same time to compare, wherever they differ first.
            Ok(secret) => !secret.is_empty() && Sha256::digest(secret.as_bytes()) == Sha256::digest(passcode),
            Err(error) => {
                tracing::error!(
                    user = user.name,
                    error = format!("{error:#}"),
                    "the passcode of a user cannot be read"
                );
                false
            }
        },
        (None, None) => false,
    }
}

fn matches_hash(hash: &str, passcode: &[u8]) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(passcode, &hash).is_ok())
}

fn read_passcode(file: &Path) -> anyhow::Result<String> {
    tls::check_permissions(file)?;
    let text = fs_err::read_to_string(file)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher as _, password_hash::SaltString};

    use super::*;
    use crate::dimse::{RejectReason, RejectResult};

    fn policy(required: &str, passcode: &str) -> UserIdentityPolicy {
        toml::from_str(&format!("required = \"{required}\"\nusers = [{{ name = \"ct\", {passcode} }}]")).unwrap()
    }

    fn hash_of(passcode: &str) -> String {
        let salt = SaltString::encode_b64(b"sixteen bytes ok").unwrap();
        // Weak on purpose: the test waits for it.
        let weak = Argon2::new(
            argon2::Algorithm::Argon2id,
            argon2::Version::V0x13,
            argon2::Params::new(8, 1, 1, None).unwrap(),
        );
        weak.hash_password(passcode.as_bytes(), &salt).unwrap().to_string()
    }

    fn given(kind: UserIdentityKind, name: &str, passcode: &str) -> UserIdentity {
        UserIdentity {
            kind,
            positive_response_requested: false,
            primary_field: name.into(),
            secondary_field: passcode.into(),
        }
    }

    const BOTH: UserIdentityKind = UserIdentityKind::UsernameAndPasscode;

    #[test]
    fn a_good_identity_is_let_in() {
        let by_hash = policy("username_and_passcode", &format!("passcode_hash = \"{}\"", hash_of("open sesame")));
        assert!(verify(&by_hash, Some(&given(BOTH, "ct", "open sesame")), "peer `ct`").is_ok());
        let by_name: UserIdentityPolicy =
            toml::from_str("required = \"username\"\nusers = [{ name = \"ct\" }]").unwrap();
        assert!(verify(&by_name, Some(&given(UserIdentityKind::Username, "ct", "")), "peer `ct`").is_ok());
        assert!(verify(&by_name, Some(&given(BOTH, "ct", "whatever")), "peer `ct`").is_ok());
        let none: UserIdentityPolicy = toml::from_str("required = \"none\"").unwrap();
        assert!(verify(&none, None, "peer `ct`").is_ok());
    }

    #[test]
    fn a_wrong_identity_is_refused_for_good_and_not_repeated() {
        let policy = policy("username_and_passcode", &format!("passcode_hash = \"{}\"", hash_of("open sesame")));
        for (identity, part) in [
            (None, "no user identity"),
            (Some(given(UserIdentityKind::Other, "ticket", "")), "Kerberos"),
            (Some(given(UserIdentityKind::Username, "ct", "")), "without a passcode"),
            (Some(given(BOTH, "ct", "open barley")), "a user name or passcode that is not"),
            (Some(given(BOTH, "root", "open sesame")), "a user name or passcode that is not"),
        ] {
            let refused = verify(&policy, identity.as_ref(), "peer `ct`").unwrap_err();
            assert_eq!(
                (refused.result, refused.reason),
                (RejectResult::Permanent, RejectReason::ProviderGivesNoReason)
            );
            assert!(refused.received.contains(part), "{refused}");
            let said = refused.to_string();
            assert!(!said.contains("barley") && !said.contains("sesame") && !said.contains("root"), "{said}");
            assert!(identity.is_none_or(|identity| !format!("{identity:?}").contains("barley")));
        }
    }

    #[test]
    fn a_passcode_may_be_in_a_file_that_others_cannot_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("passcode");
        let mode = |mode| fs_err::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let policy = policy("username_and_passcode", &format!("passcode_file = {file:?}"));
        let check = |passcode: &str| verify(&policy, Some(&given(BOTH, "ct", passcode)), "peer `ct`").is_ok();
        assert!(!check(""));
        fs_err::write(&file, "open sesame\n").unwrap();
        mode(0o600);
        assert!(check("open sesame") && !check("open sesame\n") && !check("open"));
        fs_err::write(&file, hash_of("another")).unwrap();
        assert!(check("another") && !check("open sesame"));
        mode(0o644);
        assert!(!check("another"));
        mode(0o600);
        fs_err::write(&file, "\n").unwrap();
        assert!(!check(""));
    }

    #[test]
    fn a_name_that_is_not_there_costs_as_much_as_one_that_is() {
        let hash = PasswordHash::new(HASH_OF_NOTHING).unwrap();
        let salt = SaltString::encode_b64(b"sixteen bytes ok").unwrap();
        let usual = Argon2::default().hash_password(b"x", &salt).unwrap();
        assert_eq!((hash.algorithm, hash.version, &hash.params), (usual.algorithm, usual.version, &usual.params));
        assert_eq!(hash.hash.unwrap().len(), usual.hash.unwrap().len());
        assert!(!matches_hash(HASH_OF_NOTHING, b""));
    }
}
