#!/usr/bin/env python3
"""Le client du chat : deux threads, l'un reçoit, l'autre (le principal) tient le clavier.

    python3 client_exo.py                        demande un nom, puis des messages
    printf 'Bonjour\\n' | python3 client_exo.py --nom Robot
                                                 sans terminal : envoie tout, puis finit

Il faut deux threads parce que `input` et `recv` attendent chacun de leur côté, et que
personne ne sait lequel aura quelque chose le premier.
"""

import contextlib
import os
import queue
import select
import signal
import socket
import struct
import sys
import threading
import unicodedata
from typing import TextIO

import chat_protocol as protocol
from chat_protocol import Refused

try:
    import readline  # l'importer suffit : input() sait alors éditer la ligne
except ImportError:  # Windows
    readline = None

# --- Limites -----------------------------------------------------------------

MAX_SERVER_LINE_BYTES = 256 * 1024  # octets : une liste de mille noms y tient
READ_BYTES = 64 * 1024  # octets lus d'un coup, du serveur ou d'un tube
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
CALL_SECONDS = 0.2  # s entre deux appels au thread du clavier
REFUSAL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus

NAME_PROMPT = "Entrez votre nom : "
PROMPT = "Votre message : "
LEAVE_LINES = f"\n{protocol.QUIT_WORD}"  # d'abord finir la ligne commencée, s'il y en a une
PARTED = "Vous avez quitté le chat."
LOST = "Connexion au serveur perdue."
INTERRUPTED = "Interrompu : tout n'est peut-être pas arrivé."


class ServerLost(Exception):
    """Le serveur n'est plus là ; levée dans le thread du clavier, même au milieu d'input()."""


# --- L'écran -------------------------------------------------------------------


def write(text: str, stream: TextIO) -> None:
    """Écrit, avec « ? » pour ce que `stream` ne sait pas montrer ; OSError si elle est fermée.

    Par os.write et non par `stream` : un thread arrêté par Ctrl+S y tiendrait un verrou que la fin
    du programme attend.
    """
    descriptor, encoding = stream.fileno(), stream.encoding
    if os.name == "nt":  # os.write y parle la page de code de la console, et `stream` UTF-8
        encoding = os.device_encoding(descriptor) or encoding
    data = text.encode(encoding, errors="replace")
    while data:
        data = data[os.write(descriptor, data) :]


def say(text: str) -> None:
    """Écrit une ligne sur la sortie, sans effet si plus personne ne lit."""
    with contextlib.suppress(OSError):
        write(f"{text}\n", sys.stdout)


def complain(text: object) -> None:
    """Écrit une ligne sur stderr, sans effet si plus personne ne lit."""
    with contextlib.suppress(OSError):
        write(f"{text}\n", sys.stderr)


class Screen:
    """Une sortie sans curseur à déplacer : tube, fichier, terminal sans codes."""

    def __init__(self) -> None:
        self.prompt = ""  # l'invite affichée, "" s'il n'y en a pas ; le thread du clavier l'écrit
        self.is_lost = False  # plus rien ne s'y écrit ; receveur seul, comme le suivant
        self.has_failed = False  # perdue par une erreur : un disque plein, et non « | head »

    def show(self, line: str) -> None:
        """Affiche une ligne reçue (str sans fin de ligne). Receveur seul."""
        if self.is_lost:
            return
        try:
            write(self.frame(line), sys.stdout)
        except BrokenPipeError:
            self.is_lost = True
        except OSError as error:
            self.is_lost = self.has_failed = True
            complain(f"Plus rien ne s'écrit sur la sortie : {protocol.explain(error)}.")

    def frame(self, line: str) -> str:
        return f"\n{line}\n{self.prompt}" if self.prompt else f"{line}\n"


