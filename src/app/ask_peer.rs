//! Asking the sender of a study how many instances it has.

use std::{future::Future, pin::Pin};

use crate::{
    assemble::{CountAtSource, SourceQuestion},
    deliver::Caller,
    dimse::count_study_instances,
    types::Uid,
};

/// Asks with C-FIND.
#[derive(Clone)]
pub(super) struct AskPeer(pub(super) Caller);

impl CountAtSource for AskPeer {
    fn count(&self, question: SourceQuestion) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>> {
        Box::pin(async move {
            let SourceQuestion { peer, calling_ae_title, study_instance_uid } = question;
            let study_instance_uid = Uid::new(&study_instance_uid).map_err(|error| error.to_string())?;
            let requestor = self.0.requestor(calling_ae_title, &peer).map_err(|error| error.to_string())?;
            match count_study_instances(requestor, &study_instance_uid).await {
                Ok(Some(count)) => Ok(count.instances),
                Ok(None) => Err("it does not know the study".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
