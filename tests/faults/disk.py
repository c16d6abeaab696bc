"""The disks of a run: the archive's, small and able to fail on command, and that of Postgres. Both are able to forget what
was not synchronised."""

import errno
import mmap
import os
import pathlib
import shutil
import struct
import subprocess
import time

SHIM = pathlib.Path(__file__).resolve().parent / "shim.c"
SHADOW = SHIM.with_name("shadow.c")
# As in shim.c.
OPERATIONS = {"open": 1, "write": 2, "sync_file": 4, "rename": 8, "sync_folder": 16, "make_folder": 32, "read": 64}


def _build(source: pathlib.Path, library: pathlib.Path) -> None:
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(source), "-ldl", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise SystemExit(f"faults: the file layer cannot be built: {built.stderr}")


class PostgresDisk:
    """What a power cut leaves of Postgres's folder: `shadow.c`, loaded into its processes, keeps it beside."""

    def __init__(self, folder: pathlib.Path, work: pathlib.Path) -> None:
        self.folder, self.copy = folder, work / "postgres-durable"
        self.library, self._lock = work / "shadow.so", work / "shadow.lock"
        _build(SHADOW, self.library)
        self._lock.touch()
        self._lock.chmod(0o666)

    def begin(self) -> None:
        """What is there now is durable. Nothing runs."""
        self._replace(self.folder, self.copy)

    def environment(self) -> dict[str, str]:
        """What loads the layer into Postgres."""
        names = {"LD_PRELOAD": self.library, "SHADOW_FOLDER": self.folder, "SHADOW_COPY": self.copy, "SHADOW_LOCK": self._lock}
        return {**os.environ, **{name: str(value) for name, value in names.items()}}

    def cut_power(self) -> None:
        """Nothing runs: every byte that was not synchronised is gone."""
        for half_copied in self.copy.rglob("*.shadow"):
            half_copied.unlink()
        # Postgres makes its lock file, writes and then synchronises it; where the cut comes between, a person removes it.
        lock = self.copy / "postmaster.pid"
        if lock.exists() and not lock.stat().st_size:
            lock.unlink()
        self._replace(self.copy, self.folder)

    @staticmethod
    def _replace(source: pathlib.Path, target: pathlib.Path) -> None:
        if target.exists():
            shutil.rmtree(target)
        # With owners and permissions, without which Postgres does not start.
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)


class Disk:
    """A tmpfs of its own at `folder`, below which the shim watches and fails the node's file operations."""

    def __init__(self, folder: pathlib.Path, work: pathlib.Path, mebibytes: int, late_sync_ms: int = 0) -> None:
        self.folder, self.late_sync_ms = folder, late_sync_ms
        folder.mkdir(parents=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=755", "tmpfs", str(folder)],
            capture_output=True, text=True, check=False,
        )
        if mounted.returncode != 0:
            raise SystemExit(f"faults: the run fills a disk of its own and needs root to mount it: {mounted.stderr}")
        self.shim, self.journal, self._control = work / "shim.so", work / "journal", work / "control"
        _build(SHIM, self.shim)
        self._control.write_bytes(bytes(16))
        self.journal.write_bytes(b"")
        with open(self._control, "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 16)
        self._durable = {str(folder): 0}

    def environment(self) -> dict[str, str]:
        """What loads the shim into the node."""
        names = {
            "LD_PRELOAD": self.shim, "HILUM_FAULTS_FOLDER": self.folder,
            "HILUM_FAULTS_CONTROL": self._control, "HILUM_FAULTS_JOURNAL": self.journal,
        }
        if self.late_sync_ms:
            names["HILUM_FAULTS_LATE_SYNC_MS"] = self.late_sync_ms
        return {name: str(value) for name, value in names.items()}

    def fail(self, operation: str, error_number: int, times: int, patience_seconds: float) -> int:
        """Lets the next `times` operations fail. Returns how many did within the patience."""
        before = struct.unpack("i", self._shared[12:16])[0]
        self._shared[0:8] = struct.pack("ii", OPERATIONS[operation], error_number)
        self._shared[8:12] = struct.pack("i", times)
        deadline = time.monotonic() + patience_seconds
        while struct.unpack("i", self._shared[8:12])[0] > 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        self._shared[8:12] = struct.pack("i", 0)
        return struct.unpack("i", self._shared[12:16])[0] - before

    def fill(self, seconds: float) -> None:
        """No byte is free for so long."""
        filler = self.folder / "filler"
        with open(filler, "wb") as file:
            try:
                status = os.statvfs(self.folder)
                os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        time.sleep(seconds)
        filler.unlink(missing_ok=True)

    def cut_power(self) -> int:
        """Nothing runs: leaves what a power cut leaves in the worst case: bytes up to the last completed
        synchronisation of their file, and names up to that of their folder. Returns how many files were lost or
        shortened."""
        durable, sizes = self._replay()
        damaged = 0
        for folder, folders, files in os.walk(self.folder, topdown=True):
            for name in list(folders):
                path = os.path.join(folder, name)
                if path not in durable:
                    damaged += sum(len(inner) for _, _, inner in os.walk(path))
                    shutil.rmtree(path)
                    folders.remove(name)
            for name in files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if path not in durable:
                    os.unlink(path)
                    damaged += 1
                elif sizes.get(status.st_ino, status.st_size if durable[path] == -1 else 0) < status.st_size:
                    os.truncate(path, sizes.get(status.st_ino, 0))
                    damaged += 1
        self._start_over()
        return damaged

    def _start_over(self) -> None:
        """What is there now is durable."""
        self.journal.write_bytes(b"")
        self._durable = {str(self.folder): 0}
        for folder, folders, files in os.walk(self.folder):
            self._durable.update({os.path.join(folder, name): 0 for name in folders})
            # -1: as long as it is now.
            self._durable.update({os.path.join(folder, name): -1 for name in files})

    def _replay(self) -> tuple[dict[str, int], dict[int, int]]:
        """The durable names with their inodes, and the durable size of each inode."""
        durable, sizes = dict(self._durable), {}
        now: dict[str, int] = dict(durable)
        # By folder: what became of its names since its last synchronisation.
        pending: dict[str, list[tuple[str, ...]]] = {}
        for line in self.journal.read_text().splitlines():
            kind, *rest = line.split("\t")
            if kind == "made":
                inode, path = int(rest[0]), rest[1]
                now[path] = inode
                sizes.pop(inode, None)
                pending.setdefault(os.path.dirname(path), []).append((path,))
            elif kind == "synced":
                sizes[int(rest[0])] = int(rest[1])
            elif kind == "renamed":
                source, target = rest
                now[target] = now.pop(source, 0)
                pending.setdefault(os.path.dirname(target), []).append((target, source))
            elif kind == "folder":
                for path, *source in pending.pop(rest[1], []):
                    if path in now:
                        durable[path] = now[path]
                    for old in source:
                        durable.pop(old, None)
            elif kind == "removed":
                now.pop(rest[0], None)
                durable.pop(rest[0], None)
        return durable, sizes

    def remove(self) -> None:
        self._shared.close()
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)
