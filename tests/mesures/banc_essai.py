#!/usr/bin/env python3
"""Le banc d'essai : un thread par client, à côté de ce que l'on emploie d'habitude.

    python3 tests/mesures/banc_essai.py                tout mesurer, puis dessiner banc_essai.svg,
                                               ou le fichier que nomme --image
    python3 tests/mesures/banc_essai.py --tours 1      le même, une fois au lieu de trois
    python3 tests/mesures/banc_essai.py --variantes    ce que vaut chaque idée du serveur, une par une
    python3 tests/mesures/banc_essai.py --etapes       l'étape 8 de la leçon, et les étapes 5 et 7
    python3 tests/mesures/banc_essai.py --contre ../avant --tours 5
                                               ce serveur et celui d'un autre dossier du dépôt
                                               (git worktree add ../avant 5cdcb5a) ; avec
                                               --journal, les deux tiennent un journal
    python3 tests/mesures/banc_essai.py --rapide       quelques secondes : vérifie, et ne mesure rien

Chaque serveur a son processus ; celui-ci les charge tous, à tour de rôle, et plusieurs fois :
les autres programmes de la machine les gênent ainsi tous de la même façon. On compare des *rapports* pris dans le
même tour ; on donne la médiane, le minimum et le maximum. Le rapport dit combien de fois nous
faisons mieux : nous ÷ lui pour un débit, lui ÷ nous pour un délai ou de la mémoire.

Un bavard est un client qui envoie. Fenêtre 64 : il envoie 64 messages en une fois, puis attend que tous les aient reçus.
Fenêtre 1 : un seul message, puis la même attente ; c'est un ping-pong.

On ne compte que les messages dont on voit l'auteur, comme l'exercice le veut : des serveurs
relaient ce qu'un recv leur a donné, et n'y mettent le nom qu'une fois pour plusieurs lignes. La
colonne « signés » dit quelle part l'est. Et chaque mesure vérifie : chacun a reçu chaque ligne
des autres une fois, entière, dans l'ordre de son auteur, et jamais les siennes. Sinon la rangée
le dit et le code de sortie est 1.
"""

import argparse
import contextlib
import functools
import math
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

MEASURE_SECONDS = 0.3  # s : chaque mesure dure au moins cela, et au moins un échange
STALL_SECONDS = 20  # s sans rien recevoir : le serveur est tenu pour bloqué
STUCK_SECONDS = 3  # s de conversation à côté d'un client qui ne lit pas
STUCK_PATIENCE = 5  # s sans rien recevoir, à côté de ce client : tous sont bloqués
MESSAGES_PER_SECOND = 100  # pour mesurer les délais
DELAY_SECONDS = 2  # s de mesure des délais
RECV_BYTES = 256 * 1024  # octets par recv : le chargeur doit coûter moins que les serveurs

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
    author: bytes = rb"u\d+ : "  # motif de l'auteur devant un message
    max_clients: int = 1000
    tears_lines: bool = False  # défaut connu : il prend un recv pour un message, et coupe des lignes


def ours(
    patch: str = "", root: Path = ROOT, with_log: bool = False
) -> Callable[[Path, int, int], list[str]]:
    """Renvoie comment lancer le serveur du dossier `root`, que `patch` change d'abord."""
    program = (
        f"import sys\nsys.path.insert(0, {str(root)!r})\n"
        f"import serveur_exo as s\n{patch}\nsys.exit(s.main())"
    )
    options = ["--port", "0", "--debit", "0", *(["--journal", "journal"] if with_log else [])]
    return lambda folder, port, clients: [
        sys.executable, "-c", program, *options, "--max-clients", str(clients + 1)
    ]  # fmt: skip


def ngircd(folder: Path, port: int, clients: int) -> list[str]:
    configuration = folder / "ngircd.conf"
    configuration.write_text(
        f"[Global]\nName = irc.banc.test\nInfo = banc\nListen = 127.0.0.1\nPorts = {port}\n"
        "ServerUID = 65534\nServerGID = 65534\n"
        "[Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\nMaxNickLength = 20\n"
        "PingTimeout = 3600\n[Options]\nDNS = no\nIdent = no\nPAM = no\nMorePrivacy = no\n"
    )
    return ["ngircd", "--nodaemon", "--config", str(configuration)]


