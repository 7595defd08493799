#!/usr/bin/env python3
"""Le client du chat : deux threads, l'un reçoit, l'autre (le principal) tient le clavier.

    python3 client_exo.py                        demande un nom, puis des messages
    printf 'Bonjour\\n' | python3 client_exo.py --nom Robot
                                                 sans terminal : envoie tout, puis finit

Il faut deux threads parce que `input` et `recv` attendent chacun de leur côté, et que
personne ne sait lequel aura quelque chose le premier.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import unicodedata

import chat_protocol as protocol
from chat_protocol import Refused

try:
    import readline  # l'importer suffit : input() sait alors éditer la ligne
except ImportError:  # Windows
    readline = None

# --- Limites -----------------------------------------------------------------

MAX_SERVER_LINE_BYTES = 256 * 1024  # octets : une liste de mille noms y tient
RECV_BYTES = 64 * 1024
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
CALL_SECONDS = 0.2  # s entre deux appels au thread du clavier
FULL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus

NAME_PROMPT = "Entrez votre nom : "
PROMPT = "Votre message : "
LEAVE_LINE = "/quitter"


class ServerLost(Exception):
    """Le serveur n'est plus là ; levée dans le thread du clavier, au milieu d'input()."""


# --- L'écran -------------------------------------------------------------------


class Plain:
    """Une sortie sans curseur à déplacer : tube, fichier, TERM=dumb."""

    def show(self, line: str) -> None:
        print(line, flush=True)


class Terminal:
    """Un terminal où une ligne peut arriver pendant que l'on tape.

    Appeler readline depuis l'autre thread ferait s'arrêter l'interpréteur. On n'y touche
    donc pas : on insère une rangée au-dessus de la ligne tapée, avec les seuls codes du
    terminal, puis le curseur revient où il était.
    """

    INSERT = "\x1bD\x1b[A\x1b7\r\x1b[L{}\x1b8\x1b[B"

    def show(self, line: str) -> None:
        # Une rangée : place en dessous (ESC D, remonter), curseur noté (ESC 7), rangée
        # insérée (ESC [ L) et écrite, curseur rendu (ESC 8), qui redescend avec sa ligne.
        # Un seul write : rien ne peut s'y mêler.
        rows = wrap(line, shutil.get_terminal_size().columns)
        sys.stdout.write("".join(self.INSERT.format(row) for row in rows))
        sys.stdout.flush()


def wrap(line: str, width: int) -> list[str]:
    """Coupe `line` en rangées d'écran ; de moitié s'il s'y trouve des caractères doubles."""
    line = line.expandtabs()
    if any(unicodedata.east_asian_width(char) in "WF" for char in line):
        width //= 2
    width = max(1, width - 1)
    return [line[start : start + width] for start in range(0, len(line), width)] or [""]


def choose_screen() -> Plain | Terminal:
    both = sys.stdin.isatty() and sys.stdout.isatty()
    return Terminal() if both and os.environ.get("TERM", "dumb") != "dumb" else Plain()


# --- La vie d'une connexion ------------------------------------------------------


class Connection:
    """Le lien avec le serveur. Chaque champ dit quel thread y écrit."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock  # le clavier y envoie, le receveur y lit
        self.buffer = protocol.LineBuffer(MAX_SERVER_LINE_BYTES)  # l'accueil, puis le receveur
        self.leaving = threading.Event()  # posé par le clavier *avant* d'envoyer /quitter
        self.ended = threading.Event()  # posé par le receveur : le serveur a fermé
        self.keyboard_out = threading.Event()  # posé par le clavier : sorti d'input()
        self.stopped = False  # le serveur s'est arrêté de lui-même ; écrit par le receveur

    def send(self, text: str) -> None:
        self.sock.sendall(protocol.encode_line(text))

    def receive(self) -> list[str]:
        """Rend les lignes suivantes, sans danger pour l'écran ; [] à la fin du flux."""
        while True:
            if lines := self.buffer.take():
                return [self.readable(line) for line in lines]
            data = self.sock.recv(RECV_BYTES)
            if not data:
                return [self.readable(line) for line in self.buffer.take_last()]
            self.buffer.feed(data)

    @staticmethod
    def readable(line: bytes) -> str:
        cut = "…" if len(line) > MAX_SERVER_LINE_BYTES else ""
        text = line[:MAX_SERVER_LINE_BYTES].decode("utf-8", errors="replace")
        return protocol.clean(text) + cut


def receive_lines(connection: Connection, screen: Plain | Terminal) -> None:
    """Thread receveur : montre chaque ligne, puis prévient le clavier de la fin."""
    try:
        while lines := connection.receive():
            for line in lines:
                connection.stopped = line == "* Le serveur s'arrête."
                screen.show(line)
    except BrokenPipeError:  # plus personne ne lit notre sortie (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os._exit(0)
    except OSError:
        connection.stopped = True
    connection.ended.set()
    if not connection.leaving.is_set():
        call_keyboard(connection)


def call_keyboard(connection: Connection) -> None:
    """Fait sortir le thread principal de sa lecture du clavier.

    Fermer stdin ou lever une exception ici ne réveille pas input() : seul un signal le
    fait, et un seul peut se perdre entre deux lectures ; on le répète.
    """
    if not (sys.stdin.isatty() and hasattr(signal, "pthread_kill")):
        complain("Connexion au serveur perdue.")  # un tube ne se réveille pas, Windows non plus
        sys.stdout.flush()
        os._exit(1)
    while not connection.keyboard_out.wait(CALL_SECONDS):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)


