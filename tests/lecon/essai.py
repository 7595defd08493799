"""Essayer un programme inconnu : le lancer, trouver comment il parle, attendre ce qu'il fait.

Rien n'y est une durée : `until` et `expect` laissent venir les événements que prelude.py envoie, et
ce que les clients reçoivent. « Plus rien ne vient » veut dire : deux secondes sans événement, alors
que le programme vient de répondre à une question.
"""

import ast
import contextlib
import functools
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

PRELUDE = (Path(__file__).parent / "prelude.py").read_text(encoding="utf-8")
# Une copie, une fois : pytest change os.environ pendant que des threads lancent des essais.
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8"}
START_SECONDS = 5  # s pour écouter ou se connecter
PATIENCE = 16  # s pour ce qui arrive peu à peu
CALM_SECONDS = 0.12  # s sans rien : un programme qui attend dans recv a tout traité
STUCK_SECONDS = 2  # s sans rien, alors que quelque chose est attendu : il ne viendra plus
CONSOLE_BYTES = 1 << 20  # octets gardés de ce que le programme écrit
LEAVE_WORDS = "exit quit quitter bye fin q end stop leave logout disconnect".split()
ANSWERS = (  # ce que l'on répond à une question ; {} est le nom
    (r"message", ""),
    (r"port", "12345"),
    (r"\bip\b|h[oô]te|host|adresse|address|serveur|server", "127.0.0.1"),
    (r"passe|password", "secret"),
    (r"salon|room|channel|groupe", "salon"),
    (r"combien|nombre|max|many|number", "10"),
    (r"\b[oy]/n\b", "o"),
    (r"", "{}"),
)


class Trouble(Exception):
    """Le programme n'est pas allé jusqu'où la scène commence."""


class Dialect(NamedTuple):
    """Comment on parle à un programme."""

    args: tuple = ()  # de la ligne de commande
    end: str = ""  # la fin d'un message : rien, ou "\n"
    handshake: tuple = ("{}",)  # ce que l'on envoie pour entrer ; {} est le nom
    greeting: str = ""  # ce que dit le serveur avant le nom
    signed: bool = False  # les autres lisent le nom devant le message
    echo: bool = False  # l'auteur reçoit aussi son message


class Subject(NamedTuple):
    """Ce que find_subject a trouvé d'un programme."""

    kind: str  # « serveur », « client », ou rien
    dialect: Dialect
    said: str = ""  # pourquoi il ne peut pas être essayé


class Peer:
    """Un client du serveur essayé ; ou, pour un client essayé, la connexion qu'il a ouverte."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock, self.name = sock, name
        self.port = 0  # celui du client, qui le nomme dans les événements
        self.heard = b""
        self.reads = True  # False : il ne lit plus
        self.is_closed = False  # un des deux bouts a fermé

    def read(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = self.sock.recv(65536)
        self.heard += data
        self.is_closed = not data

    def text(self) -> str:
        return self.heard.decode(errors="replace")

    def close(self, reset: bool = False) -> None:
        """Ferme ; avec `reset`, TCP coupe net, sans fin de flux."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.is_closed = True


