"""Le client du chat : deux threads, l'un reçoit, l'autre (le principal) tient le clavier.

    python3 client_exo.py                        demande un nom, puis des messages
    printf 'Bonjour\\n' | python3 client_exo.py --nom Robot
                                                 dans un tube : envoie son entrée, puis finit

Il faut deux threads : `input` et `recv` bloquent, et on ne sait pas lequel recevra le premier.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from typing import TextIO

import chat_protocol as protocol
from chat_protocol import Refused

try:
    import readline  # l'importer suffit : input() sait alors éditer la ligne
except ImportError:  # Windows
    readline = None

# --- Limites et phrases --------------------------------------------------------

MAX_SERVER_LINE_BYTES = 256 * 1024  # octets : une liste de mille noms y tient
RECV_BYTES = 64 * 1024  # octets par recv
CONNECT_SECONDS = 10  # s pour se connecter : un pare-feu peut ne jamais répondre
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
POLL_SECONDS = 0.02  # s entre deux regards sur ce que le receveur a écrit
WAIT_SECONDS = 0.2  # s par attente : sous Windows, Ctrl+C n'est vu qu'entre deux attentes
REFUSAL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus
RECENT_SECONDS = 0.3  # s pendant lesquelles une ligne reçue a pu suivre la touche Entrée

# Une machine disparue se voit en 120 s de silence (60 s, puis 4 sondes toutes les 15 s), ou
# 30 000 ms après une ligne dont le serveur n'accuse pas réception.
TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
TCP_OPTIONS["TCP_USER_TIMEOUT"] = 30_000

NAME_PROMPT = "Entrez votre nom : "
PROMPT = "Votre message : "
LEAVE_LINES = f"\n{protocol.QUIT_WORD}"  # le premier \n termine une ligne restée incomplète

ENDINGS = {  # comment la conversation a fini : (ce que le client dit, son code de sortie)
    "left": ("Vous avez quitté le chat.", 0),
    "lost": ("Connexion au serveur perdue.", 1),
    "interrupted": ("Interrompu : une partie de l'envoi est peut-être perdue.", 1),
    "nameless": ("Aucun nom donné.", 1),
    "refused": ("", 1),  # le serveur a dit pourquoi
    "unwritten": ("", 1),  # la sortie est perdue, et c'est déjà dit
}


class Resumed(Exception):
    """Le programme reprend après Ctrl+Z : levée au milieu d'input()."""


class ServerLost(Exception):
    """Le serveur n'est plus là : levée au milieu d'input()."""


# --- L'écran -------------------------------------------------------------------


def write(text: str, stream: TextIO) -> None:
    print(text, end="", file=stream, flush=True)


class Screen:
    """Un affichage simple : une fenêtre, un tube, un fichier, un terminal sans codes."""

    def __init__(self, has_name: bool) -> None:
        self.in_window = protocol.is_window(sys.stdin) or protocol.is_window(sys.stdout)
        at_keyboard = not self.in_window and sys.stdin.isatty()
        self.in_pipe = not self.in_window and not at_keyboard
        self.has_prompts = not (self.in_pipe and has_name)
        # Quand la sortie va ailleurs (| tee), l'invite reste sur le terminal.
        self.prompt_stream = sys.stderr if at_keyboard and not sys.stdout.isatty() else sys.stdout
        # Il faut tenir ce verrou pour écrire et pour toucher aux champs suivants.
        self.lock = threading.RLock()
        self.prompt = ""  # l'invite affichée, "" s'il n'y en a pas
        self.is_row_open = False  # le curseur est resté au bout d'une rangée
        self.is_lost = False  # plus rien ne s'écrit sur la sortie
        self.has_failed = False  # et c'est par une erreur (disque plein), non par « | head »

    def show(self, line: str) -> None:
        """Affiche une ligne (str sans fin de ligne) ; sans effet si la sortie est perdue."""
        with self.lock:
            if self.is_lost:
                return
            try:
                self.draw(line)
            except (OSError, ValueError) as error:
                self.is_lost = True
                # EINVAL : ce que dit Windows d'un tube que personne ne lit plus.
                if getattr(error, "errno", None) not in (errno.EPIPE, errno.EINVAL):
                    self.has_failed = True
                    reason = protocol.explain(error)
                    self.complain(f"Impossible d'écrire sur la sortie standard : {reason}.")

    def draw(self, line: str) -> None:
        self.end_row()
        write(f"{line}\n", sys.stdout)
        if self.prompt:
            write(self.prompt, self.prompt_stream)
            self.is_row_open = True

    def end_row(self) -> None:
        if self.is_row_open:
            write("\n", self.prompt_stream)
            self.is_row_open = False

    def complain(self, sentence: object) -> None:
        """Écrit une phrase sur stderr, sur une rangée à elle ; sans effet si c'est impossible."""
        with self.lock, contextlib.suppress(OSError, ValueError):
            if not self.is_lost:
                self.end_row()
            write(f"{sentence}\n", sys.stderr)

    def ask(self, prompt: str) -> str:
        """Montre l'invite et renvoie la ligne tapée, sans sa fin. Thread principal seul."""
        with self.lock:
            self.prompt = prompt if self.has_prompts and not self.is_lost else ""
            self.is_row_open = bool(self.prompt)
        try:
            text = self.read_line()
            self.is_row_open &= self.in_pipe  # ailleurs, la touche Entrée a fini la rangée
        finally:
            with self.lock:
                self.prompt = ""
        return text.removeprefix("\ufeff")  # la marque que certains éditeurs ajoutent

    def read_line(self) -> str:
        if self.prompt_stream is sys.stdout:
            return input(self.prompt) if self.prompt else input()
        write(self.prompt, self.prompt_stream)
        return input()


