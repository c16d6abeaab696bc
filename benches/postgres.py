"""A Postgres server of one's own on an empty folder. As root it runs as the user `postgres`, which may not be root."""

import os
import pathlib
import shutil
import signal
import subprocess

from servers import free_port, wait_until


def _programs() -> pathlib.Path:
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else pathlib.Path(shutil.which("initdb") or "/usr/bin/initdb").parent


class Postgres:
    """Answers on a Unix socket in its folder and on a port of loopback, to the user `hilum` without a password.
    `durable` is fsync: off is enough where its processes are killed but the machine is not. A `disk` is begun when the
    folder is complete, and its environment is that of the server."""

    def __init__(self, folder: pathlib.Path, database: str, durable: bool, disk=None) -> None:
        self.folder, self.database, self.port, self.disk = folder, database, free_port(), disk
        self.log = folder.with_suffix(".log")
        self.process: subprocess.Popen | None = None
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        folder.mkdir(parents=True)
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        subprocess.run(
            [_programs() / "initdb", "-D", folder, "-A", "trust", "-U", "hilum", "--no-sync", "-E", "UTF8",
             # Megabytes: a disk that keeps a copy of what is synchronised copies whole files.
             "--wal-segsize", "1"],
            check=True, capture_output=True, cwd="/", **self.user,
        )
        with open(folder / "postgresql.conf", "a") as configuration:
            configuration.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\nmax_connections = 80\n"
                                f"unix_socket_directories = '{folder}'\nfsync = {'on' if durable else 'off'}\n")
        self.url = f"postgres://hilum@127.0.0.1:{self.port}/{database}"
        if disk:
            disk.begin()
        self.start()
        self.run(f"create database {database}", "postgres")

    def run(self, statement: str, database: str | None = None) -> str:
        """What psql prints of a statement, unaligned and without headings."""
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-p", str(self.port), "-U", "hilum",
                   "-d", database or self.database, "-f", "-"]
        return subprocess.run(command, input=statement, capture_output=True, text=True, check=True).stdout.strip()

    def start(self) -> None:
        def answers() -> bool:
            # Children of a killed server hold its memory for a moment: until they have gone it does not start.
            if self.process is None or self.process.poll() is not None:
                with open(self.log, "ab") as log:
                    self.process = subprocess.Popen([_programs() / "postgres", "-D", self.folder], stdin=subprocess.DEVNULL,
                                                    stdout=log, stderr=log, cwd="/", **self.user,
                                                    env=self.disk.environment() if self.disk else None)
            try:
                return self.run("select 1", "postgres") == "1"
            except subprocess.CalledProcessError:
                return False

        self.process = None
        wait_until(answers, "Postgres starting", 90, 0.1)

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def cut_power(self) -> None:
        """All its processes are killed, and of its files is left what the disk holds."""
        children = [int(child) for tasks in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children")
                    for child in tasks.read_text().split()]
        self.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_until(lambda: not any(pathlib.Path(f"/proc/{child}/exe").exists() for child in children), "Postgres ending", 30)
        self.disk.cut_power()

    def stop(self) -> None:
        """At once and in order."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