class Program:
    """Un programme dans son processus : ce qu'il fait, ce qu'il écrit, et ceux qui lui parlent."""

    def __init__(self, path: str, dialect: Dialect) -> None:
        self.path, self.dialect = os.path.abspath(path), dialect
        self.peers: list[Peer] = []
        self.events: list[list] = []
        self.partial = b""  # le début d'un événement
        self.port = 0  # où il écoute
        self.receiving: set[int] = set()  # clients dont il attend un message
        self.sending: set[int] = set()  # clients à qui un envoi n'a pas fini
        self.last_event_at = 0.0
        self.stuck_seconds = STUCK_SECONDS
        self.has_ended = False
        self.console = b""
        self.reads_console = True
        self.ignored_errors = 0  # octets écrits sur stderr avant d'écouter
        self.typed = 0  # lignes tapées au clavier
        self.words = 0
        with contextlib.ExitStack() as stack:  # finit ce qui est commencé si la suite échoue
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="diagnostic-", ignore_cleanup_errors=True)
            )
            self.errors = Path(folder, "stderr")
            errors = stack.enter_context(open(self.errors, "ab"))
            os.mkdir(home := Path(folder, "dossier"))
            self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.listener.settimeout(PATIENCE)
            port = str(self.listener.getsockname()[1])
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-B", "-c", PRELUDE, port, self.path, *dialect.args],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=home,
                env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
            stack.callback(self.kill)
            threading.Thread(target=self.read_console, daemon=True).start()
            self.control = stack.enter_context(self.listener.accept()[0])
            stack.enter_context(self.listener.accept()[0])  # sa ligne de vie
            self.listener.settimeout(0)
            self.stack = stack.pop_all()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_) -> None:
        with self.stack:
            for peer in self.peers:
                peer.sock.close()

    def kill(self) -> None:
        """Finit le programme et tout ce qu'il a lancé."""
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                tree = ["taskkill", "/F", "/T", "/PID", str(self.process.pid)]
                subprocess.run(tree, capture_output=True, check=False)
                self.process.kill()
        self.process.wait()
        self.reads_console = True
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def read_console(self) -> None:
        """Thread : garde ce que le programme écrit, sauf quand une scène ne le lit pas."""
        with contextlib.suppress(OSError, ValueError), self.process.stdout as stdout:
            while data := os.read(stdout.fileno(), 4096):
                self.console = (self.console + data)[-CONSOLE_BYTES:]
                while not self.reads_console:
                    time.sleep(0.01)

    def stderr(self) -> str:
        with open(self.errors, "rb") as file:
            file.seek(self.ignored_errors)
            return file.read(CONSOLE_BYTES).decode(errors="replace")

    # --- Attendre ---

    def until(self, condition, seconds: float = PATIENCE) -> bool:
        """Laisse tout arriver jusqu'à ce que `condition()` soit vraie ; renvoie False sinon."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.pump()
        return True

    def expect(self, condition) -> bool:
        """Attend que `condition()` soit vraie ; renvoie False quand plus rien ne vient."""
        self.last_event_at = time.monotonic()
        return self.until(lambda: condition() or self.is_stuck()) and bool(condition())

    def pause(self) -> None:
        self.until(lambda: False, CALM_SECONDS)

    def settle(self, peer: Peer) -> None:
        """Attend que ce qu'a dit ce client soit traité : recv a recommencé, puis plus rien."""
        self.last_event_at = time.monotonic()

        def is_done() -> bool:
            calm = CALM_SECONDS if peer.port in self.receiving else 4 * CALM_SECONDS
            return peer.is_closed or self.has_ended or self.is_calm(calm)

        self.until(is_done)

    def is_calm(self, seconds: float) -> bool:
        return time.monotonic() - self.last_event_at > seconds

    def is_stuck(self) -> bool:
        """Renvoie True si rien ne vient, alors que le programme a eu le temps de répondre."""
        if not self.has_ended and self.is_calm(self.stuck_seconds):
            self.order("ping")
        return self.has_ended or self.is_calm(self.stuck_seconds)

    def pump(self) -> None:
        """Lit ce qui est arrivé, ou attend un peu."""
        sources = [peer.sock for peer in self.peers if peer.reads and not peer.is_closed]
        sources += [self.control] * (not self.has_ended)
        ready = select.select(sources, [], [], 0.02)[0] if sources else time.sleep(0.02) or []
        for peer in self.peers:
            if peer.sock in ready:
                peer.read()
                self.last_event_at = time.monotonic()
        if self.control in ready:
            data = b""
            with contextlib.suppress(OSError):
                data = self.control.recv(65536)
            self.has_ended = not data
            *lines, self.partial = (self.partial + data).split(b"\n")
            for line in lines:
                self.note(*json.loads(line))

    def note(self, kind: str, *values) -> None:
        """Retient un événement."""
        self.events.append([kind, *values])
        # Un programme qui a fixé une limite à accept ou à recv les rappelle sans fin.
        if kind not in ("done", "accepting", "receiving") and values[-1:] != (-1,):
            self.last_event_at = time.monotonic()
        match kind:
            case "listening":
                self.port = values[0]
            case "receiving":
                self.receiving.add(values[0])
            case "received":
                self.receiving.discard(values[0])
            case "sending":
                self.sending.add(values[0])
            case "sent":
                self.sending.discard(values[0])

    def happened(self, *event, after: int = 0) -> bool:
        return any(one[: len(event)] == list(event) for one in self.events[after:])

    def order(self, what: str, kind: str = "", **more) -> None:
        """Arme (arm) ou ouvre (open) une porte dans le programme, et attend sa réponse."""
        before = len(self.events)
        with contextlib.suppress(OSError):
            self.control.sendall(json.dumps({"do": what, "kind": kind, **more}).encode() + b"\n")
        self.until(lambda: self.has_ended or self.happened("done", after=before))

    def held(self, kind: str) -> int:
        """Renvoie pour quel client une porte de cette sorte a retenu un appel, ou 0."""
        return next((one[1] for one in self.events if one[0] == "held" and one[2] == kind), 0)

    # --- Parler ---

    def connect(self, name: str, small: bool = False) -> Peer:
        """Connecte un client ; avec `small`, peu d'octets l'attendent."""
        peer = Peer(socket.socket(), name)
        self.peers.append(peer)
        if small:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            peer.sock.settimeout(PATIENCE)
            peer.sock.connect(("127.0.0.1", self.port))
            peer.port = peer.sock.getsockname()[1]
        except OSError:
            pass
        if not self.expect(lambda: self.happened("accepted", peer.port)):
            raise Trouble(f"la connexion de {name} n'est pas acceptée")
        self.settle(peer)
        return peer

    def enter(self, name: str, small: bool = False) -> Peer:
        """Connecte un client et lui fait dire ce qu'il faut pour entrer."""
        peer = self.connect(name, small)
        for answer in self.dialect.handshake:
            self.say(peer, answer.format(name))
            self.settle(peer)
        return peer

    def room(self, *names: str) -> list[Peer]:
        """Fait entrer ces clients, et vérifie que le dernier est entendu de tous."""
        peers = [self.enter(name) for name in names]
        if not self.reaches(peers[-1], peers[:-1]):
            raise Trouble(f"{names[-1]} n'est pas entendu de tous avant le piège")
        self.settle(peers[-1])
        return peers

    def send(self, peer: Peer, data: bytes) -> None:
        with contextlib.suppress(OSError):  # l'autre bout a peut-être fermé
            peer.sock.sendall(data)

    def say(self, peer: Peer, text: str) -> None:
        self.send(peer, (text + self.dialect.end).encode())

    def word(self) -> str:
        self.words += 1
        return f"mot{self.words:03}"

    def hear(self, peers: list[Peer], word: str) -> bool:
        """Attend que tous ces clients aient reçu `word`."""
        return self.expect(lambda: all(word.encode() in peer.heard for peer in peers))

    def reaches(self, speaker: Peer, listeners: list[Peer], word: str = "") -> bool:
        """Fait dire un mot à `speaker` ; renvoie True si tous les autres l'entendent."""
        word = word or self.word()
        self.say(speaker, word)
        return self.hear(listeners, word)

    def is_asking(self) -> bool:
        """Renvoie True si le programme attend une ligne dans `input`."""
        return sum(one[0] == "asking" for one in self.events) > self.typed

    def type(self, text: str) -> None:
        """Tape une ligne au clavier du programme."""
        self.typed += 1
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), text.encode() + b"\n")

    # --- Ce qui a été vu ---

    def exception(self) -> str:
        """Renvoie la première exception, avec sa ligne dans le fichier essayé, ou rien."""
        for trace in self.stderr().split("Traceback (most recent call last):")[1:]:
            if error := re.search(r"^(?:\w+\.)*(\w+(?:Error|Exception|timeout)\b.*)", trace, re.M):
                places = re.findall(r'File "(.*?)", line (\d+), in <?(\w+)', trace)
                mine = [place for place in places if place[0] == self.path]
                where = f", ligne {mine[-1][1]} ({mine[-1][2]})" if mine else ""
                return error[1].strip()[:80] + where
        return ""

    def cause(self, speaker: Peer) -> str:
        """Renvoie pourquoi ce que dit `speaker` n'arrive pas."""
        blocked = [peer.name for peer in self.peers if peer.port in self.sending]
        if error := self.exception():
            return error
        if self.has_ended:
            return "le programme s'est terminé"
        if blocked:
            return f"un envoi à {blocked[0]} n'a pas fini"
        if speaker.is_closed:
            return f"le serveur a fermé la connexion de {speaker.name}"
        if speaker.port in self.receiving:
            return f"ce que dit {speaker.name} est reçu, et n'est pas transmis"
        return f"le serveur ne lit plus {speaker.name}"


