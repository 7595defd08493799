"""Les scènes : un piège chacune, jouée contre un programme que l'on ne connaît pas.

    from scenes import run_scene
    verdict, seen = run_scene("fin", "tests/lecon/etape0.py")
    run_scene("fin", "mon_serveur.py", ["5555"])        # avec des arguments

`verdict` vaut « oui » (cela tient), « non » (cela ne tient pas, et `seen` dit ce qui a été vu),
« autre » (un autre dialecte, sans faute), « ? » (pas pu voir) ou « - » (sans objet). Les noms sont
les clés de SERVER_SCENES, de MORE_SCENES (des pièges de l'escalier que le tableau de diagnostic.py
n'a pas : `adieu adresse nom_colle imite`) et de CLIENT_SCENES. Chaque scène lance le programme dans
un processus neuf (prelude.py), attend des événements, jamais une durée, et fait ses courses avec
des portes. Un « non » demande une preuve : une exception, un blocage, un message reçu mais pas
transmis, un autre passé avant. Sans preuve, c'est « ? ».
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
PATIENCE = 8  # s pour ce qui doit arriver
START_SECONDS = 5  # s pour écouter ou se connecter
CALM_SECONDS = 0.12  # s sans rien : un programme qui attend dans recv a tout traité
STUCK_SECONDS = 2  # s sans rien, alors qu'un message est attendu : il ne viendra plus
CONSOLE_BYTES = 1 << 20  # octets de console gardés
LEAVE_WORDS = "exit quit quitter bye fin q end stop leave logout disconnect aurevoir".split()


class Verdict(NamedTuple):
    verdict: str
    seen: str = ""


class Dialect(NamedTuple):
    """Comment on parle à un programme : trouvé par find_dialect."""

    args: tuple = ()  # de la ligne de commande
    end: str = ""  # la fin d'un message : rien, ou "\n"
    handshake: tuple = ("{}",)  # ce que l'on envoie pour entrer ; {} est le nom
    greeting: str = ""  # ce que dit le serveur avant le nom
    signed: bool = False  # les autres lisent le nom devant le message
    echo: bool = False  # l'auteur reçoit aussi son message


class Trouble(Exception):
    """Le programme n'est pas allé jusqu'où la scène commence."""


class Peer:
    """Un client brut du programme essayé (ou, pour un client, ce qu'il a ouvert)."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self.name = name
        self.port = sock.getsockname()[1]
        self.heard = b""
        self.reads = True  # False : il ne lit plus
        self.is_closed = False  # l'autre bout a fermé

    def read(self) -> None:
        try:
            data = self.sock.recv(65536)
        except OSError:
            data = b""
        self.heard += data
        self.is_closed = not data

    def text(self) -> str:
        return self.heard.decode(errors="replace")

    def reset(self) -> None:
        """Coupe la connexion : TCP envoie un reset, sans fin de flux."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.is_closed = True


class Program:
    """Un programme dans son processus : ce qu'il fait, ce qu'il écrit, et ceux qui lui parlent."""

    def __init__(self, path: str, dialect: Dialect = Dialect()) -> None:
        self.path, self.dialect = os.path.abspath(path), dialect
        self.peers: list[Peer] = []
        self.events: list[list] = []
        self.port = 0  # où il écoute
        self.receiving: set[int] = set()  # clients dont il attend un message
        self.sending: set[int] = set()  # clients à qui un envoi n'a pas fini
        self.last_event_at = time.monotonic()
        self.has_ended = False
        self.console = b""
        self.reads_console = True
        self.typed: list[str] = []  # lignes tapées au clavier
        self.words = 0
        self.stuck_seconds = STUCK_SECONDS
        self.partial = b""
        with contextlib.ExitStack() as stack:  # ce qui est déjà ouvert, si la suite échoue
            self.folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="diagnostic-", ignore_cleanup_errors=True)
            )
            self.errors = Path(self.folder, "stderr")
            errors = stack.enter_context(open(self.errors, "ab"))
            os.mkdir(cwd := Path(self.folder, "dossier"))
            self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.listener.settimeout(PATIENCE)
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-B", "-c", PRELUDE, str(self.listener.getsockname()[1]),
                 self.path, *dialect.args],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=cwd,
                env={**os.environ, "PYTHONIOENCODING": "utf-8"}, start_new_session=True,
            )  # fmt: skip
            stack.callback(self.kill)
            threading.Thread(target=self.read_console, daemon=True).start()
            self.control = stack.enter_context(self.listener.accept()[0])
            stack.enter_context(self.listener.accept()[0])  # la ligne de vie
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
            elif self.process.poll() is None:
                kill = ["taskkill", "/F", "/T", "/PID", str(self.process.pid)]
                subprocess.run(kill, capture_output=True, check=False)
                self.process.kill()
        self.process.wait()
        self.reads_console = True
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def read_console(self) -> None:
        """Thread : garde ce que le programme écrit, sauf quand la scène ne veut pas le lire."""
        with contextlib.suppress(OSError, ValueError), self.process.stdout as stdout:
            while data := os.read(stdout.fileno(), 4096):
                self.console = (self.console + data)[-CONSOLE_BYTES:]
                while not self.reads_console:
                    time.sleep(0.01)

    # --- Ce qui arrive ---

    def until(self, condition, seconds: float = PATIENCE) -> bool:
        """Laisse tout arriver jusqu'à ce que `condition()` soit vraie ; renvoie False sinon."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.pump(min(left, 0.02))
        return True

    def pump(self, seconds: float) -> None:
        sources = [peer.sock for peer in self.peers if peer.reads and not peer.is_closed]
        ready = select.select(sources + [self.control] * (not self.has_ended), [], [], seconds)[0]
        for peer in self.peers:
            if peer.sock in ready:
                peer.read()
                self.last_event_at = time.monotonic()
        if self.control in ready:
            try:
                data = self.control.recv(65536)
            except OSError:
                data = b""
            self.has_ended = not data
            *lines, self.partial = (self.partial + data).split(b"\n")
            for line in lines:
                self.note(*json.loads(line))

    def note(self, kind: str, *values) -> None:
        """Retient un événement du programme (prelude.py les envoie)."""
        self.events.append([kind, *values])
        if kind in ("received", "sending", "sent", "accepted"):
            self.last_event_at = time.monotonic()
        if kind == "asking":
            self.last_event_at = time.monotonic()
        if kind == "listening":
            self.port = values[0]
        elif kind in ("receiving", "sending"):
            getattr(self, kind).add(values[0])
        elif kind in ("received", "sent"):
            {"received": self.receiving, "sent": self.sending}[kind].discard(values[0])

    def happened(self, kind: str, *values, after: int = 0) -> bool:
        return any(event[: len(values) + 1] == [kind, *values] for event in self.events[after:])

    def is_calm(self, seconds: float) -> bool:
        return time.monotonic() - self.last_event_at > seconds

    def settle(self, peer: Peer) -> None:
        """Attend que ce qu'a dit ce client soit traité : recv a recommencé, puis plus rien."""
        self.until(
            lambda: peer.is_closed
            or self.has_ended
            or self.is_calm(CALM_SECONDS if peer.port in self.receiving else 4 * CALM_SECONDS),
            PATIENCE,
        )

    def is_stuck(self) -> bool:
        """Renvoie True si rien ne vient plus, alors que le processeur est à la disposition."""
        if self.has_ended or not self.is_calm(self.stuck_seconds):
            return self.has_ended
        self.order("ping")
        return self.is_calm(self.stuck_seconds)

    def order(self, what: str, kind: str = "", **more) -> None:
        """Arme (arm) ou ouvre (open) une porte dans le programme, et attend sa réponse."""
        before = len(self.events)
        with contextlib.suppress(OSError):
            self.control.sendall(json.dumps({"do": what, "kind": kind, **more}).encode() + b"\n")
        self.until(lambda: self.has_ended or self.happened("done", after=before))

    def held(self, kind: str) -> int:
        """Renvoie pour quel client une porte de cette sorte a retenu un appel, ou 0."""
        return next((e[1] for e in self.events if e[0] == "held" and e[2] == kind), 0)

    def is_held(self, kind: str) -> bool:
        """Attend qu'une porte de cette sorte retienne un appel."""
        return self.until(lambda: self.held(kind) or self.is_stuck()) and bool(self.held(kind))

    def is_asking(self) -> bool:
        """Renvoie True si le programme attend une réponse dans `input`, et garde la question."""
        questions = [event[1] for event in self.events if event[0] == "asking"]
        self.question = questions[-1] if questions else ""
        return len(questions) > len(self.typed)

    def type(self, text: str) -> None:
        """Tape une ligne au clavier du programme."""
        self.typed.append(text)
        self.last_event_at = time.monotonic()
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), text.encode() + b"\n")

    # --- Parler ---

    def connect(self, name: str, small: bool = False) -> Peer:
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.last_event_at = time.monotonic()
        sock.settimeout(PATIENCE)
        self.peers.append(Peer(sock, name))
        try:
            sock.connect(("127.0.0.1", self.port))
        except OSError as reason:
            raise Trouble(f"connexion refusée à {name}") from reason
        self.peers[-1].port = sock.getsockname()[1]
        return self.peers[-1]

    def enter(self, name: str, **more) -> Peer:
        """Connecte un client et lui fait dire ce qu'il faut pour entrer."""
        peer = self.connect(name, **more)
        self.greet(peer)
        for answer in self.dialect.handshake:
            self.say(peer, answer.format(name))
        return peer

    def greet(self, peer: Peer) -> None:
        """Attend que le serveur ait accepté ce client, et dit ce qu'il a à dire."""
        self.until(lambda: self.happened("accepted", peer.port) or self.is_stuck())
        if not self.happened("accepted", peer.port):
            raise Trouble(f"la connexion de {peer.name} n'est pas acceptée")
        self.settle(peer)

    def send(self, peer: Peer, data: str | bytes) -> None:
        self.last_event_at = time.monotonic()
        with contextlib.suppress(OSError):  # l'autre bout a peut-être fermé
            peer.sock.sendall(data.encode() if isinstance(data, str) else data)

    def say(self, peer: Peer, text: str) -> None:
        """Envoie un message, et attend qu'il soit traité."""
        self.send(peer, text + self.dialect.end)
        self.settle(peer)

    def word(self) -> str:
        self.words += 1
        return f"mot{self.words:03}"

    def hear(self, peers: list[Peer], word: str) -> bool:
        """Attend que tous ces clients aient reçu `word`."""
        data = word.encode()
        return self.until(
            lambda: all(data in peer.heard for peer in peers) or self.is_stuck(), 2 * PATIENCE
        ) and all(data in peer.heard for peer in peers)

    def reaches(self, speaker: Peer, listeners: list[Peer], word: str = "") -> bool:
        """Fait dire un mot à `speaker` ; renvoie True si tous les autres l'entendent."""
        word = word or self.word()
        self.send(speaker, word + self.dialect.end)
        return self.hear(listeners, word)

    def room(self, *names: str) -> list[Peer]:
        """Fait entrer ces clients, et vérifie que le dernier est entendu de tous."""
        peers = [self.enter(name) for name in names]
        if not self.reaches(peers[-1], peers[:-1]):
            raise Trouble(f"{peers[-1].name} n'est pas entendu de tous avant le piège")
        self.settle(peers[-1])
        return peers

    # --- Ce qu'on a vu ---

    def stderr(self) -> str:
        with open(self.errors, "rb") as file:
            return file.read(CONSOLE_BYTES).decode(errors="replace")

    def exception(self) -> str:
        """Renvoie la première exception, avec sa ligne dans le fichier essayé, ou rien."""
        for trace in re.split(r"Traceback \(most recent call last\):|Exception Group", self.stderr())[1:]:
            places = re.findall(r'File "(.*?)", line (\d+), in (.*)', trace)
            error = re.search(r"^(?:\w+\.)*(\w+(?:Error|Exception|Reset|Exit|timeout)\b.*)", trace, re.M)
            mine = [place for place in places if place[0] == self.path]
            if error:
                where = ""
                if mine:
                    where = f", ligne {mine[-1][1]} ({mine[-1][2].strip('<>')})"
                return f"{error[1].strip()[:70]}{where}"
        return ""

    def cause(self, speaker: Peer) -> str:
        """Renvoie ce qui prouve que le message de `speaker` ne viendra pas, ou rien."""
        blocked = [peer.name for peer in self.peers if peer.port in self.sending]
        if self.exception():
            return self.exception()
        if self.has_ended:
            return "le programme s'est terminé"
        if blocked:
            return f"un envoi à {blocked[0]} n'a pas fini"
        if speaker.is_closed:
            return f"le serveur a fermé la connexion de {speaker.name}"
        if not self.happened("accepted", speaker.port):
            return f"la connexion de {speaker.name} n'est pas acceptée"
        if speaker.port in self.receiving:
            return f"le message de {speaker.name} est reçu, mais pas transmis"
        return f"le serveur ne lit plus {speaker.name}"

    def missed(self, speaker: Peer, listener: Peer) -> Verdict:
        why = self.cause(speaker)
        return Verdict("non", f"{listener.name} n'entend plus {speaker.name} : {why}.")