class Terminal(Screen):
    """Un terminal où une ligne peut arriver pendant que l'on tape.

    Le thread receveur n'appelle pas readline (l'interpréteur planterait) : il insère une rangée.
    """

    # Fait de la place en dessous ; note où est le curseur ; insère une rangée ; rend le curseur.
    INSERT = "\x1bD\x1b[A" "\x1b7" "\r\x1b[L{}" "\x1b8\x1b[B"
    shown_at = -RECENT_SECONDS  # s ; quand la dernière ligne a été affichée

    def draw(self, line: str) -> None:
        if not self.prompt:
            return super().draw(line)
        rows = wrap(line, screen_width())
        write("".join(self.INSERT.format(row) for row in rows), sys.stdout)
        self.shown_at = time.monotonic()

    def read_line(self) -> str:
        try:
            text = input(self.prompt)
        except Resumed as reason:  # l'invite et le texte sont à afficher de nouveau
            typed = str(reason)
            readline.set_startup_hook(lambda: readline.insert_text(typed))
            return self.read_line()
        if readline is None:
            return text
        readline.set_startup_hook(None)
        # readline ne garde qu'une rangée : d'une ligne plus longue, seule la fin est affichée.
        if sum(map(cells, self.prompt + text)) >= screen_width():
            with self.lock:
                # Une ligne reçue depuis Entrée serait juste au-dessus : on ne l'efface pas.
                is_recent = time.monotonic() - self.shown_at < RECENT_SECONDS
                erase = "" if is_recent else "\x1b[A\r\x1b[K"
                write(f"{erase}{protocol.clean(self.prompt + text)}\n", sys.stdout)
        return text


def screen_width() -> int:
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80


def cells(char: str) -> int:
    """Renvoie le nombre de cases qu'un caractère occupe à l'écran : 0, 1 ou 2."""
    if unicodedata.category(char)[0] == "M" or char == "\u200d":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clusters(text: str) -> list[str]:
    """Renvoie les caractères de `text`, ceux qui vont ensemble (accents, drapeaux) groupés."""
    groups = [""]
    for char in text:
        group = groups[-1]
        is_flag = len(group) == 1 and all("\U0001f1e6" <= c <= "\U0001f1ff" for c in group + char)
        is_color = "\U0001f3fb" <= char <= "\U0001f3ff"
        if not group or cells(char) == 0 or group[-1] == "\u200d" or is_flag or is_color:
            groups[-1] += char
        else:
            groups.append(char)
    return groups


def wrap(line: str, width: int) -> list[str]:
    """Coupe `line` en rangées d'écran, à un blanc s'il y en a un près du bout de la rangée."""
    rows, used = [""], 0
    for group in clusters(line.expandtabs()):
        size = sum(map(cells, group))
        if rows[-1] and used + size >= width:
            tail = rows[-1].rpartition(" ")[2]
            if len(tail) > width // 3 or tail == rows[-1]:
                tail = ""
            rows[-1:] = [rows[-1].removesuffix(tail), tail]
            used = sum(map(cells, tail))
        rows[-1] += group
        used += size
    return rows