# --- Trouver comment un programme parle ---------------------------------------------


@functools.lru_cache
def find_subject(path: str, args: tuple | None = None) -> Subject:
    """Trouve ce qu'est un programme, et comment lui parler."""
    if not os.path.isfile(path):
        return Subject("", Dialect(), "ce fichier n'existe pas")
    if args is None:
        kind, args, said = find_args(path)
    else:
        kind, said = "serveur", ""
    if kind != "serveur":
        return Subject(kind, Dialect(args), said)
    for end, named in (("", True), ("\n", True), ("", False), ("\n", False)):
        with start(path, Dialect(args, end)) as program:
            with contextlib.suppress(Trouble):
                if dialect := try_dialect(program, named):
                    return Subject(kind, dialect)
            said = said or last_words(program)
    return Subject(kind, Dialect(args), f"protocole non reconnu ({said})")


def find_args(path: str) -> tuple[str, tuple, str]:
    """Renvoie la sorte de programme, ses arguments, et pourquoi il ne peut pas être essayé."""
    said = ""
    for args in ((), ("127.0.0.1", "12345"), ("12345",)):
        with start(path, Dialect(args)) as program:
            if program.port or program.peers:
                return "serveur" if program.port else "client", args, ""
            if not program.has_ended:
                return "", (), "le programme n'écoute pas et ne se connecte pas"
            said = said or program.exception() or last_words(program)
    return "", (), said


