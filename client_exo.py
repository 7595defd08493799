#!/usr/bin/env python3
"""Le client du chat : deux threads, l'un reçoit, l'autre (le principal) tient le clavier.

    python3 client_exo.py                        demande un nom, puis des messages
    printf 'Bonjour\\n' | python3 client_exo.py --nom Robot
                                                 sans terminal : envoie tout, puis finit

Il faut deux threads parce que `input` et `recv` attendent chacun de leur côté, et que
personne ne sait lequel aura quelque chose le premier.
"""

import argparse
import os
import queue
import select
import signal
import socket
import struct
import sys
import threading
import time
import unicodedata

import chat_protocol as protocol
from chat_protocol import Refused

try:
    import readline  # l'importer suffit : input() sait alors éditer la ligne
except ImportError:  # Windows
    readline = None

# --- Limites -----------------------------------------------------------------

MAX_SERVER_LINE_BYTES = 256 * 1024  # octets : une liste de mille noms y tient
RECV_BYTES = 64 * 1024  # octets par recv
PIECE_BYTES = 64 * 1024  # octets lus d'un coup dans un tube, même sans fin de ligne
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
CALL_SECONDS = 0.2  # s entre deux appels au thread du clavier
REFUSAL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus

NAME_PROMPT = "Entrez votre nom : "
PROMPT = "Votre message : "
LEAVE_LINES = f"\n{protocol.LEAVE_WORD}"  # d'abord finir la ligne commencée ; une ligne vide est ignorée
LOST = "Connexion au serveur perdue."


class ServerLost(Exception):
    """Le serveur n'est plus là ; levée dans le thread du clavier, au milieu d'input()."""


# --- L'écran -------------------------------------------------------------------


class Screen:
    """Une sortie sans curseur à déplacer : tube, fichier, terminal sans codes."""

    def __init__(self) -> None:
        self.prompt = ""  # ce que le clavier affiche en attendant ; écrit par lui seul
        self.is_lost = False  # plus rien ne s'y écrit ; les deux suivants : le receveur seul
        self.problem = ""  # ce qu'il faut en dire ; "" si le lecteur est parti (| head)

    def show(self, line: str) -> None:
        """Affiche une ligne reçue (str sans fin de ligne). Receveur seul."""
        if self.is_lost:
            return
        try:
            write(self.frame(line))
        except OSError as error:
            self.is_lost = True
            if not isinstance(error, BrokenPipeError):
                self.problem = f"Plus rien ne s'écrit sur la sortie : {protocol.explain(error)}."
                complain(self.problem)

    def frame(self, line: str) -> str:
        return f"\n{line}\n{self.prompt}" if self.prompt else f"{line}\n"


class Terminal(Screen):
    """Un terminal où une ligne peut arriver pendant que l'on tape.

    Appeler readline depuis l'autre thread ferait s'arrêter l'interpréteur. On n'y touche
    donc pas : on insère une rangée au-dessus de la ligne tapée, avec les seuls codes du
    terminal, puis le curseur revient où il était.
    """

    # Place en dessous (ESC D, remonter), curseur noté (ESC 7), rangée insérée (ESC [ L) et
    # écrite, curseur rendu (ESC 8), qui redescend avec sa ligne.
    INSERT = "\x1bD\x1b[A\x1b7\r\x1b[L{}\x1b8\x1b[B"

    def frame(self, line: str) -> str:
        width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        return "".join(self.INSERT.format(row) for row in wrap(line, width))


def wrap(line: str, width: int) -> list[str]:
    """Coupe `line` en rangées d'écran ; de moitié s'il s'y trouve des caractères doubles."""
    line = line.expandtabs()
    if any(unicodedata.east_asian_width(char) in "WF" for char in line):
        width //= 2
    width = max(1, width - 1)
    return [line[start : start + width] for start in range(0, len(line), width)] or [""]


