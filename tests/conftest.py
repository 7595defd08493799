"""Ce que les tests reçoivent : un vrai serveur sur un port libre, et des clients bruts.

Un test attend toujours un événement (une ligne, une fin de flux, la fin d'un processus), jamais
une durée ; PATIENCE n'est là que pour qu'un test en échec finisse.
"""

import contextlib
import importlib.util
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

try:
    import readline
except ImportError:  # Windows
    readline = None

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PATIENCE = 60  # s

# Sans tampon, un programme bloqué n'aurait rien à écrire à sa fin : des tests ne pourraient échouer.
os.environ.pop("PYTHONUNBUFFERED", None)

# Lancé en arrière-plan (« pytest & »), un programme hérite d'un Ctrl+C ignoré, et ceux qu'il
# lance aussi.
signal.signal(signal.SIGINT, signal.default_int_handler)

IS_WINDOWS, is_wine = os.name == "nt", False
if IS_WINDOWS:
    import ctypes

    is_wine = hasattr(ctypes.windll.ntdll, "wine_get_version")  # un Windows imité, pas en tout
    os.environ["PYTHONIOENCODING"] = "utf-8"  # dans un tube, ce serait l'ancien encodage du système


# --- Ce que tous les systèmes n'ont pas -------------------------------------------


def can_bind(address: str) -> bool:
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        socket.create_server((address, 0), family=family).close()
    except OSError:
        return False
    return True


# Ce que des tests demandent, tel qu'un test passé le nomme : « demande un pty ».
HAS = {
    "un pty": importlib.util.find_spec("termios") is not None,
    "GNU readline": readline is not None and "libedit" not in readline.__doc__,
    "bash": not IS_WINDOWS and shutil.which("bash") is not None,
    "nc": shutil.which("nc") is not None,
    "/proc": sys.platform == "linux",
    "/dev/full": sys.platform == "linux",
    "IPv6": can_bind("::1"),
    "127.0.0.2": can_bind("127.0.0.2"),
    "prlimit": sys.platform == "linux",
    "des limites (resource)": importlib.util.find_spec("resource") is not None,
    "des signaux d'un programme à l'autre": not IS_WINDOWS,
    "des fichiers dont un autre programme hérite": not IS_WINDOWS,
    "une coupure brutale": not is_wine,  # close y finit toujours le flux, malgré SO_LINGER
    "de n'attendre aucun envoi": not is_wine,  # Windows le prend entier, si select l'a promis
    "de copier des fichiers": not is_wine,  # CopyFile2 lui manque
    "select sur le clavier": not IS_WINDOWS,  # seulement sur des sockets
    "un fichier non bloquant": not IS_WINDOWS,
    "un tube qui garde le début d'une longue écriture": not IS_WINDOWS,
    "LC_ALL": not IS_WINDOWS,
    "SIGALRM": hasattr(signal, "setitimer"),
    "mkfifo": hasattr(os, "mkfifo"),
    "epoll": hasattr(select, "epoll"),
    "MSG_DONTWAIT": hasattr(socket, "MSG_DONTWAIT"),
    "TCP_USER_TIMEOUT": hasattr(socket, "TCP_USER_TIMEOUT"),
}


def needs(*names: str) -> None:
    """Passe le test si ce système n'a pas tout cela : un test, une fixture ou un outil l'appelle."""
    for name in names:
        if not HAS[name]:
            pytest.skip(f"demande {name}")


def proc(process: subprocess.Popen) -> Path:
    """Renvoie le dossier où Linux décrit ce processus (man 5 proc)."""
    needs("/proc")
    return Path(f"/proc/{process.pid}")


# --- Attendre, parler au serveur ----------------------------------------------------


def wait_until(is_true: Callable[[], bool], otherwise: str) -> None:
    """Attend un état ; s'il ne vient pas, le test échoue et dit `otherwise`."""
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def wait_in_recv(process: subprocess.Popen) -> None:
    """Attend qu'un thread, autre que le principal, soit dans le recv d'un socket."""
    folder = proc(process)

    def calls() -> list[list[str]]:  # par thread : « running », ou un numéro et ses arguments
        others = [task for task in (folder / "task").iterdir() if task.name != folder.name]
        return [(task / "syscall").read_text().split() for task in others]

    def is_in_recv() -> bool:
        files = [int(call[1], 16) for call in calls() if len(call) > 1]
        return any((folder / "fd" / str(file)).is_socket() for file in files)

    wait_until(is_in_recv, "aucun thread n'est dans recv")


