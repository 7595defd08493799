#!/usr/bin/env python3
"""La loupe : le vrai serveur et quelques clients, une rangée par étape, avec le thread qui la fait.

    python3 tests/lecon/loupe.py         le chemin d'un message, d'Alice à Bob
    python3 tests/lecon/loupe.py SCENE   une autre scène (--help les nomme)

Les programmes ne contiennent rien pour la loupe : elle remplace de l'extérieur, par leur nom, les
fonctions citées dans observe_server, et appelle les vraies. Une fonction ou une étape qui n'existe
plus est une erreur, dite en une phrase, avec le code de sortie 1.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # là où sont les programmes
import chat_protocol
import serveur_exo

PATIENCE = 60  # s d'attente d'une étape : une machine peut être très lente
WIDTH = 80  # colonnes d'un terminal ordinaire
COLORS = {"client": 36, "lecteur": 32, "veilleur": 33, "écriture": 35}  # codes ANSI, par rôle


class Lens:
    """Ce que la loupe a vu. Tout thread y ajoute des étapes, en tenant `changed`."""

    def __init__(self, out) -> None:
        self.out = out  # le vrai sys.stdout ; le serveur en a un autre
        self.has_colors = out.isatty() and "NO_COLOR" not in os.environ
        self.changed = threading.Condition()
        self.steps: list[tuple[str, str, str]] = []  # (thread, étape, détail), dans l'ordre
        self.hides: Callable | None = None  # dit si une étape est cachée ; None : toutes
        self.repeated = 0  # étapes semblables à la dernière, que l'on compte sans les montrer
        self.names = {threading.main_thread().ident: "principal"}  # par numéro de thread
        self.people: dict[int, str] = {}  # par port : le nom d'un client, avant même qu'il l'envoie
        self.console = ""  # tout ce que le serveur a affiché
        self.pass_on = threading.Event()  # le thread qui a le verrou attend cet événement
        self.pass_on.set()
        self.broadcaster: serveur_exo.Hub | None = None

    def tell(self, step: str, detail: str, thread: str = "") -> None:
        """Note une étape et la montre, sauf si la scène la cache ; tout thread."""
        with self.changed:
            name = self.names.get(threading.get_ident(), threading.current_thread().name)
            seen = (thread or name, step, detail)
            if self.hides and not self.hides(*seen):
                if self.steps and is_alike(seen, self.steps[-1]):
                    self.repeated += 1
                else:
                    self.end_repetition()
                    self.show(*seen)
                self.steps.append(seen)
            self.changed.notify_all()

    def end_repetition(self) -> None:
        if self.repeated:
            self.show("", "", f"… et encore {count(self.repeated, 'envoi')} de même")
        self.repeated = 0

    def show(self, thread: str, step: str, detail: str) -> None:
        row = f"{thread:<16}{step:<11}{detail}"
        row = row if len(row) <= WIDTH else row[: WIDTH - 1] + "…"
        if self.has_colors and (color := COLORS.get(thread.split(" ")[0])):
            row = f"\x1b[{color}m{row}\x1b[0m"
        self.write(row)

    def write(self, text: str) -> None:
        try:
            print(text, file=self.out, flush=True)
        except OSError:  # « | head » : plus personne ne lit
            os._exit(0)

    def wait_for(self, thread: str, step: str, part: str = "") -> None:
        """Attend une étape de ce thread ("" : n'importe lequel), dont le détail contient `part`."""

        def is_seen() -> bool:
            return any(thread in who and step == what and part in how for who, what, how in self.steps)

        with self.changed:
            if not self.changed.wait_for(is_seen, PATIENCE):
                fail(f"l'étape « {thread} : {step} {part} » n'a pas eu lieu")

    def wait_for_console(self, text: str) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: text in self.console, PATIENCE):
                fail(f"le serveur n'a pas affiché « {text} »")


def is_alike(seen: tuple, last: tuple) -> bool:
    """Renvoie True pour deux envois à un même client, tous deux complets ou tous deux refusés."""
    (_, step, detail), (_, last_step, last_detail) = seen, last
    person, taken = detail.split(" : ")[0], detail.split(", ")[-1]
    is_same_kind = step == last_step == "send_now" and taken in ("tous acceptés", "0 accepté")
    return is_same_kind and last_detail.startswith(person) and last_detail.endswith(taken)


def fail(reason: str) -> None:
    print(f"loupe.py : {reason}.", file=sys.__stderr__, flush=True)
    os._exit(1)  # d'un thread quelconque : sys.exit n'y finirait que ce thread


def of(name: str) -> str:
    return f"d'{name}" if name[0] in "AEIOUY" else f"de {name}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number > 1 else "")


