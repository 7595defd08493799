"""Le client du chat : deux threads, l'un reçoit, l'autre (le principal) lit le clavier.

    python3 client_exo.py                                     demande un nom, puis des messages
    printf 'Bonjour\\n' | python3 client_exo.py --nom Robot    envoie son entrée, puis se termine

Il faut deux threads : `input` et `recv` bloquent, et on ne sait pas lequel recevra le premier.
"""

import contextlib
import errno
import math
import os
import re
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

# --- Limites et phrases --------------------------------------------------------

MAX_SERVER_LINE_BYTES = 256 * 1024  # octets : une liste de mille noms y tient
RECV_BYTES = 64 * 1024  # octets par recv
CONNECT_SECONDS = 10  # s pour se connecter : derrière un pare-feu, la réponse peut ne jamais venir
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
POLL_SECONDS = 0.02  # s entre deux lectures des champs que le receveur modifie
WAIT_SECONDS = 0.2  # s par attente : sous Windows, Ctrl+C n'est vu qu'entre deux attentes
REFUSAL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus
RECENT_SECONDS = 0.3  # s pendant lesquelles une ligne reçue a pu suivre la touche Entrée
CATCH_UP_SECONDS = 0.1  # s laissées au receveur, après Entrée, dans une fenêtre

# Une machine disparue se voit en 120 s de silence : 60 s, puis 4 sondes toutes les 15 s.
TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
UNTAKEN_MILLISECONDS = 30_000  # ms sans accusé de réception d'une ligne envoyée

NAME_PROMPT = "Entrez votre nom : "
PROMPT = "Votre message : "

ENDINGS = {  # comment la conversation a fini : (ce que le client dit, son code de sortie)
    "left": ("Vous avez quitté le chat.", 0),
    "lost": ("Connexion au serveur perdue.", 1),
    "interrupted": ("Interrompu : une partie de l'envoi est peut-être perdue.", 1),
    "nameless": ("Aucun nom donné.", 1),
    "refused": ("", 1),  # la raison est déjà affichée
}


class Resumed(Exception):
    """Le programme reprend après Ctrl+Z : levée au milieu d'input() ; str() est le texte tapé."""


# --- L'écran -------------------------------------------------------------------


def write(text: str, stream) -> None:
    print(text, end="", file=stream, flush=True)


