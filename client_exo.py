"""Le client du chat : deux threads, l'un reçoit, l'autre (le principal) lit le clavier.

    python3 client_exo.py                                     demande un nom, puis des messages
    printf 'Bonjour\\n' | python3 client_exo.py --nom Robot    envoie son entrée, puis se termine

Il faut deux threads : `input` et `recv` bloquent, et on ne sait pas lequel recevra le premier.
"""

import contextlib
import errno
import itertools
import math
import os
import re
import select
import signal
import socket
import struct
import sys
import textwrap
import threading
import time
from unicodedata import category, east_asian_width

import chat_protocol as protocol
from chat_protocol import Refused

readline = None
with contextlib.suppress(ImportError):  # Windows
    import readline  # l'importer suffit : input() sait alors éditer la ligne

MAX_SERVER_LINE_BYTES = 256 * 1024  # octets : une liste de mille noms y tient
RECV_BYTES = 64 * 1024  # octets par recv
CONNECT_SECONDS = 10  # s en tout pour se connecter : derrière un pare-feu, personne ne répond
GOODBYE_SECONDS = 2  # s d'attente de l'au revoir du serveur
POLL_SECONDS = 0.02  # s entre deux vérifications de `poll_until`
WAIT_SECONDS = 0.5  # s par attente, et entre deux SIGALRM : délai pour voir ce qui a été noté
MAX_RETRIES = 9  # envois sans réponse, soit 100 s : un serveur lent répond, un disparu non
TCP_INFO = getattr(socket, "TCP_INFO", None)  # seul Linux compte les envois sans réponse
REFUSAL_SECONDS = 0.5  # s pour voir si le serveur ferme après un refus
CATCH_UP_SECONDS = 0.1  # s, dans une fenêtre : ce qu'elle retenait s'affiche avant l'invite
RECENT_SECONDS = 0.3  # s : plus récente, une ligne a pu suivre Entrée (voir finish_row)

# Comment la conversation a fini : ce que le client en dit, et son code de sortie.
LEFT = "Vous avez quitté le chat.", 0
LOST = "Connexion au serveur perdue.", 1
INTERRUPTED = "Interrompu : une partie de l'envoi est peut-être perdue.", 1


class Screen:
    """L'affichage le plus simple : print et input. C'est celui d'un tube."""

    gets_signals = True  # Ctrl+C et les autres signaux arrivent au programme
    edits_lines = False  # readline édite la ligne que l'on tape

    def __init__(self, prompt_stream, is_attended: bool) -> None:
        self.prompt_stream = prompt_stream  # où l'invite s'écrit ; None : pas d'invite
        self.is_attended = is_attended  # quelqu'un est là pour répondre
        # Les deux threads le tiennent pour écrire, et pour modifier un champ « des deux ».
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
                self.shown_at = time.monotonic() if lines else self.shown_at  # IDLE écrit tard
            except (OSError, ValueError) as error:
                self.has_lost_output = True
                if getattr(error, "errno", None) not in (errno.EPIPE, errno.EINVAL):  # (Windows)
                    self.has_write_error = True
                    self.complain(f"Impossible d'afficher la suite : {protocol.explain(error)}.")

    def draw(self, lines: tuple[str, ...] | list[str]) -> None:
        """Écrit des lignes puis l'invite, en une fois ; sans lignes, l'invite seule."""
        if lines:
            self.end_row()
        # Après une ligne, on répète l'invite, sauf sur stderr (| tee) : elle devancerait la ligne.
        prompt = self.prompt if self.prompt_stream is sys.stdout or not lines else ""
        rows = "".join(f"{line}\n" for line in lines)
        stream = sys.stdout if lines else self.prompt_stream
        print(rows + prompt, end="", file=stream, flush=True)
        self.is_row_open = bool(prompt)

    def end_row(self) -> None:
        if self.is_row_open and not self.has_lost_output:
            print(file=self.prompt_stream, flush=True)
            self.is_row_open = False

    def complain(self, sentence: object) -> None:
        """Écrit une phrase sur stderr, sur une rangée à elle ; sans effet si c'est impossible."""
        with self.lock, contextlib.suppress(OSError, ValueError):
            self.end_row()
            print(sentence, file=sys.stderr, flush=True)

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

    def show_prompt(self, prompt: str) -> None:
        with self.lock:  # l'invite s'écrit et se note à la fois
            self.prompt = prompt
            self.show()

    def read_line(self, prompt: str) -> str:
        if self.prompt_stream:
            self.show_prompt(prompt)
        # input() vide d'abord la sortie : si le receveur la bloque, aucun signal n'en fait sortir.
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.removesuffix("\n")

    def finish_row(self, text: str) -> None:
        """Après Entrée, la rangée où l'on a tapé `text` est finie, sauf dans un tube, sans écho."""
        self.is_row_open = self.is_row_open and not self.is_attended

    def has_just_shown(self) -> bool:
        return time.monotonic() - self.shown_at < RECENT_SECONDS