# --- Ce que la loupe remplace dans le serveur -------------------------------------------


def observe(owner: object, name: str, before=None, after=None, lock=None) -> None:
    """Entoure `owner.name` : before(*arguments), le vrai appel, after(résultat, *arguments)."""
    original = getattr(owner, name, None)
    if original is None:
        fail(f"{owner.__name__}.{name} n'existe plus : la loupe ne peut pas l'observer")

    def observed(*arguments):
        with lock or contextlib.nullcontext():
            if before:
                before(*arguments)
            result = original(*arguments)
            if after:
                after(result, *arguments)
        return result

    setattr(owner, name, observed)


class ObservedSocket:
    """Le socket d'un client, côté serveur ; les autres méthodes sont celles du vrai."""

    def __init__(self, sock: socket.socket, lens: Lens) -> None:
        self.sock, self.lens = sock, lens
        self.person = lens.people[sock.getpeername()[1]]
        self.told: set[str] = set()  # ce qui est déjà dit : chaque tournée recommence

    def __getattr__(self, name: str):
        return getattr(self.sock, name)

    def recv(self, size: int) -> bytes:
        data = self.sock.recv(size)
        self.lens.tell("recv", f"{data!r}" if data else "b'' : ce client n'enverra plus rien")
        return data

    def shutdown(self, how: int) -> None:
        means = {
            socket.SHUT_WR: f"on n'enverra plus rien à {self.person}",
            socket.SHUT_RDWR: f"coupe {self.person}, ce qui réveille son lecteur",
        }[how]
        if means not in self.told:
            self.told.add(means)
            self.lens.tell("shutdown", means)
        self.sock.shutdown(how)

    def close(self) -> None:
        self.lens.tell("close", f"la connexion {of(self.person)} est fermée")
        self.sock.close()


class ObservedLock:
    """Le verrou des tournées."""

    def __init__(self, lock: threading.Lock, lens: Lens) -> None:
        self.lock, self.lens = lock, lens

    def acquire(self, **options) -> bool:
        got = self.lock.acquire(**options)
        taken = "verrou pris : repart sans attendre"
        self.lens.tell("acquire", "a le verrou : fait une tournée" if got else taken)
        return got

    def release(self) -> None:
        self.lens.tell("release", "rend le verrou")
        self.lock.release()


class ObservedStream:
    """La console ou stderr du serveur : la loupe montre ce qu'un thread y écrit."""

    def __init__(self, name: str, lens: Lens) -> None:
        self.name, self.lens = name, lens

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self.lens.tell("write", f"{self.name} : {line}", thread="écriture")
        with self.lens.changed:
            self.lens.console += text
            self.lens.changed.notify_all()

    def flush(self) -> None:
        pass


def observe_server(lens: Lens) -> None:
    """Remplace ce que les scènes montrent ; à faire avant de lancer le serveur."""
    tell = lens.tell

    def name_reader(client, *_) -> None:
        lens.names[threading.get_ident()] = f"lecteur {of(client.sock.person)}"

    def replace_socket(_, client, *__) -> None:
        client.sock = ObservedSocket(client.sock, lens)

    def replace_lock(_, broadcaster, *__) -> None:
        broadcaster.round_lock = ObservedLock(broadcaster.round_lock, lens)
        lens.broadcaster = broadcaster

    def tell_lines(lines, buffer, _) -> None:
        rest = f" ; garde {buffer._rest!r}" if buffer._rest else ""
        found = f"{count(len(lines), 'ligne')} : {lines!r}" if lines else "aucune ligne entière"
        tell("feed", found + rest)

    def tell_deposit(_, client, lines) -> None:
        who = of(client.sock.person)
        what = f"le départ {who}" if lines is None else f"{count(len(lines), 'ligne')} {who}"
        tell("post", f"dépose {what} dans l'inbox")

    def hold_back(_) -> None:
        if not lens.pass_on.is_set():
            tell("make_round", "(la loupe retient cette tournée un instant)")
            lens.pass_on.wait(PATIENCE)

    def tell_receipt(_, client, lines) -> None:
        tell("receive", f"traite {count(len(lines), 'ligne')} {of(client.sock.person)}")

    def tell_send(taken, sock, data) -> None:
        accepted = "tous acceptés" if taken == len(data) else count(taken, "accepté")
        tell("send_now", f"{sock.person} : {count(len(data), 'octet')} à envoyer, {accepted}")

    def tell_lateness(_, broadcaster, client, __) -> None:
        if client in broadcaster.late and "late" not in client.sock.told:
            client.sock.told.add("late")
            tell("send", f"{client.name} a plus de 1 Mio de retard : l'inbox reste fermée")

    observe(serveur_exo.Client, "__init__", after=replace_socket)
    observe(serveur_exo.Hub, "__init__", after=replace_lock)
    observe(serveur_exo, "read_client", before=name_reader)
    observe(chat_protocol.LineBuffer, "feed", after=tell_lines)
    observe(serveur_exo.Hub, "post", before=tell_deposit)
    observe(serveur_exo.Hub, "make_round", before=hold_back)
    observe(serveur_exo.Room, "receive", before=tell_receipt)
    # Sous le verrou de la loupe : un envoi se lit ainsi avant sa réception.
    observe(serveur_exo, "send_now", after=tell_send, lock=lens.changed)
    observe(serveur_exo.Hub, "send", after=tell_lateness)