def write(text: str) -> None:
    """Écrit sur la sortie, avec « ? » pour ce qu'elle ne sait pas montrer ; OSError sinon.

    D'un seul os.write : rien ne peut s'y mêler. Et non par sys.stdout, où un thread arrêté
    par Ctrl+S tiendrait un verrou que la fin du programme attend.
    """
    data = text.encode(sys.stdout.encoding, errors="replace")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def choose_screen() -> Screen:
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal or os.environ.get("TERM", "dumb") == "dumb":
        return Screen()
    if os.environ.pop("PYTHONUNBUFFERED", ""):
        # Sans tampon, readline écrirait un caractère à la fois, et une rangée insérée entre
        # deux couperait ses codes : on se relance avec.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return Screen() if sys.stdout.write_through else Terminal()


# --- La connexion ----------------------------------------------------------------


class Connection:
    """Le lien avec le serveur. Chaque champ dit quel thread y écrit."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock  # le clavier y envoie, le receveur y lit
        self.buffer = protocol.LineBuffer(MAX_SERVER_LINE_BYTES)  # receveur seul
        # Ce que le serveur répond à un nom, puis None à la fin : du receveur au clavier.
        self.answers: "queue.SimpleQueue[str | None]" = queue.SimpleQueue()
        self.is_admitted = False  # écrit par le receveur : le nom est accepté
        self.is_parted = False  # écrit par le receveur : le serveur a dit au revoir
        self.ended = threading.Event()  # plus rien à attendre : fin du flux, ou second Ctrl+C
        self.keyboard_out = threading.Event()  # posé par le clavier : il ne lit plus rien

    def send(self, text: str) -> None:
        self.sock.sendall(protocol.encode_line(text))

    def receive(self) -> list[str]:
        """Rend les lignes suivantes, sans danger pour l'écran ; [] à la fin du flux."""
        while True:
            if lines := self.buffer.take():
                return [readable(line) for line in lines]
            data = self.sock.recv(RECV_BYTES)
            if not data:
                return [readable(line) for line in self.buffer.take_last()]
            self.buffer.feed(data)

    def note(self, line: str) -> None:
        """Retient ce qu'une ligne reçue apprend au clavier. Receveur seul."""
        if not self.is_admitted:
            self.is_admitted = not protocol.is_error_line(line)
            self.answers.put(line)
        self.is_parted = line.startswith("* Au revoir, ")


def readable(line: bytes) -> str:
    """Rend le texte d'une ligne du serveur, coupée à 256 Kio, sans danger pour l'écran."""
    text = line[:MAX_SERVER_LINE_BYTES].decode("utf-8", errors="replace")
    is_cut = len(line) > MAX_SERVER_LINE_BYTES
    return protocol.clean(text.rstrip("\ufffd") + "…" if is_cut else text)


def receive_lines(connection: Connection, screen: Screen) -> None:
    """Thread receveur : montre chaque ligne, puis prévient le clavier de la fin."""
    try:
        while (lines := connection.receive()) and not (screen.is_lost and sys.stdin.isatty()):
            for line in lines:
                screen.show(line)
                connection.note(line)
    except OSError:
        pass  # coupée net : elle est finie aussi
    connection.ended.set()
    connection.answers.put(None)
    call_keyboard(connection)


def call_keyboard(connection: Connection) -> None:
    """Fait sortir le thread principal de sa lecture du clavier.

    Fermer stdin ou lever une exception ici ne réveille pas input() : seul un signal le
    fait, et un seul peut se perdre entre deux lectures ; on le répète. Un clavier qui
    n'attendait que le serveur sort de lui-même.
    """
    while not connection.keyboard_out.wait(CALL_SECONDS):
        if not hasattr(signal, "pthread_kill"):  # Windows : rien ne réveille une lecture
            complain(LOST)
            os._exit(1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)


