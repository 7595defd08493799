#!/usr/bin/env python3
"""La loupe : le vrai serveur et quelques clients, une rangée par étape, avec le thread qui la fait.

    python3 tests/lecon/loupe.py                     le chemin d'un message, d'Alice à Bob
    python3 tests/lecon/loupe.py SCENE               une autre scène (--help les nomme)
    python3 tests/lecon/loupe.py --etape 8 SCENE     etape8.py au lieu du serveur

La loupe ne remplace rien dans le programme : Python annonce chaque appel de fonction à qui le
demande (sys.setprofile), et `Lens.observe` choisit ceux qu'elle montre. Une fonction ou une étape
qui n'existe plus est une erreur, dite en une phrase, avec le code de sortie 1.
"""

import contextlib
import importlib
import io
import os
import re
import shutil
import signal
import socket
import sys
import textwrap
import threading
from pathlib import Path

sys.path[:0] = map(str, Path(__file__).resolve().parents[:3:2])  # les étapes, les programmes
import chat_protocol

PATIENCE = 60  # s d'attente d'une étape : une machine peut être très lente
WIDTH, MARGIN = 80, 27  # colonnes d'un terminal ordinaire ; celles qui précèdent le détail
COLORS = {"client": 36, "lecteur": 32, "veilleur": 33, "écriture": 35}  # codes ANSI, par rôle
FOLLOWED = "read_client feed last_line post try_round make_round receive send send_now".split()


class Failed(Exception):
    """La loupe ne peut pas montrer la scène ; str() dit pourquoi."""


