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
CONNECT_SECONDS = 10  # s en tout pour se connecter : derrière un pare-feu, personne ne répond
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
POLL_SECONDS = 0.02  # s entre deux vérifications de `poll_until`
WAIT_SECONDS = 0.2  # s par attente : sous Windows, Ctrl+C n'est vu qu'entre deux attentes
TICK_SECONDS = 0.5  # s entre deux SIGALRM : note_signal y voit aussi si le serveur est perdu
REFUSAL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus
CATCH_UP_SECONDS = 0.1  # s, dans une fenêtre : ce qu'elle retenait s'affiche avant l'invite
RECENT_SECONDS = 0.3  # s : affichée depuis moins longtemps, une ligne a pu suivre Entrée

ENDINGS = {  # comment la conversation a fini : (ce que le client dit, son code de sortie)
    "left": ("Vous avez quitté le chat.", 0),
    "lost": ("Connexion au serveur perdue.", 1),
    "interrupted": ("Interrompu : une partie de l'envoi est peut-être perdue.", 1),
    "nameless": ("Aucun nom donné.", 1),
    "refused": ("", 1),  # la raison est déjà affichée
}


# --- L'écran -------------------------------------------------------------------


def write(text: str, stream) -> None:
    print(text, end="", file=stream, flush=True)


class Screen:
    """L'affichage le plus simple : print et input. C'est celui d'un tube."""

    gets_signals = True  # Ctrl+C et les autres signaux arrivent au programme
    edits_lines = False  # readline édite la ligne que l'on tape

    def __init__(self, prompt_stream, is_attended: bool) -> None:
        self.prompt_stream = prompt_stream  # où l'invite s'écrit ; None : pas d'invite
        self.is_attended = is_attended  # quelqu'un est là pour répondre
        # Du principal, ou des deux threads, qui tiennent alors ce verrou pour écrire ou modifier.
        self.lock = threading.RLock()
        self.prompt = ""  # du principal : l'invite affichée, "" s'il n'y en a pas
        self.is_row_open = False  # des deux : le curseur est resté au bout d'une rangée
        self.shown_at = -RECENT_SECONDS  # des deux : quand une ligne a été affichée (s)
        self.has_lost_output = False  # des deux : plus rien ne s'écrit sur la sortie
        self.has_write_error = False  # … à cause d'une erreur (disque plein), pas de « | head »

    def show(self, *lines: str) -> None:
        """Affiche des lignes (str sans fin de ligne), ou note que la sortie est perdue."""
        with self.lock:
            try:
                if not self.has_lost_output:
                    self.draw(lines)
            except (OSError, ValueError) as error:
                self.has_lost_output = True
                # Sous Windows, EINVAL signale un tube que personne ne lit plus.
                if getattr(error, "errno", None) not in (errno.EPIPE, errno.EINVAL):
                    self.has_write_error = True
                    reason = protocol.explain(error)
                    self.complain(f"Impossible d'écrire sur la sortie standard : {reason}.")

    def draw(self, lines: tuple[str, ...] | list[str]) -> None:
        """Écrit des lignes puis l'invite, en une fois ; sans lignes, l'invite seule."""
        if lines:
            self.shown_at = time.monotonic()
            self.end_row()
        # Après une ligne, on répète l'invite, sauf sur stderr, où elle devancerait cette ligne.
        prompt = self.prompt if self.prompt_stream is sys.stdout or not lines else ""
        rows = "".join(f"{line}\n" for line in lines)
        write(rows + prompt, sys.stdout if lines else self.prompt_stream)
        self.is_row_open = bool(prompt)

    def end_row(self) -> None:
        if self.is_row_open and not self.has_lost_output:
            write("\n", self.prompt_stream)
            self.is_row_open = False

    def complain(self, sentence: object) -> None:
        """Écrit une phrase sur stderr, sur une rangée à elle ; sans effet si c'est impossible."""
        with self.lock, contextlib.suppress(OSError, ValueError):
            self.end_row()
            write(f"{sentence}\n", sys.stderr)

    def ask(self, prompt: str) -> str:
        """Montre l'invite ; renvoie la ligne tapée, sans sa fin. Thread principal."""
        try:
            text = self.read_line(prompt)
            with self.lock:
                self.finish_row(text)
                self.prompt = ""  # avec le verrou : une ligne reçue la remontrerait
            return text.removeprefix("\ufeff")  # la marque que certains éditeurs ajoutent
        finally:
            self.prompt = ""  # après une exception ; sans le verrou, que Ctrl+S peut bloquer

    def catch_up(self) -> None:
        """Avant une invite, attend ce que l'écran retenait : rien, sauf dans une fenêtre."""

    def show_prompt(self, prompt: str) -> None:
        with self.lock:  # l'invite s'écrit et se note à la fois
            self.prompt = prompt
            self.show()

    def read_line(self, prompt: str) -> str:
        if self.prompt_stream:
            self.show_prompt(prompt)
        # input() viderait d'abord la sortie : si le receveur y est bloqué, aucun signal n'en sort.
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.removesuffix("\n")

    def finish_row(self, text: str) -> None:
        """Après Entrée, la rangée où l'on a tapé `text` est finie, sauf dans un tube, sans écho."""
        self.is_row_open = self.is_row_open and not self.is_attended

    def is_recent(self) -> bool:
        return time.monotonic() - self.shown_at < RECENT_SECONDS