# --- Trouver comment un programme parle -------------------------------------------


def answer_to(question: str) -> str:
    """Renvoie ce que l'on répond à une question d'un programme ; {} est le nom."""
    for pattern, answer in (
        ("message", ""),
        (r"port", "12345"),
        (r"\bip\b|h[oô]te|host|adresse|address|serveur|server", "127.0.0.1"),
        (r"mot de passe|password|passe", "secret"),
        (r"salon|room|channel|groupe", "salon"),
        (r"nom|name|pseudo|nick|user|login|qui ", "{}"),
        (r"\[?[oy]/n\]?", "o"),
        (r"combien|nombre|max|many|number", "10"),
    ):
        if re.search(pattern, question, re.I):
            return answer
    return "{}"


def start(path: str, args: tuple) -> Program:
    """Lance un programme et répond à ses questions jusqu'à ce qu'il écoute ou se connecte."""
    program = Program(path, Dialect(args))
    program.listener.settimeout(0)

    def is_ready() -> bool:
        with contextlib.suppress(OSError):
            program.peers.append(Peer(program.listener.accept()[0], "serveur"))
        for event in program.events:
            if event[0] == "connected" and program.peers:
                program.peers[0].port = event[1]
        is_ready = bool(program.port or program.peers and program.peers[0].port)
        if program.is_asking() and not is_ready and not program.happened("connected"):
            program.type(answer_to(program.question).format("Alice") or "1")
        return is_ready or program.has_ended

    program.until(is_ready, START_SECONDS)
    return program