class Terminal(Screen):
    """Un terminal où une ligne peut arriver pendant que l'on tape.

    Appeler readline depuis l'autre thread ferait planter l'interpréteur. On n'y touche
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
    """Coupe `line` en rangées d'écran, moitié moins longues pour des signes de double largeur."""
    line = line.expandtabs()
    if any(unicodedata.east_asian_width(char) in "WF" for char in line):
        width //= 2
    width = max(1, width - 1)
    return [line[start : start + width] for start in range(0, len(line), width)] or [""]


def set_up_streams() -> None:
    """Remplace un flux fermé par le vide ; l'entrée laisse passer un octet illisible."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    sys.stdin.reconfigure(errors="surrogateescape")  # encode_line en fera un « ? »
    sys.stdout.reconfigure(errors="replace")  # input y écrit l'invite


def choose_screen() -> Screen:
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal or os.environ.get("TERM", "dumb") == "dumb":
        return Screen()
    if os.environ.pop("PYTHONUNBUFFERED", ""):
        # Sans tampon, readline écrirait un caractère à la fois, et une rangée insérée entre deux
        # couperait un code du terminal : on relance le programme sans cette variable.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return Screen() if sys.stdout.write_through else Terminal()


# --- La connexion ----------------------------------------------------------------


class Connection:
    """Le lien avec le serveur. Chaque champ dit quel thread y écrit."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock  # le clavier y envoie, le receveur y lit
        # Du receveur au clavier : ce que le serveur répond à un nom, puis None à la fin du flux.
        # Un second Ctrl+C y met None aussi. SimpleQueue et non Queue : un signal peut rappeler put
        # au milieu d'un autre put.
        self.answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.is_admitted = False  # écrit par le receveur : le nom est accepté
        self.is_parted = False  # écrit par le receveur : le serveur a dit au revoir
        self.is_interrupted = False  # écrit par un signal : Ctrl+C ou `kill`
        self.is_leaving = False  # écrit par le clavier ou un signal : plus d'exception à lever
        self.keyboard_out = threading.Event()  # posé par le clavier : il ne lit plus rien

    def send(self, text: str) -> None:
        self.sock.sendall(protocol.encode_line(text))

    def note(self, line: str) -> None:
        """Retient ce qu'une ligne reçue apprend au clavier. Receveur seul."""
        if not self.is_admitted:
            self.is_admitted = not line.startswith(protocol.ERROR)
            self.answers.put(line)
        self.is_parted = line.startswith(protocol.FAREWELL)

    def wait_for_end(self, seconds: float | None) -> bool:
        """Attend la fin du flux, `seconds` au plus (None : sans limite) ; dit si elle est venue."""
        try:
            while self.answers.get(timeout=seconds) is not None:
                pass
            return True
        except queue.Empty:
            return False


def receive_lines(connection: Connection, screen: Screen) -> None:
    """Thread receveur : montre chaque ligne, puis prévient le clavier de la fin."""
    buffer = protocol.LineBuffer(MAX_SERVER_LINE_BYTES)
    is_open = True
    try:
        # Sans écran, rester au clavier ne sert à rien ; un tube, lui, finit d'envoyer.
        while is_open and not (screen.is_lost and sys.stdin.isatty()):
            data = connection.sock.recv(READ_BYTES)
            is_open = data != b""
            for line in map(readable, buffer.feed(data) if is_open else buffer.last_line()):
                screen.show(line)
                connection.note(line)
    except OSError:
        pass  # connexion coupée net : finie, comme une autre
    finally:
        connection.answers.put(None)
        call_keyboard(connection)


def readable(line: bytes) -> str:
    """Rend le texte d'une ligne du serveur, coupée à 256 Kio, sans danger pour l'écran."""
    text = protocol.clean(line[:MAX_SERVER_LINE_BYTES].decode("utf-8", errors="replace"))
    # La coupe a pu partager un caractère, devenu U+FFFD.
    return text.rstrip("\ufffd") + "…" if len(line) > MAX_SERVER_LINE_BYTES else text


