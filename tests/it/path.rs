//! The path of an image: from a scanner to the results in the PACS, with every step in Postgres.

use crate::support::*;

#[test]
fn heavy_a_radiograph_goes_all_the_way() {
    let orthanc = Orthanc::start();
    let mut node = Node::start(&Site::usual(orthanc.dicom_port));
    let sample = fresh_copy("RG1_UNCR.dcm", &node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    node.wait_for_deliveries(&sample.study_instance_uid, 2);
    let received = orthanc.instances_of(&sample.study_instance_uid);
    assert_eq!(received.len(), 2, "{received:?}");
    node.terminate();
    node.assert_clean_log();
}