def step(number: int) -> Contender:
    """Renvoie une étape de la leçon (tests/lecon/etape0.py…)."""
    program = str(ROOT / f"tests/lecon/etape{number}.py")
    return Contender(f"étape {number}", lambda folder, port, clients: [sys.executable, program, str(port)])


OURS = Contender("ce serveur", ours(), chooses_port=True, max_clients=5000)
NAIVE = replace(step(0), label="solution habituelle", tears_lines=True)
NCAT = Contender(
    "ncat --chat",
    lambda folder, port, clients: [
        "ncat", "--chat", "--listen", "127.0.0.1", str(port), "--max-conns", str(clients + 1)
    ],
    hello="",
    author=rb"<user\d+> ",
    tears_lines=True,
)  # fmt: skip
NGIRCD = Contender(
    "ngircd",
    ngircd,
    hello="NICK {0}\r\nUSER {0} 0 * :banc\r\nJOIN &b\r\n",
    prefix=b"PRIVMSG &b :",
    author=rb":u\d+!\S+ PRIVMSG &b :",
)

# Pour chaque idée du serveur, le même serveur sans cette idée.
VARIANTS = [
    Contender(label, ours(patch), chooses_port=True)
    for label, patch in (
        ("sans TCP_NODELAY", "del s.protocol.SOCKET_OPTIONS['TCP_NODELAY']"),
        ("une ligne par dépôt", "s.DEPOSIT_LINES = 1"),
        (
            "on attend le verrou",
            "class Waiting:\n"
            "    def __init__(self): self.lock = s.threading.Lock()\n"
            "    def acquire(self, blocking): return self.lock.acquire()\n"
            "    def release(self): self.lock.release()\n"
            "start = s.Hub.__init__\n"
            "def waiting(self, *arguments):\n"
            "    start(self, *arguments)\n"
            "    self.round_lock = Waiting()\n"
            "s.Hub.__init__ = waiting",
        ),
        ("sans console", "put = s.Writer.put\ns.Writer.put = lambda self, text: self.errors or put(self, text)"),
    )
]


class RunningServer:
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
                # Chacun se compile : avec des .pyc, un client semble coûter 0,4 Kio de plus.
                env={**os.environ, "PYTHONPYCACHEPREFIX": str(folder)},
            )  # fmt: skip
        if contender.chooses_port:
            self.port = wait_for(self.announced_port)

    def announced_port(self) -> int | None:
        found = re.search(r"Écoute sur .*?(\d+)(?: \(|$)", self.console.read_text("utf-8"), re.M)
        return int(found[1]) if found else None

    def connect(self) -> socket.socket:
        return wait_for(functools.partial(connect, self.port))

    def status(self, field: str) -> int:
        """Renvoie un nombre de /proc/…/status : VmRSS (Kio) ou Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+)", text, re.M)[1])

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def wait_for(attempt: Callable[[], object]) -> object:
    """Renvoie le premier résultat vrai de `attempt` ; lève Stalled s'il n'en vient pas."""
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


# --- Tous les clients d'un serveur, dans un seul thread --------------------------


class Stalled(Exception):
    """Le serveur ne répond plus."""


class Member:
    """Un client, et ce qu'il a reçu."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.chunks: list[bytes] = []  # reçus depuis le début de la mesure
        self.times: list[float] = []  # instant de chaque morceau
        self.tail = b""  # la fin de ce qui a été reçu : assez pour reconnaître un salut