def listen_to_signals(connection: Connection) -> None:
    """Fait d'un signal une exception dans le thread principal, une seule fois.

    SIGUSR1 vient du receveur (et non SIGINT, que libedit renverrait à tout le groupe de
    processus) ; Ctrl+C et `kill` veulent dire partir, un second Ctrl+C finir tout de suite.
    """

    def interrupt(number: int, _: object) -> None:
        if connection.keyboard_out.is_set():
            connection.ended.set()
            return
        connection.keyboard_out.set()
        raise KeyboardInterrupt if number in (signal.SIGINT, signal.SIGTERM) else ServerLost

    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # Windows n'a pas le dernier
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


# --- Le clavier ------------------------------------------------------------------


def choose_name(name: str | None, screen: Screen) -> str:
    """Rend `name`, ou celui que l'on tape s'il n'y en a pas ; lève EOFError si l'on part."""
    while name is None or protocol.is_blank(name):
        if sys.stdin.isatty():
            name = ask(NAME_PROMPT, screen)
        else:
            name = read_piece().decode(errors="replace").rstrip("\r\n")
    if is_leaving(name):
        raise EOFError
    return name


def ask(prompt: str, screen: Screen) -> str:
    """Rend ce qui est tapé (str sans fin de ligne)."""
    prompt = prompt if sys.stdout.isatty() else ""
    screen.prompt = prompt
    try:
        return input(prompt)
    finally:
        screen.prompt = ""


def read_piece() -> bytes:
    """Rend la ligne suivante d'un tube, ou le début si elle est longue ; lève EOFError."""
    piece = sys.stdin.buffer.readline(PIECE_BYTES)
    if not piece:
        raise EOFError
    return piece


def is_leaving(text: str) -> bool:
    return not protocol.is_blank(text) and isinstance(protocol.parse(text), protocol.Quit)


def enter(connection: Connection, name: str, screen: Screen) -> bool:
    """Donne un nom, un autre s'il est refusé ; rend False si le serveur ne veut pas."""
    while True:
        connection.send(protocol.clean(name))
        answer = connection.answers.get()
        if answer is None:
            raise ServerLost
        if not protocol.is_error_line(answer):
            return True
        # Un serveur complet, ou lassé, ferme aussitôt après : le redemander serait vain.
        if connection.ended.wait(REFUSAL_SECONDS) or not sys.stdin.isatty():
            return False
        name = choose_name(None, screen)


def type_lines(connection: Connection, screen: Screen) -> None:
    """Envoie ce qui est tapé jusqu'à une commande de départ ; lève EOFError à Ctrl+D."""
    while True:
        # Un collage peut donner plusieurs lignes d'un coup.
        for line in ask(PROMPT, screen).replace("\r", "\n").split("\n"):
            if is_leaving(line):
                return
            connection.send(line)


def pipe_lines(connection: Connection) -> None:
    """Envoie l'entrée telle quelle jusqu'à une ligne de départ ; lève EOFError à la fin."""
    is_line_start = True
    while True:
        piece = read_piece()
        if is_line_start and is_leaving(piece.decode(errors="replace").rstrip("\r\n")):
            return
        connection.sock.sendall(piece)
        is_line_start = piece.endswith(b"\n")


def set_up_readline() -> None:
    """Règle readline : la ligne tapée reste sur une rangée, Tab complète les commandes."""
    if readline is None or not sys.stdin.isatty():
        return
    readline.clear_history()  # le nom n'est pas un message que Flèche-haut proposerait
    readline.set_completer_delims(" \t")
    readline.set_completer(complete)
    if "libedit" in (readline.__doc__ or ""):  # macOS a le plus souvent celui-là
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set horizontal-scroll-mode on")


def complete(start: str, number: int) -> str | None:
    """Rend la `number`-ième commande qui commence par `start` (protocole de readline)."""
    is_first_word = start and readline.get_begidx() == 0
    found = [word for word in protocol.COMMAND_WORDS if is_first_word and word.startswith(start)]
    return found[number] + " " if number < len(found) else None


# --- De l'arrivée au départ --------------------------------------------------------