def start(path: str, dialect: Dialect) -> Program:
    """Lance un programme et répond à ses questions jusqu'à ce qu'il écoute ou se connecte."""
    program = Program(path, dialect)

    def is_ready() -> bool:
        with contextlib.suppress(OSError):
            program.peers.append(Peer(program.listener.accept()[0], "serveur"))
        for event in program.events:
            if event[0] == "connected" and program.peers:
                program.peers[0].port = event[1]
                return True
        if program.is_asking() and not program.port and not program.happened("connected"):
            question = [event[1] for event in program.events if event[0] == "asking"][-1]
            program.type(answer_to(question).format("Alice") or "1")
        return bool(program.port or program.has_ended)

    program.until(is_ready, START_SECONDS)
    if program.port:
        program.ignored_errors = program.errors.stat().st_size
    return program


def last_words(program: Program) -> str:
    """Renvoie ce qu'a dit un programme que l'on n'a pas su essayer."""
    program.pause()
    heard = " ".join(program.peers[0].text().split()) if program.peers else ""
    written = " ".join((program.console.decode(errors="replace") + program.stderr()).split())
    said = [f"il dit « {heard[:60]} »"] * bool(heard) + [program.exception()]
    return " ; ".join(filter(None, said)) or written[-200:] or "il ne dit rien"


def answer_to(question: str) -> str:
    return next(answer for pattern, answer in ANSWERS if re.search(pattern, question, re.I))


def try_dialect(program: Program, named: bool) -> Dialect | None:
    """Fait entrer Alice et Bob, et parler Alice trois fois ; renvoie le dialecte si Bob entend."""
    program.stuck_seconds = STUCK_SECONDS / 2  # un autre essai suivra
    alice = program.connect("Alice")
    greeting, handshake = " ".join(alice.text().split()), []
    question = greeting if "passe" in greeting.lower() or "password" in greeting.lower() else "nom"
    while named and len(handshake) < 5:
        handshake.append(answer_to(question))
        before = len(alice.text())
        program.say(alice, handshake[-1].format("Alice"))
        program.settle(alice)
        question = alice.text()[before:].strip()
        if not question.endswith((":", "?")) or not answer_to(question):
            break
    dialect = program.dialect._replace(handshake=tuple(handshake), greeting=greeting)
    program.dialect = dialect
    before = len(alice.text())
    bob = program.enter("Bob")
    announced = alice.text()[before:].strip()
    words = [program.word() for _ in range(3)]
    for word in words:
        if not program.reaches(alice, [bob], word):
            return None
        program.settle(alice)
    before, word = len(alice.text()), program.word()
    if program.reaches(bob, [alice], word) and len(handshake) == 1:
        if announced == alice.text()[before:].strip().replace(word, "Bob"):
            dialect = dialect._replace(handshake=())  # le nom n'est qu'un message
    echo = all(word in alice.text() for word in words)
    return dialect._replace(echo=echo, signed=is_signed(bob.text(), "Alice", words[1]))


def is_signed(text: str, name: str, word: str) -> bool:
    """Renvoie True si `name` précède `word`, sans fin de ligne ni autre mot entre les deux."""
    return bool(re.search(rf"{name}(?:(?!mot\d)[^\n]){{0,80}}{word}", text))


def compared_words(path: str) -> list[str]:
    """Renvoie les chaînes auxquelles le programme compare quelque chose, d'après son source."""
    words = []
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(Path(path).read_bytes())):
            called = getattr(getattr(node, "func", None), "attr", "")
            if isinstance(node, (ast.Compare, ast.MatchValue)) or called == "startswith":
                words += [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
    texts = [word.decode(errors="replace") if isinstance(word, bytes) else word for word in words]
    return list(dict.fromkeys(text.strip() for text in texts if isinstance(text, str)))


def leave_words(path: str) -> list[str]:
    """Renvoie « exit », et les autres mots de départ auxquels le programme compare."""
    found = [word for word in compared_words(path) if word.lower().strip("/:!. ") in LEAVE_WORDS]
    return list(dict.fromkeys(["exit", *found]))