class Lens:
    """Ce que la loupe a vu. Tout thread y ajoute des étapes, en tenant `changed`."""

    def __init__(self, program) -> None:
        self.late_bytes = program.LATE_BYTES
        self.functions = find_functions(program)  # le code d'une fonction suivie → son nom
        self.out = sys.stdout  # le serveur en aura un autre
        is_terminal = not chat_protocol.is_window(self.out) and self.out.isatty()
        has_codes = os.name != "nt" and os.environ.get("TERM") != "dumb"
        self.has_colors = is_terminal and has_codes and "NO_COLOR" not in os.environ
        columns = shutil.get_terminal_size().columns or WIDTH  # 0 dans un conteneur, avant Python 3.11
        self.width = min(WIDTH, columns) if is_terminal else WIDTH
        self.changed = threading.Condition()
        self.rows: list[str] = []  # « thread appel détail », dans l'ordre
        self.hidden = ""  # motif des rangées que la scène ne montre pas ; "" : aucune n'est montrée
        self.repeated = 0  # envois semblables au dernier, que l'on compte sans les montrer
        self.address = None  # où le serveur écoute
        self.people: dict[object, str] = {}  # un nom, par port ; puis par socket du serveur
        self.readers: dict[threading.Thread, str] = {}  # le nom de chaque lecteur
        self.in_round: set[threading.Thread] = set()  # ceux qui font une tournée
        self.held_step = ""  # l'étape où celui qui a le verrou attend `pass_on`
        self.pass_on = threading.Event()
        self.failure = ""  # pourquoi la scène ne peut pas finir

    def observe(self, frame, event: str, result) -> None:
        """Python appelle cette méthode à chaque appel et retour de fonction, dans tout thread."""
        if not (function := self.functions.get(frame.f_code)):
            return
        c_function = result.__name__ if event.startswith("c_") else ""
        variables, thread = frame.f_locals, threading.current_thread()
        sock = variables["client"].sock if "client" in variables else variables.get("sock")
        person, lines = self.people.get(sock, ""), variables.get("lines")
        match event, function, c_function:
            case "return", "create_server", _:
                with self.changed:
                    self.address = result.getsockname()
                    self.changed.notify_all()
            case "call", "read_client", _:
                self.people[sock] = "personne"  # la scène est finie, et l'on réveille accept
                with contextlib.suppress(OSError, KeyError):
                    self.people[sock] = self.people[sock.getpeername()[1]]
                self.readers[thread] = f"lecteur {of(self.people[sock])}"
            case "c_exception", "read_client", "recv":
                self.tell("recv", "échoue : la connexion est coupée")
            case "call", "feed", _:
                self.tell("recv", repr(variables["data"]))
            case "return", "feed", _:
                found, rest = "aucune ligne entière", variables["self"]._rest
                if result:
                    found = f"{count(result, 'ligne')} : {result!r}"
                self.tell("feed", found + (f" ; garde {rest!r}" if rest else ""))
            case "call", "last_line", _:
                self.tell("recv", "b'' : ce client n'enverra plus rien")
            case "call", "post", _:
                what = "le départ" if lines is None else count(lines, "ligne")
                self.tell("post", f"dépose {what} {of(person)} dans l'inbox")
            case "call", "make_round", _:
                self.in_round.add(thread)
                self.tell("acquire", "a le verrou : fait une tournée")
                self.hold("make_round")
            case "call", "receive", _:
                self.tell("receive", f"traite {count(lines, 'ligne')} {of(person)}")
            case "call", "send_now", _:
                self.changed.acquire()  # jusqu'au retour : un envoi se lit ainsi avant sa réception
            case "return", "send_now", _:
                self.tell_send(person, variables["data"], result or 0)
                self.changed.release()
            case "c_call", "send", "shutdown" if len(variables["data"]) <= self.late_bytes:
                self.tell("shutdown", f"on n'enverra plus rien à {person}")
            case "c_call", "send" | "cut", "shutdown":
                self.tell("shutdown", f"coupe {person}, ce qui réveille son lecteur")
            case "call", "socket.close", _:
                if person := self.people.get(variables["self"]):
                    self.tell("close", f"la connexion {of(person)} est fermée")
            case "c_call", "try_round", "release":
                self.hold("release")
                self.tell("release", "rend le verrou")
            case "call", "Event.set", _:
                if self.functions.get(frame.f_back.f_code) == "try_round":
                    self.tell("set", "l'inbox n'est pas vide : réveille le veilleur")
            case "return", "try_round", _:
                with self.changed:
                    if thread not in self.in_round:
                        self.tell("acquire", "verrou pris : repart sans attendre")
                    self.in_round.discard(thread)
                    self.changed.notify_all()
            case "c_call", "run" | "broadcast", "write" | "print":
                stream = "console" if c_function == "print" else variables["self"].stream.name
                if "Traceback" in variables["text"]:  # le serveur va s'arrêter net
                    print(variables["text"], file=sys.__stderr__, flush=True)
                for line in variables["text"].splitlines():
                    self.tell("write", f"{stream} : {line.removeprefix('* ')}")

    def tell_send(self, person: str, data: bytes, taken: int) -> None:
        accepted = "tous acceptés" if taken == len(data) else count(taken, "accepté")
        self.tell("send_now", f"{person} : {count(data, 'octet')} à envoyer, {accepted}")
        if len(data) - taken > self.late_bytes and not any(" send  " in row for row in self.rows):
            self.tell("send", f"{person} a plus de 1 Mio de retard : l'inbox reste fermée")

    def tell(self, step: str, detail: str, thread: str = "") -> None:
        """Note une étape, et la montre si la scène le veut. Tout thread."""
        with self.changed:
            current = threading.current_thread()
            row = f"{thread or self.readers.get(current, current.name):<16}{step:<11}{detail}"
            if self.hidden and re.match(self.hidden, row):
                return
            last = self.rows[-1] if self.rows else ""
            if self.hidden and sending(row) and sending(row) == sending(last):
                self.repeated += 1
            elif self.hidden:
                if self.repeated:
                    self.show(f"{'':{MARGIN}}… et encore {count(self.repeated, 'envoi')} de même")
                self.repeated = 0
                self.show(row)
            self.rows.append(row)
            self.changed.notify_all()

    def show(self, row: str) -> None:
        color = COLORS.get(row.split(" ")[0])
        row = row if len(row) <= WIDTH else row[: WIDTH - 1] + "…"
        row = textwrap.fill(row, self.width, subsequent_indent=" " * MARGIN)
        self.write(f"\x1b[{color}m{row}\x1b[0m" if color and self.has_colors else row)

    def write(self, text: str) -> None:
        try:
            print(text, file=self.out, flush=True)
        except OSError:  # « | head » : plus personne ne lit ; la scène finit sans rien montrer
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def wait_for(self, *patterns: str) -> None:
        """Attend, pour chaque motif, une rangée qu'il décrit."""
        for pattern in patterns:
            is_seen = lambda: any(re.match(pattern, row) for row in self.rows)  # noqa: E731
            self.wait_until(is_seen, f"l'étape « {pattern} » n'a pas eu lieu")

    def wait_until(self, is_true, otherwise: str) -> None:
        with self.changed:
            is_ready = self.changed.wait_for(lambda: is_true() or self.failure, PATIENCE)
            if self.failure or not is_ready:
                raise Failed(self.failure or otherwise)

    def fail(self, reason: str) -> None:
        with self.changed:
            self.failure = self.failure or reason
            self.changed.notify_all()

    def hold(self, step: str) -> None:
        """Retient ici celui qui a le verrou, si la scène le demande."""
        if step == self.held_step and not self.pass_on.is_set():
            self.tell(step, "(la loupe retient cette tournée un instant)")
            self.pass_on.wait(PATIENCE)