class Crowd:
    """Des clients d'un même serveur, les premiers étant les bavards."""

    def __init__(self, server: RunningServer, contender: Contender, count: int) -> None:
        self.contender = contender
        self.poller = select.epoll()
        self.by_descriptor: dict[int, Member] = {}
        self.members: list[Member] = []
        self.messages = 0  # reçus, tous ensemble, depuis le début de la mesure
        for number in range(count):
            sock = server.connect()
            if contender.hello:
                sock.sendall(contender.hello.format(f"u{number}").encode())
            member = Member(sock)
            self.members.append(member)
            self.by_descriptor[sock.fileno()] = member
            self.poller.register(sock, select.EPOLLIN)
            self.receive(0)  # ce que l'on ne lirait pas s'accumulerait
            self.restart()

    def settle(self) -> None:
        """Attend que chacun entende les autres : tous sont alors admis, sans annonce en chemin.

        Des saluts partent des deux bouts, encore et encore, jusqu'à ce que tous en aient vu un ;
        chacun porte un numéro, et l'on attend le dernier.
        """
        deadline = time.monotonic() + 3 * STALL_SECONDS
        greeted: set[int] = set()
        number = 0
        while len(greeted) < len(self.members):
            number += 1
            for member in (self.members[0], self.members[-1]):
                member.sock.sendall(self.contender.prefix + b"salut %06d.\n" % number)
            self.look_for(b"salut", greeted, deadline, seconds=0.2)
        self.look_for(b"salut %06d." % number, set(), deadline)
        self.restart()

    def look_for(self, word: bytes, found: set[int], deadline: float, seconds: float = 0) -> None:
        """Lit jusqu'à ce que chacun ait reçu `word`, ou pendant `seconds` s'il y en a."""
        until = time.monotonic() + seconds
        while len(found) < len(self.members):
            if time.monotonic() > deadline:
                raise Stalled("tous ne s'entendent pas")
            if seconds and time.monotonic() > until:
                return
            self.receive(0.05)
            found.update(n for n, m in enumerate(self.members) if n not in found and word in m.tail)
            self.restart()

    def restart(self) -> None:
        """Oublie ce qui a été reçu : une mesure commence."""
        for member in self.members:
            member.chunks, member.times = [], []
        self.messages = 0

    def receive(self, seconds: float) -> int:
        """Lit ce qui est là, ou attend `seconds` ; renvoie le nombre de morceaux lus."""
        ready = self.poller.poll(seconds)
        for descriptor, _ in ready:
            member = self.by_descriptor[descriptor]
            data = member.sock.recv(RECV_BYTES)
            if not data:
                raise Stalled("le serveur a fermé une connexion")
            member.times.append(time.perf_counter())
            member.chunks.append(data)
            member.tail = (member.tail + data)[-4096:] if len(data) < 4096 else data[-4096:]
            self.messages += data.count(TAG)
        return len(ready)

    def wait_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if not self.receive(STALL_SECONDS):
                raise Stalled("bloqué")

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self.poller.close()
        for member in self.members:
            member.sock.close()


def message(talker: int, number: int, size: int) -> bytes:
    """Renvoie un message de `size` octets, fin de ligne comprise."""
    return (b"%03d|%06d" % (talker, number)).ljust(size - 1, b".") + b"\n"


def check(crowd: Crowd, sent: list[int], size: int) -> tuple[int, str]:
    """Renvoie combien de messages signés sont arrivés, et ce qui ne va pas ("" : rien)."""
    pattern = re.compile(
        rb"(%s)?(\d{3})\|(\d{6})(\.*)\r?\n" % crowd.contender.author
    )
    padding = b"." * (size - len(b"000|000000\n"))
    signed, problem = 0, ""
    for own, member in enumerate(crowd.members):
        following = [0] * len(sent)
        data = b"".join(member.chunks)
        found = pattern.findall(data)
        if len(found) != data.count(TAG) or any(rest != padding for *_, rest in found):
            problem = "lignes déchirées"
            continue
        for author, talker, number, _ in found:
            signed += bool(author)
            if int(number) != following[int(talker)]:
                return signed, "lignes perdues, répétées ou en désordre"
            following[int(talker)] += 1
        wanted = [0 if talker == own else count for talker, count in enumerate(sent)]
        if following != wanted:
            return signed, "lignes perdues, ou renvoyées à leur auteur"
    return signed, problem


# --- Les mesures ----------------------------------------------------------------


