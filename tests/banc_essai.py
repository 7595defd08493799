#!/usr/bin/env python3
"""Le banc d'essai : un thread par client, à côté de ce que l'on emploie d'habitude.

    python3 tests/banc_essai.py                tout mesurer (une dizaine de minutes)
    python3 tests/banc_essai.py --tours 1      le même, une fois au lieu de trois
    python3 tests/banc_essai.py --variantes    ce que vaut chaque idée du serveur, une par une
    python3 tests/banc_essai.py --rapide       quelques secondes : vérifie, et ne mesure rien

Chaque serveur a son processus ; celui-ci les charge tous, à tour de rôle, et plusieurs fois :
ce que la machine fait d'autre gêne ainsi tout le monde. On compare des *rapports* pris dans le
même tour, et l'on donne la médiane, le minimum et le maximum. Comme des chiffres faux ne valent
rien, chaque mesure est aussi une vérification : chacun a reçu chaque ligne des autres une fois,
entière, dans l'ordre de son auteur, et jamais les siennes. Sinon la rangée le dit et le code de
sortie est 1.

« Fenêtre 64 » : chaque bavard envoie 64 messages d'un coup, puis attend que tous aient tout
reçu. « Fenêtre 1 » : un seul message, puis la même attente ; c'est un ping-pong.
"""

import argparse
import contextlib
import functools
import os
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

MEASURE_SECONDS = 0.5  # s : chaque mesure dure au moins cela, et au moins un échange
STALL_SECONDS = 30  # s sans rien recevoir : le serveur est tenu pour bloqué
STUCK_SECONDS = 4  # s de conversation à côté d'un client qui ne lit pas
MESSAGES_PER_SECOND = 100  # pour mesurer les délais
DELAY_SECONDS = 2  # s de mesure des délais
RECV_BYTES = 256 * 1024

TAG = b"|"  # une fois dans chaque message, jamais dans ce que les serveurs ajoutent


# --- Les serveurs comparés ----------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """Un serveur à mesurer : comment le lancer, y entrer, y parler."""

    label: str
    command: Callable[[Path, int, int], list[str]]  # (dossier, port, clients) → commande
    hello: str = "{}\n"  # ce qu'un client envoie pour entrer
    prefix: bytes = b""  # ce qui précède chaque message sur le réseau
    chooses_port: bool = False  # accepte le port 0 et dit, en première ligne, celui qu'il a pris
    max_clients: int = 100_000
    tears_lines: bool = False  # un recv y vaut un message : les lignes de 200 octets s'y déchirent


def ours(patch: str = "") -> Callable[[Path, int, int], list[str]]:
    program = f"import sys, serveur_exo as s\n{patch}\nsys.exit(s.main())"
    options = ["--port", "0", "--debit", "0", "--max-clients"]
    return lambda folder, port, clients: [sys.executable, "-c", program, *options, str(clients + 1)]


def ngircd(folder: Path, port: int, clients: int) -> list[str]:
    configuration = folder / "ngircd.conf"
    configuration.write_text(
        f"[Global]\nName = irc.banc.test\nInfo = banc\nListen = 127.0.0.1\nPorts = {port}\n"
        "ServerUID = 65534\nServerGID = 65534\n"
        "[Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\nMaxNickLength = 20\n"
        "PingTimeout = 3600\n[Options]\nDNS = no\nIdent = no\nPAM = no\nMorePrivacy = no\n"
    )
    return ["ngircd", "--nodaemon", "--config", str(configuration)]


OURS = Contender("ce serveur", ours(), chooses_port=True)
NAIVE = Contender(
    "solution habituelle",
    lambda folder, port, clients: [sys.executable, str(HERE / "serveur_naif.py"), "0"],
    chooses_port=True,
    tears_lines=True,
)
NCAT = Contender(
    "ncat --chat",
    lambda folder, port, clients: [
        "ncat", "--chat", "--listen", "127.0.0.1", str(port), "--max-conns", str(clients + 1)
    ],
    hello="",
    max_clients=1000,  # il attend avec select, qui s'arrête à 1024 descripteurs
)  # fmt: skip
NGIRCD = Contender(
    "ngircd",
    ngircd,
    hello="NICK {0}\r\nUSER {0} 0 * :banc\r\nJOIN &b\r\n",
    prefix=b"PRIVMSG &b :",
)

