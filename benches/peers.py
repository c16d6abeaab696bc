"""The further receivers of `make bench-receive`: Orthanc on PostgreSQL, dicom-rs and pynetdicom."""

import os
import pathlib
import sys

from postgres import Postgres
from servers import CALLED, Orthanc, Server

INDEX_PLUGIN = "/usr/share/orthanc/plugins/libOrthancPostgreSQLIndex.so"
PYNETDICOM = pathlib.Path(__file__).resolve().parent / "pynetdicom_peer.py"


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
    # Certificate, key and CA, for TLS.
    more_arguments: tuple[str, ...] = ()

    def start(self) -> None:
        objects = self.folder / "objects"
        objects.mkdir()
        self._start(sys.executable, str(PYNETDICOM), "serve", str(self.port), str(objects), *self.more_arguments)

    def stored(self) -> int:
        return len(os.listdir(self.folder / "objects"))
