"""A mutant for the self-test: passes every object on to the PACS twice, the second time under a new UID, as a node
would that renders or sends its results again: twice.py PORT PACS_PORT"""

import sys

from pydicom.uid import generate_uid
from pynetdicom import AE, StoragePresentationContexts, evt

port, pacs_port = int(sys.argv[1]), int(sys.argv[2])


def on_store(event: evt.Event) -> int:
    data_set = event.dataset
    data_set.file_meta = event.file_meta
    client = AE(ae_title="TWICE")
    client.add_requested_context(data_set.SOPClassUID, data_set.file_meta.TransferSyntaxUID)
    association = client.associate("127.0.0.1", pacs_port, ae_title="PACS")
    if not association.is_established:
        return 0xA700
    status = association.send_c_store(data_set)
    data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    association.send_c_store(data_set)
    association.release()
    return status.Status if "Status" in status else 0xA700


server = AE(ae_title="PACS")
server.supported_contexts = StoragePresentationContexts
server.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, on_store)])