def talk(connection: Connection, name: str, screen: Screen) -> int:
    """Tient la conversation jusqu'au départ ; rend le code de sortie."""
    listen_to_signals(connection)
    receiver = threading.Thread(
        target=receive_lines, args=(connection, screen), name="receveur", daemon=True
    )
    is_terminal = sys.stdin.isatty()
    is_lost = is_interrupted = False
    try:
        receiver.start()
        if not enter(connection, name, screen):
            return 1
        set_up_readline()
        type_lines(connection, screen) if is_terminal else pipe_lines(connection)
    except EOFError:
        pass
    except KeyboardInterrupt:
        is_interrupted = True
    except (ServerLost, OSError):
        is_lost = not screen.is_lost
    finally:
        connection.keyboard_out.set()  # plus aucun signal ne lève d'exception
    if not is_lost:
        part(connection, patience=GOODBYE_SECONDS if is_terminal or is_interrupted else None)
    shut(connection.sock)
    receiver.join(GOODBYE_SECONDS)
    if is_terminal:
        return say_parted(is_lost)
    if is_interrupted and not connection.is_parted:
        complain("Interrompu : tout n'est peut-être pas arrivé.")
        # Sinon le système enverrait encore ce qui attend : un fantôme parlerait des minutes. Avec
        # SO_LINGER de 0 s, close le jette.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif not connection.is_parted:
        complain(LOST)
    return 0 if connection.is_parted and not screen.problem else 1


def part(connection: Connection, patience: float | None) -> None:
    """Prend congé : attend l'au revoir du serveur, `patience` secondes au plus.

    Sans terminal, on attend tant que le serveur vit : son au revoir prouve qu'il a tout pris.
    """
    started_at = time.monotonic()
    try:
        if select.select([], [connection.sock], [], patience)[1]:  # sinon send bloquerait
            connection.send(LEAVE_LINES)
            shut(connection.sock, socket.SHUT_WR)
    except OSError:
        return  # le serveur est parti le premier
    if patience is not None:
        patience = max(0, started_at + patience - time.monotonic())
    connection.ended.wait(patience)


def shut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """shutdown, sans effet si la connexion n'existe plus."""
    try:
        sock.shutdown(how)
    except OSError:
        pass


def say_parted(is_lost: bool) -> int:
    """Dit au terminal comment cela finit ; rend le code de sortie."""
    if is_lost:
        say("")  # quitter la ligne que l'on tapait
        complain(LOST)
        return 1
    say("Vous avez quitté le chat.")
    return 0


def say(text: str) -> None:
    try:
        write(f"{text}\n")
    except OSError:
        pass  # plus personne ne lit


def complain(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


def set_up_streams() -> None:
    """Remplace une entrée ou une sortie fermée par le vide ; « ? » pour l'inconnu."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    sys.stdin.reconfigure(errors="surrogateescape")  # que send changera en « ? »
    sys.stdout.reconfigure(errors="replace")
    sys.stderr.reconfigure(errors="replace")


def main() -> int:
    """Rend le code de sortie : 0 si l'on est parti, 2 pour une option, 1 pour le reste."""
    set_up_streams()
    parser = protocol.new_option_parser("Le client du chat.")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = parser.parse_args()
    except Refused as reason:
        complain(reason)
        return 2
    screen = choose_screen()
    try:
        name = choose_name(options.nom, screen)
    except (EOFError, KeyboardInterrupt):
        if sys.stdin.isatty():
            return say_parted(is_lost=False)
        complain("Aucun nom donné.")
        return 1
    return chat(options, name, screen)


def chat(options: argparse.Namespace, name: str, screen: Screen) -> int:
    """Se connecte et converse ; rend le code de sortie."""
    try:
        sock = socket.create_connection((options.hote, options.port))
    except (OSError, UnicodeError) as error:
        is_unknown = isinstance(error, (socket.gaierror, UnicodeError))
        reason = "adresse inconnue" if is_unknown else protocol.explain(error)
        where = f"{options.hote}:{options.port}"
        complain(f"Connexion impossible à {where} : {reason}. Le serveur est-il lancé ?")
        return 1
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return talk(Connection(sock), name, screen)


if __name__ == "__main__":
    sys.exit(main())