def sending(row: str):
    """Renvoie à qui une rangée envoie, et si le système a tout accepté ou rien ; sinon, None."""
    found = re.match(".{16}send_now +(.*) : .*, (tous|0) accepté", row)
    return found and found.groups()


def of(name: str) -> str:
    return f"d'{name}" if name[0] in "AEIOUY" else f"de {name}"


def count(found, noun: str) -> str:
    number = found if isinstance(found, int) else len(found)
    return f"{number} {noun}" + ("s" if number > 1 else "")


def find_functions(program) -> dict:
    """Renvoie les fonctions à suivre : celles du programme, par leur nom, où qu'elles soient."""
    found = {
        socket.create_server.__code__: "create_server",
        socket.socket.close.__code__: "socket.close",
        threading.Event.set.__code__: "Event.set",
    }
    is_step = not hasattr(program, "Writer")  # une étape affiche elle-même
    for name in (*FOLLOWED, *(["broadcast"] if is_step else ["run", "cut"])):
        classes = [value for value in vars(program).values() if isinstance(value, type)]
        owners = [o for o in (program, *classes, chat_protocol.LineBuffer) if name in vars(o)]
        if not owners:
            raise Failed(f"{name} n'existe plus : la loupe ne peut pas l'observer")
        found[getattr(owners[0], name).__code__] = name
    return found


# --- Les clients d'une scène --------------------------------------------------------------


class Person:
    """Un client ; un thread reçoit pour lui, sauf pour Léo, qui ne lit pas."""

    def __init__(self, name: str, lens: Lens) -> None:
        self.name, self.lens, self.sock = name, lens, socket.socket()
        if name == "Léo":  # peu de place : le système n'accepte bientôt plus rien pour lui
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.bind(("127.0.0.1", 0))
        lens.people[self.sock.getsockname()[1]] = name
        self.sock.connect(lens.address)
        self.sock.sendall(f"{name}\n".encode())
        if name != "Léo":
            threading.Thread(target=self.receive, name=f"client {name}", daemon=True).start()
        lens.wait_for(f".* write .*{name}")

    def receive(self) -> None:
        with contextlib.suppress(OSError):  # la scène est finie : le socket est fermé
            while data := self.sock.recv(65536):
                self.lens.tell("recv", repr(data))
            self.lens.tell("recv", "b'' : le serveur n'enverra plus rien")

    def say(self, data: bytes) -> None:
        self.lens.tell("sendall", repr(data), f"client {self.name}")
        self.sock.sendall(data)

    def close(self) -> None:
        self.lens.tell("close", "ferme la connexion", f"client {self.name}")
        with contextlib.suppress(OSError):  # le serveur l'a déjà coupée
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