def set_up_streams() -> None:
    """Remplace un flux fermé par /dev/null ; aucun caractère ne doit arrêter le client."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    protocol.set_up_stream(sys.stdout)
    protocol.set_up_stream(sys.stderr)
    if not protocol.is_window(sys.stdin):
        sys.stdin.reconfigure(errors="surrogateescape")  # encode_line en fera un « ? »


def choose_screen(has_name: bool) -> Screen:
    """Renvoie un Terminal là où l'on peut y insérer des rangées, sinon un affichage simple."""
    screen = Screen(has_name)
    is_simple = screen.in_window or screen.in_pipe or screen.prompt_stream is sys.stderr
    # Sans tampon (python3 -u), readline écrit par caractère : une rangée y couperait un code.
    if is_simple or sys.stdout.write_through or os.name == "nt":
        return screen
    return screen if os.environ.get("TERM", "dumb") == "dumb" else Terminal(has_name)


# --- La connexion ----------------------------------------------------------------


class Connection:
    """Le lien avec le serveur. Le commentaire de chaque champ dit quel thread le modifie."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.sock: socket.socket | None = None  # le principal y envoie, le receveur y reçoit
        self.reply = ""  # du receveur : sa réponse au nom ; du principal : "" avant d'en donner un
        self.is_over = False  # du receveur : le flux est fini
        self.said_goodbye = False  # du receveur : la dernière ligne est l'au revoir
        self.is_loss_said = False  # du receveur : la perte est déjà affichée
        self.is_interrupted = False  # du principal : par Ctrl+C ou kill
        self.is_leaving = False  # du principal : il n'attend plus rien du clavier

    def send(self, text: str) -> None:
        """Envoie une ligne (str sans fin de ligne) ; ServerLost ou OSError si c'est impossible."""
        data = protocol.encode_line(text)
        while data:
            if self.is_over:
                raise ServerLost
            if select.select([], [self.sock], [], WAIT_SECONDS)[1]:
                data = data[self.sock.send(data) :]

    def wait(self, condition: Callable, seconds: float | None = None) -> bool:
        """Attend une condition, `seconds` au plus (None : sans limite) ; dit si elle est vraie."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition() and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL_SECONDS)
        return bool(condition())

    def shut(self) -> None:
        """Coupe la connexion dans les deux sens, ce qui termine aussi le recv du receveur."""
        with contextlib.suppress(OSError, AttributeError):  # déjà coupée, ou pas encore faite
            self.sock.shutdown(socket.SHUT_RDWR)

    def handle_signal(self, number: int, _: object) -> None:
        """Fait d'un signal une exception ; un second Ctrl+C coupe la connexion."""
        if number == getattr(signal, "SIGCONT", None) and self.screen.prompt:
            raise Resumed(readline.get_line_buffer())
        is_asked = number in (signal.SIGINT, signal.SIGTERM)
        self.is_interrupted |= is_asked
        if is_asked and self.is_leaving:
            self.shut()
        elif is_asked or (number == getattr(signal, "SIGUSR1", None) and not self.is_leaving):
            self.is_leaving = True
            raise KeyboardInterrupt if is_asked else ServerLost


def connect(host: str, port: int, in_pipe: bool) -> socket.socket:
    """Renvoie un socket connecté au serveur, ou lève Refused."""
    hint = "Le serveur est-il lancé ?"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = socket.create_connection((host, port), CONNECT_SECONDS / len(found))
        if sock.getsockname() == sock.getpeername():  # sans serveur, TCP peut nous relier à nous
            sock.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, "")
    except (socket.gaierror, UnicodeError):
        reason = "adresse inconnue"
    except OSError as error:
        reason = protocol.explain(error)
        if isinstance(error, TimeoutError):
            hint = "Est-ce la bonne adresse ? Le pare-feu du serveur bloque-t-il ce port ?"
    else:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in TCP_OPTIONS.keys() & dir(socket):  # tous les systèmes ne les ont pas toutes
            # Dans un tube, le serveur peut laisser attendre longtemps : il limite le débit.
            if name != "TCP_USER_TIMEOUT" or not in_pipe:
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), TCP_OPTIONS[name])
        return sock
    raise Refused(f"Connexion impossible à {protocol.host_and_port(host, port)} : {reason}. {hint}")


# --- Recevoir ----------------------------------------------------------------------


def receive_lines(connection: Connection) -> None:
    """Thread receveur : affiche chaque ligne, puis prévient le thread principal de la fin."""
    buffer, screen = protocol.LineBuffer(MAX_SERVER_LINE_BYTES), connection.screen
    if hasattr(signal, "pthread_sigmask"):  # un signal reçu par ce thread ne réveille pas input()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    data = b"\n"
    try:
        # Si on ne peut plus afficher, on s'arrête ; mais un tube envoie d'abord tout.
        while data and (screen.in_pipe or not screen.is_lost):
            data = connection.sock.recv(RECV_BYTES)
            for line in buffer.feed(data) if data else buffer.last_line():
                text = readable(line)
                screen.show(text)
                connection.reply = connection.reply or text
                connection.said_goodbye = text.startswith(protocol.FAREWELL)
    except OSError:
        pass  # la connexion est coupée : c'est une fin comme une autre
    finally:
        connection.is_over = True
        interrupt_keyboard(connection)


