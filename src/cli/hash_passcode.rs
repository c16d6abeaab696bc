//! `hilum hash-passcode`: the salted hash of a passcode, for `policy.user_identity`.

use argon2::{Argon2, PasswordHasher as _, password_hash::SaltString};
use uuid::Uuid;

use super::{output::print, tls::read_passcode};

pub(super) fn run() -> anyhow::Result<()> {
    print(&hash(&read_passcode()?)?)
}

/// Argon2id with the parameters that OWASP recommends (19 MiB, two passes) and a random salt.
fn hash(passcode: &str) -> anyhow::Result<String> {
    let salt = SaltString::encode_b64(Uuid::new_v4().as_bytes()).map_err(|error| anyhow::anyhow!("salt: {error}"))?;
    let hash = Argon2::default().hash_password(passcode.as_bytes(), &salt);
    Ok(hash.map_err(|error| anyhow::anyhow!("hash the passcode: {error}"))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PasscodeHash;

    #[test]
    fn a_hash_is_salted_and_fits_the_site_file() {
        let first = hash("open sesame").unwrap();
        assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
        assert!(!first.contains("sesame"));
        assert_ne!(first, hash("open sesame").unwrap());
        assert!(PasscodeHash::try_from(first).is_ok());
    }
}