@dataclass
class Row:
    """Ce qu'un serveur a donné dans un cas, une valeur par tour."""

    case: str
    contender: Contender
    unit: str
    is_rate: bool  # plus grand vaut mieux ; sinon plus petit
    values: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""

    def ratios(self, ours: "Row") -> list[float]:
        """Renvoie, tour par tour, combien de fois nous faisons mieux que lui."""
        pairs = [(a, b) for a, b in zip(ours.values, self.values) if a and b]
        return [a / b if self.is_rate else b / a for a, b in pairs]


def measure_throughput(crowd: Crowd, talkers: int, window: int, size: int) -> tuple:
    """Renvoie (messages signés livrés par seconde, remarque, défaut ou "")."""
    members, prefix = crowd.members, crowd.contender.prefix
    recipients = len(members) - 1
    crowd.restart()
    sent = 0
    start, start_cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < MEASURE_SECONDS:
        for talker in range(talkers):
            lines = (prefix + message(talker, sent + n, size) for n in range(window))
            members[talker].sock.sendall(b"".join(lines))
        sent += window
        total = sent * talkers * recipients
        crowd.wait_until(lambda: crowd.messages >= total)
    elapsed = time.perf_counter() - start
    load = (time.process_time() - start_cpu) / elapsed
    signed, problem = check(crowd, [sent] * talkers, size)
    note = f"signés {signed / total:.0%}, chargeur {load:.0%}"
    return signed / elapsed, note, problem