class Window(Screen):
    """Une fenêtre (IDLE, Thonny, Jupyter…), qui gère elle-même les signaux."""

    gets_signals = False

    def catch_up(self) -> None:
        time.sleep(CATCH_UP_SECONDS)

    def read_line(self, prompt: str) -> str:
        self.show_prompt(prompt)
        return input()

    def finish_row(self, text: str) -> None:
        if self.is_recent():
            self.end_row()  # IDLE vient de montrer ce qu'il retenait, et une invite de plus
        super().finish_row(text)


class Terminal(Screen):
    """Un terminal : une ligne reçue s'insère au-dessus de celle que l'on tape."""

    MAKE_ROOM = "\x1bD\x1b[A"  # descend et remonte ; en bas, l'écran défile d'une rangée
    SAVE_CURSOR = "\x1b7"
    INSERT_ROW = "\r\x1b[L"  # une rangée vide prend la place de celle du curseur, qui descend
    RESTORE_CURSOR = "\x1b8\x1b[B"  # là où il était, une rangée plus bas
    ERASE_ROW_ABOVE = "\x1b[A\r\x1b[K"

    def __init__(self, edits_lines: bool, inserts_rows: bool) -> None:
        super().__init__(sys.stdout, is_attended=True)
        self.edits_lines = edits_lines
        self.inserts_rows = inserts_rows
        self.typed = ""  # du principal : ce qui était tapé quand Ctrl+Z l'a arrêté

    def draw(self, lines: tuple[str, ...] | list[str]) -> None:
        rows = [row for line in lines for row in wrap(line, screen_width())]
        if not (self.prompt and self.inserts_rows and rows):
            return super().draw(rows)
        # readline redessinerait la saisie, mais l'appeler d'ici ferait planter l'interpréteur.
        before = self.MAKE_ROOM + self.SAVE_CURSOR + self.INSERT_ROW
        write("".join(before + row + self.RESTORE_CURSOR for row in rows), sys.stdout)
        self.shown_at = time.monotonic()

    def read_line(self, prompt: str) -> str:
        if not self.edits_lines:
            return super().read_line(prompt)
        try:
            # readline écrit lui-même l'invite, puis rend ce verrou (set_pre_input_hook).
            if "libedit" not in (readline.__doc__ or ""):  # libedit ne le rendrait pas
                self.lock.acquire()
            self.prompt, self.is_row_open = prompt, True
            return input(prompt)
        finally:
            with contextlib.suppress(RuntimeError):  # déjà rendu, sauf si un signal a précédé
                self.lock.release()

    def finish_row(self, text: str) -> None:
        """Réécrit en entier une ligne que readline, qui n'en montre qu'une rangée, a coupée."""
        row = (self.prompt + text).expandtabs()
        if self.edits_lines and cells(row) >= screen_width() - 2:  # readline en garde deux
            # Une ligne reçue depuis Entrée serait juste au-dessus : on ne l'efface pas.
            erase = self.ERASE_ROW_ABOVE if self.inserts_rows and not self.is_recent() else ""
            write(f"{erase}{protocol.clean(row)}\n", sys.stdout)
        super().finish_row(text)

    def restore_typed(self) -> None:
        """Remet sous l'invite ce qui était tapé avant Ctrl+Z. readline l'appelle."""
        readline.insert_text(self.typed)
        self.typed = ""