# --- Les scènes -----------------------------------------------------------------------------


def message(lens: Lens, alice: Person, bob: Person) -> None:
    """Un message d'Alice à Bob."""
    alice.say(b"Bonjour !\n")
    lens.wait_for("client Bob +recv .*Bonjour", ".* write .*Bonjour", "lecteur d'Alice release")


def coupe(lens: Lens, alice: Person, bob: Person) -> None:
    """Un « é » coupé en deux : on ne décode qu'une ligne entière."""
    alice.say("Un café ?\n".encode()[:7])
    lens.wait_for("lecteur d'Alice feed +aucune ligne")
    alice.say("Un café ?\n".encode()[7:])
    lens.wait_for("client Bob +recv .*Un caf", ".* write .*Un café", "lecteur d'Alice release")


def rafale(lens: Lens, alice: Person, bob: Person, zoe: Person) -> None:
    """Trois clients parlent en même temps : une seule tournée transporte tout."""
    lens.held_step = "make_round"
    alice.say(b"un\n")
    lens.wait_for("lecteur d'Alice make_round")
    bob.say(b"deux\n")
    lens.wait_for("lecteur de Bob +acquire +verrou pris")
    zoe.say(b"trois\n")
    lens.wait_for("lecteur de Zoé +acquire +verrou pris")
    lens.pass_on.set()
    lens.wait_for("client Alice .*trois", "client Bob .*trois", "client Zoé +recv .*deux")
    lens.wait_for(".* write .*Zoé : trois", "lecteur d'Alice release")


def reveil(lens: Lens, alice: Person, bob: Person) -> None:
    """Bob parle trop tard pour la tournée d'Alice : le veilleur transporte sa ligne."""
    lens.held_step = "release"
    alice.say(b"un\n")
    lens.wait_for("lecteur d'Alice release")
    bob.say(b"deux\n")
    lens.wait_for("lecteur de Bob +acquire +verrou pris")
    lens.pass_on.set()
    lens.wait_for("client Alice +recv .*deux", ".* write .*deux", "veilleur +release")


def lent(lens: Lens, alice: Person, bob: Person, leo: Person) -> None:
    """Léo ne lit plus : on l'attend une seconde, on le déconnecte, rien n'est perdu."""
    lens.tell("sendall", "des lignes de 4000 octets, sans s'arrêter", "client Alice")

    def flood() -> None:
        with contextlib.suppress(OSError):  # la scène est finie
            while not any(" send  " in row for row in lens.rows):
                alice.sock.sendall((b"x" * 4000 + b"\n") * 16)

    threading.Thread(target=flood, daemon=True).start()
    lens.wait_for(".* send  ")
    bob.say(b"Tout va bien ?\n")
    lens.wait_for("lecteur de Léo +recv", ".* close .*Léo", "client Alice .*Tout va bien")
    lens.wait_for(".* write .*Léo a quitté")


def depart(lens: Lens, alice: Person, bob: Person) -> None:
    """Alice quitte le chat : la connexion se ferme en deux temps."""
    alice.say(b"exit\n")
    lens.wait_for("client Alice +recv +b''")
    alice.close()
    lens.wait_for(".* close .*d'Alice", "client Bob .*Alice a quitt", ".* write .*a quitté")


# Le veilleur prend et rend le verrou sans cesse tant qu'il reste quelque chose à faire. La scène de
# Léo ne montre ni le flot d'Alice, ni ce que Bob en reçoit.
WATCHER_AT_WORK = "veilleur +(acquire|release)"
FLOOD = "(lecteur d'Alice|.{16}(receive|send_now|set)) (?!.*(Léo|de Bob))|.*[0-9] acceptés|.*xxx"
SCENES = {  # le nom d'une scène, ses clients, les rangées qu'elle cache
    "message": (message, ("Alice", "Bob"), WATCHER_AT_WORK),
    "coupe": (coupe, ("Alice", "Bob"), WATCHER_AT_WORK),
    "rafale": (rafale, ("Alice", "Bob", "Zoé"), WATCHER_AT_WORK),
    "reveil": (reveil, ("Alice", "Bob"), "aucune"),
    "lent": (lent, ("Alice", "Bob", "Léo"), f"{WATCHER_AT_WORK}|{FLOOD}"),
    "depart": (depart, ("Alice", "Bob"), WATCHER_AT_WORK),
}