class Window(Screen):
    """Une fenêtre (IDLE, Thonny, Jupyter…), qui gère elle-même les signaux."""

    gets_signals = False

    def read_line(self, prompt: str) -> str:
        self.show_prompt(prompt)
        return input()

    def finish_row(self, text: str) -> None:
        if self.has_just_shown():
            self.end_row()  # IDLE vient de montrer ce qu'il retenait et, dessous, l'invite
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
        self.edits_lines, self.inserts_rows = edits_lines, inserts_rows

    def draw(self, lines: tuple[str, ...] | list[str]) -> None:
        rows = [row for line in lines for row in wrap(line)]
        if not (self.prompt and self.inserts_rows and rows):
            return super().draw(rows)
        # readline redessinerait la saisie, mais l'appeler d'ici ferait planter l'interpréteur.
        before = self.MAKE_ROOM + self.SAVE_CURSOR + self.INSERT_ROW
        print("".join(before + row + self.RESTORE_CURSOR for row in rows), end="", flush=True)

    def read_line(self, prompt: str) -> str:
        if not self.edits_lines:
            return super().read_line(prompt)
        try:
            # readline écrit lui-même l'invite, puis rend ce verrou (voir set_up_readline).
            if "libedit" not in (readline.__doc__ or ""):  # libedit ne le rendrait pas
                self.lock.acquire()
            self.prompt, self.is_row_open = prompt, True
            text = input(prompt)
            readline.set_startup_hook(None)  # celui que handle_signal a mis pour Ctrl+Z
            return text
        finally:
            with contextlib.suppress(RuntimeError):  # déjà rendu, sauf si un signal est venu avant
                self.lock.release()

    def finish_row(self, text: str) -> None:
        """Réécrit en entier une ligne que readline, qui n'en montre qu'une rangée, a coupée."""
        row = self.prompt + text
        if self.edits_lines and len(wrap(f"{row}_")) > 1:  # readline garde une case de plus
            # Une ligne reçue depuis Entrée serait juste au-dessus : on ne l'efface pas.
            erase = self.ERASE_ROW_ABOVE if self.inserts_rows and not self.has_just_shown() else ""
            print(erase + protocol.clean(row.expandtabs()), flush=True)
        super().finish_row(text)

    def set_up_readline(self, settings: contextlib.ExitStack) -> None:
        """Règle readline pour le chat ; `settings` remettra à la fin les réglages d'avant."""
        settings.callback(readline.set_startup_hook, None)
        settings.callback(readline.set_completer, readline.get_completer())
        settings.callback(readline.set_completer_delims, readline.get_completer_delims())
        settings.callback(forget_lines, readline.get_current_history_length())
        readline.set_completer_delims("")  # le mot à compléter est tout ce qui précède le curseur
        readline.set_completer(complete)
        if "libedit" in (readline.__doc__ or ""):  # c'est le cas le plus courant sous macOS
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.set_pre_input_hook(self.lock.release)
            settings.callback(readline.set_pre_input_hook, None)
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set horizontal-scroll-mode on")  # sur une seule rangée
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


def find_screen(has_name: bool) -> Screen:
    """Renvoie l'affichage qui convient à l'endroit où le programme s'exécute."""
    if protocol.is_window(sys.stdin) or protocol.is_window(sys.stdout):
        return Window(sys.stdout, is_attended=True)
    if not sys.stdin.isatty():
        return Screen(None if has_name else sys.stdout, is_attended=False)  # sans nom : PyCharm ?
    if not sys.stdout.isatty():  # | tee : l'invite reste sur le terminal
        return Screen(sys.stderr, is_attended=True)
    is_unix = os.name != "nt"
    # Sans tampon (python3 -u), readline écrit par octets : une rangée insérée couperait ses codes.
    knows_codes = os.environ.get("TERM", "dumb") != "dumb" and not sys.stdout.write_through
    return Terminal(is_unix and readline is not None, inserts_rows=is_unix and knows_codes)