def readable(line: bytes) -> str:
    """Renvoie le texte d'une ligne du serveur, coupée à 256 Kio, sans danger pour l'écran."""
    end, cut = len(line), ""
    if end > MAX_SERVER_LINE_BYTES:
        end, cut = MAX_SERVER_LINE_BYTES, "…"
        while line[end] & 0xC0 == 0x80 and end > MAX_SERVER_LINE_BYTES - 4:
            end -= 1  # au milieu d'un caractère
    return protocol.clean(line[:end].decode("utf-8", errors="replace")) + cut


def interrupt_keyboard(connection: Connection) -> None:
    """Fait sortir le thread principal d'input() par un signal, répété car un seul peut se perdre."""
    while not connection.wait(lambda: connection.is_leaving, WAIT_SECONDS):
        if not connection.screen.in_window and hasattr(signal, "pthread_kill"):
            # SIGUSR1 et non SIGINT, que libedit renverrait à tout le groupe de processus.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            continue
        sentence, code = ENDINGS["lost"]
        connection.screen.is_row_open = True
        if not protocol.session_goes_on():  # Windows : rien ne réveille input()
            connection.screen.complain(sentence)
            os._exit(code)
        connection.screen.complain(f"{sentence} Appuyez sur Entrée.")
        connection.is_loss_said = True
        return


# --- Le clavier --------------------------------------------------------------------


def set_up_readline() -> Callable[[], None]:
    """Règle readline pour le chat ; renvoie une fonction qui remet ses réglages."""
    completer, delims = readline.get_completer(), readline.get_completer_delims()
    length = readline.get_current_history_length()
    is_libedit = "libedit" in (readline.__doc__ or "")  # macOS a le plus souvent celui-là
    readline.set_auto_history(False)  # le nom n'est pas un message que Flèche-haut proposerait
    readline.set_completer_delims(" \t")
    readline.set_completer(complete)
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    if not is_libedit:
        readline.parse_and_bind("set horizontal-scroll-mode on")  # la ligne reste sur une rangée

    def restore() -> None:
        while readline.get_current_history_length() > length:
            readline.remove_history_item(length)
        readline.set_auto_history(True)
        readline.set_completer(completer)
        readline.set_completer_delims(delims)
        if not is_libedit:
            readline.parse_and_bind("set horizontal-scroll-mode off")

    return restore


def complete(start: str, number: int) -> str | None:
    """Renvoie la `number`-ième commande qui commence par `start` (protocole de readline)."""
    found = []
    if start.startswith("/") and readline.get_begidx() == 0:
        found = [word for word in protocol.COMMAND_WORDS if word.startswith(start)]
    if not found:
        readline.insert_text("\t")  # pas une commande : Tab est une tabulation
    return found[number] + " " if number < len(found) else None


def asks_to_leave(text: str) -> bool:
    return protocol.parse(text)[0] == "quit"


def choose_name(name: str, screen: Screen) -> str:
    """Renvoie `name` ou, s'il n'a que des blancs, celui que l'on tape ; "" pour quitter."""
    while protocol.is_blank(name):
        name = screen.ask(NAME_PROMPT)
    return "" if asks_to_leave(name) else name


# --- De l'arrivée au départ --------------------------------------------------------


def join(connection: Connection, name: str) -> bool:
    """Donne un nom, un autre s'il est refusé ; renvoie False s'il faut renoncer."""
    while True:
        connection.send(protocol.clean(name))
        connection.wait(lambda: connection.reply or connection.is_over)
        if not connection.reply:
            raise ServerLost
        if not connection.reply.startswith(protocol.ERROR):
            return True
        # Un serveur complet, ou qui a refusé cinq noms, ferme aussitôt.
        is_closed = connection.wait(lambda: connection.is_over, REFUSAL_SECONDS)
        if is_closed or connection.screen.in_pipe:
            return False
        connection.reply = ""  # un serveur complet répond sans attendre le nom : jamais plus tôt
        if not (name := choose_name("", connection.screen)):
            raise EOFError


def type_lines(connection: Connection) -> None:
    """Envoie ce qui est tapé jusqu'à une commande de départ ; EOFError à la fin de l'entrée."""
    if readline:
        readline.set_auto_history(True)
    while True:
        # Un collage peut donner plusieurs lignes en une fois.
        for line in connection.screen.ask(PROMPT).replace("\r", "\n").split("\n"):
            if asks_to_leave(line):
                return
            connection.send(line)