class Peer:
    """Un bout de connexion brut : des octets sur TCP, lus ligne par ligne."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self.file = self.sock.makefile("rb")

    def send(self, data: str | bytes) -> None:
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def line(self) -> str:
        """Renvoie la ligne suivante sans son « \\n », ou "" à la fin du flux."""
        return self.file.readline().decode().removesuffix("\n")

    def lines_until(self, last: str) -> list[str]:
        """Renvoie les lignes qui précèdent la ligne `last`."""
        found = []
        while (line := self.line()) != last:
            assert line, f"fin du flux avant {last!r} ; reçu : {found[-3:]}"
            found.append(line)
        return found

    def join(self, name: str) -> "Peer":
        self.send(f"{name}\n")
        assert self.line().startswith(f"* Bienvenue, {name} !")
        return self

    def barrier(self) -> str:
        """Demande /liste : si la réponse est la ligne suivante, rien d'autre n'était venu."""
        self.send("/liste\n")
        return self.line()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def reset(self) -> None:
        """Coupe la connexion : TCP envoie un reset, sans fin de flux."""
        needs("une coupure brutale")
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


def server_command(patch: str = "") -> list[str]:
    """Renvoie ce qui lance le serveur, après que `patch` a changé son module `s`.

    `patch` dispose de send et recv, que le serveur appelle, et de tell, qui écrit sur stderr.
    """
    # Un arrêt attend accept et les clients encore là ; une centaine de tests arrêtent un serveur.
    quick = "s.ACCEPT_SECONDS = 0.05"
    tools = (
        "send, recv = s.send_now, s.socket.socket.recv\n"
        "def tell(text): s.os.write(2, f'{text}\\n'.encode())"
    )
    ours = UNIX_LINES + OBEY if IS_WINDOWS else ""
    program = f"import sys, serveur_exo as s\n{quick}\n{ours}\n{tools}\n{patch}\nsys.exit(s.main())"
    return [sys.executable, "-W", "error", "-c", program]


# Sous Windows, Python écrit « \r\n » à la fin de chaque ligne : pas dans les programmes des tests.
UNIX_LINES = """
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(newline="\\n")
"""

# Windows n'envoie pas de signal à un seul programme : le serveur des tests se donne lui-même
# celui dont il lit le numéro dans son entrée.
OBEY = """
def obey():
    while number := s.os.read(0, 1):
        s.signal.raise_signal(number[0])
s.threading.Thread(target=obey, daemon=True).start()
"""


class Server:
    """Un serveur_exo.py dans son processus ; `patch` en change d'abord des limites."""

    def __init__(self, *options: str, patch: str = "", **popen) -> None:
        self.console = tempfile.TemporaryFile()
        popen.setdefault("stdout", self.console)
        if IS_WINDOWS:
            popen.setdefault("stdin", subprocess.PIPE)
        self.process = subprocess.Popen(
            [*server_command(patch), "--port", "0", *options],
            stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **popen,
        )  # fmt: skip
        self.listening = self.error()
        self.port = int(self.listening.split(" (")[0].rpartition(":")[2])
        self.peers: list[Peer] = []

    def error(self) -> str:
        """Renvoie la ligne suivante de stderr."""
        return self.process.stderr.readline().decode().removesuffix("\n")

    def connect(self, name: str = "") -> Peer:
        peer = Peer(socket.create_connection(("127.0.0.1", self.port)))
        self.peers.append(peer)
        return peer.join(name) if name else peer

    def room(self, *names: str) -> list[Peer]:
        """Fait entrer ces clients dans l'ordre ; chacun a lu l'arrivée des suivants."""
        peers: list[Peer] = []
        for name in names:
            newcomer = self.connect(name)
            for peer in peers:
                assert peer.line() == f"* {name} a rejoint le chat."
            peers.append(newcomer)
        return peers

    def send_signal(self, number: int) -> None:
        """Envoie un signal, comme Ctrl+C ou kill."""
        if IS_WINDOWS:
            self.process.stdin.write(bytes([number]))
            self.process.stdin.flush()
        else:
            self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()  # le test échoue, et ne laisse rien derrière lui
            raise

    def console_lines(self) -> list[str]:
        """Renvoie les lignes de la console ; à lire une fois le serveur arrêté."""
        self.console.seek(0)
        return self.console.read().decode().splitlines()

    def end(self) -> str:
        """Ferme tout ; renvoie ce qui restait sur stderr."""
        for peer in self.peers:
            peer.close()
        if self.process.poll() is None:
            self.stop()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        with self.process.stderr as errors, contextlib.closing(self.console):
            return errors.read().decode()


def peak_kilobytes(process: subprocess.Popen) -> int:
    """Renvoie le plus de mémoire (Kio) que ce processus a occupée depuis l'appel précédent."""
    status = (proc(process) / "status").read_text()
    (proc(process) / "clear_refs").write_text("5")  # remet VmHWM à zéro (man 5 proc)
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


@pytest.fixture(autouse=True)
def limit():
    """Fait échouer un test qui tourne sans fin, là où PATIENCE ne suffit pas."""

    def fail(*_) -> None:
        raise AssertionError("ce test ne finit pas")

    if IS_WINDOWS:  # il n'a pas de signal qui vienne après un délai
        yield
        return
    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(5 * PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def shared_server():
    """Un serveur qui reste le même pour tout un fichier de tests."""
    server = Server()
    yield server
    assert "Traceback" not in server.end()


@pytest.fixture
def lobby(shared_server):
    """Renvoie le serveur partagé, où personne n'est connecté ; tous en partent à la fin."""
    yield shared_server
    for peer in shared_server.peers:
        with contextlib.suppress(OSError):
            peer.send("\nexit\n")
            while peer.line():
                pass
        peer.close()
    shared_server.peers.clear()


@pytest.fixture
def start_server():
    """Renvoie une fonction qui lance un serveur ; tous sont arrêtés à la fin, sans traceback."""
    servers = []

    def launch(*options: str, **more) -> Server:
        servers.append(Server(*options, **more))
        return servers[-1]

    yield launch
    for server in servers:
        assert "Traceback" not in server.end()


@pytest.fixture
def terminal():
    """Renvoie une fonction qui lance un client dans un terminal ; tous sont fermés à la fin."""
    needs("un pty", "GNU readline")
    from terminal import Session  # il importe ce module-ci

    sessions = []

    def launch(*options, **more):
        sessions.append(Session(*options, **more))
        return sessions[-1]

    yield launch
    for session in sessions:
        session.close()