def play(name: str, lens: Lens) -> None:
    """Fait entrer les clients, joue la scène, arrête le serveur, depuis un autre thread."""
    scene, names, hidden = SCENES[name]
    people = []
    try:
        lens.wait_until(lambda: lens.address, "le serveur n'a pas démarré")
        people += [Person(name, lens) for name in names]
        last = re.escape(repr(f"{names[-1]} a rejoint".encode())[2:-1])
        lens.wait_for(*(f"client {name} .*{last}" for name in names[:-1]))
        lens.wait_until(lambda: not lens.in_round, "la dernière tournée n'a pas fini")
        lens.write(f"{scene.__doc__}\n\n{'thread':<16}{'appel':<11}ce qui se passe")
        lens.rows, lens.hidden = [], hidden
        scene(lens, *people)
    except (Failed, OSError) as failure:
        lens.fail(str(failure))
    finally:
        lens.hidden = ""
        lens.pass_on.set()
        for person in people:
            person.close()
        signal.raise_signal(signal.SIGINT)
        if lens.address:
            socket.create_connection(lens.address).close()  # réveille accept


def main() -> int:
    """Renvoie le code de sortie : 1 si la scène ne peut pas être montrée."""
    match sys.argv[1:]:
        case ["--help"]:
            print(*__doc__.split("\n\n")[:2], sep="\n\n", end="\n\n")
            print(*(f"{name:<10}{scene.__doc__}" for name, (scene, *_) in SCENES.items()), sep="\n")
            return 0
        case ["--etape", "8", *words] if "lent" not in words:  # cette étape n'attend pas Léo
            program, options, pause = "etape8", ["0"], "TICK_SECONDS"
        case words:
            program, options, pause = "serveur_exo", ["--port", "0", "--debit", "0"], "IDLE_SECONDS"
    name = " ".join(words) or "message"
    try:
        if name not in SCENES:
            raise Failed(f"scène inconnue : {name} (--help les nomme)")
        chat_protocol.set_up_stream(sys.stdout)
        program = importlib.import_module(program)
        lens = Lens(program)
        with contextlib.ExitStack() as settings:  # ce qui est changé ici est remis à la fin
            settings.callback(sys.setprofile, sys.getprofile())
            settings.callback(threading.setprofile, threading.getprofile())
            settings.callback(setattr, threading, "excepthook", threading.excepthook)
            settings.callback(setattr, sys, "argv", sys.argv)
            settings.callback(setattr, program, pause, getattr(program, pause))
            settings.enter_context(contextlib.redirect_stdout(io.StringIO()))
            settings.enter_context(contextlib.redirect_stderr(io.StringIO()))
            sys.stdout.name, sys.stderr.name = "console", "stderr"
            # Une tournée du veilleur au mauvais moment prendrait le verrou : on le réveille seulement.
            setattr(program, pause, 3600)
            sys.argv = [sys.argv[0], *options]
            threading.excepthook = lambda args: lens.fail(repr(args.exc_value))
            threading.setprofile(lens.observe)
            sys.setprofile(lens.observe)
            threading.Thread(target=play, args=[name, lens], daemon=True).start()
            with contextlib.suppress(KeyboardInterrupt):
                program.main()  # dans le thread principal, comme d'habitude
        if lens.failure:
            raise Failed(lens.failure)
    except Failed as reason:
        print(f"loupe.py : {reason}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    if not chat_protocol.session_goes_on():
        sys.exit(code)
