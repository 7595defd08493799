"""Ce que les tests reçoivent : un vrai serveur sur un port libre, et des clients bruts.

Un test attend toujours un événement (une ligne, une fin de flux, la fin d'un processus),
jamais une durée ; PATIENCE n'est là que pour qu'un test en échec finisse.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PATIENCE = 60  # s

# Lancé en arrière-plan (« pytest & »), un programme hérite d'un Ctrl+C ignoré, et ceux qu'il
# lance aussi.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Peer:
    """Un bout de connexion brut : des octets sur TCP, lus ligne par ligne."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self.file = self.sock.makefile("rb")

    def send(self, data: str | bytes) -> None:
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def line(self) -> str:
        """Rend la ligne suivante sans son « \\n », ou "" à la fin du flux."""
        return self.file.readline().decode().removesuffix("\n")

    def lines_until(self, last: str) -> list[str]:
        """Rend les lignes qui précèdent la ligne `last`."""
        found = []
        while (line := self.line()) != last:
            assert line, f"fin du flux avant {last!r} ; reçu : {found}"
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


class Server:
    """Un serveur_exo.py dans son processus ; `patch` en change d'abord des limites."""

    def __init__(self, *options: str, patch: str = "", **popen) -> None:
        self.console = tempfile.TemporaryFile()
        program = f"import sys, serveur_exo as s\n{patch}\nsys.exit(s.main())"
        popen.setdefault("stdout", self.console)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, "--port", "0", *options],
            stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **popen,
        )  # fmt: skip
        self.listening = self.error()
        self.port = int(self.listening.split(" (")[0].rpartition(":")[2])
        self.peers: list[Peer] = []

    def error(self) -> str:
        """Rend la ligne suivante de stderr."""
        return self.process.stderr.readline().decode().removesuffix("\n")

    def connect(self, name: str = "") -> Peer:
        peer = Peer(socket.create_connection(("127.0.0.1", self.port)))
        self.peers.append(peer)
        return peer.join(name) if name else peer

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()  # l'épreuve échoue, et ne laisse rien derrière elle
            raise

    def console_lines(self) -> list[str]:
        """Rend les lignes de la console ; à lire une fois le serveur arrêté."""
        self.console.seek(0)
        return self.console.read().decode().splitlines()

    def end(self) -> str:
        """Ferme tout ; rend ce qui restait sur stderr."""
        for peer in self.peers:
            peer.close()
        if self.process.poll() is None:
            self.stop()
        if self.process.stdout:
            self.process.stdout.close()
        with self.process.stderr as errors, contextlib.closing(self.console):
            return errors.read().decode()


def postman_with(stack: contextlib.ExitStack, *names: str) -> tuple:
    """Rend un facteur sans thread, dans le salon duquel ces clients sont, et leurs bouts."""
    import serveur_exo

    outputs = types.SimpleNamespace(show=lambda *_: None)
    admission = threading.BoundedSemaphore(len(names))
    postman = serveur_exo.Postman(admission, outputs, False)
    peers = []
    for name in names:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        peers.append(Peer(theirs))
        stack.callback(peers[-1].file.close)
        client = serveur_exo.Client(ours, "127.0.0.1")
        admission.acquire()
        for event, lines in ((serveur_exo.Event.CONNECTED, []), (serveur_exo.Event.LINES, [name])):
            client.mail_slot.acquire()
            mail = serveur_exo.Mail(event, client, [line.encode() for line in lines])
            postman.make_round(mail)
        client.mail_slot.acquire()  # comme si un courrier attendait
    return postman, peers


@pytest.fixture
def serveur():
    """Rend une fonction qui lance un serveur ; tous sont arrêtés à la fin, sans traceback."""
    servers = []

    def launch(*options: str, **more) -> Server:
        servers.append(Server(*options, **more))
        return servers[-1]

    yield launch
    for server in servers:
        assert "Traceback" not in server.end()


@pytest.fixture
def taper():
    """Rend une fonction qui lance un client dans un terminal ; tous sont fermés à la fin."""
    from terminal import Typist  # il emprunte à ce module-ci

    typists = []

    def launch(*options, **more):
        typists.append(Typist(*options, **more))
        return typists[-1]

    yield launch
    for typist in typists:
        typist.close()