def find_screen(has_name: bool) -> Screen:
    """Renvoie l'affichage qui convient à l'endroit où le programme s'exécute."""
    if protocol.is_window(sys.stdin) or protocol.is_window(sys.stdout):
        return Window(sys.stdout, is_attended=True)
    if not sys.stdin.isatty():
        # Sans --nom, quelqu'un lit peut-être l'autre bout du tube (PyCharm).
        return Screen(None if has_name else sys.stdout, is_attended=False)
    if not sys.stdout.isatty():  # | tee : l'invite reste sur le terminal
        return Screen(sys.stderr, is_attended=True)
    is_unix = os.name != "nt"
    knows_codes = is_unix and os.environ.get("TERM", "dumb") != "dumb"
    # Sans tampon (python3 -u), readline écrit octet par octet : une rangée couperait ses codes.
    inserts_rows = knows_codes and not sys.stdout.write_through
    return Terminal(is_unix and readline is not None, inserts_rows)


def screen_width() -> int:
    return os.get_terminal_size().columns or 80


def cells(text: str) -> int:
    """Renvoie le nombre de cases que `text` occupe à l'écran : 0, 1 ou 2 par caractère."""
    seen = [char for char in text if unicodedata.category(char)[0] != "M" and char != "\u200d"]
    return len(seen) + sum(unicodedata.east_asian_width(char) in "WF" for char in seen)


# Un drapeau (deux lettres) ; ou un caractère, sa couleur de peau et ceux qu'un joint lui attache.
VISIBLE_CHAR = re.compile("[\U0001f1e6-\U0001f1ff]{2}|.(?:[\ufe0f\U0001f3fb-\U0001f3ff]|\u200d.)*")


def wrap(line: str, width: int) -> list[str]:
    """Coupe `line` en rangées d'écran, entre deux mots ; un mot trop long est coupé aussi."""
    rows, used = [""], 0
    for word in re.findall("[^ ]+ ?| ", line.expandtabs()):
        # La dernière case reste vide : certains terminaux iraient déjà à la ligne.
        for piece in [word] if cells(word) < width else VISIBLE_CHAR.findall(word):
            used += cells(piece)  # 0 pour un accent : il reste avec la lettre qui le précède
            if rows[-1] and used >= width:
                rows.append("")
                used = cells(piece)
            rows[-1] += piece
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
        self.sock: socket.socket | None = None  # du principal, qui le ferme ; le receveur y reçoit
        self.answers = 0  # du receveur : les lignes reçues ; avant l'accueil, une par nom refusé
        self.is_admitted = False  # du receveur : le serveur a accepté un nom
        self.said_goodbye = False  # du receveur : la dernière ligne est l'au revoir
        self.is_over = False  # du receveur : le flux est fini
        self.is_loss_said = False  # du receveur : la perte est déjà affichée
        self.is_interrupted = False  # du principal : par Ctrl+C ou kill
        self.is_reading = False  # du principal : il est dans input(), et un signal l'en fait sortir
        self.is_leaving = False  # du principal : il n'attend plus rien du clavier

    def send(self, text: str, seconds: float = math.inf) -> None:
        """Envoie une ligne (str sans fin de ligne) ; lève OSError si elle ne part pas."""
        data, deadline = protocol.encode_line(text), time.monotonic() + seconds
        while data:
            if self.is_over or time.monotonic() > deadline:
                raise ConnectionError
            if select.select([], [self.sock], [], WAIT_SECONDS)[1]:
                data = data[self.sock.send(data) :]

    def close(self) -> None:
        """Ferme la connexion, ce qui termine aussi le recv du receveur."""
        with contextlib.suppress(OSError):  # le serveur l'a peut-être déjà coupée
            if self.is_interrupted and not self.screen.is_attended and not self.said_goodbye:
                # Un tube interrompu : close jette le reste, que le système enverrait des minutes.
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()  # sous Windows, shutdown ne termine pas recv

    def ask(self, prompt: str) -> str:
        """Renvoie la ligne tapée ; ou lève ce que les signaux ou le receveur ont noté."""
        self.screen.catch_up()  # le receveur a pu apprendre la fin entre-temps
        while not (self.is_interrupted or self.is_over):
            try:
                try:
                    self.is_reading = True
                    self.pause_in_background()
                    return self.screen.ask(prompt)
                finally:
                    self.is_reading = False  # avant les except : un signal y lèverait encore
            except (KeyboardInterrupt, SystemError):
                if not self.screen.gets_signals:
                    raise  # une fenêtre ne note rien : elle lève elle-même KeyboardInterrupt
            except OSError:
                raise EOFError from None  # le clavier ne se lit plus (nohup)
        raise KeyboardInterrupt if self.is_interrupted else ConnectionError

    def note_signal(self, number: int, _: object) -> None:
        """Note un signal, puis lève KeyboardInterrupt ; pendant un départ, coupe la connexion.

        On note d'abord, par une affectation : si deux signaux se suivent dans input(), tout appel
        fait ici peut échouer (SystemError). Et input() peut effacer l'exception levée : l'horloge
        (SIGALRM) repasse donc ici, et la lève de nouveau.
        """
        is_stop = number in (signal.SIGINT, signal.SIGTERM)
        self.is_interrupted = self.is_interrupted or is_stop
        is_resumed = self.screen.edits_lines and number == signal.SIGCONT  # absent de Windows
        if self.is_reading and (is_resumed or self.is_interrupted or self.is_over):
            self.pause_in_background()
            if self.screen.edits_lines:
                self.screen.typed = readline.get_line_buffer() or self.screen.typed
            raise KeyboardInterrupt  # pour sortir d'input()
        if is_stop and not self.is_leaving:
            raise KeyboardInterrupt  # pour quitter le reste de la conversation
        if is_stop and self.sock:
            self.close()

    def pause_in_background(self) -> None:
        """En arrière-plan, où SIGTTOU arrêterait readline sans fin : part, ou attend `fg`."""
        if not self.screen.edits_lines:
            return
        with contextlib.suppress(OSError):  # EINTR après l'arrêt, ou un terminal sans premier plan
            if self.is_interrupted and os.tcgetpgrp(0) != os.getpgrp():
                self.is_reading, self.is_leaving = False, True
                os._exit(finish(self, "left"))
            os.tcsetpgrp(0, os.getpgrp())  # ailleurs qu'au premier plan, nous arrête, exprès


