"""Proposes contexts with pynetdicom: propose.py PORT CALLED CALLING SOP_CLASS=SYNTAX[,SYNTAX...] ...

Each argument is one presentation context. Prints how many were accepted, and releases.
"""

import sys

from pynetdicom import AE
from pynetdicom.presentation import build_context

port, called, calling = int(sys.argv[1]), sys.argv[2], sys.argv[3]
entity = AE(ae_title=calling)
proposals = [argument.split("=") for argument in sys.argv[4:]]
entity.requested_contexts = [build_context(sop_class, syntaxes.split(",")) for sop_class, syntaxes in proposals]
association = entity.associate("127.0.0.1", port, ae_title=called)
# pynetdicom aborts by itself an association without any accepted context.
print(len(association.accepted_contexts))
if association.is_established:
    association.release()