def find_args(path: str) -> tuple[str, tuple, str]:
    """Renvoie ("serveur", "client" ou "", ses arguments, ce qu'il a dit)."""
    said = ""
    for args in ((), ("127.0.0.1", "12345"), ("12345",)):
        with start(path, args) as program:
            if program.port:
                return "serveur", args, ""
            if program.peers:
                return "client", args, ""
            reason = program.exception()
            program.until(lambda: False, CALM_SECONDS)  # ses derniers mots
            said = said or reason or (program.console.decode(errors="replace") + program.stderr())
            if not program.has_ended:
                return "", args, "le programme n'écoute pas et ne se connecte pas"
            if "argv" not in Path(path).read_text(errors="replace") + said and "usage" not in said:
                break
    return "", (), said.strip()[-200:] or "le programme se termine sans écouter ni se connecter"


def find_dialect(path: str, args: tuple) -> tuple[Dialect | None, str]:
    """Renvoie comment parler à un serveur, ou None et ce qu'il a dit."""
    said = ""
    for end, named in (("", True), ("\n", True), ("", False), ("\n", False)):
        with start(path, args) as program:
            program.dialect = Dialect(args, end)
            with contextlib.suppress(Trouble):
                found = try_dialect(program, named)
                if found:
                    return found, ""
            said = said or greeting_and_error(program)
    return None, said


def greeting_and_error(program: Program) -> str:
    heard = " ".join(program.peers[0].text().split()) if program.peers else ""
    words = [f"il dit « {heard[:60]} »"] * bool(heard) + [program.exception()]
    return " ; ".join(filter(None, words)) or "il ne dit rien"


def try_dialect(program: Program, named: bool) -> Dialect | None:
    """Fait entrer Alice et Bob, et parler Alice trois fois ; renvoie le dialecte si Bob entend."""
    if not program.until(lambda: program.port or program.has_ended, START_SECONDS):
        return None
    program.stuck_seconds = STUCK_SECONDS / 2  # on essaiera autrement
    alice = program.connect("Alice")
    program.greet(alice)
    greeting, handshake = alice.text(), []
    question = greeting
    while named and len(handshake) < 5:
        answer = answer_to(question) or "{}"
        handshake.append("{}" if not handshake and answer != "secret" else answer)
        before = len(alice.text())
        program.say(alice, handshake[-1].format("Alice"))
        question = alice.text()[before:].strip()
        if not re.search(r"[:?]$", question) or not answer_to(question):
            break
    dialect = program.dialect = program.dialect._replace(
        handshake=tuple(handshake), greeting=" ".join(greeting.split())
    )
    before = len(alice.heard)
    bob = program.enter("Bob")
    announced = alice.heard[before:].decode(errors="replace").strip()
    words = [program.word() for _ in range(3)]
    for word in words:
        if not program.reaches(alice, [bob], word):
            return None
        program.settle(alice)
    before = len(alice.heard)
    word = program.word()
    if program.reaches(bob, [alice], word) and named:
        template = alice.heard[before:].decode(errors="replace").strip()
        if len(handshake) == 1 and announced == template.replace(word, "Bob"):
            dialect = dialect._replace(handshake=())  # le nom n'est qu'un message
    echo = all(word.encode() in alice.heard for word in words)
    return dialect._replace(echo=echo, signed=is_signed(bob.text(), "Alice", words[1]))