def poll_until(condition, seconds: float = math.inf) -> bool:
    """Attend une condition, `seconds` au plus ; renvoie True si elle est vraie."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return bool(condition())


def connect(host: str, port: int) -> socket.socket:
    """Renvoie un socket connecté au serveur, ou lève Refused."""
    found, results = [], []  # les adresses de `host` ; le socket, ou l'erreur

    def attempt() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            results.append(socket.create_connection((host, port), CONNECT_SECONDS / len(found)))
        except (OSError, UnicodeError) as error:
            results.append(error)

    # Rien n'interrompt getaddrinfo : un thread l'attend, et nous attendons ce thread.
    threading.Thread(target=attempt, daemon=True).start()
    poll_until(lambda: results, CONNECT_SECONDS)
    result = results[0] if results else TimeoutError()
    if isinstance(result, socket.socket):
        result.settimeout(None)
        protocol.set_up_socket(result)
        return result
    reason = protocol.explain(result)
    hint = "Le serveur est-il lancé ? Son pare-feu bloque-t-il ce port ?"
    if not found:
        is_unanswered = not results or result.args[0] == socket.EAI_AGAIN  # aucun serveur de noms
        reason = "ce nom n'a pas pu être cherché" if is_unanswered else "adresse inconnue"
        hint = "L'adresse est-elle bien écrite ? Le réseau fonctionne-t-il ?"
    raise Refused(f"Connexion impossible à {protocol.host_and_port(host, port)} : {reason}. {hint}")


# --- Recevoir ----------------------------------------------------------------------


def receive_lines(connection: Connection) -> None:
    """Thread receveur : affiche chaque ligne, et note ce que le thread principal attend."""
    buffer, screen = protocol.LineBuffer(MAX_SERVER_LINE_BYTES), connection.screen
    if hasattr(signal, "pthread_sigmask"):  # c'est le principal qui doit les recevoir
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    is_open = True
    try:
        # Si on ne peut plus afficher, on s'arrête ; un tube lit encore, pour que tout soit envoyé.
        while is_open and not (screen.has_lost_output and screen.is_attended):
            data = connection.sock.recv(RECV_BYTES)
            is_open = bool(data)
            found = buffer.feed(data) if data else buffer.last_line()
            if lines := [readable(line) for line in found]:
                screen.show(*lines)
                if not all(line.startswith(protocol.ERROR) for line in lines):
                    connection.is_admitted = True  # ce qui n'est pas un refus est l'accueil
                connection.answers += len(lines)  # en second : `join` attend ce nombre
                connection.said_goodbye = lines[-1].startswith(protocol.FAREWELL)
    except OSError:
        pass  # la connexion est coupée : le receveur s'arrête aussi
    finally:
        connection.is_over = True
        report_loss(connection)


def readable(line: bytes) -> str:
    """Renvoie le texte d'une ligne du serveur, coupée à 256 Kio, sans danger pour l'écran."""
    text = line[:MAX_SERVER_LINE_BYTES].decode(errors="replace")
    return protocol.clean(text) + ("…" if len(line) > MAX_SERVER_LINE_BYTES else "")


def report_loss(connection: Connection) -> None:
    """Là où rien ne fait sortir d'input() : dit que le serveur est perdu, ou finit le programme."""
    has_clock = connection.screen.gets_signals and hasattr(signal, "setitimer")
    if has_clock or poll_until(lambda: connection.is_leaving, WAIT_SECONDS):
        return
    sentence, code = ENDINGS["lost"]
    if not protocol.session_goes_on():  # Windows
        connection.screen.complain(sentence)
        os._exit(code)
    connection.is_loss_said = True
    connection.screen.complain(f"{sentence} Appuyez sur Entrée.")