def wrap(line: str) -> list[str]:
    """Coupe `line` en rangées d'écran, entre deux mots ; un mot trop long est coupé aussi."""
    # textwrap compte des caractères : il reçoit la lettre sans accents à part, et 日 suivi d'un NUL.
    marks = "\u200d" + "".join(char for char in set(line) if category(char)[0] == "M")
    letters = re.findall(f".[{marks}]*", line.expandtabs())
    wide = "".join(one[0] + "\0" * (east_asian_width(one[0]) in "WF") for one in letters)
    width, rest = max((os.get_terminal_size().columns or 80) - 2, 1), iter(letters)
    rows = textwrap.wrap(wide, width, break_on_hyphens=False, drop_whitespace=False)
    return ["".join(next(rest) for char in row if char != "\0") for row in rows] or [""]


class Client:
    """Une connexion et un écran. Le commentaire de chaque champ dit quel thread le modifie."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.sock: socket.socket | None = None  # du principal ; le thread qui finit le ferme
        self.answers = 0  # du receveur : les lignes reçues ; avant l'accueil, une par nom refusé
        self.is_admitted = False  # du receveur : une ligne qui n'est pas un refus est l'accueil
        self.said_goodbye = False  # du receveur : la dernière ligne est l'au revoir
        self.is_over = False  # du receveur : il a fini (fin du flux, ou de l'affichage)
        self.is_loss_said = False  # du receveur : la perte est déjà affichée
        self.is_interrupted = False  # du principal : par Ctrl+C ou kill
        self.is_reading = False  # du principal : il lit le clavier, et un signal l'en fait sortir
        self.is_leaving = False  # du principal : il n'attend plus rien du clavier

    def converse(self, options) -> tuple[str, int]:
        """Tient la conversation, du nom au départ ; renvoie comment elle a fini."""
        try:
            try:
                if name := self.choose_name(options.nom or ""):
                    self.sock = connect(options.hote, options.port)
                    threading.Thread(target=self.receive_lines, daemon=True).start()
                    self.join(name)
                    self.type_lines()
            finally:  # aucun signal ne lèvera plus d'exception
                self.is_leaving = True
        except Refused as reason:
            return str(reason), 1
        except EOFError:
            return LEFT if self.screen.is_attended or self.sock else ("Aucun nom donné.", 1)
        except OSError:
            return LEFT if self.screen.has_lost_output else LOST  # « | head » a fini de lire
        except KeyboardInterrupt:
            pass
        return LEFT

    def choose_name(self, name: str) -> str:
        """Renvoie `name` ou, s'il n'a que des blancs, celui que l'on tape ; "" pour quitter."""
        while not protocol.strip(name):
            name = self.ask("Entrez votre nom : ")
        return "" if protocol.parse(name)[0] == "quit" else name

    def join(self, name: str) -> None:
        """Donne un nom, un autre s'il est refusé ; lève Refused (sans texte) s'il faut renoncer."""
        for tries in itertools.count(1):
            with contextlib.suppress(OSError):  # un serveur complet ferme sans attendre le nom
                self.send(protocol.clean(name))
            # Un serveur complet refuse avant d'avoir reçu le nom : on compte depuis le début.
            poll_until(lambda: self.answers >= tries or self.is_over)
            if self.is_admitted:
                return
            if self.answers < tries:
                raise ConnectionError  # plus de connexion, et pas de réponse
            # Un serveur complet, ou qui a refusé cinq noms, ferme aussitôt.
            if poll_until(lambda: self.is_over, REFUSAL_SECONDS) or not self.screen.is_attended:
                raise Refused  # le serveur a dit pourquoi
            if not (name := self.choose_name("")):
                raise EOFError  # « exit » à la place d'un nom : la fin de l'entrée

    def type_lines(self) -> None:
        """Envoie ce qui est tapé jusqu'à une commande de départ ; EOFError à la fin de l'entrée."""
        while True:
            text = self.ask("Votre message : ")
            for line in text.replace("\r", "\n").split("\n"):  # un collage peut en donner plusieurs
                if protocol.parse(line)[0] == "quit":
                    return
                self.send(line)

    def ask(self, prompt: str) -> str:
        """Renvoie la ligne tapée ; ou lève ce que les signaux ou le receveur ont noté."""
        if not self.screen.gets_signals:
            time.sleep(CATCH_UP_SECONDS)  # ce qui était retenu s'affiche, peut-être la perte
        while not (self.is_interrupted or self.is_over):
            try:
                self.is_reading = True
                if self.screen.edits_lines:
                    self.wait_for_foreground()
                return self.screen.ask(prompt)
            except (KeyboardInterrupt, SystemError):  # voir handle_signal
                if not self.screen.gets_signals:
                    raise  # une fenêtre ne note rien : elle lève elle-même KeyboardInterrupt
            except OSError:
                raise EOFError from None  # le clavier ne se lit plus (nohup)
            finally:
                self.is_reading = False
        raise KeyboardInterrupt if self.is_interrupted else ConnectionError

    def send(self, text: str, seconds: float = math.inf) -> None:
        """Envoie une ligne (str sans fin de ligne) ; lève OSError si elle ne part pas."""
        data, deadline = protocol.encode_line(text), time.monotonic() + seconds
        while data:
            if self.is_over or time.monotonic() > deadline:
                raise ConnectionError
            if select.select([], [self.sock], [], WAIT_SECONDS)[1]:
                data = data[self.sock.send(data) :]

    def receive_lines(self) -> None:
        """Thread receveur : affiche chaque ligne, et note ce que le thread principal attend."""
        buffer, data = protocol.LineBuffer(MAX_SERVER_LINE_BYTES), None
        if hasattr(signal, "pthread_sigmask"):  # c'est le principal qu'un signal doit faire réagir
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            # Sans affichage, on s'arrête ; dans un tube, on lit encore, pour que tout parte.
            while data != b"" and not (self.screen.has_lost_output and self.screen.is_attended):
                while not select.select([self.sock], [], [], WAIT_SECONDS)[0]:
                    self.check_answers()
                data = self.sock.recv(RECV_BYTES)
                found = buffer.feed(data) if data else buffer.last_line()
                if lines := [readable(line) for line in found]:
                    self.screen.show(*lines)
                    self.is_admitted = self.is_admitted or not lines[0].startswith(protocol.ERROR)
                    self.answers += len(lines)  # en second : `join` attend ce nombre
                    self.said_goodbye = lines[-1].startswith(protocol.FAREWELL)
        except (OSError, ValueError):
            pass  # la connexion est coupée, ou fermée : le receveur s'arrête aussi
        finally:
            self.is_over = True
            self.report_loss()

    def check_answers(self) -> None:
        """Lève TimeoutError si le serveur ne répond plus aux envois (octet 2 de `tcp_info`)."""
        if TCP_INFO and self.sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 3)[2] >= MAX_RETRIES:
            raise TimeoutError

    def report_loss(self) -> None:
        """Là où rien n'interrompt input() : dit que le serveur est perdu, ou finit le programme."""
        has_clock = self.screen.gets_signals and hasattr(signal, "setitimer")
        if has_clock or poll_until(lambda: self.is_leaving, WAIT_SECONDS):
            return
        if not protocol.session_goes_on():  # Windows
            os._exit(self.finish(LEFT if self.screen.has_lost_output else LOST))
        self.is_loss_said = True
        self.screen.complain(f"{LOST[0]} Appuyez sur Entrée.")

    def finish(self, ending: tuple[str, int]) -> int:
        """Quitte le serveur si `ending` le demande, et dit la fin ; renvoie le code de sortie."""
        if self.sock:
            if ending is LEFT:
                self.say_goodbye()
                if not (self.said_goodbye or self.screen.is_attended):
                    ending = INTERRUPTED if self.is_interrupted else LOST
            self.close()
            if not poll_until(lambda: self.is_over, GOODBYE_SECONDS):
                return ending[1]  # le receveur est bloqué dans une écriture (Ctrl+S)
        sentence, code = ending
        if ending is LEFT and self.screen.prompt_stream:
            self.screen.show(sentence)
        elif code and sentence and not self.is_loss_said:
            self.screen.complain(sentence)
        return code or int(self.screen.has_write_error)

    def say_goodbye(self) -> None:
        """Envoie la commande pour quitter, et attend que le serveur ferme."""
        # Dans un tube, seul l'au revoir prouve que le serveur a tout reçu : on l'attend donc.
        patience = GOODBYE_SECONDS if self.screen.is_attended or self.is_interrupted else math.inf
        # Le serveur peut fermer le premier, un second Ctrl+C aussi (ValueError : socket fermé).
        with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):
            self.send(f"\n{protocol.QUIT_WORD}", patience)  # \n finit une ligne incomplète
            self.sock.shutdown(socket.SHUT_WR)
            poll_until(lambda: self.is_over or self.sock.fileno() < 0, patience)

    def close(self) -> None:
        """Ferme la connexion, ce qui termine aussi le recv du receveur."""
        with contextlib.suppress(OSError):  # le serveur l'a peut-être déjà coupée
            if self.is_interrupted and not self.screen.is_attended:
                # Un tube interrompu jette le reste, que le système enverrait encore des minutes.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()  # sous Windows, shutdown ne termine pas recv

    def handle_signal(self, number: int, _: object) -> None:
        """Note un signal, puis lève KeyboardInterrupt ; pendant un départ, coupe la connexion.

        Noter d'abord, par une affectation : l'exception d'un autre signal attend peut-être encore
        dans input(), et un appel échoue alors (SystemError). S'il l'efface, SIGALRM la lève encore.
        """
        is_stop = number in (signal.SIGINT, signal.SIGTERM)
        self.is_interrupted = self.is_interrupted or is_stop
        is_resumed = self.screen.edits_lines and number == signal.SIGCONT  # absent de Windows
        has_to_wake = self.is_reading and (is_resumed or self.is_interrupted or self.is_over)
        if not self.is_leaving and (is_stop or has_to_wake):
            if self.screen.edits_lines:
                self.wait_for_foreground()
                typed = readline.get_line_buffer()
                readline.set_startup_hook(lambda: readline.insert_text(typed))
            raise KeyboardInterrupt  # pour sortir d'input(), ou du reste de la conversation
        if is_stop and self.sock:
            self.close()

    def wait_for_foreground(self) -> None:
        """En arrière-plan, où SIGTTOU suspendrait readline sans fin : part, ou attend `fg`."""
        with contextlib.suppress(OSError):  # EINTR après `fg`, ou un terminal sans premier plan
            if self.is_interrupted and os.tcgetpgrp(0) != os.getpgrp():
                self.is_leaving = True
                os._exit(self.finish(LEFT))
            os.tcsetpgrp(0, os.getpgrp())  # en arrière-plan, SIGTTOU nous suspend ici

    def catch_signals(self, settings: contextlib.ExitStack) -> None:
        """Prend les signaux pour lui ; `settings` remettra à la fin les réglages d'avant."""
        for name in ("SIGINT", "SIGTERM", "SIGCONT", "SIGALRM"):
            if number := getattr(signal, name, None):  # Windows n'a pas les deux derniers
                settings.callback(signal.signal, number, signal.signal(number, self.handle_signal))
        if hasattr(signal, "setitimer"):  # l'horloge
            before = signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS, WAIT_SECONDS)
            settings.callback(signal.setitimer, signal.ITIMER_REAL, *before)


