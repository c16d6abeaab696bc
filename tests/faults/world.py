"""The programs of a run: Postgres, the node and Orthanc as the PACS, each of which may be killed and started again."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

from servers import free_port, wait_until

CALLED, CALLING = "HILUM", "SCANNER"


class Program:
    """A process that is killed and started again."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen | None = None
        self.log = folder / f"{type(self).__name__.lower()}.log"

    def _spawn(self, command: list[str], **options) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, **options
            )

    def kill(self) -> None:
        """`kill -9`."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def pause(self, seconds: float) -> None:
        """Stands still for so long, with its connections open."""
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGCONT)

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            end = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{type(self).__name__} ended with {self.process.returncode}:\n{end}")


class Node(Program):
    """`hilum serve`; `environment` loads the file layer below it."""

    def __init__(self, folder: pathlib.Path, program: str, database_url: str, environment: dict[str, str]) -> None:
        super().__init__(folder)
        self.program = program
        own = {key: value for key, value in os.environ.items() if not key.startswith("HILUM_")}
        self.plain_environment, self.environment = own, {**own, **environment}
        self.port, self.http_port = free_port(), free_port()
        self.data = folder / "data"
        self.archive = self.data / "archive"
        (folder / "hilum.toml").write_text(f"""\
[node]
data_dir = "{self.data}"
shutdown_grace_seconds = 10
[database]
url = "{database_url}"
[dicom]
listen = "127.0.0.1:{self.port}"
[archive]
minimum_free_bytes = "64 MiB"
[assemble]
reconcile_seconds = 2
[inference]
models_dir = "{folder}/models"
threads = 1
# The run kills the infer process again and again: no study may be parked for it.
maximum_attempts = 20
restart_backoff_maximum_seconds = 1
[deliver]
initial_backoff_seconds = 1
maximum_backoff_seconds = 2
response_timeout_seconds = 20
[http]
listen = "127.0.0.1:{self.http_port}"
""")
        self.run("model", "init")
        self.run("migrate")

    def run(self, *arguments: str) -> None:
        """A `hilum` command, to its end."""
        done = subprocess.run([self.program, "--config", "hilum.toml", *arguments], cwd=self.folder, text=True,
                              env=self.plain_environment, capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"`hilum {' '.join(arguments)}` failed: {done.stderr or done.stdout}")

    def apply(self, pacs_port: int) -> None:
        site = self.folder / "site.toml"
        site.write_text(f"""\
[[local_ae]]
ae_title = "{CALLED}"
[[peer]]
name = "scanner"
ae_title = "{CALLING}"
host = "127.0.0.1"
may_store = true
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
[[destination]]
name = "pacs"
kind = "dicom"
peer = "pacs"
calling_ae_title = "{CALLED}"
send_not_analysed = true
[[route]]
name = "chest"
order = 1
called_ae_title = "{CALLED}"
modalities = ["CR"]
pipeline = "chest_radiograph"
bundle = "cxr-untrained"
quiet_seconds = 1
max_wait_seconds = 600
destinations = ["pacs"]
""")
        self.run("apply", str(site))

    def start(self) -> None:
        self._spawn([self.program, "--config", "hilum.toml", "serve"], env=self.environment)

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.HTTPError):
            return False

    def wait_until_listening(self) -> None:
        """Started again as a supervisor does when a fault of the disk ended the start."""
        attempts = 1

        def listens() -> bool:
            nonlocal attempts
            if self.process.poll() is not None and attempts < 10:
                attempts += 1
                self.start()
            self.check_alive()
            return self.answers("/healthz")

        wait_until(listens, "the node listening", 90, 0.05)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.answers("/readyz"), "the node being ready", 120, 0.1)

    def infer_process_id(self) -> int | None:
        if self.process is None or self.process.poll() is not None:
            return None
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            try:
                children = task.read_text().split()
            except OSError:
                continue
            if children:
                return int(children[0])
        return None

    def kill_infer(self) -> bool:
        child = self.infer_process_id()
        if child is None:
            return False
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill_everything(self) -> None:
        """Parent and infer child at once, as a power cut does."""
        child = self.infer_process_id()
        self.kill()
        if child is not None:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                return
            wait_until(lambda: not pathlib.Path(f"/proc/{child}/exe").exists(), "the infer process ending", 30)

    def stop(self) -> None:
        """In order."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


class Orthanc(Program):
    """The PACS. It keeps the first object of a UID and ignores later ones."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        self.port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        configuration = {
            "Name": "PACS", "StorageDirectory": str(folder / "pacs"), "IndexDirectory": str(folder / "pacs"), "Plugins": [],
            "DicomAet": "PACS", "DicomCheckCalledAet": False, "DicomPort": self.port, "DicomAlwaysAllowStore": True,
            "HttpPort": self.http_port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "OverwriteInstances": False,
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self.start()

    def start(self) -> None:
        program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        self._spawn([program, "orthanc.json"])

        def answers() -> bool:
            self.check_alive()
            try:
                with urllib.request.urlopen(f"{self.url}/system", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        wait_until(answers, "Orthanc starting", 90, 0.1)
