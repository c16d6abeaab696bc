//! Deterministic identity of results.

use uuid::Uuid;

use crate::types::{Sha256Digest, SourceImage, Uid};

/// Name space of every UID that Hilum derives. Never changes: changing it changes every result's identity.
const NS_GATEWAY: Uuid = Uuid::from_u128(0x4a46_2d85_4802_4fd9_8d38_4c3a_eaaf_acfd);

/// Separates the parts of a derived identity; it occurs in no part.
const SEPARATOR: &str = "\u{1f}";

/// The UID `2.25.<UUIDv5>` of a role and the parts that identify its bearer: the same parts always give the
/// same UID, at most 44 characters (PS3.5 section B.2).
#[must_use]
pub fn uid(role: &str, parts: &[&str]) -> Uid {
    let name = std::iter::once(role).chain(parts.iter().copied()).collect::<Vec<_>>().join(SEPARATOR);
    Uid::from_uuid(Uuid::new_v5(&NS_GATEWAY, name.as_bytes()))
}

/// Identity of the results of one revision of one workup: the same installation, workup, source images (in any
/// order), bundle, configuration and revision give the same key, anything else gives another one.
#[must_use]
pub fn result_key(
    installation_id: Uuid,
    workup_id: Uuid,
    sources: &[SourceImage],
    bundle_digest: &Sha256Digest,
    configuration_digest: &Sha256Digest,
    revision: i32,
) -> Sha256Digest {
    let mut images: Vec<String> =
        sources.iter().map(|source| format!("{}={}", source.sop_instance_uid, source.sha256)).collect();
    images.sort_unstable();
    images.dedup();
    let parts = [
        installation_id.to_string(),
        workup_id.to_string(),
        images.join("\\"),
        bundle_digest.to_string(),
        configuration_digest.to_string(),
        revision.to_string(),
    ];
    Sha256Digest::of(parts.join(SEPARATOR).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn the_same_parts_give_the_same_uid_and_never_change() {
        assert_eq!(uid("series", &["sr", "key"]), uid("series", &["sr", "key"]));
        assert_ne!(uid("series", &["sr", "key"]), uid("series", &["srkey"]));
        assert_ne!(uid("series", &["sr"]), uid("instance", &["sr"]));
        // Python: uuid.uuid5(uuid.UUID(int=NS_GATEWAY), "series\x1fsr\x1fkey").int
        assert_eq!(uid("series", &["sr", "key"]).as_str(), "2.25.35912510720820332651331997582208551761");
    }

    #[test]
    fn every_part_of_the_identity_changes_the_key_and_the_order_of_images_does_not() {
        let (installation, workup) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (bundle, configuration) = (Sha256Digest::of(b"bundle"), Sha256Digest::of(b"configuration"));
        let images = [samples::image("1.2.3.1", "DX"), samples::image("1.2.3.2", "DX")];
        let reversed = [images[1].clone(), images[0].clone()];
        let key = result_key(installation, workup, &images, &bundle, &configuration, 1);
        assert_eq!(key, result_key(installation, workup, &reversed, &bundle, &configuration, 1));

        let mut other_pixels = images.clone();
        other_pixels[0].sha256 = Sha256Digest::of(b"other");
        let others = [
            result_key(workup, workup, &images, &bundle, &configuration, 1),
            result_key(installation, installation, &images, &bundle, &configuration, 1),
            result_key(installation, workup, &images[..1], &bundle, &configuration, 1),
            result_key(installation, workup, &other_pixels, &bundle, &configuration, 1),
            result_key(installation, workup, &images, &configuration, &configuration, 1),
            result_key(installation, workup, &images, &bundle, &bundle, 1),
            result_key(installation, workup, &images, &bundle, &configuration, 2),
        ];
        let distinct: std::collections::BTreeSet<_> = others.iter().chain([&key]).collect();
        assert_eq!(distinct.len(), others.len() + 1);
    }
}
