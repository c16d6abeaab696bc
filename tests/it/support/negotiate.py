"""Asks a node for an association with pynetdicom in an unusual way: negotiate.py PORT CALLED CALLING MODE ARGUMENT...

large                        120 presentation contexts of 45 transfer syntaxes each
identity NAME PASSCODE       user identity of type 2, with a positive response asked for
tls CA CERTIFICATE KEY       over TLS, with our certificate
many N                       N associations at once, all kept open, then one C-ECHO on each

Prints what came of it; ends with 1 when there is no association.
"""

import ssl
import sys

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.pdu_primitives import UserIdentityNegotiation

port, called, calling, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
arguments = sys.argv[5:]
VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"

entity = AE(ae_title=calling)
options = {}
if mode == "large":
    syntaxes = (ALL_TRANSFER_SYNTAXES + [f"1.2.826.0.1.3680043.9.9999.{n}" for n in range(45)])[:45]
    classes = [CT] + [c.abstract_syntax for c in AllStoragePresentationContexts if c.abstract_syntax != CT]
    classes = (classes + [f"1.2.826.0.1.3680043.9.8888.{n}" for n in range(120)])[:120]
    for sop_class in classes:
        entity.add_requested_context(sop_class, syntaxes)
    assert len(entity.requested_contexts) == 120
    assert all(len(c.transfer_syntax) == 45 for c in entity.requested_contexts)
else:
    entity.add_requested_context(VERIFICATION)
if mode == "identity":
    identity = UserIdentityNegotiation()
    identity.user_identity_type = 2
    identity.positive_response_requested = True
    identity.primary_field = arguments[0].encode()
    identity.secondary_field = arguments[1].encode()
    options["ext_neg"] = [identity]
if mode == "tls":
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=arguments[0])
    context.load_cert_chain(arguments[1], arguments[2])
    options["tls_args"] = (context, "127.0.0.1")

count = int(arguments[0]) if mode == "many" else 1
associations = [entity.associate("127.0.0.1", port, ae_title=called, **options) for _ in range(count)]
established = [a for a in associations if a.is_established]
for association in associations:
    if association.is_rejected:
        answer = association.acceptor.primitive
        print("rejected", answer.result, answer.result_source, answer.diagnostic)
for association in established:
    if mode == "large":
        print("accepted", len(association.accepted_contexts), "rejected", len(association.rejected_contexts))
    else:
        print("echo", f"0x{association.send_c_echo().Status:04X}")
    if mode == "identity":
        print("positive response", association.acceptor.user_identity is not None)
    association.release()
print("established", len(established))
sys.exit(0 if established else 1)
