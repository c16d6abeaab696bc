"""Destinations that do what they are told: C-STORE and Storage Commitment with pynetdicom.

destination.py SCRIPT FOLDER
    SCRIPT is a JSON list of servers: {"name", "port", "title", "classes", "rules", "commitment"}. Prints `ready`, then runs
    until killed. Every C-STORE is a line of FOLDER/log: {"server", "class", "instance", "did"}; every kept object is a line
    with "did": "kept". FOLDER/rules.json, when it is there, replaces the rules of the servers that it names.

    A rule is {"class", "times", "do"}; the first that fits and is not used up decides: "0xA700" answers that status
    (0x0000, warnings and 0x0111 keep the object), "abort", "stall", "truncate" (closes in the middle of its answer),
    "keep_and_truncate" (the same, and it has the object). Without a rule the object is kept, and one that is there already
    is answered with 0x0111.

    "commitment": {"mode": "same" | "new" | "silent", "after": SECONDS, "lose": TIMES, "report_to", "report_title"}: the last
    instance of a list is not kept for the first TIMES requests. With "twice" every report is sent a second time.
"""

import json
import sys
import threading
import time
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

sys.dont_write_bytecode = True
from commitment import INSTANCE, SYNTAXES, items

LOCK = threading.Lock()


class Server:
    def __init__(self, script, folder):
        self.name, self.port, self.title = script["name"], script["port"], script["title"]
        self.rules = script.get("rules", [])
        self.commitment = script.get("commitment")
        self.folder = folder
        self.kept = set()
        self.asked = 0
        entity = AE(ae_title=self.title)
        entity.add_supported_context(Verification)
        for sop_class in script["classes"]:
            entity.add_supported_context(sop_class, SYNTAXES)
        handlers = [(evt.EVT_C_STORE, self.on_store), (evt.EVT_C_ECHO, lambda _event: 0x0000)]
        if self.commitment:
            entity.add_supported_context(StorageCommitmentPushModel, SYNTAXES)
            handlers.append((evt.EVT_N_ACTION, self.on_action))
        entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def log(self, **line):
        with LOCK, open(self.folder / "log", "a", encoding="utf-8") as file:
            file.write(json.dumps({"server": self.name, **line}) + "\n")

    def rule(self, sop_class):
        with LOCK:
            told = self.folder / "rules.json"
            if told.exists():
                replaced = json.loads(told.read_text(encoding="utf-8"))
                if self.name in replaced and replaced[self.name].get("id") != getattr(self, "told", None):
                    self.told = replaced[self.name]["id"]
                    self.rules = replaced[self.name]["rules"]
            for rule in self.rules:
                if rule.get("class") in (None, sop_class) and rule.get("times", 1 << 30) > 0:
                    if "times" in rule:
                        rule["times"] -= 1
                    return rule["do"]
        return None

    def keep(self, sop_class, instance):
        if instance not in self.kept:
            self.kept.add(instance)
            self.log(**{"class": sop_class, "instance": instance, "did": "kept"})

    def on_store(self, event):
        sop_class, instance = str(event.request.AffectedSOPClassUID), str(event.request.AffectedSOPInstanceUID)
        do = self.rule(sop_class)
        if do is None:
            do = "0x0111" if instance in self.kept else "0x0000"
        self.log(**{"class": sop_class, "instance": instance, "did": do})
        if do.startswith("0x"):
            status = int(do, 16)
            if status == 0 or 0xB000 <= status <= 0xBFFF or status == 0x0111:
                self.keep(sop_class, instance)
            return status
        if do == "stall":
            time.sleep(8)
            return 0x0110
        if do == "abort":
            event.assoc.abort()
            return 0x0110
        if do == "keep_and_truncate":
            self.keep(sop_class, instance)
        socket = event.assoc.dul.socket.socket
        # The head of a P-DATA-TF that is longer than what follows.
        socket.sendall(bytes([0x04, 0, 0, 0, 0, 0x60, 0, 0, 0, 0x5C, 1]))
        socket.close()
        return 0x0110

    def on_action(self, event):
        request, association = event.action_information, event.assoc
        self.asked += 1
        self.log(did="asked", instances=len(request.ReferencedSOPSequence), number=self.asked)
        if self.commitment["mode"] != "silent":
            after = self.commitment.get("after", 0.3)
            threading.Timer(after, self.report, (request, association, self.asked)).start()
        return 0x0000, None

    def report(self, request, association, number):
        pairs = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in request.ReferencedSOPSequence]
        lost = pairs[-1:] if number <= self.commitment.get("lose", 0) else []
        kept = [pair for pair in pairs if pair not in lost]
        answer = Dataset()
        answer.TransactionUID = request.TransactionUID
        if kept:
            answer.ReferencedSOPSequence = items(kept)
        if lost:
            answer.FailedSOPSequence = items(lost, 0x0112)
        own = None
        if self.commitment["mode"] == "new":
            entity = AE(ae_title=self.title)
            entity.add_requested_context(StorageCommitmentPushModel, SYNTAXES)
            role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
            # Until the node is there: it may have been stopped meanwhile.
            for _ in range(60):
                own = entity.associate(
                    "127.0.0.1", self.commitment["report_to"], ae_title=self.commitment["report_title"], ext_neg=[role]
                )
                if own.is_established:
                    break
                time.sleep(0.5)
            association = own
        for _ in range(2 if self.commitment.get("twice") else 1):
            status, _ = association.send_n_event_report(answer, 2 if lost else 1, StorageCommitmentPushModel, INSTANCE)
            self.log(did="reported", status=f"{status.get('Status', -1):04X}", lost=len(lost))
        if own is not None:
            own.release()


folder = Path(sys.argv[2])
servers = [Server(script, folder) for script in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
print("ready", flush=True)
threading.Event().wait()