# Les idées du serveur, une par une : le même serveur, moins celle-là.
VARIANTS = []


class Server:
    """Un serveur lancé dans son processus, console et erreurs dans un fichier."""

    def __init__(self, contender: Contender, clients: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.port = 0 if contender.chooses_port else free_port()
        self.console = folder / "console"
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                contender.command(folder, self.port, clients),
                stdout=console, stderr=subprocess.STDOUT, cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        if contender.chooses_port:
            self.port = wait_for(self.announced_port)

    def announced_port(self) -> int | None:
        found = re.search(r"Écoute sur .*?(\d+)(?: \(|$)", self.console.read_text("utf-8"), re.M)
        return int(found[1]) if found else None

    def connect(self) -> socket.socket:
        return wait_for(functools.partial(connect, self.port))

    def status(self, field: str) -> int:
        """Rend un nombre de /proc/…/status : VmRSS (Kio) ou Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+)", text, re.M)[1])

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def wait_for(attempt: Callable[[], object]) -> object:
    """Rend le premier résultat vrai de `attempt` ; lève Stalled s'il n'en vient pas."""
    deadline = time.monotonic() + STALL_SECONDS
    while not (result := attempt()):
        if time.monotonic() > deadline:
            raise Stalled("le serveur ne démarre pas")
        time.sleep(0.01)
    return result


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def connect(port: int) -> socket.socket | None:
    with contextlib.suppress(ConnectionRefusedError):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    return None


# --- La foule : tous les clients d'un serveur, dans un seul thread ---------------


class Stalled(Exception):
    """Le serveur ne fait plus rien avancer."""


class Listener:
    """Un client, et ce qu'il a reçu."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.chunks: list[bytes] = []  # reçus depuis le début de la mesure
        self.times: list[float] = []  # instant de chaque morceau


class Crowd:
    """Des clients d'un même serveur, les premiers étant les bavards."""

    def __init__(self, server: Server, contender: Contender, count: int, size: int = 32) -> None:
        self.contender = contender
        self.poller = select.epoll()
        self.by_descriptor: dict[int, Listener] = {}
        self.members: list[Listener] = []
        self.messages = 0  # reçus, tous ensemble, depuis le début de la mesure
        for number in range(count):
            sock = server.connect()
            if contender.hello:
                sock.sendall(contender.hello.format(f"u{number}").encode())
            member = Listener(sock)
            self.members.append(member)
            self.by_descriptor[sock.fileno()] = member
            self.poller.register(sock, select.EPOLLIN)
            self.receive(0)  # ce que l'on ne lirait pas s'accumulerait

    def settle(self) -> None:
        """Attend que chacun entende les autres : tous sont alors admis et tout bruit est passé.

        Des saluts partent des deux bouts, encore et encore, jusqu'à ce que tous en aient vu un
        de chaque ; chacun porte un numéro, et l'on attend le dernier.
        """
        first, last = self.members[0], self.members[-1]
        deadline = time.monotonic() + STALL_SECONDS
        number = 0
        while not all(b"salut" in b"".join(member.chunks) for member in self.members):
            if time.monotonic() > deadline:
                raise Stalled("tous ne sont pas entrés")
            number += 1
            for member in (first, last):
                member.sock.sendall(self.contender.prefix + b"salut %06d.\n" % number)
            until = time.monotonic() + 0.1
            while (remaining := until - time.monotonic()) > 0:
                self.receive(remaining)
        tail = b"salut %06d." % number
        while not all(tail in b"".join(member.chunks) for member in self.members):
            if time.monotonic() > deadline:
                raise Stalled("tous ne s'entendent pas")
            self.receive(0.1)
        self.restart()

    def restart(self) -> None:
        """Oublie ce qui a été reçu : une mesure commence."""
        for member in self.members:
            member.chunks, member.times = [], []
        self.messages = 0

    def receive(self, seconds: float) -> int:
        """Lit ce qui est là, ou attend `seconds` ; rend le nombre de morceaux lus."""
        ready = self.poller.poll(seconds)
        for descriptor, _ in ready:
            member = self.by_descriptor[descriptor]
            data = member.sock.recv(RECV_BYTES)
            if not data:
                raise Stalled("le serveur a fermé une connexion")
            member.times.append(time.perf_counter())
            member.chunks.append(data)
            self.messages += data.count(TAG)
        return len(ready)

    def wait_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if not self.receive(STALL_SECONDS):
                raise Stalled("bloqué")

    def close(self) -> None:
        self.poller.close()
        for member in self.members:
            member.sock.close()


def message(talker: int, number: int, size: int) -> bytes:
    """Rend un message de `size` octets, fin de ligne comprise."""
    return (b"%03d|%06d" % (talker, number)).ljust(size - 1, b".") + b"\n"


def faults(members: list[Listener], sent: list[int], size: int) -> str:
    """Rend ce qui manque, se répète, se déchire ou revient à son auteur ; "" si tout est bon."""
    pattern = re.compile(rb"(\d{3})\|(\d{6})" + rb"\." * (size - 1 - 10) + rb"\r?\n")
    for own, member in enumerate(members):
        data = b"".join(member.chunks)
        following = [0] * len(sent)
        found = pattern.findall(data)
        for talker, number in found:
            talker = int(talker)
            if talker == own:
                return "une ligne revient à son auteur"
            if int(number) != following[talker]:
                return "lignes perdues, répétées ou en désordre"
            following[talker] += 1
        if len(found) != data.count(TAG):
            return "lignes déchirées"
        if any(got != want for i, (got, want) in enumerate(zip(following, sent)) if i != own):
            return "lignes perdues"
    return ""


# --- Les mesures ----------------------------------------------------------------


@dataclass
class Result:
    """Ce qu'une mesure a donné, une valeur par tour."""

    values: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # nous ÷ lui, dans le même tour
    loads: list[float] = field(default_factory=list)  # part de processeur du chargeur
    problem: str = ""


def measure_throughput(crowd: Crowd, talkers: int, window: int, size: int, seconds: float):
    """Rend (messages livrés par seconde, part du processeur prise ici, défaut ou "")."""
    members, prefix = crowd.members, crowd.contender.prefix
    recipients = len(members) - 1
    crowd.restart()
    sent = [0] * talkers
    total = 0
    start, start_cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        # Chaque message que tous ont reçu en laisse partir un autre, à tour de rôle.
        while total - crowd.messages / recipients <= window * talkers - 1:
            talker = total % talkers
            members[talker].sock.sendall(prefix + message(talker, sent[talker], size))
            sent[talker] += 1
            total += 1
        if not crowd.receive(STALL_SECONDS):
            raise Stalled("bloqué")
    crowd.wait_until(lambda: crowd.messages >= total * recipients)
    elapsed = time.perf_counter() - start
    load = (time.process_time() - start_cpu) / elapsed
    return total * recipients / elapsed, load, faults(members, sent, size)


if __name__ == "__main__":
    for contender, clients, talkers, window, size in [
        (c, n, t, w, z)
        for n, t in ((11, 1), (101, 1), (501, 1), (10, 10), (100, 100))
        for z in (32,)
        for w in (1, 64)
        for c in (OURS, NCAT, NGIRCD, NAIVE)
    ]:
        server = Server(contender, clients)
        try:
            crowd = Crowd(server, contender, clients)
            crowd.settle()
            print(clients, talkers, window, size, contender.label, *measure_throughput(crowd, talkers, window, size, 0.5), flush=True)
        except Stalled as e:
            print(clients, talkers, window, size, contender.label, "STALLED", e)
        server.close()
        crowd.close()