def measure_delays(crowd: Crowd) -> tuple[float, float]:
    """Renvoie la médiane et le 99e centile (ms) des délais, d'un bavard à tous les autres."""
    crowd.restart()
    sent_at: list[float] = []
    start = time.perf_counter()
    count = MESSAGES_PER_SECOND * DELAY_SECONDS
    for number in range(count):
        while (remaining := start + number / MESSAGES_PER_SECOND - time.perf_counter()) > 0:
            crowd.receive(remaining)
        sent_at.append(time.perf_counter())
        crowd.members[0].sock.sendall(crowd.contender.prefix + message(0, number, 32))
    crowd.wait_until(lambda: crowd.messages >= count * (len(crowd.members) - 1))
    delays = sorted(
        moment - sent_at[int(number)]
        for member in crowd.members
        for moment, chunk in zip(member.times, member.chunks)
        for number in re.findall(rb"\|(\d{6})", chunk)
    )
    return delays[len(delays) // 2] * 1000, delays[len(delays) * 99 // 100] * 1000


def measure_stuck(server: RunningServer, crowd: Crowd) -> tuple[float, str]:
    """Renvoie le plus long silence (s) que subissent les autres, et la part qu'ils ont reçue."""
    stuck = server.connect()
    stuck.sendall(crowd.contender.hello.format("bloque").encode() or b"\n")
    crowd.receive(0.2)
    crowd.restart()
    sent, last, gap = 0, time.perf_counter(), 0.0
    start = last
    with stuck:
        while time.perf_counter() - start < STUCK_SECONDS and gap < STUCK_PATIENCE:
            if crowd.messages >= sent * (len(crowd.members) - 1):
                lines = (message(0, sent + n, 400) for n in range(64))
                prefix = crowd.contender.prefix
                crowd.members[0].sock.sendall(b"".join(prefix + line for line in lines))
                sent += 64
            before = crowd.messages
            crowd.receive(STUCK_PATIENCE)
            now = time.perf_counter()
            gap = max(gap, now - last)
            if crowd.messages > before:
                last = now
        share = crowd.messages / (sent * (len(crowd.members) - 1))
    return gap, f"reçu {share:.1%}"


def measure_silent(contender: Contender, count: int) -> tuple[float, float, str]:
    """Renvoie (s pour admettre tous les clients, Kio par client, remarque)."""
    with RunningServer(contender, count) as server:
        empty = server.status("VmRSS")
        start = time.perf_counter()
        with Crowd(server, contender, count) as crowd:
            crowd.settle()
            seconds = time.perf_counter() - start
            kibibytes = (server.status("VmRSS") - empty) / count
            return seconds, kibibytes, f"{server.status('Threads')} threads"


# --- Les tours ------------------------------------------------------------------


class Bench:
    """Les rangées, dans l'ordre où elles se sont remplies."""

    def __init__(self, contenders: list[Contender]) -> None:
        self.contenders = contenders
        self.order = contenders
        self.rows: dict[tuple[str, str], Row] = {}

    def turn(self) -> None:
        """Commence un tour, avec un autre en premier : cela profite ou coûte à chacun à son tour."""
        self.order = self.order[1:] + self.order[:1]

    def add(self, case: str, contender: Contender, value: float, note: str, problem: str = "",
            unit: str = "msg/s", is_rate: bool = True) -> None:  # fmt: skip
        key = (case, contender.label)
        row = self.rows.setdefault(key, Row(case, contender, unit, is_rate))
        row.values.append(value)
        row.notes.append(note)
        row.problem = row.problem or problem

    def run_room(self, clients: int, talkers: int, sizes: Iterable[int], delays: bool) -> None:
        """Un tour d'un salon : chaque serveur y passe."""
        who = f"{talkers} → {clients - 1}" if talkers == 1 else f"{clients} entre eux"
        for contender in self.order:
            with RunningServer(contender, clients) as server:
                try:
                    with Crowd(server, contender, clients) as crowd:
                        crowd.settle()
                        if delays:
                            median, high = measure_delays(crowd)
                            for label, value in (("délai médian", median), ("délai, 99 %", high)):
                                case = f"{label}, {who}, 100 msg/s"
                                self.add(case, contender, value, "", unit="ms", is_rate=False)
                        for size in sizes:
                            for window in (1, 64):
                                case = f"{who}, fenêtre {window}, {size} octets"
                                result = measure_throughput(crowd, talkers, window, size)
                                self.add(case, contender, *result)
                except Stalled as reason:
                    self.add(f"{who}", contender, 0, "", str(reason))

    def run_stuck(self) -> None:
        for contender in self.order:
            with RunningServer(contender, 12) as server, Crowd(server, contender, 11) as crowd:
                crowd.settle()
                gap, note = measure_stuck(server, crowd)
                case = "un client qui ne lit pas : plus long silence"
                lost = contender is OURS and note != "reçu 100.0%"
                problem = "lignes perdues" if lost else ""
                self.add(case, contender, gap, note, problem, unit="s", is_rate=False)

    def run_silent(self, count: int) -> None:
        for contender in self.order:
            if count <= contender.max_clients:
                seconds, kibibytes, note = measure_silent(contender, count)
                self.add(f"{count} silencieux : admission", contender, seconds, note, "", "s", False)
                self.add(f"{count} silencieux : mémoire", contender, kibibytes, note, "", "Kio", False)

    def print_table(self) -> None:
        """Imprime une rangée par cas et par serveur, le rapport d'abord."""
        print(f"{'nous, × mieux':>22}  {'serveur':<24} {'médiane [min – max]':>34}  remarque")
        shown = ""
        labels = [contender.label for contender in self.contenders]
        for row in sorted(
            self.rows.values(),
            key=lambda row: (self.cases().index(row.case), labels.index(row.contender.label)),
        ):
            if row.case != shown:
                shown = row.case
                print(f"\n{shown}")
            ratios = row.ratios(self.rows.get((row.case, self.contenders[0].label), row))
            remark = " ; ".join(filter(None, [row.notes[0], row.problem and f"FAUX : {row.problem}"]))
            print(f"{spread(ratios):>22}  {row.contender.label:<24} "
                  f"{spread(row.values) + ' ' + row.unit:>34}  {remark}")  # fmt: skip

    def cases(self) -> list[str]:
        return list(dict.fromkeys(case for case, _ in self.rows))

    def failed(self) -> bool:
        """Renvoie True si une rangée est fausse, sauf le défaut connu de ceux qui coupent les lignes."""
        return any(
            row.problem and not (row.contender.tears_lines and row.problem == "lignes déchirées")
            for row in self.rows.values()
        )


def spread(values: list[float]) -> str:
    """Renvoie « médiane [min – max] », ou « — »."""
    if not values:
        return "—"
    shown = [f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" for value in
             (statistics.median(values), min(values), max(values))]  # fmt: skip
    return f"{shown[0]} [{shown[1]} – {shown[2]}]".replace(",", "\u202f")


def draw(bench: Bench) -> str:
    """Renvoie une image SVG : des barres, sur une échelle logarithmique, pour les cas à 32 octets."""
    cases = [case for case in bench.cases() if "fenêtre" in case and "32 octets" in case]
    labels = [contender.label for contender in bench.contenders]
    colors = dict(zip(labels, ("#2563eb", "#9ca3af", "#d97706", "#059669")))
    rates = {key: statistics.median(row.values) for key, row in bench.rows.items()}
    most = max(rates[case, label] for case in cases for label in labels if (case, label) in rates)
    shapes, y = [], 60
    for case in cases:
        shapes.append(f'<text x="10" y="{y}" font-weight="bold">{case}</text>')
        for label in labels:
            y += 18
            rate = rates.get((case, label), 0)
            # Trois barreaux de 10 : en dessous d'un millième du plus grand, rien ne se voit.
            width = max(2, 480 * (1 + math.log10(max(rate, 1) / most) / 4))
            shapes.append(
                f'<rect x="160" y="{y - 11}" width="{width:.0f}" height="13" '
                f'fill="{colors[label]}"/><text x="10" y="{y}">{label}</text>'
                f'<text x="{166 + width:.0f}" y="{y}">{rate:,.0f}</text>'.replace(",", "\u202f")
            )
        y += 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{y}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="780" height="{y}" fill="white"/><text x="10" y="25" font-size="15">'
        "Messages signés livrés par seconde (échelle logarithmique)</text>"
        + "".join(shapes) + "</svg>\n"
    )  # fmt: skip