def is_signed(text: str, name: str, word: str) -> bool:
    """Renvoie True si `name` précède `word`, sans fin de ligne ni autre mot entre les deux."""
    return bool(re.search(rf"{re.escape(name)}(?:(?!mot\d)[^\n]){{0,80}}{word}", text))


def compared_words(path: str) -> list[str]:
    """Renvoie les chaînes auxquelles un programme compare quelque chose, d'après son source."""
    words = []
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(Path(path).read_bytes())):
            if isinstance(node, (ast.Compare, ast.MatchValue)):
                words += [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "startswith":
                words += [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
    words = [w.decode(errors="replace") if isinstance(w, bytes) else w for w in words]
    return list(dict.fromkeys(w.strip() for w in words if isinstance(w, str) and w.strip()))


def leave_words(path: str) -> list[str]:
    found = compared_words(path)
    return ["exit", *(w for w in found if w != "exit" and w.lower().strip("/:!. ") in LEAVE_WORDS)]


# --- L'énoncé ---------------------------------------------------------------------


def message(s: Program) -> Verdict:
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    for speaker, others in ((alice, [bob, chloe]), (chloe, [alice, bob])):
        word = s.word()
        if not s.reaches(speaker, others, word):
            deaf = next(peer for peer in others if word.encode() not in peer.heard)
            return s.missed(speaker, deaf)
    if not is_signed(bob.text(), "Chloe", word):
        return Verdict("autre", "le serveur transmet le message sans le nom")
    return Verdict("oui")


def accents(s: Program) -> Verdict:
    alice, bob = s.room("Alice", "Bob")
    word = s.word() + "éàç€"
    if s.reaches(alice, [bob], word):
        return Verdict("oui")
    if s.exception() or word[:6] in bob.text():
        got = bob.text()[-30:].split("\n")[0] if word[:6] in bob.text() else "rien"
        return Verdict("non", f"Alice envoie « {word} » ; Bob reçoit {got}. {s.exception()}".strip())
    return s.missed(alice, bob)


def console(s: Program) -> Verdict:
    alice, bob = s.room("Alice", "Bob")
    before, word = len(s.console), s.word()

    def written() -> str:
        return s.console[before:].decode(errors="replace") + s.stderr()

    if not s.reaches(alice, [bob], word):
        return s.missed(alice, bob)
    s.settle(alice)
    if not s.until(lambda: word in written() or s.is_stuck(), PATIENCE) or word not in written():
        return Verdict("non", "le serveur transmet le message, et ne l'écrit pas à l'écran")
    s.until(lambda: False, CALM_SECONDS)  # la fin de la ligne
    if "Alice" in written():
        return Verdict("oui")
    if not s.dialect.signed:
        return Verdict("autre", "le serveur ne sait pas qui parle")
    return Verdict("non", f"l'écran montre {written().strip()[-40:]!r}, sans le nom d'Alice")


def leave(s: Program) -> Verdict:
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    for word in leave_words(s.path):
        s.send(alice, word + s.dialect.end)
        s.until(lambda: alice.is_closed or s.is_stuck() or word.encode() in bob.heard)
        s.settle(alice)
        if s.exception() and not alice.is_closed:
            return Verdict("non", f"après « {word} » : {s.exception()}")
        is_unread = alice.port not in s.receiving and word.encode() not in bob.heard
        if alice.is_closed or is_unread:
            verdict = after_departure(s, alice, chloe, bob)
            if verdict.verdict == "oui" and word != "exit":
                return Verdict("autre", f"on quitte par « {word} »")
            return verdict
    return Verdict("autre", "« exit » est un message comme un autre : c'est au client de fermer")


def after_departure(s: Program, gone: Peer, speaker: Peer, listener: Peer) -> Verdict:
    """Trois messages après un départ : ils sont entendus, et rien n'est envoyé au disparu."""
    for _ in range(3):
        before = len(s.events)
        if not s.reaches(speaker, [listener]):
            return s.missed(speaker, listener)
        s.settle(speaker)
    if s.happened("sending", gone.port, after=before):
        return Verdict("non", f"{gone.name} est partie ; le serveur lui envoie encore les messages")
    return Verdict("oui")


# --- Les pièges -------------------------------------------------------------------


def end_of_stream(s: Program) -> Verdict:
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    s.last_event_at = time.monotonic()
    alice.sock.shutdown(socket.SHUT_WR)
    s.settle(alice)
    if s.happened("endless", alice.port):
        return Verdict("non", 'Alice ferme : recv renvoie b"" sans fin, et le serveur continue')
    hang_up(s, alice)
    return after_departure(s, alice, chloe, bob)


def hang_up(s: Program, peer: Peer) -> None:
    s.last_event_at = time.monotonic()
    peer.sock.close()
    peer.is_closed = True


def cut_off(s: Program) -> Verdict:
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    s.last_event_at = time.monotonic()
    alice.reset()
    s.settle(chloe)
    return after_departure(s, alice, chloe, bob)


def reset_early(s: Program) -> Verdict:
    bob = s.enter("Bob")
    gone = s.connect("Alice")
    s.greet(gone)
    gone.reset()
    s.settle(bob)
    return newcomer_is_heard(s, bob)


def newcomer_is_heard(s: Program, bob: Peer) -> Verdict:
    try:
        chloe = s.enter("Chloe")
    except Trouble as reason:
        return Verdict("non", f"{reason} : {s.exception() or 'le serveur est arrêté'}")
    return Verdict("oui") if s.reaches(chloe, [bob]) else s.missed(chloe, bob)


def mute(s: Program) -> Verdict:
    bob = s.enter("Bob")
    silent = s.connect("Muet")
    s.greet(silent)
    verdict = newcomer_is_heard(s, bob)
    if verdict.verdict == "non" and not s.exception() and silent.port in s.receiving:
        return Verdict("non", "Chloe n'entre pas tant qu'un client qui ne dit rien est attendu")
    return verdict


def glued(s: Program) -> Verdict:
    """Deux messages dans un seul envoi, avec des fins de ligne, puis comme le dialecte les finit."""
    alice, bob = s.room("Alice", "Bob")
    for end in dict.fromkeys(("\n", s.dialect.end)):
        first, second = s.word(), s.word()
        s.send(alice, first + end + second + end)
        if not s.hear([bob], second):
            return s.missed(alice, bob)
        s.settle(alice)
        line = bob.text()[bob.text().find(first) - 8 :]
        if s.dialect.signed and is_signed(bob.text(), "Alice", second):
            return Verdict("oui")
        if s.dialect.end and not s.dialect.signed and re.search(rf"{first}\r?\n.*{second}", line):
            return Verdict("oui")
    if not s.dialect.signed:
        return Verdict("autre", "rien ne sépare deux messages : le client doit savoir le faire")
    return Verdict("non", f"deux messages envoyés ensemble : Bob reçoit {line[:50]!r}")


def glued_name(s: Program) -> Verdict:
    """Le nom et un premier message dans un seul envoi."""
    if len(s.dialect.handshake) != 1 or not s.dialect.signed:
        return Verdict("-")
    (bob,), word = [s.enter("Bob")], s.word()
    chloe = s.connect("Chloe")
    s.greet(chloe)
    s.send(chloe, f"Chloe\n{word}\n")
    if not s.hear([bob], word):
        s.say(chloe, s.word())
        return Verdict("non", f"le message collé au nom n'arrive pas ; Bob lit {bob.text()[-40:]!r}")
    if is_signed(bob.text(), "Chloe", word):
        return Verdict("oui")
    return Verdict("non", f"le nom et un message envoyés ensemble : Bob lit {bob.text()[-40:]!r}")


def cut_character(s: Program) -> Verdict:
    """« é » fait deux octets, qui arrivent ici en deux recv."""
    alice, bob = s.room("Alice", "Bob")
    if not s.reaches(alice, [bob], s.word() + "é"):
        return Verdict("-", "les accents ne passent pas")
    word = s.word()
    s.send(alice, word.encode() + "é".encode()[:1])
    s.settle(alice)
    s.send(alice, "é".encode()[1:] + s.dialect.end.encode())
    if s.hear([bob], word + "é"):
        return Verdict("oui")
    s.settle(alice)
    got = bob.text()[bob.text().find(word) :] if word in bob.text() else "rien"
    why = s.exception() or f"Bob reçoit {got[:30]!r}"
    return Verdict("non", f"« é » arrive en deux morceaux : {why}")


def changing_list(s: Program, way="word") -> Verdict:
    """Un client part pendant qu'un message est diffusé, juste après l'avoir reçu."""
    *others, speaker = s.room("Alice", "Bob", "Chloe", "David")
    gone, others, word = hold_broadcast(s, "after", speaker, others)
    if way == "reset":
        gone.reset()
        s.until(lambda: s.happened("closed", gone.port), 3 * CALM_SECONDS)
    else:
        go_away(s, gone)
        if s.happened("endless", gone.port):  # il ne sort de la liste que s'il est coupé net
            with start(s.path, s.dialect.args) as again:
                again.dialect = s.dialect
                return changing_list(again, "reset")
    s.order("open", "after")
    if s.hear(others, word):
        return Verdict("oui")
    if s.exception():
        return Verdict("non", f"un départ pendant une diffusion : {s.exception()}")
    deaf = next(peer for peer in others if word.encode() not in peer.heard)
    return Verdict("non", f"{gone.name} part pendant la diffusion : {deaf.name} n'a pas le message")


def hold_broadcast(s: Program, kind: str, speaker: Peer, others: list[Peer]):
    """Fait parler `speaker`, et retient la diffusion avant ou après le premier envoi à un autre.

    Renvoie celui qui recevait cet envoi, les autres, et le mot diffusé.
    """
    word = s.word()
    s.order("arm", kind, word=word, only=[peer.port for peer in others])
    s.send(speaker, word + s.dialect.end)
    if not s.is_held(kind):
        raise Trouble("la diffusion n'a pas pu être retenue")
    first = next(peer for peer in others if peer.port == s.held(kind))
    return first, [peer for peer in others if peer is not first], word


def go_away(s: Program, gone: Peer) -> None:
    """Quitte par un mot, puis par une fin de flux, puis net, jusqu'à ce que le serveur ferme."""

    def is_over() -> bool:
        return gone.is_closed or s.happened("closed", gone.port) or s.happened("endless", gone.port)

    for step in (*leave_words(s.path), None):
        if step is None:
            with contextlib.suppress(OSError):
                gone.sock.shutdown(socket.SHUT_WR)
        else:
            s.send(gone, step + s.dialect.end)
        if s.until(is_over, 3 * CALM_SECONDS):
            break
    s.until(lambda: False, CALM_SECONDS)
    if not is_over():
        gone.reset()
        s.until(lambda: False, CALM_SECONDS)


def gone_neighbour(s: Program) -> Verdict:
    """Un client est coupé alors que le serveur allait lui envoyer un message.

    Le recv de ce client est retenu aussi : la liste ne change pas, seul l'envoi échoue.
    """
    *others, speaker = s.room("Alice", "Bob", "Chloe")
    gone, others, word = hold_broadcast(s, "before", speaker, others)
    s.order("arm", "recv", only=[gone.port])
    gone.reset()
    s.until(lambda: s.held("recv"), 3 * CALM_SECONDS)
    s.order("open", "before")
    is_heard = s.hear(others, word)
    s.order("open", "recv")
    if is_heard and s.reaches(speaker, others):
        return Verdict("oui")
    return s.missed(speaker, others[0])


def frozen(s: Program) -> Verdict:
    """Un client ne lit plus ; de petits tampons évitent d'envoyer des mégaoctets."""
    s.order("arm", "small buffers")
    stuck = s.enter("Fige", small=True)
    alice, bob = s.room("Alice", "Bob")
    stuck.reads = False
    word = flood(s, alice)
    if s.hear([bob], word):
        return Verdict("oui")
    stuck.reads, why, is_blocked = True, s.cause(alice), stuck.port in s.sending
    s.last_event_at = time.monotonic()
    if s.hear([bob], word) and is_blocked:
        return Verdict("non", "Fige ne lit plus : un envoi l'attend, et Bob ne reçoit plus rien")
    return Verdict("?", why)


def flood(s: Program, speaker: Peer, count: int = 90) -> str:
    """Fait envoyer 80 Kio à `speaker`, plus qu'un tube ne garde ; renvoie le dernier mot."""
    for _ in range(count):
        s.send(speaker, "x" * 900 + s.dialect.end)
        s.pump(0)
    word = s.word()
    s.send(speaker, word + s.dialect.end)
    return word


def one_order(s: Program) -> Verdict:
    """Deux clients parlent ensemble : la diffusion du premier est retenue après un envoi."""
    bob, david, alice, chloe = s.room("Bob", "David", "Alice", "Chloe")
    listeners, second = [bob, david], s.word()
    *_, first = hold_broadcast(s, "after", alice, listeners)
    s.send(chloe, second + s.dialect.end)
    s.until(lambda: all(second.encode() in peer.heard for peer in listeners), 4 * CALM_SECONDS)
    s.order("open", "after")
    if not (s.hear(listeners, first) and s.hear(listeners, second)):
        return Verdict("?", s.cause(alice))
    found = [(p.heard.find(first.encode()), p.heard.find(second.encode())) for p in listeners]
    if len({one < two for one, two in found}) == 1:
        return Verdict("oui")
    return Verdict("non", f"Bob et David lisent « {first} » et « {second} » dans un ordre différent")


def late_registration(s: Program) -> Verdict:
    """Le thread d'un client parle avant que le thread principal n'ait fini de l'inscrire."""
    bob = s.enter("Bob")
    s.order("arm", "start")
    chloe, word = s.enter("Chloe"), s.word()
    if not s.happened("held", None, "start"):
        return Verdict("-", "pas de thread par client")
    s.send(chloe, word + s.dialect.end)
    s.until(lambda: word.encode() in bob.heard or s.exception(), 4 * CALM_SECONDS)
    s.order("open", "start")
    if s.hear([bob], word):
        return Verdict("oui")
    if s.exception() or s.reaches(chloe, [bob]):
        why = s.exception() or "le premier message se perd"
        return Verdict("non", f"Chloe parle avant d'être inscrite : {why}")
    return Verdict("?")


def shared_socket(s: Program) -> Verdict:
    """Deux threads envoient à la fois dans un socket : sendall s'y fait en deux moitiés."""
    bob, alice, chloe = s.room("Bob", "Alice", "Chloe")
    first, second = s.word() + "-un-message-plus-long", s.word()
    for kind in ("halves", "send"):
        s.order("arm", kind, word=first, only=[bob.port])
    s.send(alice, first + s.dialect.end)
    s.until(lambda: s.held("halves") or s.held("send") or s.is_stuck())
    s.send(chloe, second + s.dialect.end)
    is_together = s.until(lambda: second.encode() in bob.heard, 4 * CALM_SECONDS)
    for kind in ("halves", "send"):
        s.order("open", kind)
    if not s.hear([bob], first) and is_together:
        mixed = bob.text()[-60:].strip()
        return Verdict("non", f"deux messages se mêlent, ce qui est rare : Bob lit {mixed!r}")
    if is_together or not (s.held("halves") or s.held("send")):
        return Verdict("-", "sendall n'est pas employé")
    return Verdict("oui") if s.hear([bob], first) else Verdict("?", s.cause(alice))


def partial_send(s: Program) -> Verdict:
    """`send` peut n'envoyer que le début, et renvoie alors combien d'octets."""
    alice, bob = s.room("Alice", "Bob")
    word = s.word() + "-un-message-plus-long"
    s.order("arm", "partial", word=word, only=[bob.port])
    if s.reaches(alice, [bob], word):
        return Verdict("oui")
    if s.held("partial"):
        return Verdict("non", f"send n'envoie que le début, et Bob lit {bob.text()[-30:]!r}")
    return s.missed(alice, bob)


def same_name(s: Program) -> Verdict:
    if not s.dialect.handshake or not s.dialect.signed:
        return Verdict("-", "les messages ne portent pas de nom")
    alice, bob = s.room("Alice", "Bob")
    true, false = s.word(), s.word()
    s.reaches(alice, [bob], true)
    double = s.enter("Alice")
    if not double.is_closed and s.reaches(double, [bob], false):
        if is_signed(bob.text(), "Alice", false):
            if between(bob.text(), "Alice", true) == between(bob.text(), "Alice", false):
                return Verdict("non", "deux clients s'appellent Alice, et Bob ne sait pas qui parle")
            return Verdict("?", f"Bob lit {bob.text()[-40:]!r}")
    if s.reaches(alice, [bob]):
        return Verdict("oui")
    return Verdict("non", f"un second client s'appelle Alice : {s.cause(alice)}")


def between(text: str, name: str, word: str) -> str:
    """Renvoie ce qui sépare ce nom de ce mot, sans les heures."""
    return re.sub(r"[\d:]{4,8}", "", text.partition(word)[0].rpartition(name)[2])


def false_line(s: Program) -> Verdict:
    """Un nom qui imite le début d'un message d'Alice."""
    if not s.dialect.handshake or not s.dialect.signed:
        return Verdict("-", "les messages ne portent pas de nom")
    alice, bob = s.room("Alice", "Bob")
    liar, word = s.enter("Alice : oui, et"), s.word()
    if s.reaches(liar, [bob], word) and "oui, et" in bob.text():
        return Verdict("non", f"un nom imite un message d'Alice : Bob lit {bob.text()[-45:]!r}")
    return Verdict("oui") if s.reaches(alice, [bob]) else s.missed(alice, bob)


def terminal_codes(s: Program) -> Verdict:
    alice, bob = s.room("Alice", "Bob")
    word = s.word()
    s.send(alice, f"\x1b[2J{word}{s.dialect.end}")
    if not s.hear([bob], word):
        return Verdict("oui") if s.reaches(alice, [bob]) else s.missed(alice, bob)
    if b"\x1b[2J" in bob.heard:
        return Verdict("non", f"Bob reçoit « ESC[2J{word} » : son terminal efface l'écran")
    return Verdict("oui")


def unread_console(s: Program) -> Verdict:
    alice, bob = s.room("Alice", "Bob")
    s.reads_console = False
    word = flood(s, alice)
    if s.hear([bob], word):
        return Verdict("oui")
    s.reads_console, why = True, s.cause(alice)
    s.last_event_at = time.monotonic()
    if s.hear([bob], word):
        return Verdict("non", "personne ne lit l'écran du serveur : le chat attend qu'on le lise")
    return Verdict("?", why)


def lost_farewell(s: Program) -> Verdict:
    """Un client en retard part alors que le serveur n'a pas lu tout ce qu'il a envoyé."""
    bob = s.enter("Bob")
    alice = s.enter("Alice", small=True)
    alice.reads = False
    last = flood(s, bob, 20)
    s.settle(bob)
    s.order("arm", "after", only=[alice.port])
    s.send(alice, leave_words(s.path)[-1] + s.dialect.end)
    if not s.is_held("after"):
        return Verdict("-", "le serveur ne répond rien à celui qui part")
    s.send(alice, "x" * 900 + s.dialect.end)
    s.until(lambda: False, CALM_SECONDS)
    s.order("open", "after")
    s.until(lambda: s.happened("closed", alice.port), 4 * CALM_SECONDS)
    alice.reads = True
    s.until(lambda: alice.is_closed or s.is_stuck())
    if not alice.is_closed:
        return Verdict("-", "le serveur ne ferme pas la connexion de celui qui part")
    if alice.text().partition(last)[2].strip():
        return Verdict("oui")
    return Verdict("non", "l'au revoir envoyé à Alice est détruit : elle écrivait encore")


def open_address(s: Program) -> Verdict:
    hosts = [event[1] for event in s.events if event[0] == "bound"]
    if any(host in ("", "0.0.0.0", "::") for host in hosts):
        return Verdict("non", f"le serveur écoute sur {hosts[0]!r} : tout le réseau peut entrer")
    return Verdict("oui")


# --- Un client --------------------------------------------------------------------


def enter_chat(s: Program) -> Peer:
    """Mène un client jusqu'à ce qu'il puisse envoyer un message ; renvoie le serveur joué ici."""
    if not s.peers:
        raise Trouble("le client ne se connecte pas")
    (server,) = s.peers
    wait_for_client(s, server)
    if not s.is_asking() and not server.heard:  # il attend un mot du serveur
        call_client(s, server)
    if "Alice" not in s.typed:
        s.type("Alice")
        wait_for_client(s, server)
    if not s.is_asking():
        s.send(server, "* Bienvenue, Alice !\n")
        wait_for_client(s, server)
    return server


def wait_for_client(s: Program, server: Peer) -> None:
    s.last_event_at = time.monotonic()
    s.until(lambda: s.has_ended or s.is_calm(4 * CALM_SECONDS))


def call_client(s: Program, server: Peer) -> None:
    """Envoie les mots auxquels le client compare ce qu'il reçoit, jusqu'à ce qu'il réponde."""
    before = len(server.heard)
    for word in compared_words(s.path):
        if word not in leave_words(s.path):
            s.send(server, word)
            wait_for_client(s, server)
            if s.is_asking() or len(server.heard) > before:
                break


def answer(s: Program, server: Peer) -> None:
    """Envoie une ligne à un client qui attend peut-être une réponse à chaque message."""
    s.send(server, f"Bob : {s.word()}\n")
    wait_for_client(s, server)


def sends(s: Program) -> Verdict:
    server = enter_chat(s)
    words = [s.word(), s.word()]
    for word in words:
        if not s.is_asking():
            answer(s, server)
        s.type(word)
        if not s.hear([server], word):
            if s.exception() or s.has_ended:
                return Verdict("non", s.exception() or "le client se termine")
            return Verdict("?", "le serveur ne reçoit pas ce qui est tapé")
    if b"Alice" not in server.heard:
        call_client(s, server)
    return Verdict("oui") if b"Alice" in server.heard else Verdict("autre", "sans nom")


def shows(s: Program) -> Verdict:
    """Une ligne arrive pendant que l'on tape : elle se voit sans toucher au clavier."""
    server, word = enter_chat(s), s.word()
    before = len(s.console)
    s.send(server, f"Bob : {word}\n")
    if is_shown(s, word, before):
        return Verdict("oui")
    if s.exception():
        return Verdict("non", s.exception())
    s.type(s.word())
    if is_shown(s, word, before):
        return Verdict("non", "une ligne reçue ne se voit qu'après la touche Entrée")
    return Verdict("?", "la ligne reçue n'apparaît pas sur la sortie du programme")


def is_shown(s: Program, word: str, before: int) -> bool:
    s.last_event_at = time.monotonic()
    s.until(lambda: word.encode() in s.console[before:] or s.is_stuck())
    return word.encode() in s.console[before:]


def shows_cut_character(s: Program) -> Verdict:
    server, word = enter_chat(s), s.word()
    before = len(s.console)
    s.send(server, f"Bob : {word}".encode() + "é".encode()[:1])
    s.until(lambda: server.port in s.receiving and s.is_calm(CALM_SECONDS), 1)
    s.send(server, "é".encode()[1:] + b"\n")
    if is_shown(s, word + "é", before):
        return Verdict("oui")
    if s.exception():
        return Verdict("non", s.exception())
    if word.encode() in s.console[before:]:
        return Verdict("non", "« é » arrive en deux morceaux, et s'affiche mal")
    if server.is_closed or s.has_ended:
        return Verdict("non", "« é » arrive en deux morceaux, et le client s'arrête")
    return Verdict("?", "la ligne reçue n'apparaît pas sur la sortie du programme")


def leaves(s: Program) -> Verdict:
    server = enter_chat(s)
    for word in leave_words(s.path):
        s.type(word)
        s.until(lambda: s.has_ended or server.is_closed or s.is_asking() or s.is_stuck())
        s.until(lambda: s.has_ended, 4 * CALM_SECONDS)
        if not s.has_ended and not server.is_closed and not s.is_asking():
            answer(s, server)
        if s.is_asking() and not server.is_closed:
            continue
        hang_up(s, server)  # comme un serveur, après « exit »
        s.until(lambda: s.has_ended or s.is_stuck())
        if not s.has_ended:
            return Verdict("non", f"après « {word} », le programme ne se termine pas")
        return Verdict("oui") if word == "exit" else Verdict("autre", f"on quitte par « {word} »")
    return Verdict("non", "« exit » ne quitte pas le chat")


def loses_server(s: Program) -> Verdict:
    server = enter_chat(s)
    wait_for_client(s, server)
    before = len(s.console) + len(s.stderr())
    hang_up(s, server)
    s.until(lambda: s.has_ended or s.happened("endless") or s.is_stuck())
    if s.happened("endless"):
        return Verdict("non", 'le serveur ferme : recv renvoie b"" sans fin, et le client continue')
    if s.exception() and not s.has_ended:
        return Verdict("non", s.exception())
    if s.has_ended or len(s.console) + len(s.stderr()) > before:
        return Verdict("oui")
    return Verdict("non", "le serveur est parti : rien ne le dit, et le client attend une touche")


SERVER_SCENES = {
    "message": message, "accents": accents, "console": console, "exit": leave,
    "fin": end_of_stream, "coupure": cut_off, "reset_avant": reset_early, "muet": mute,
    "colles": glued, "coupe": cut_character, "liste": changing_list, "parti": gone_neighbour,
    "fige": frozen, "ordre": one_order, "inscrit": late_registration,
    "meme_socket": shared_socket, "partiel": partial_send, "doublon": same_name,
    "esc": terminal_codes, "console_pleine": unread_console,
}  # fmt: skip
MORE_SCENES = {
    "adieu": lost_farewell, "adresse": open_address, "nom_colle": glued_name, "imite": false_line,
}  # fmt: skip
CLIENT_SCENES = {
    "envoie": sends, "recoit": shows, "coupe": shows_cut_character, "exit": leaves,
    "fin": loses_server,
}  # fmt: skip


class Subject(NamedTuple):
    """Ce que find_subject a trouvé d'un programme."""

    kind: str  # « serveur », « client » ou « » : ni l'un ni l'autre
    dialect: Dialect
    said: str = ""  # pourquoi il ne peut pas être jugé


@functools.lru_cache
def find_subject(path: str, args: tuple | None = None) -> Subject:
    """Trouve ce qu'est un programme, et comment lui parler."""
    kind, said = "serveur", ""
    if args is None:
        kind, args, said = find_args(path)
    dialect = Dialect(args)
    if kind == "serveur":
        found, said = find_dialect(path, args)
        dialect = found or dialect
        said = "" if found else f"protocole non reconnu : {said}"
    return Subject(kind, dialect, said)


def scenes_of(kind: str) -> dict:
    return {**SERVER_SCENES, **MORE_SCENES} if kind == "serveur" else CLIENT_SCENES


def table_of(kind: str) -> dict:
    """Renvoie les scènes du tableau, et de --csv."""
    return CLIENT_SCENES if kind == "client" else SERVER_SCENES


def run_scene(name: str, path: str, args: list | None = None) -> Verdict:
    """Joue une scène contre un serveur ou un client, et renvoie son verdict."""
    subject = find_subject(str(path), None if args is None else tuple(args))
    return Verdict("?", subject.said) if subject.said else play(name, str(path), subject)


def play(name: str, path: str, subject: Subject) -> Verdict:
    try:
        with start(path, subject.dialect.args) as program:
            program.dialect = subject.dialect
            return scenes_of(subject.kind)[name](program)
    except Trouble as reason:
        return Verdict("?", str(reason))