def shut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """shutdown, sans effet si la connexion n'existe plus."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)


# --- Le clavier ------------------------------------------------------------------


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
    if not start or readline.get_begidx() > 0:  # seul le premier mot est une commande
        return None
    found = [word for word in protocol.COMMAND_WORDS if word.startswith(start)]
    return found[number] + " " if number < len(found) else None


def ask(prompt: str, screen: Screen) -> str:
    """Montre l'invite, si la sortie est un terminal, et rend la ligne tapée (sans sa fin)."""
    screen.prompt = prompt if sys.stdout.isatty() else ""
    try:
        return input(screen.prompt)
    except (EOFError, KeyboardInterrupt, ServerLost):
        say("")  # quitter la ligne que l'on tapait
        raise
    finally:
        screen.prompt = ""


def read_piece() -> bytes:
    """Rend la ligne suivante d'un tube, ou le début si elle est longue ; lève EOFError."""
    piece = sys.stdin.buffer.readline(READ_BYTES)
    if not piece:
        raise EOFError
    return piece


def asks_to_leave(text: str) -> bool:
    return protocol.parse(text)[0] == "quit"


# --- Interrompre le clavier --------------------------------------------------------


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
        is_asked = number in (signal.SIGINT, signal.SIGTERM)
        connection.is_interrupted |= is_asked
        if connection.is_leaving:
            connection.answers.put(None)
            shut(connection.sock)  # réveille select, qui sinon reprendrait son attente
            return
        connection.is_leaving = True
        raise KeyboardInterrupt if is_asked else ServerLost

    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # Windows n'a pas le dernier
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


# --- De l'arrivée au départ --------------------------------------------------------


def choose_name(name: str | None, screen: Screen) -> str:
    """Rend `name` ou, s'il manque ou n'a que des blancs, celui que l'on tape.

    Lève EOFError si l'on part au lieu d'en donner un.
    """
    while name is None or protocol.is_blank(name):
        if sys.stdin.isatty():
            name = ask(NAME_PROMPT, screen)
        else:
            name = read_piece().decode(errors="replace").rstrip("\r\n")
    if asks_to_leave(name):
        raise EOFError
    return name