def chat(connection: Connection, name: str) -> str:
    """Tient la conversation, du nom à l'au revoir ; renvoie comment elle a fini (ENDINGS)."""
    screen = connection.screen
    receiver = threading.Thread(target=receive_lines, args=[connection], daemon=True)
    ending = "left"
    try:
        receiver.start()
        if join(connection, name):
            type_lines(connection)
        else:
            ending = "refused"
    except (EOFError, KeyboardInterrupt) as reason:
        connection.is_interrupted |= isinstance(reason, KeyboardInterrupt)
    except (ServerLost, OSError):
        ending = "left" if screen.is_lost else "lost"
    finally:
        connection.is_leaving = True
    if ending == "left":
        ending = leave(connection)
    connection.shut()
    receiver.join(GOODBYE_SECONDS)
    screen.is_lost |= receiver.is_alive()  # bloqué dans une écriture (Ctrl+S)
    return "unwritten" if ending == "left" and screen.has_failed else ending


def leave(connection: Connection) -> str:
    """Envoie la commande pour quitter, attend l'au revoir ; renvoie comment cela a fini."""
    # Dans un tube, seul l'au revoir prouve que le serveur a tout reçu : on l'attend sans limite.
    in_pipe = connection.screen.in_pipe
    patience = None if in_pipe and not connection.is_interrupted else GOODBYE_SECONDS
    with contextlib.suppress(OSError, ServerLost):  # le serveur est parti le premier
        sock = connection.sock
        connection.wait(lambda: connection.is_over or select.select([], [sock], [], 0)[1], patience)
        if select.select([], [sock], [], 0)[1]:
            connection.send(LEAVE_LINES)
            sock.shutdown(socket.SHUT_WR)
            connection.wait(lambda: connection.is_over, patience)
    if connection.said_goodbye or not in_pipe:
        return "left"
    if not connection.is_interrupted:
        return "lost"
    # close jettera ce qui n'est pas parti : le système l'enverrait encore pendant des minutes.
    with contextlib.suppress(OSError):
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "interrupted"


def run(connection: Connection, options) -> str:
    """Demande un nom, se connecte et tient la conversation ; renvoie comment elle a fini."""
    screen = connection.screen
    try:
        if not (name := choose_name(options.nom or "", screen)):
            return "left"
        connection.sock = connect(options.hote, options.port, screen.in_pipe)
    except EOFError:
        return "nameless" if screen.in_pipe else "left"
    except KeyboardInterrupt:
        return "interrupted" if screen.in_pipe else "left"
    except Refused as reason:
        screen.complain(reason)
        return "refused"
    with connection.sock:
        return chat(connection, name)


def catch_signals(connection: Connection) -> dict:
    """Confie les signaux à la connexion, sauf dans une fenêtre ; renvoie les anciens réglages."""
    if connection.screen.in_window:
        return {}
    names = {"SIGINT", "SIGTERM", "SIGUSR1", "SIGCONT"} & set(dir(signal))  # Windows en a deux
    if readline is None or not isinstance(connection.screen, Terminal):
        names.discard("SIGCONT")
    numbers = [getattr(signal, name) for name in names]
    return {number: signal.signal(number, connection.handle_signal) for number in numbers}


def main() -> int:
    """Renvoie le code de sortie : 0 si l'on est parti, 2 si une option est refusée, sinon 1."""
    set_up_streams()
    parser = protocol.new_option_parser("Le client du chat.")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = protocol.parse_options(parser)
    except Refused as reason:
        Screen(has_name=True).complain(reason)
        return 2
    screen = choose_screen(options.nom is not None)
    connection = Connection(screen)
    has_readline = readline and not screen.in_window and not screen.in_pipe
    restore_readline = set_up_readline() if has_readline else lambda: None
    signals = catch_signals(connection)
    try:
        ending = run(connection, options)
    finally:
        restore_readline()
        for number, handler in signals.items():  # à la session qui continue, s'il y en a une
            signal.signal(number, handler if protocol.session_goes_on() else signal.SIG_IGN)
    sentence, code = ENDINGS[ending]
    if screen.is_lost and not protocol.session_goes_on():
        os._exit(code)  # la fin normale de Python voudrait encore écrire
    if ending == "left" and screen.has_prompts:
        screen.show(sentence)
    elif ending != "left" and sentence and not connection.is_loss_said:
        screen.complain(sentence)
    return code


if __name__ == "__main__":
    code = main()
    if not protocol.session_goes_on():
        sys.exit(code)