# --- Le clavier, de l'arrivée au départ ----------------------------------------------


def set_up_readline(screen: Terminal, settings: contextlib.ExitStack) -> None:
    """Règle readline pour le chat ; `settings` remettra à la fin les réglages d'avant."""
    settings.callback(readline.set_startup_hook, None)
    settings.callback(readline.set_completer, readline.get_completer())
    settings.callback(readline.set_completer_delims, readline.get_completer_delims())
    settings.callback(readline.set_auto_history, True)
    settings.callback(forget_lines, readline.get_current_history_length())
    readline.set_startup_hook(screen.restore_typed)
    readline.set_auto_history(False)  # le nom n'est pas un message que Flèche-haut proposerait
    readline.set_completer_delims("")  # le mot à compléter est tout ce qui précède le curseur
    readline.set_completer(complete)
    if "libedit" in (readline.__doc__ or ""):  # c'est le cas le plus courant sous macOS
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.set_pre_input_hook(screen.lock.release)
        settings.callback(readline.set_pre_input_hook, None)
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set horizontal-scroll-mode on")  # la ligne reste sur une rangée
        settings.callback(readline.parse_and_bind, "set horizontal-scroll-mode off")


def forget_lines(length: int) -> None:
    """Ne garde dans l'historique de readline que ses `length` premières lignes."""
    while readline.get_current_history_length() > length:
        readline.remove_history_item(length)


def complete(start: str, number: int) -> str | None:
    """Renvoie la `number`-ième commande qui commence par `start`, ou insère une tabulation."""
    found = [f"{word} " for word in protocol.COMMAND_WORDS if start and word.startswith(start)]
    if not found:
        readline.insert_text("\t")  # pas une commande : Tab est une tabulation
    return found[number] if number < len(found) else None


def choose_name(name: str, connection: Connection) -> str:
    """Renvoie `name` ou, s'il n'a que des blancs, celui que l'on tape ; "" pour quitter."""
    while not protocol.strip(name):
        name = connection.ask("Entrez votre nom : ")
    return "" if protocol.parse(name)[0] == "quit" else name


def join(connection: Connection, name: str) -> bool:
    """Donne un nom, un autre s'il est refusé ; renvoie False s'il faut renoncer."""
    tries = 0
    while True:
        if not connection.is_over:  # un serveur complet ferme sans attendre le nom
            connection.send(protocol.clean(name))
        tries += 1
        # Un serveur complet refuse avant d'avoir reçu le nom : on compte depuis le début.
        poll_until(lambda: connection.answers >= tries or connection.is_over)
        if connection.is_admitted:
            return True
        if connection.answers < tries:
            raise ConnectionError  # plus de connexion, et pas de réponse
        # Un serveur complet, ou qui a refusé cinq noms, ferme aussitôt.
        is_closed = poll_until(lambda: connection.is_over, REFUSAL_SECONDS)
        if is_closed or not connection.screen.is_attended:
            return False
        if not (name := choose_name("", connection)):
            raise EOFError  # « exit » à la place d'un nom : la fin de l'entrée