def connect(host: str, port: int) -> socket.socket:
    """Rend un socket connecté au serveur, ou lève Refused."""
    try:
        sock = socket.create_connection((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except (socket.gaierror, UnicodeError):
        reason = "adresse inconnue"
    except OSError as error:
        reason = protocol.explain(error)
    where = protocol.host_and_port(host, port)
    raise Refused(f"Connexion impossible à {where} : {reason}. Le serveur est-il lancé ?")


def enter(connection: Connection, name: str, screen: Screen) -> bool:
    """Donne un nom, un autre s'il est refusé ; rend False s'il faut renoncer."""
    while True:
        connection.send(protocol.clean(name))
        if connection.answers.get() is None:
            raise ServerLost
        if connection.is_admitted:
            return True
        # Un serveur complet, ou lassé, ferme aussitôt : demander un autre nom serait vain.
        if connection.wait_for_end(REFUSAL_SECONDS) or not sys.stdin.isatty():
            return False
        name = choose_name(None, screen)


def type_lines(connection: Connection, screen: Screen) -> None:
    """Envoie ce qui est tapé jusqu'à une commande de départ ; lève EOFError à Ctrl+D."""
    while True:
        # Un collage peut donner plusieurs lignes d'un coup.
        for line in ask(PROMPT, screen).replace("\r", "\n").split("\n"):
            if asks_to_leave(line):
                return
            connection.send(line)


def pipe_lines(connection: Connection) -> None:
    """Envoie l'entrée telle quelle jusqu'à une ligne de départ ; lève EOFError à la fin."""
    is_line_start = True
    while True:
        piece = read_piece()
        if is_line_start and asks_to_leave(piece.decode(errors="replace").rstrip("\r\n")):
            return
        connection.sock.sendall(piece)
        is_line_start = piece.endswith(b"\n")


def converse(connection: Connection, name: str, screen: Screen) -> bool:
    """Donne un nom, puis envoie ce qui est tapé ; rend False si aucun nom n'est admis.

    Lève EOFError à la fin de l'entrée, KeyboardInterrupt à Ctrl+C, ServerLost ou OSError si le
    serveur n'est plus là.
    """
    try:
        if not enter(connection, name, screen):
            return False
        if sys.stdin.isatty():
            set_up_readline()
            type_lines(connection, screen)
        else:
            pipe_lines(connection)
        return True
    finally:
        connection.is_leaving = True


def talk(connection: Connection, name: str, screen: Screen) -> int:
    """Tient la conversation jusqu'au départ ; rend le code de sortie."""
    receiver = threading.Thread(
        target=receive_lines, args=(connection, screen), name="receveur", daemon=True
    )
    is_terminal = sys.stdin.isatty()
    is_lost = False
    try:
        listen_to_signals(connection)
        receiver.start()
        if not converse(connection, name, screen):
            return 1
    except (EOFError, KeyboardInterrupt):
        pass
    except (ServerLost, OSError):
        is_lost = not screen.is_lost  # sans écran, c'est nous qui partons
    finally:
        connection.keyboard_out.set()
    if not is_lost:
        is_hasty = is_terminal or connection.is_interrupted
        part(connection, patience=GOODBYE_SECONDS if is_hasty else None)
    if connection.is_interrupted and not connection.is_parted and not is_terminal:
        throw_away_unsent(connection.sock)
    shut(connection.sock)
    if receiver.is_alive():  # Ctrl+C a pu venir avant qu'il démarre
        receiver.join(GOODBYE_SECONDS)
    # Au terminal, partir réussit toujours ; dans un tube, l'au revoir seul prouve que tout est pris.
    if is_terminal and not is_lost:
        say(PARTED)
        return 0
    if connection.is_parted and not is_terminal:
        return 1 if screen.has_failed else 0
    complain(INTERRUPTED if connection.is_interrupted and not is_terminal else LOST)
    return 1


def part(connection: Connection, patience: float | None) -> None:
    """Prend congé : attend de pouvoir le dire, puis l'au revoir, `patience` secondes chaque fois.

    Sans terminal, on attend tant que le serveur vit, ou jusqu'à Ctrl+C : l'au revoir prouve que le
    serveur a tout pris.
    """
    with contextlib.suppress(OSError):  # le serveur est parti le premier
        if select.select([], [connection.sock], [], patience)[1]:  # sinon send bloquerait
            connection.send(LEAVE_LINES)
            shut(connection.sock, socket.SHUT_WR)
            connection.wait_for_end(patience)


def throw_away_unsent(sock: socket.socket) -> None:
    """Fait jeter par close ce qui n'est pas parti (SO_LINGER de 0 s).

    Sinon le système l'enverrait encore après nous : un fantôme parlerait des minutes.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def main() -> int:
    """Rend le code de sortie : 0 si l'on est parti, 2 si une option est refusée, sinon 1."""
    set_up_streams()
    parser = protocol.new_option_parser("Le client du chat.")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = protocol.parse_options(parser)
    except Refused as reason:
        complain(reason)
        return 2
    screen = choose_screen()
    try:
        name = choose_name(options.nom, screen)
        sock = connect(options.hote, options.port)
    except Refused as reason:
        complain(reason)
        return 1
    except (EOFError, KeyboardInterrupt) as reason:
        if sys.stdin.isatty():
            say(PARTED)
            return 0
        complain("Aucun nom donné." if isinstance(reason, EOFError) else INTERRUPTED)
        return 1
    with sock:
        return talk(Connection(sock), name, screen)


if __name__ == "__main__":
    sys.exit(main())
