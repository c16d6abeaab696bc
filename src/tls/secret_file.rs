//! Who may read a file with a secret.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path};

/// Why a file is no place for a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be looked at.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its mode lets too many people in.
    #[error(
        "`{file}` has mode {mode:04o}: others can use the secret in it; run `chmod 600 '{file}'` (or 640 for a group)"
    )]
    TooOpen {
        /// The file.
        file: String,
        /// Its permission bits.
        mode: u32,
    },
}

/// Refuses a file that everybody may read or write, or that its group may write, as ssh does; that the group may read
/// it is how services get their secrets.
pub fn check_permissions(file: &Path) -> Result<(), SecretFileError> {
    let mode = fs_err::metadata(file)?.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(SecretFileError::TooOpen { file: file.display().to_string(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(0o600, true)]
    #[case(0o400, true)]
    #[case(0o640, true)]
    #[case(0o644, false)]
    #[case(0o660, false)]
    #[case(0o602, false)]
    fn a_secret_is_for_its_owner_and_group(#[case] mode: u32, #[case] good: bool) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        fs_err::write(&file, "secret").unwrap();
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let checked = check_permissions(&file);
        assert_eq!(checked.is_ok(), good, "{checked:?}");
        if let Err(error) = checked {
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
}