def poll_until(condition, seconds: float = math.inf) -> bool:
    """Attend une condition, `seconds` au plus ; renvoie True si elle est vraie."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return bool(condition())


def readable(line: bytes) -> str:
    """Renvoie le texte d'une ligne du serveur, coupée à 256 Kio, sans danger pour l'écran."""
    text = line[:MAX_SERVER_LINE_BYTES].decode(errors="replace")
    return protocol.clean(text) + ("…" if len(line) > MAX_SERVER_LINE_BYTES else "")


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
        protocol.set_up_socket(result, is_server=False)
        return result
    reason = protocol.explain(result)
    hint = "Le serveur est-il lancé ? Son pare-feu bloque-t-il ce port ?"
    if not found:
        is_unanswered = not results or result.args[0] == socket.EAI_AGAIN  # aucun serveur de noms
        reason = "ce nom n'a pas pu être cherché" if is_unanswered else "adresse inconnue"
        hint = "L'adresse est-elle bien écrite ? Le réseau fonctionne-t-il ?"
    raise Refused(f"Connexion impossible à {protocol.host_and_port(host, port)} : {reason}. {hint}")


def main() -> int:
    """Renvoie le code de sortie : 0 si l'on est parti, 2 si une option est refusée, sinon 1."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # ce flux était fermé au lancement
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        protocol.set_up_stream(getattr(sys, name))
    parser = protocol.new_option_parser("Le client", "adresse du serveur")
    parser.add_argument("--nom", metavar="NOM", help="votre nom (demandé sinon)")
    try:
        options = protocol.parse_options(parser)
    except Refused as reason:
        find_screen(has_name=True).complain(reason)
        return 2
    client = Client(find_screen(options.nom is not None))
    with contextlib.ExitStack() as settings:  # ce qu'il faudra remettre en sortant de ce bloc
        if client.screen.edits_lines:
            client.screen.set_up_readline(settings)
        if client.screen.gets_signals:
            client.catch_signals(settings)
        return client.finish(client.converse(options))


if __name__ == "__main__":
    code = main()
    if not protocol.session_goes_on():
        os._exit(code)  # la fin normale de Python attendrait une sortie que personne ne lit