# --- Les clients d'une scène --------------------------------------------------------------


class Person:
    """Un client ; un thread reçoit pour lui, sauf pour Léo, qui ne lit pas."""

    def __init__(self, name: str, lens: Lens, port: int) -> None:
        self.name, self.lens, self.reads = name, lens, name != "Léo"
        self.sock = socket.socket()
        if not self.reads:  # peu de place : le système n'accepte bientôt plus rien pour lui
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.bind(("127.0.0.1", 0))
        lens.people[self.sock.getsockname()[1]] = name
        self.sock.connect(("127.0.0.1", port))
        self.sock.sendall(f"{name}\n".encode())
        lens.wait_for_console(f"{name} (127.0.0.1) a rejoint le chat.\n")

    def read_until(self, text: str) -> None:
        """Lit sans le dire tout ce qui arrive jusqu'à `text`."""
        data = b""
        while text not in data.decode(errors="replace"):
            data += self.sock.recv(65536) or fail(f"{self.name} n'a pas reçu « {text} »")

    def start_receiving(self) -> None:
        threading.Thread(target=self.receive, name=f"client {self.name}", daemon=True).start()

    def receive(self) -> None:
        with contextlib.suppress(OSError):  # la scène est finie : le socket est fermé
            while data := self.sock.recv(65536):
                self.lens.tell("recv", f"{data!r}")
            self.lens.tell("recv", "b'' : le serveur n'enverra plus rien")

    def say(self, data: bytes) -> None:
        self.lens.tell("sendall", f"{data!r}", f"client {self.name}")
        self.sock.sendall(data)

    def close(self) -> None:
        self.lens.tell("close", "ferme la connexion", f"client {self.name}")
        with contextlib.suppress(OSError):  # le serveur l'a déjà coupée
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


# --- Les scènes -----------------------------------------------------------------------------


def is_watcher_at_work(thread: str, step: str, _: str) -> bool:
    """Le veilleur prend et rend le verrou sans cesse tant qu'il reste quelque chose à faire."""
    return thread == "veilleur" and step in ("acquire", "release")


def message(lens: Lens, alice: Person, bob: Person) -> None:
    """Un message d'Alice à Bob."""
    alice.say(b"Bonjour !\n")
    lens.wait_for("client Bob", "recv", "Bonjour")
    lens.wait_for("écriture", "write", "Bonjour")
    lens.wait_for("lecteur d'Alice", "release")


def coupe(lens: Lens, alice: Person, bob: Person) -> None:
    """Un « é » coupé en deux : on ne décode qu'une ligne entière."""
    first, last = "Un café ?\n".encode()[:7], "Un café ?\n".encode()[7:]
    alice.say(first)
    lens.wait_for("lecteur d'Alice", "feed", "aucune ligne")
    alice.say(last)
    lens.wait_for("client Bob", "recv", "Un caf")
    lens.wait_for("écriture", "write", "Un café")
    lens.wait_for("lecteur d'Alice", "release")


def rafale(lens: Lens, alice: Person, bob: Person, zoe: Person) -> None:
    """Trois clients parlent en même temps : une seule tournée transporte tout."""
    lens.pass_on.clear()
    alice.say(b"un\n")
    lens.wait_for("lecteur d'Alice", "make_round")
    for person in (bob, zoe):
        person.say(b"deux\n" if person is bob else b"trois\n")
        lens.wait_for(f"lecteur {of(person.name)}", "acquire", "verrou pris")
    lens.pass_on.set()
    for person, last in ((alice, "trois"), (bob, "trois"), (zoe, "deux")):
        lens.wait_for(f"client {person.name}", "recv", last)
    lens.wait_for("écriture", "write", "Zoé : trois")
    lens.wait_for("lecteur d'Alice", "release")


