"""Sends files to a storage SCP with pynetdicom: send.py PORT CALLED CALLING LOG FILE...

Proposes each SOP class with exactly the transfer syntax of its file, and appends each SOP Instance UID to LOG as soon
as its Success has arrived. Prints one line per file; ends with 1 when one was not stored.
"""

import os
import sys

from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.presentation import build_context

port, called, calling, log = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
files = [dcmread(path) for path in sys.argv[5:]]

entity = AE(ae_title=calling)
pairs = {(str(f.SOPClassUID), str(f.file_meta.TransferSyntaxUID)) for f in files}
entity.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in sorted(pairs)]
association = entity.associate("127.0.0.1", port, ae_title=called)
if not association.is_established:
    sys.exit("no association")
failed = 0
with open(log, "a") as acknowledged:
    for data_set in files:
        try:
            status = association.send_c_store(data_set)
        except (ValueError, RuntimeError) as error:
            print(data_set.SOPInstanceUID, error)
            failed += 1
            break
        word = f"0x{status.Status:04X}" if "Status" in status else "no answer"
        print(data_set.SOPInstanceUID, word)
        if word == "0x0000":
            acknowledged.write(data_set.SOPInstanceUID + "\n")
            acknowledged.flush()
            os.fsync(acknowledged.fileno())
        else:
            failed += 1
if association.is_established:
    association.release()
sys.exit(1 if failed else 0)
