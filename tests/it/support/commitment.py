"""Storage Commitment with pynetdicom.

commitment.py scu PORT CALLED CALLING LISTEN MODE TRANSACTION CLASS INSTANCE [CLASS INSTANCE]...
    Asks the SCP at PORT whether it keeps the instances. MODE `same` holds the association open for the report, `new`
    releases it and listens at LISTEN. Prints `asked STATUS`, then `report EVENT COMMITTED FAILED`, with
    `INSTANCE=REASON` for each failed one, separated by commas.
commitment.py scp LISTEN TITLE REPORT_TO REPORT_TITLE MODE
    Answers requests until killed: keeps every instance whose UID does not end with `.0`. MODE `same` reports on the
    association of the request, `new` on one of its own to REPORT_TO, called REPORT_TITLE. Prints `ready` first.
"""

import sys
import threading
import time

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import StorageCommitmentPushModel

INSTANCE = "1.2.840.10008.1.20.1.1"
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


def success(_event):
    return 0x0000, None


def items(pairs, reason=None):
    made = []
    for sop_class, instance in pairs:
        one = Dataset()
        one.ReferencedSOPClassUID = sop_class
        one.ReferencedSOPInstanceUID = instance
        if reason is not None:
            one.FailureReason = reason
        made.append(one)
    return made


def scu(port, called, calling, listen, mode, transaction, names):
    told = threading.Event()
    lines = []

    def on_report(event):
        report = event.event_information
        failed = [f"{one.ReferencedSOPInstanceUID}={one.FailureReason:04X}" for one in report.get("FailedSOPSequence", [])]
        committed = [one.ReferencedSOPInstanceUID for one in report.get("ReferencedSOPSequence", [])]
        assert report.TransactionUID == transaction, report.TransactionUID
        lines.append(f"report {event.request.EventTypeID} {','.join(committed) or '-'} {','.join(failed) or '-'}")
        told.set()
        return success(event)

    entity = AE(ae_title=calling)
    entity.add_requested_context(StorageCommitmentPushModel, SYNTAXES)
    entity.add_supported_context(StorageCommitmentPushModel, SYNTAXES, scu_role=False, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, on_report)]
    server = entity.start_server(("127.0.0.1", listen), block=False, evt_handlers=handlers) if mode == "new" else None
    association = entity.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers)
    if not association.is_established:
        sys.exit("no association")
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = items(zip(names[::2], names[1::2]))
    status, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, INSTANCE)
    print(f"asked {status.Status:04X} {status.get('ErrorComment', '')}".strip(), flush=True)
    if mode == "new":
        association.release()
    if status.Status == 0 and not told.wait(120):
        sys.exit("no report came")
    # The response to the report leaves after the handler has returned.
    time.sleep(0.5)
    if association.is_established:
        association.release()
    if server is not None:
        server.shutdown()
    print("\n".join(lines), flush=True)


def scp(listen, title, report_to, report_title, mode):
    def report(request, association):
        pairs = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in request.ReferencedSOPSequence]
        kept = [pair for pair in pairs if not pair[1].endswith(".0")]
        lost = [pair for pair in pairs if pair[1].endswith(".0")]
        answer = Dataset()
        answer.TransactionUID = request.TransactionUID
        if kept:
            answer.ReferencedSOPSequence = items(kept)
        if lost:
            answer.FailedSOPSequence = items(lost, 0x0112)
        own = None
        if mode == "new":
            entity = AE(ae_title=title)
            entity.add_requested_context(StorageCommitmentPushModel, SYNTAXES)
            role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
            association = own = entity.associate("127.0.0.1", report_to, ae_title=report_title, ext_neg=[role])
        status, _ = association.send_n_event_report(answer, 2 if lost else 1, StorageCommitmentPushModel, INSTANCE)
        print(f"reported {status.get('Status', -1):04X}", flush=True)
        if own is not None:
            own.release()

    def on_request(event):
        request, association = event.action_information, event.assoc
        # After the response to the request has left.
        threading.Timer(0.5, report, (request, association)).start()
        return success(event)

    entity = AE(ae_title=title)
    entity.add_supported_context(StorageCommitmentPushModel, SYNTAXES)
    entity.start_server(("127.0.0.1", listen), block=False, evt_handlers=[(evt.EVT_N_ACTION, on_request)])
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "scu":
        scu(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6], sys.argv[7], sys.argv[8:])
    else:
        scp(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