def lent(lens: Lens, alice: Person, bob: Person, leo: Person) -> None:
    """Léo ne lit plus : on l'attend une seconde, on le déconnecte, rien n'est perdu."""
    lens.tell("sendall", "des lignes de 4000 octets, sans s'arrêter", "client Alice")

    def flood() -> None:
        with contextlib.suppress(OSError):  # la scène est finie
            while not any(step == "send" for _, step, _ in lens.steps):
                alice.sock.sendall((b"x" * 4000 + b"\n") * 16)

    threading.Thread(target=flood, daemon=True).start()
    lens.wait_for("", "send", "Léo")
    bob.say(b"Tout va bien ?\n")
    lens.wait_for("lecteur de Léo", "recv", "b''")
    lens.wait_for("", "close", "Léo")
    lens.wait_for("client Alice", "recv", "Tout va bien")
    lens.wait_for("écriture", "write", "Léo a quitté")


def is_beside_the_point(thread: str, step: str, detail: str) -> bool:
    """La scène de Léo ne montre ni le flot d'Alice, ni ce que Bob en reçoit."""
    if step == "send_now":
        is_shown = "Léo" in detail and detail.endswith((", tous acceptés", ", 0 accepté"))
    elif thread == "lecteur d'Alice" or step == "receive":
        is_shown = "Léo" in detail or "de Bob" in detail
    else:
        is_shown = "xxx" not in detail and detail != "b''"
    return not is_shown or is_watcher_at_work(thread, step, detail)


def depart(lens: Lens, alice: Person, bob: Person) -> None:
    """Alice quitte le chat : la connexion se ferme en deux temps."""
    alice.say(b"exit\n")
    lens.wait_for("client Alice", "recv", "b''")
    alice.close()
    lens.wait_for("", "close", "d'Alice")
    lens.wait_for("client Bob", "recv", "Alice a quitt")
    lens.wait_for("écriture", "write", "a quitté")


SCENES = {  # les clients de chaque scène, et ce qu'elle cache
    message: (("Alice", "Bob"), is_watcher_at_work),
    coupe: (("Alice", "Bob"), is_watcher_at_work),
    rafale: (("Alice", "Bob", "Zoé"), is_watcher_at_work),
    lent: (("Alice", "Bob", "Léo"), is_beside_the_point),
    depart: (("Alice", "Bob"), is_watcher_at_work),
}


def play(scene: Callable, lens: Lens) -> None:
    """Fait entrer les clients, joue la scène, arrête le serveur, depuis un autre thread."""
    names, hides = SCENES[scene]
    lens.wait_for_console("Serveur en attente")
    port = int(lens.console.partition("127.0.0.1:")[2].split()[0])
    people = [Person(name, lens, port) for name in names]
    for person in people:
        last = names[-1]
        person.read_until(f"Bienvenue, {last}" if person.name == last else f"{last} a rejoint")
        if person.reads:
            person.start_receiving()
    # Le dernier lecteur finit sa tournée.
    lens.broadcaster.round_lock.lock.acquire(timeout=PATIENCE)
    lens.broadcaster.round_lock.lock.release()
    lens.write(f"{scene.__doc__}\n\n{'thread':<16}{'appel':<11}ce qui se passe")
    lens.hides = hides
    scene(lens, *people)
    with lens.changed:
        lens.hides = None
    for person in people:
        if person.sock.fileno() >= 0:
            person.close()
    signal.raise_signal(signal.SIGINT)


def main() -> int:
    names = {scene.__name__: scene for scene in SCENES}
    parser = argparse.ArgumentParser(
        description="Montre, étape par étape, quel thread du serveur fait quoi.",
        epilog="\n".join(f"{name:<10}{scene.__doc__}" for name, scene in names.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scene", metavar="SCENE", nargs="?", choices=names, default="message")
    scene = names[parser.parse_args().scene]
    chat_protocol.set_up_stream(sys.stdout)
    lens = Lens(sys.stdout)
    observe_server(lens)
    # Une tournée du veilleur, au mauvais moment, prendrait le verrou : il n'en fait que réveillé.
    serveur_exo.IDLE_SECONDS = 3600
    serveur_exo.ACCEPT_SECONDS = 0.05  # pour finir aussitôt après la scène
    sys.stdout, sys.stderr = ObservedStream("console", lens), ObservedStream("stderr", lens)
    sys.argv[1:] = ["--port", "0", "--debit", "0"]
    threading.excepthook = lambda failure: fail(f"{failure.exc_type.__name__} : {failure.exc_value}")
    threading.Thread(target=play, args=[scene, lens], daemon=True).start()
    return serveur_exo.main()  # dans le thread principal, comme d'habitude


if __name__ == "__main__":
    sys.exit(main())
