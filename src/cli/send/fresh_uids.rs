//! New UIDs for old ones, so that the same files can be sent again as another study.

use std::path::Path;

use dicom_core::{PrimitiveValue, VR, header::HasLength as _};
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, mem::InMemElement};
use uuid::Uuid;

use crate::{imaging::read_object, types::Uid};

/// The mapping of one run: the same old UID always gets the same new one, another run gives another.
#[derive(Debug, Clone, Copy)]
pub(super) struct FreshUids {
    run: Uuid,
}

/// An object with its new UIDs, encoded in its old transfer syntax.
#[derive(Debug)]
pub(super) struct Renamed {
    pub(super) sop_instance_uid: Uid,
    pub(super) study_instance_uid: Uid,
    /// The data set without file meta information.
    pub(super) data_set: Vec<u8>,
}

impl FreshUids {
    /// A mapping that nobody has had before.
    pub(super) fn new() -> Self {
        Self { run: Uuid::new_v4() }
    }

    /// The new UID for `old`.
    pub(super) fn map(self, old: &str) -> Uid {
        Uid::from_uuid(Uuid::new_v5(&self.run, old.trim_end_matches(['\0', ' ']).as_bytes()))
    }

    /// Reads a file and gives it new Study, Series and SOP Instance UIDs. The whole object is held in memory. The
    /// values of all other elements are those of the file, pixel data bit for bit; their encoding may differ
    /// (sequence lengths, padding).
    pub(super) fn rename(self, path: &Path) -> Result<Renamed, String> {
        let bytes = fs_err::read(path).map_err(|error| error.to_string())?;
        let mut object = read_object(&bytes).map_err(|error| format!("cannot be given fresh UIDs: {error}"))?;
        drop(bytes);
        let study_instance_uid = self.replace(&mut object, tags::STUDY_INSTANCE_UID, "Study Instance UID")?;
        self.replace(&mut object, tags::SERIES_INSTANCE_UID, "Series Instance UID")?;
        let sop_instance_uid = self.replace(&mut object, tags::SOP_INSTANCE_UID, "SOP Instance UID")?;
        let mut data_set = Vec::new();
        object.write_dataset(&mut data_set).map_err(|error| format!("cannot be written with fresh UIDs: {error}"))?;
        Ok(Renamed { sop_instance_uid, study_instance_uid, data_set })
    }

    fn replace(self, object: &mut DefaultDicomObject, tag: dicom_core::Tag, name: &str) -> Result<Uid, String> {
        let old = object
            .element(tag)
            .ok()
            .filter(|element| !element.is_empty())
            .and_then(|element| element.to_str().ok())
            .ok_or_else(|| format!("cannot be given fresh UIDs: it has no {name}"))?;
        let new = self.map(&old);
        object.put(InMemElement::new(tag, VR::UI, PrimitiveValue::from(new.as_str())));
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use dicom_object::from_reader;

    use super::*;
    use crate::report::samples::{SampleSource, Syntax};

    #[test]
    fn the_mapping_is_consistent_within_a_run_and_new_for_each() {
        let run = FreshUids::new();
        assert_eq!(run.map("1.2.3"), run.map("1.2.3\0"));
        assert_ne!(run.map("1.2.3"), run.map("1.2.4"));
        assert_ne!(run.map("1.2.3"), FreshUids::new().map("1.2.3"));
    }

    #[test]
    fn objects_keep_everything_but_their_uids() {
        let folder = tempfile::tempdir().unwrap();
        let run = FreshUids::new();
        for syntax in [Syntax::ExplicitLittle, Syntax::ImplicitLittle, Syntax::ExplicitBig, Syntax::Deflated] {
            let part10 = SampleSource::new("1.2.3.4").part10(syntax);
            let path = folder.path().join("a.dcm");
            fs_err::write(&path, &part10).unwrap();
            let renamed = run.rename(&path).unwrap();
            assert_eq!(renamed.sop_instance_uid, run.map("1.2.3.4"));

            let old = read_object(&part10).unwrap();
            let mut file = Vec::from(&part10[..128]);
            file.extend_from_slice(b"DICM");
            old.meta().write(&mut file).unwrap();
            file.extend_from_slice(&renamed.data_set);
            let new = from_reader(&file[128..]).unwrap();
            let text = |object: &DefaultDicomObject, tag| object.element(tag).unwrap().to_str().unwrap().into_owned();
            assert_eq!(text(&new, tags::SOP_INSTANCE_UID), renamed.sop_instance_uid.as_str(), "{syntax:?}");
            assert_eq!(text(&new, tags::STUDY_INSTANCE_UID), renamed.study_instance_uid.as_str());
            assert_eq!(text(&new, tags::SERIES_INSTANCE_UID), run.map(&text(&old, tags::SERIES_INSTANCE_UID)).as_str());
            let fresh = [tags::SOP_INSTANCE_UID, tags::STUDY_INSTANCE_UID, tags::SERIES_INSTANCE_UID];
            let others = |object: &DefaultDicomObject| -> Vec<_> {
                object
                    .iter()
                    .filter(|element| !fresh.contains(&dicom_core::header::Header::tag(*element)))
                    .cloned()
                    .collect()
            };
            assert_eq!(others(&old), others(&new), "{syntax:?}");
        }
    }

    #[test]
    fn what_is_no_image_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.dcm");
        fs_err::write(&path, [0; 200]).unwrap();
        let error = FreshUids::new().rename(&path).unwrap_err();
        assert!(error.starts_with("cannot be given fresh UIDs"), "{error}");
    }
}
