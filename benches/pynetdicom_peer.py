"""pynetdicom as a peer: pynetdicom_peer.py serve PORT FOLDER [CERTIFICATE KEY CA] | send PORT FILE [CERTIFICATE KEY CA]"""

import pathlib
import ssl
import sys

from pydicom import dcmread
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, evt
from pynetdicom.sop_class import Verification


def tls_of(files: list[str], server: bool) -> ssl.SSLContext | None:
    """Mutual TLS with one certificate for everybody."""
    if not files:
        return None
    certificate, key, authority = files
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH, cafile=authority)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def serve(port: int, folder: pathlib.Path, files: list[str]) -> None:
    def on_store(event: evt.Event) -> int:
        (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0x0000

    entity = AE(ae_title="HILUM")
    entity.maximum_associations = 64
    for context in StoragePresentationContexts[:126]:
        entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)
    entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, on_store)],
                        ssl_context=tls_of(files, server=True))


def send(port: int, file: str, files: list[str]) -> int:
    data_set = dcmread(file)
    entity = AE(ae_title="BENCH")
    entity.add_requested_context(data_set.SOPClassUID, data_set.file_meta.TransferSyntaxUID)
    entity.add_requested_context(Verification)
    tls = tls_of(files, server=False)
    association = entity.associate("127.0.0.1", port, ae_title="HILUM", tls_args=(tls, "127.0.0.1") if tls else None)
    if not association.is_established:
        return 1
    answers = [association.send_c_echo(), association.send_c_store(data_set)]
    association.release()
    return int(any(answer.get("Status") != 0x0000 for answer in answers))


if __name__ == "__main__":
    role, port, what, *files = sys.argv[1:]
    if role == "serve":
        serve(int(port), pathlib.Path(what), files)
    else:
        sys.exit(send(int(port), what, files))