class Screen:
    """L'affichage : dans une fenêtre, dans un tube ou sur un terminal."""

    # Dans l'ordre : fait de la place en dessous, note le curseur, insère une rangée, y revient.
    INSERT = "\x1bD\x1b[A" "\x1b7" "\r\x1b[L{}" "\x1b8\x1b[B"

    def __init__(self, has_name: bool) -> None:
        self.in_window = protocol.is_window(sys.stdin) or protocol.is_window(sys.stdout)
        at_keyboard = not self.in_window and sys.stdin.isatty()
        self.in_pipe = not self.in_window and not at_keyboard
        self.has_prompts = not (self.in_pipe and has_name)
        # Quand la sortie va ailleurs (| tee), l'invite reste sur le terminal.
        self.prompt_stream = sys.stderr if at_keyboard and not sys.stdout.isatty() else sys.stdout
        on_terminal = at_keyboard and self.prompt_stream is sys.stdout
        self.edits_lines = on_terminal and readline is not None
        self.inserts_rows = (  # une ligne reçue s'insère au-dessus de ce que l'on tape
            on_terminal and os.name != "nt" and os.environ.get("TERM", "dumb") != "dumb"
            # Sans tampon (python3 -u), readline écrit par octets : une rangée couperait un code.
            and not sys.stdout.write_through
        )  # fmt: skip
        # Il faut tenir ce verrou pour afficher une ligne et pour modifier les champs suivants.
        self.lock = threading.RLock()
        self.prompt = ""  # l'invite affichée, "" s'il n'y en a pas
        self.is_row_open = False  # le curseur est resté au bout d'une rangée
        self.is_lost = False  # plus rien ne s'écrit sur la sortie
        self.has_failed = False  # la cause est une erreur (disque plein), non « | head »
        self.shown_at = -RECENT_SECONDS  # s ; quand une ligne a été affichée

    def show(self, *lines: str) -> None:
        """Affiche des lignes (str sans fin de ligne) ; sans effet si la sortie est perdue."""
        with self.lock:
            try:
                if not self.is_lost:
                    self.draw(lines)
                self.shown_at = time.monotonic()
            except (OSError, ValueError) as error:
                self.is_lost = True
                # Sous Windows, EINVAL signale un tube que personne ne lit plus.
                if getattr(error, "errno", None) not in (errno.EPIPE, errno.EINVAL):
                    self.has_failed = True
                    reason = protocol.explain(error)
                    self.complain(f"Impossible d'écrire sur la sortie standard : {reason}.")

    def draw(self, lines: tuple[str, ...]) -> None:
        if self.prompt and self.inserts_rows:
            # readline redessinerait la saisie, mais l'appeler d'ici ferait planter l'interpréteur.
            rows = [row for line in lines for row in wrap(line, screen_width())]
            return write("".join(self.INSERT.format(row) for row in rows), sys.stdout)
        self.end_row()
        # Écrite sur stderr, l'invite apparaîtrait avant la ligne : on ne la répète pas.
        prompt = self.prompt if self.prompt_stream is sys.stdout else ""
        write("\n".join([*lines, prompt]), sys.stdout)
        self.is_row_open = bool(prompt)

    def end_row(self) -> None:
        if self.is_row_open and not self.is_lost:
            write("\n", self.prompt_stream)
            self.is_row_open = False

    def complain(self, sentence: object) -> None:
        """Écrit une phrase sur stderr, sur une rangée à elle ; sans effet si c'est impossible."""
        with self.lock, contextlib.suppress(OSError, ValueError):
            self.end_row()
            write(f"{sentence}\n", sys.stderr)

    def ask(self, prompt: str, typed: str = "") -> str:
        """Montre l'invite et `typed` ; renvoie la ligne tapée, sans sa fin. Thread principal."""
        if self.edits_lines:
            readline.set_startup_hook(lambda: readline.insert_text(typed))
        try:
            with self.lock:
                self.prompt = prompt if self.has_prompts and not self.is_lost else ""
                self.is_row_open = bool(self.prompt)
            text = self.read_line()
            with self.lock:
                is_recent = time.monotonic() - self.shown_at < RECENT_SECONDS
                if self.in_window and is_recent:
                    self.end_row()  # IDLE n'affiche qu'après Entrée ce qui arrive, et l'invite
                self.is_row_open = self.is_row_open and self.in_pipe  # ailleurs, Entrée la finit
                self.show_whole(text, is_recent)
                self.prompt = ""  # dès maintenant : sinon le receveur la remontrerait
            return text.removeprefix("\ufeff")  # la marque que certains éditeurs ajoutent
        except Resumed as reason:
            return self.ask(prompt, str(reason))
        finally:
            with self.lock:
                self.prompt = ""

    def read_line(self) -> str:
        if self.prompt and self.prompt_stream is sys.stderr:
            write(self.prompt, sys.stderr)
            return input()
        # Sur un disque plein, même écrire une invite vide échouerait.
        return input(self.prompt) if self.prompt else input()

    def show_whole(self, text: str, is_recent: bool) -> None:
        """Réécrit en entier la ligne tapée si readline, qui ne montre qu'une rangée, l'a coupée."""
        row = (self.prompt + text).expandtabs()
        if self.edits_lines and cells(row) >= screen_width() - 2:  # readline en garde une ou deux
            # Une ligne reçue depuis Entrée serait juste au-dessus : on ne l'efface pas.
            erase = "\x1b[A\r\x1b[K" if self.inserts_rows and not is_recent else ""
            write(f"{erase}{protocol.clean(row)}\n", sys.stdout)


def screen_width() -> int:
    return os.get_terminal_size().columns or 80


def cells(text: str) -> int:
    """Renvoie le nombre de cases que `text` occupe à l'écran : 0, 1 ou 2 par caractère."""
    seen = [char for char in text if unicodedata.category(char)[0] != "M" and char != "\u200d"]
    return len(seen) + sum(unicodedata.east_asian_width(char) in "WF" for char in seen)


# Un drapeau (deux lettres) ; ou un caractère, sa couleur de peau et ceux qu'un joint lui attache.
EMOJI = re.compile("[\U0001f1e6-\U0001f1ff]{2}|.(?:[\ufe0f\U0001f3fb-\U0001f3ff]|\u200d.)*")