def raise_server_lost(*_: object) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise ServerLost


# --- Le clavier ------------------------------------------------------------------


def type_lines(connection: Connection) -> None:
    """Lit des messages jusqu'à une commande de départ, Ctrl+C ou Ctrl+D."""
    while True:
        try:
            text = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if isinstance(protocol.parse(text), protocol.Quit):
            return
        connection.send(text)


def pipe_lines(connection: Connection) -> None:
    """Envoie toute l'entrée, telle quelle, jusqu'à sa fin ou une commande de départ."""
    for line in sys.stdin.buffer:
        if isinstance(protocol.parse(line.decode(errors="replace").strip("\r\n")), protocol.Quit):
            return
        connection.sock.sendall(line)


def talk(connection: Connection, screen: Plain | Terminal) -> int:
    """Tient la conversation jusqu'au départ ; rend le code de sortie."""
    if hasattr(signal, "SIGUSR1"):
        # SIGUSR1 et non SIGINT, que libedit renverrait à tout le groupe de processus.
        signal.signal(signal.SIGUSR1, raise_server_lost)
    receiver = threading.Thread(
        target=receive_lines, args=(connection, screen), name="receveur", daemon=True
    )
    receiver.start()
    is_terminal = sys.stdin.isatty()
    try:
        (type_lines if is_terminal else pipe_lines)(connection)
        connection.leaving.set()  # avant d'envoyer : l'au revoir n'est pas une perte
        if is_terminal:
            connection.send(LEAVE_LINE)
        connection.sock.shutdown(socket.SHUT_WR)
        receiver.join(GOODBYE_SECONDS if is_terminal else None)
        is_lost = connection.stopped
    except (ServerLost, OSError):
        is_lost = True
    except KeyboardInterrupt:  # un second Ctrl+C
        is_lost = False
    finally:
        connection.leaving.set()
        connection.keyboard_out.set()
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        connection.sock.shutdown(socket.SHUT_RDWR)
    receiver.join(GOODBYE_SECONDS)
    if is_lost:
        if is_terminal:
            print()
        complain("Connexion au serveur perdue.")
        return 1
    if is_terminal:
        print("Vous avez quitté le chat.")
    return 0


# --- L'accueil -------------------------------------------------------------------


def ask_name() -> str:
    """Rend un nom tapé, non vide ; lève EOFError si l'entrée est finie."""
    while True:
        if sys.stdin.isatty():
            name = input(NAME_PROMPT)
        else:
            line = sys.stdin.buffer.readline()
            if not line:
                raise EOFError
            name = line.decode(errors="replace").rstrip("\r\n")
        if not protocol.is_blank(name):
            return name


def enter(connection: Connection, name: str, screen: Plain | Terminal) -> bool:
    """Donne un nom, un autre s'il est refusé ; rend False si le serveur ne veut pas."""
    while True:
        connection.send(name)
        lines = connection.receive()
        for line in lines:
            print(line, flush=True)
        if not lines:
            return False
        if not protocol.is_error_line(lines[0]):
            return True
        connection.sock.settimeout(FULL_SECONDS)  # un serveur complet ferme aussitôt après
        try:
            if not connection.sock.recv(1, socket.MSG_PEEK):
                return False
        except TimeoutError:
            pass
        finally:
            connection.sock.settimeout(None)
        if not sys.stdin.isatty():
            return False
        name = ask_name()


def set_up_readline() -> None:
    """Règle readline : la ligne tapée reste sur une rangée, Tab complète les commandes."""
    if readline is None or not sys.stdin.isatty():
        return
    readline.clear_history()  # le nom n'est pas un message que Flèche-haut proposerait
    readline.set_completer_delims(" \t")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set horizontal-scroll-mode on")


def complete(start: str, number: int) -> str | None:
    """Rend la `number`-ième commande qui commence par `start` (protocole de readline)."""
    is_first_word = start and readline.get_begidx() == 0
    found = [word for word in protocol.COMMAND_WORDS if is_first_word and word.startswith(start)]
    return found[number] + " " if number < len(found) else None


def complain(text: object) -> None:
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Rend le code de sortie : 0 si l'on est parti, 2 pour une option, 1 pour le reste."""
    parser = protocol.new_option_parser("Le client du chat.")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = parser.parse_args()
    except Refused as reason:
        complain(reason)
        return 2
    sys.stdout.reconfigure(errors="replace")  # « ? » pour ce que l'écran ne sait pas montrer
    try:
        return chat(options)
    except (EOFError, KeyboardInterrupt):
        complain("Aucun nom donné.")
        return 1
    except OSError as error:
        complain(f"Connexion au serveur perdue : {error.strerror}.")
        return 1


def chat(options: argparse.Namespace) -> int:
    name = options.nom if options.nom and not protocol.is_blank(options.nom) else ask_name()
    try:
        sock = socket.create_connection((options.hote, options.port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "adresse inconnue"
        where = f"{options.hote}:{options.port}"
        complain(f"Connexion impossible à {where} : {reason}. Le serveur est-il lancé ?")
        return 1
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection, screen = Connection(sock), choose_screen()
        if not enter(connection, name, screen):
            return 1
        set_up_readline()
        return talk(connection, screen)


if __name__ == "__main__":
    sys.exit(main())
