"""The further receivers of `make bench-receive`: Orthanc on PostgreSQL, dicom-rs and pynetdicom."""

import os
import pathlib
import sys

from postgres import Postgres
from servers import CALLED, Orthanc, Server

INDEX_PLUGIN = "/usr/share/orthanc/plugins/libOrthancPostgreSQLIndex.so"
PYNETDICOM = '''
import os, sys
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import Verification
port, folder = int(sys.argv[1]), sys.argv[2]
def on_store(event):
    with open(os.path.join(folder, event.request.AffectedSOPInstanceUID + ".dcm"), "wb") as file:
        file.write(event.encoded_dataset())
    return 0x0000
entity = AE(ae_title="HILUM")
entity.maximum_associations = 64
entity.supported_contexts = StoragePresentationContexts
entity.add_supported_context(Verification)
entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, on_store)])
'''


class OrthancOnPostgres(Orthanc):
    """Orthanc with its index in a PostgreSQL of its own, fsync on; files stay files."""

    name = "Orthanc, PostgreSQL"

    def start(self) -> None:
        self.postgres = Postgres(self.folder / "postgres", "orthanc", durable=True)
        super().start()

    def more_configuration(self) -> dict:
        return {
            "Plugins": [INDEX_PLUGIN],
            "PostgreSQL": {"EnableIndex": True, "EnableStorage": False, "Host": "127.0.0.1",
                           "Port": self.postgres.port, "Database": "orthanc", "Username": "hilum", "Password": "",
                           "Lock": False},
        }

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if hasattr(self, "postgres"):
            self.postgres.stop()


class DicomRs(Server):
    """dicom-rs' storescp, the asynchronous one that takes associations in parallel."""

    name = "dicom-rs storescp"
    durability = "no: written, not synced, no index"

    def start(self) -> None:
        objects = self.folder / "objects"
        objects.mkdir()
        program = pathlib.Path(os.environ["HILUM_CACHE"]) / "cargo-tools/bin/dicom-storescp"
        self._start(str(program), "--non-blocking", "--promiscuous", "--calling-ae-title", CALLED,
                    "-p", str(self.port), "-o", str(objects))

    def stored(self) -> int:
        return len(os.listdir(self.folder / "objects"))


class Pynetdicom(Server):
    """A storage SCP of pynetdicom as its documentation shows it."""

    name = "pynetdicom"
    durability = "no: written, not synced, no index"

    def start(self) -> None:
        objects = self.folder / "objects"
        objects.mkdir()
        self._start(sys.executable, "-c", PYNETDICOM, str(self.port), str(objects))

    def stored(self) -> int:
        return len(os.listdir(self.folder / "objects"))