def type_lines(connection: Connection) -> None:
    """Envoie ce qui est tapé jusqu'à une commande de départ ; EOFError à la fin de l'entrée."""
    if connection.screen.edits_lines:
        readline.set_auto_history(True)
    while True:
        text = connection.ask("Votre message : ")
        for line in text.replace("\r", "\n").split("\n"):  # un collage peut en donner plusieurs
            if protocol.parse(line)[0] == "quit":
                return
            connection.send(line)


def converse(connection: Connection, options) -> str:
    """Tient la conversation, du nom au départ ; renvoie comment elle a fini (ENDINGS)."""
    screen = connection.screen
    try:
        try:
            if name := choose_name(options.nom or "", connection):
                connection.sock = connect(options.hote, options.port)
                threading.Thread(target=receive_lines, args=[connection], daemon=True).start()
                if not join(connection, name):
                    return "refused"
                type_lines(connection)
        finally:  # aucun signal ne lèvera plus d'exception
            connection.is_leaving = True
    except Refused as reason:
        screen.complain(reason)
        return "refused"
    except EOFError:
        return "left" if screen.is_attended or connection.sock else "nameless"
    except OSError:
        return "left" if screen.has_lost_output else "lost"  # « | head » a fini de lire
    except KeyboardInterrupt:
        pass
    return "left"


def say_goodbye(connection: Connection) -> None:
    """Envoie la commande pour quitter, et attend que le serveur ferme."""
    # Dans un tube, seul l'au revoir prouve que le serveur a tout reçu : on l'attend sans limite.
    is_patient = not (connection.screen.is_attended or connection.is_interrupted)
    patience = math.inf if is_patient else GOODBYE_SECONDS
    # Le serveur peut fermer le premier ; un second Ctrl+C ferme ici (ValueError : socket fermé).
    with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):
        connection.send(f"\n{protocol.QUIT_WORD}", patience)  # \n finit une ligne incomplète
        connection.sock.shutdown(socket.SHUT_WR)
        # Un tube qui attendait sans limite s'en va au premier signal.
        poll_until(
            lambda: connection.is_over or (is_patient and connection.is_interrupted), patience
        )


def finish(connection: Connection, ending: str) -> int:
    """Quitte le serveur si `ending` le demande, et dit la fin ; renvoie le code de sortie."""
    screen = connection.screen
    if connection.sock:
        if ending == "left":
            say_goodbye(connection)
            if not (connection.said_goodbye or screen.is_attended):
                ending = "interrupted" if connection.is_interrupted else "lost"
        connection.close()
        if not poll_until(lambda: connection.is_over, GOODBYE_SECONDS):
            return ENDINGS[ending][1]  # le receveur est bloqué dans une écriture (Ctrl+S)
    sentence, code = ENDINGS[ending]
    if ending == "left" and screen.prompt_stream:
        screen.show(sentence)
    elif ending != "left" and sentence and not connection.is_loss_said:
        screen.complain(sentence)
    return code or int(screen.has_write_error)


def catch_signals(connection: Connection, settings: contextlib.ExitStack) -> None:
    """Confie les signaux à la connexion ; `settings` remettra à la fin les réglages d'avant."""
    for name in ("SIGINT", "SIGTERM", "SIGCONT", "SIGALRM"):
        if number := getattr(signal, name, None):  # Windows n'a pas les deux derniers
            before = signal.signal(number, connection.note_signal)
            settings.callback(signal.signal, number, before)
    if hasattr(signal, "setitimer"):  # l'horloge
        before = signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
        settings.callback(signal.setitimer, signal.ITIMER_REAL, *before)


def main() -> int:
    """Renvoie le code de sortie : 0 si l'on est parti, 2 si une option est refusée, sinon 1."""
    set_up_streams()
    parser = protocol.new_option_parser("Le client", "adresse du serveur")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = protocol.parse_options(parser)
    except Refused as reason:
        find_screen(has_name=True).complain(reason)
        return 2
    screen = find_screen(options.nom is not None)
    connection = Connection(screen)
    with contextlib.ExitStack() as settings:  # ce qu'il faudra remettre en sortant de ce bloc
        if screen.edits_lines:
            set_up_readline(screen, settings)
        if screen.gets_signals:
            catch_signals(connection, settings)
        return finish(connection, converse(connection, options))


if __name__ == "__main__":
    code = main()
    if not protocol.session_goes_on():
        # La fin normale de Python attendrait une sortie que personne ne lit.
        os._exit(code)