def wrap(line: str, width: int) -> list[str]:
    """Coupe `line` en rangées d'écran, à un blanc s'il y en a un près du bout de la rangée."""
    rows, used = [""], 0
    for word in re.findall(" +|[^ ]+ *", line.expandtabs()):
        is_near_end = width - used <= width // 3
        for piece in [word] if is_near_end and cells(word) < width else EMOJI.findall(word):
            size = cells(piece)  # 0 pour un accent : il reste avec la lettre qui le précède
            if rows[-1] and used + size >= width:
                rows.append("")
                used = 0
            rows[-1] += piece
            used += size
    return rows


def set_up_streams() -> None:
    """Remplace un flux fermé par /dev/null ; aucun caractère ne doit arrêter le client."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        stream = getattr(sys, name) or open(os.devnull, mode, encoding="utf-8")
        protocol.set_up_stream(stream)
        setattr(sys, name, stream)


# --- La connexion ----------------------------------------------------------------


class Connection:
    """Le lien avec le serveur. Le commentaire de chaque champ dit quel thread le modifie."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.sock: socket.socket | None = None  # le principal y envoie, le receveur y reçoit
        self.reply = ""  # du receveur : la réponse au nom ; le principal l'efface avant un autre
        self.is_over = False  # du receveur : le flux est fini
        self.said_goodbye = False  # du receveur : la dernière ligne est l'au revoir
        self.is_loss_said = False  # du receveur : la perte est déjà affichée
        self.is_interrupted = False  # du principal : par Ctrl+C ou kill
        self.is_leaving = False  # du principal : il n'attend plus rien du clavier

    def send(self, text: str, seconds: float = math.inf) -> None:
        """Envoie une ligne (str sans fin de ligne) ; lève OSError si elle ne part pas."""
        data, deadline = protocol.encode_line(text), time.monotonic() + seconds
        while data:
            if self.is_over or time.monotonic() > deadline:
                raise ConnectionError
            if select.select([], [self.sock], [], WAIT_SECONDS)[1]:
                data = data[self.sock.send(data) :]

    def wait(self, condition, seconds: float = math.inf) -> bool:
        """Attend une condition, `seconds` au plus ; renvoie True si elle est vraie."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return bool(condition())

    def shut(self) -> None:
        """Coupe la connexion dans les deux sens, ce qui termine aussi le recv du receveur."""
        with contextlib.suppress(OSError, AttributeError):  # déjà coupée, ou pas encore faite
            self.sock.shutdown(socket.SHUT_RDWR)

    def handle_signal(self, number: int, _: object) -> None:
        """Fait d'un signal une exception ; un second Ctrl+C coupe la connexion."""
        name = signal.Signals(number).name
        if name == "SIGCONT":
            if self.screen.prompt and self.screen.edits_lines:
                raise Resumed(readline.get_line_buffer())
            return
        is_asked = name != "SIGUSR1"  # celui-là vient du receveur : le serveur est perdu
        self.is_interrupted = self.is_interrupted or is_asked
        if not self.is_leaving:  # à chaque signal : l'exception peut se perdre dans input()
            raise KeyboardInterrupt if is_asked else ConnectionError
        if is_asked:
            self.shut()


