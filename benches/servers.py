"""The receivers, each started fresh on an empty folder of its own, on free ports of loopback."""

import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.request

from processes import cpu_seconds

CALLED, CALLING = "HILUM", "BENCH"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, what: str, seconds: float = 60.0, pause: float = 0.02):
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(pause)
    raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")


def environment(tcp_nodelay: bool) -> dict[str, str]:
    """dcmtk, and so Orthanc too, leaves Nagle's algorithm on unless TCP_NODELAY is 1 in its environment."""
    inherited = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"}
    return {**inherited, "TCP_NODELAY": "1"} if tcp_nodelay else inherited


class Server:
    """A storage SCP. `name` and `durability` are what the tables say of it."""

    name = ""
    durability = ""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.tcp_nodelay = True

    def _start(self, *command: str) -> None:
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment(self.tcp_nodelay)
            )

    def _answers(self) -> bool:
        """Whether it answers C-ECHO."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
        echo = ["echoscu", "-to", "2", "-aet", CALLING, "-aec", CALLED, "127.0.0.1", str(self.port)]
        return subprocess.run(echo, capture_output=True, check=False).returncode == 0

    def __enter__(self) -> "Server":
        try:
            self.start()
            wait_until(self._answers, f"{self.name} answering C-ECHO", pause=0.1)
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def settle(self) -> None:
        """Waits until the start-up is over."""
        time.sleep(0.3)

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid, with_children=self.forks())

    def forks(self) -> bool:
        return False

    def start(self) -> None:
        raise NotImplementedError

    def stored(self) -> int:
        """Objects that are kept."""
        raise NotImplementedError


class Storescp(Server):
    """dcmtk's storescp; with `fork` it serves associations in parallel."""

    name = "dcmtk storescp"
    durability = "no: written, not synced, no index"
    more_options: tuple[str, ...] = ()

    def __init__(self, folder: pathlib.Path, fork: bool = False) -> None:
        super().__init__(folder)
        self.fork = fork

    def start(self) -> None:
        objects = self.folder / "objects"
        objects.mkdir()
        options = (["--fork"] if self.fork else []) + list(self.more_options)
        self._start("storescp", *options, "-aet", CALLED, "-od", str(objects), str(self.port))

    def forks(self) -> bool:
        return self.fork

    def stored(self) -> int:
        return len(os.listdir(self.folder / "objects"))


class Discarding(Storescp):
    """dcmtk's storescp that receives objects and throws them away: what senders and network alone allow."""

    name = "dcmtk storescp --ignore"
    durability = "no: nothing is kept"
    more_options = ("--ignore",)

    def stored(self) -> float:
        return float("inf")


class Orthanc(Server):
    """Orthanc with its default index (SQLite) and its defaults."""

    name = "Orthanc"
    durability = "file synced, its name and the index not"

    def start(self) -> None:
        self.http_port = free_port()
        configuration = {
            "Name": "BENCH", "StorageDirectory": "objects", "IndexDirectory": "objects", "Plugins": [],
            "DicomAet": CALLED, "DicomPort": self.port, "DicomAlwaysAllowStore": True,
            "HttpPort": self.http_port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            **self.more_configuration(),
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        self._start("Orthanc", "orthanc.json")

    def stored(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/statistics", timeout=10) as answer:
            return json.load(answer)["CountInstances"]

    def more_configuration(self) -> dict:
        return {}


CONFIGURATION = """\
[node]
data_dir = "{folder}/data"
[database]
managed = true
migrate_on_start = true
[dicom]
listen = "127.0.0.1:{port}"
[archive]
minimum_free_bytes = "512 MiB"
[inference]
models_dir = "{folder}/models"
[http]
listen = "127.0.0.1:{http_port}"
[log]
level = "warn"
"""

SITE = """\
[[local_ae]]
ae_title = "{called}"
[[peer]]
name = "sender"
ae_title = "{calling}"
host = "127.0.0.1"
may_store = true
"""

# For the way from the image to the result in the PACS.
ROUTE = """\
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
[[destination]]
name = "pacs"
kind = "dicom"
peer = "pacs"
calling_ae_title = "{called}"
send_not_analysed = true
[[route]]
name = "chest"
order = 1
called_ae_title = "{called}"
modalities = ["CR", "DX"]
pipeline = "chest_radiograph"
bundle = "cxr-untrained"
quiet_seconds = {quiet_seconds}
max_wait_seconds = 600
destinations = ["pacs"]
"""


class Hilum(Server):
    """`hilum serve` with its private Postgres (fsync on), as in production."""

    name = "hilum"
    durability = "yes: file and its folder synced; index follows"
    # Further sections of its configuration file.
    more_configuration = ""
    init = ("model", "init")
    # What becomes of what is received, where there is a PACS.
    route = ROUTE

    def __init__(self, folder: pathlib.Path, pacs_port: int | None = None, quiet_seconds: int = 2) -> None:
        super().__init__(folder)
        self.program = os.environ["HILUM"]
        self.pacs_port = pacs_port
        self.quiet_seconds = quiet_seconds
        self.psql: subprocess.Popen | None = None

    def _run(self, *arguments: str) -> None:
        command = [self.program, "--config", "hilum.toml", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"`hilum {' '.join(arguments)}` failed: {done.stderr or done.stdout}")

    def start(self) -> None:
        http_port = free_port()
        text = CONFIGURATION.format(folder=self.folder, port=self.port, http_port=http_port) + self.more_configuration
        (self.folder / "hilum.toml").write_text(text)
        site = SITE.format(called=CALLED, calling=CALLING)
        if self.pacs_port:
            site += self.route.format(pacs_port=self.pacs_port, called=CALLED, quiet_seconds=self.quiet_seconds)
            self._run(*self.init)
        (self.folder / "site.toml").write_text(site)
        self._start(self.program, "--config", "hilum.toml", "serve")
        self.http_url = f"http://127.0.0.1:{http_port}"
        wait_until(self._listens, "hilum listening", pause=0.1)
        self._run("apply", "site.toml")
        postmaster = next(self.folder.glob("data/postgres/cluster/postmaster.pid")).read_text().splitlines()
        self.postgres_process_id, socket_folder = int(postmaster[0]), postmaster[4]
        self.psql = subprocess.Popen(
            ["psql", "-XAtq", "-h", socket_folder, "-U", "hilum", "-d", "hilum"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"hilum ended: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(f"{self.http_url}/healthz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def settle(self) -> None:
        # The infer process loads libtorch meanwhile.
        time.sleep(1.5)

    def query(self, sql: str) -> str:
        """The one value that a query gives, as text; empty for none."""
        self.psql.stdin.write(f"{sql};\n\\echo end\n")
        self.psql.stdin.flush()
        lines = []
        while (line := self.psql.stdout.readline()) != "end\n":
            if not line:
                raise RuntimeError("psql ended")
            lines.append(line.rstrip("\n"))
        return "\n".join(lines)

    def indexed(self) -> int:
        return int(self.query("select count(*) from instance"))

    def postgres_cpu_seconds(self) -> float:
        return cpu_seconds(self.postgres_process_id, with_children=True)

    def stored(self) -> int:
        return sum(1 for _ in self.folder.glob("data/archive/objects/**/*.dcm"))

    def __exit__(self, *_: object) -> None:
        if self.psql:
            self.psql.stdin.close()
            self.psql.wait()
        super().__exit__()