def installed(contenders: Iterable[Contender]) -> list[Contender]:
    """Renvoie ceux que cette machine a."""
    programs = {NCAT.label: "ncat", NGIRCD.label: "ngircd"}
    return [c for c in contenders if c.label not in programs or shutil.which(programs[c.label])]


def main() -> int:
    """Renvoie 0, ou 1 si une mesure est fausse."""
    parser = argparse.ArgumentParser(add_help=False)  # son aide serait à moitié en anglais
    parser.add_argument("--tours", type=int, default=3, metavar="N")
    parser.add_argument("--image", type=Path, default=HERE / "banc_essai.svg", metavar="FICHIER")
    parser.add_argument("--contre", type=Path, metavar="DOSSIER")
    for name in ("--help", "--rapide", "--variantes", "--etapes", "--journal"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    if options.help:
        print(__doc__)
        return 0
    if options.rapide:
        bench = Bench([OURS])
        bench.run_room(5, 5, (32,), delays=False)
        print("faux" if bench.failed() else "juste")
        return int(bench.failed())
    if options.contre:
        other = options.contre.resolve()
        bench = Bench([
            Contender("ce serveur", ours("", ROOT, options.journal), chooses_port=True),
            Contender("l'autre", ours("", other, options.journal), chooses_port=True),
        ])  # fmt: skip
    elif options.etapes:
        bench = Bench([step(8), step(5), step(7)])
    elif options.variantes:
        bench = Bench([OURS, *VARIANTS])
    else:
        bench = Bench(installed([OURS, NAIVE, NCAT, NGIRCD]))
    rooms = ((2, 1), (11, 1), (101, 1), (501, 1), (10, 10), (100, 100))
    if options.variantes:
        rooms = ((2, 1), (11, 1), (100, 100))
    elif options.etapes:
        rooms = ((2, 1), (101, 1), (100, 100))
    has_all = not (options.contre or options.variantes or options.etapes)
    for turn in range(options.tours):
        print(f"tour {turn + 1}…", file=sys.stderr, flush=True)
        bench.turn()
        for clients, talkers in rooms:
            bench.run_room(clients, talkers, (32, 200), delays=has_all and talkers == 1)
        if has_all:
            bench.run_stuck()
    if has_all:
        for count in (1000, 5000):
            bench.run_silent(count)
        options.image.write_text(draw(bench), encoding="utf-8")
    bench.print_table()
    return int(bench.failed())


if __name__ == "__main__":
    sys.exit(main())