def connect(host: str, port: int, in_pipe: bool) -> socket.socket:
    """Renvoie un socket connecté au serveur, ou lève Refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = socket.create_connection((host, port), CONNECT_SECONDS / len(found))
    except (socket.gaierror, UnicodeError):
        reason = "adresse inconnue"
    except OSError as error:
        reason = protocol.explain(error)
    else:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Dans un tube, le serveur peut laisser attendre longtemps : il limite le débit.
        limit = {} if in_pipe else {"TCP_USER_TIMEOUT": UNTAKEN_MILLISECONDS}
        for name, value in (TCP_OPTIONS | limit).items():
            if hasattr(socket, name):  # tous les systèmes ne les ont pas toutes
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        return sock
    hint = "Le serveur est-il lancé ? Son pare-feu bloque-t-il ce port ?"
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
            found = buffer.feed(data) if data else buffer.last_line()
            if lines := [readable(line) for line in found]:
                screen.show(*lines)
                connection.reply = connection.reply or lines[0]
                connection.said_goodbye = lines[-1].startswith(protocol.FAREWELL)
    except OSError:
        pass  # la connexion est coupée : le receveur s'arrête aussi
    finally:
        connection.is_over = True
        interrupt_keyboard(connection)


def readable(line: bytes) -> str:
    """Renvoie le texte d'une ligne du serveur, coupée à 256 Kio, sans danger pour l'écran."""
    text = line[:MAX_SERVER_LINE_BYTES].decode(errors="replace")
    return protocol.clean(text) + ("…" if len(line) > MAX_SERVER_LINE_BYTES else "")


def interrupt_keyboard(connection: Connection) -> None:
    """Fait sortir le thread principal d'input(), que la fin de la connexion ne réveille pas."""
    screen = connection.screen
    while not connection.wait(lambda: connection.is_leaving, WAIT_SECONDS):
        if hasattr(signal, "pthread_kill") and not screen.in_window:
            # Répété, car un signal peut se perdre ; SIGINT, libedit l'enverrait à tout le groupe.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        elif not connection.is_loss_said:
            connection.is_loss_said = True
            in_session = protocol.session_goes_on()
            screen.complain(ENDINGS["lost"][0] + (" Appuyez sur Entrée." if in_session else ""))
            if not in_session:
                os._exit(1)  # Windows : rien n'y réveille input()


# --- Le clavier, de l'arrivée au départ ----------------------------------------------


def set_up_readline(settings: contextlib.ExitStack) -> None:
    """Règle readline pour le chat ; `settings` remettra à la fin les réglages d'avant."""
    settings.callback(readline.set_startup_hook, None)
    settings.callback(readline.set_completer, readline.get_completer())
    settings.callback(readline.set_completer_delims, readline.get_completer_delims())
    settings.callback(readline.set_auto_history, True)
    settings.callback(forget_lines, readline.get_current_history_length())
    readline.set_auto_history(False)  # le nom n'est pas un message que Flèche-haut proposerait
    readline.set_completer_delims("")  # le mot à compléter est tout ce qui précède le curseur
    readline.set_completer(complete)
    if "libedit" in (readline.__doc__ or ""):  # c'est le cas le plus courant sous macOS
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set horizontal-scroll-mode on")  # la ligne reste sur une rangée
        settings.callback(readline.parse_and_bind, "set horizontal-scroll-mode off")


def forget_lines(length: int) -> None:
    """Ne garde dans l'historique de readline que ses `length` premières lignes."""
    while readline.get_current_history_length() > length:
        readline.remove_history_item(length)


def complete(start: str, number: int) -> str | None:
    """Renvoie la `number`-ième commande qui commence par `start` (protocole de readline)."""
    found = [f"{word} " for word in protocol.COMMAND_WORDS if start and word.startswith(start)]
    if not found:
        readline.insert_text("\t")  # pas une commande : Tab est une tabulation
    return found[number] if number < len(found) else None


def choose_name(name: str, screen: Screen) -> str:
    """Renvoie `name` ou, s'il n'a que des blancs, celui que l'on tape ; "" pour quitter."""
    while not protocol.strip(name):
        name = screen.ask(NAME_PROMPT)
    return "" if protocol.parse(name)[0] == "quit" else name


def join(connection: Connection, name: str) -> bool:
    """Donne un nom, un autre s'il est refusé ; renvoie False s'il faut renoncer."""
    while True:
        connection.send(protocol.clean(name))
        connection.wait(lambda: connection.reply or connection.is_over)
        if not connection.reply:
            raise ConnectionError
        if not connection.reply.startswith(protocol.ERROR):
            return True
        # Un serveur complet, ou qui a refusé cinq noms, ferme aussitôt.
        is_closed = connection.wait(lambda: connection.is_over, REFUSAL_SECONDS)
        if is_closed or connection.screen.in_pipe:
            return False
        connection.reply = ""  # pas avant connect : un serveur complet répond sans attendre le nom
        if not (name := choose_name("", connection.screen)):
            raise EOFError


def type_lines(connection: Connection) -> None:
    """Envoie ce qui est tapé jusqu'à une commande de départ ; EOFError à la fin de l'entrée."""
    if connection.screen.edits_lines:
        readline.set_auto_history(True)
    while True:
        text = connection.screen.ask(PROMPT)
        if connection.screen.in_window:  # ce qu'IDLE retenait s'affiche avant l'invite suivante
            connection.wait(lambda: connection.is_over, CATCH_UP_SECONDS)
        for line in text.replace("\r", "\n").split("\n"):  # un collage peut en donner plusieurs
            if protocol.parse(line)[0] == "quit":
                return
            connection.send(line)


def leave(connection: Connection) -> str:
    """Envoie la commande pour quitter, attend l'au revoir ; renvoie comment cela a fini."""
    # Dans un tube, seul l'au revoir prouve que le serveur a tout reçu : on l'attend sans limite.
    in_pipe = connection.screen.in_pipe
    patience = math.inf if in_pipe and not connection.is_interrupted else GOODBYE_SECONDS
    # Le serveur peut fermer le premier, et une fenêtre peut recevoir un second Ctrl+C.
    with contextlib.suppress(OSError, KeyboardInterrupt):
        # Le premier \n termine une ligne restée incomplète.
        connection.send(f"\n{protocol.QUIT_WORD}", patience)
        connection.sock.shutdown(socket.SHUT_WR)
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
    """Tient la conversation, du nom à l'au revoir ; renvoie comment elle a fini (ENDINGS)."""
    screen, ending = connection.screen, "left"
    try:
        try:
            if name := choose_name(options.nom or "", screen):
                connection.sock = connect(options.hote, options.port, screen.in_pipe)
                threading.Thread(target=receive_lines, args=[connection], daemon=True).start()
                if join(connection, name):
                    type_lines(connection)
                else:
                    ending = "refused"
        finally:  # aucun signal ne lèvera plus d'exception
            connection.is_leaving = True
    except Refused as reason:
        screen.complain(reason)
        ending = "refused"
    except (EOFError, KeyboardInterrupt) as reason:
        if isinstance(reason, EOFError) and screen.in_pipe and not connection.sock:
            ending = "nameless"
    except OSError:
        ending = "left" if screen.is_lost else "lost"
    if connection.sock:
        if ending == "left":
            ending = leave(connection)
        connection.shut()
        connection.wait(lambda: connection.is_over, GOODBYE_SECONDS)
        connection.sock.close()
    return ending


def catch_signals(connection: Connection, settings: contextlib.ExitStack) -> None:
    """Confie les signaux à la connexion ; `settings` remettra à la fin les réglages d'avant."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGCONT"):
        if number := getattr(signal, name, None):  # Windows n'a pas les deux derniers
            before = signal.signal(number, connection.handle_signal)
            after = before if protocol.session_goes_on() else signal.SIG_IGN
            settings.callback(signal.signal, number, after)


def main() -> int:
    """Renvoie le code de sortie : 0 si l'on est parti, 2 si une option est refusée, sinon 1."""
    set_up_streams()
    parser = protocol.new_option_parser("Le client", "adresse du serveur")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = protocol.parse_options(parser)
    except Refused as reason:
        Screen(has_name=True).complain(reason)
        return 2
    screen = Screen(options.nom is not None)
    connection = Connection(screen)
    with contextlib.ExitStack() as settings:  # ce qu'il faudra remettre en sortant de ce bloc
        if screen.edits_lines:
            set_up_readline(settings)
        if not screen.in_window:  # une fenêtre (IDLE…) gère elle-même les signaux
            catch_signals(connection, settings)
        ending = run(connection, options)
    sentence, code = ENDINGS[ending]
    code = code or int(screen.has_failed)
    # Un receveur qui n'a pas fini est bloqué dans une écriture (Ctrl+S).
    is_stuck = connection.sock is not None and not connection.is_over
    if (screen.is_lost or is_stuck) and not protocol.session_goes_on():
        os._exit(code)  # la fin normale de Python attendrait encore cette sortie
    if ending == "left" and screen.has_prompts:
        screen.show(sentence)
    elif ending != "left" and sentence and not connection.is_loss_said:
        screen.complain(sentence)
    return code


if __name__ == "__main__":
    code = main()
    if not protocol.session_goes_on():
        sys.exit(code)
