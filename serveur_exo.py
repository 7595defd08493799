"""Le serveur du chat : TCP, des lignes de texte, un thread par client.

Pour l'essayer : python3 serveur_exo.py, puis nc 127.0.0.1 12345 dans d'autres terminaux. Chaque
thread a un rôle :

    principal    accepte les clients et lance un lecteur pour chacun
    lecteur      un par client : reçoit des octets, en fait des lignes, les dépose dans l'inbox
    veilleur     fait une tournée par seconde, ou plus souvent s'il reste quelque chose à envoyer
    écriture     deux threads : l'un écrit la console, l'autre stderr

Le thread qui dépose des lignes fait ensuite une *tournée* (round) : il vide l'inbox, applique les
règles du salon, envoie à chaque client ce que le système accepte sans attendre, écrit le journal.
Une seule tournée a lieu à la fois, et elle seule touche au salon et aux envois : tous les clients
reçoivent donc les lignes dans le même ordre.
"""

import collections
import contextlib
import datetime
import math
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback

import chat_protocol as protocol
from chat_protocol import ERROR, NOTICE, Refused

# --- Un client, et ce qu'il envoie ---------------------------------------------

NAME_SECONDS = 60  # s pour donner un nom, sinon des clients muets occuperaient toutes les places
BURST_LINES = 100  # lignes d'avance sur le débit permis : un texte collé passe tout de suite
RECV_BYTES = 64 * 1024  # octets par recv : plusieurs lignes à la fois, donc moins d'appels
QUIET_RECV_BYTES = 2048  # octets pour un client calme : recv réserve cette place tant qu'il attend
DEPOSIT_LINES = 512  # lignes par dépôt : « a\n » (2 octets) devient une ligne de 130, avec le nom


class Client:
    """Un client vu du serveur."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        self.sock = sock  # le lecteur y reçoit, la tournée y envoie et le ferme
        self.host = host
        # Un client a au plus un dépôt dans l'inbox : son lecteur prend la place avant de déposer,
        # la tournée la libère. S'il envoie trop vite, son lecteur attend ici, et TCP le freine.
        self.deposit_slot = threading.Lock()
        # La tournée seule modifie les champs suivants ; son lecteur peut les lire.
        self.name: str | None = None  # None tant qu'aucun nom n'est admis
        self.refusals = 0  # noms refusés
        self.outbox: list[bytes] = []  # octets à envoyer, dans l'ordre
        self.leaving = False  # il quitte le chat : ses lignes sont ignorées
        self.gone = False  # son lecteur a fini
        self.deadline = time.monotonic() + NAME_SECONDS  # heure limite de ce qu'on attend de lui


class TokenBucket:
    """Le débit d'un client : un « seau à jetons », un par ligne. Son lecteur seul s'en sert."""

    def __init__(self, rate: int) -> None:
        self.rate = rate  # jetons gagnés par seconde ; 0 : sans limite
        self.tokens = float(BURST_LINES)
        self.counted_at = time.monotonic()

    def take(self, wanted: int) -> int:
        """Renvoie combien de lignes peuvent passer, sur `wanted` ; en attend au moins une."""
        while self.rate:
            now = time.monotonic()
            self.tokens = min(BURST_LINES, self.tokens + (now - self.counted_at) * self.rate)
            self.counted_at = now
            if self.tokens >= 1:
                wanted = min(wanted, int(self.tokens))
                self.tokens -= wanted
                break
            time.sleep((1 - self.tokens) / self.rate)
        return wanted


def read_client(client: Client, broadcaster: "Broadcaster", rate: int) -> None:
    """Thread lecteur : reçoit tout ce qu'un client envoie, jusqu'à la fin de sa connexion."""
    buffer, bucket = protocol.LineBuffer(), TokenBucket(rate)
    size = QUIET_RECV_BYTES
    try:
        while data := client.sock.recv(size):
            size = QUIET_RECV_BYTES if len(data) < QUIET_RECV_BYTES else RECV_BYTES
            submit(buffer.feed(data), client, broadcaster, bucket)
        submit(buffer.last_line(), client, broadcaster, bucket)
    except OSError:
        pass  # la connexion est coupée, ou l'autre machine ne répond plus : c'est une fin aussi
    finally:
        broadcaster.post(client, None)


def submit(lines: list, client: Client, broadcaster: "Broadcaster", bucket: TokenBucket) -> None:
    """Dépose des lignes au débit permis ; lève OSError si la connexion a été coupée entre-temps."""
    while lines and not client.leaving and not broadcaster.is_stopping:
        count = bucket.take(min(len(lines), DEPOSIT_LINES))
        if count < len(lines):
            # Ce client est freiné. Même s'il a coupé sa connexion, ses lignes restent lisibles et
            # arriveraient pendant des heures ; getpeername échoue dès qu'elle n'existe plus.
            client.sock.getpeername()
        client.deposit_slot.acquire()
        broadcaster.post(client, lines[:count])
        del lines[:count]


# --- Le salon : les règles, sans socket ni thread -------------------------------

MAX_REFUSALS = 5  # noms refusés avant de fermer la connexion
FAREWELL_SECONDS = 5  # s pour lire ce qui reste et fermer, une fois le chat quitté
LAST_SECONDS = 1  # s pour faire de même, quand le serveur s'arrête


class Room:
    """La liste des membres et l'effet de chaque ligne. La tournée seule s'en sert."""

    def __init__(self) -> None:
        self.members: dict[str, Client] = {}  # name_key(nom) → client admis
        self.start_round("")

    def start_round(self, timestamp: str) -> None:  # crée ou vide ce qui ne dure qu'une tournée
        self.timestamp = timestamp  # « [HH:MM] », ou rien : le même pour toute la tournée
        self.console_lines: list[str] = []  # lignes à montrer, sans horodatage
        self.queued_bytes = 0  # octets ajoutés aux outbox, comptés une fois pour tous les membres

    def receive(self, client: Client, lines: list[bytes]) -> None:
        """Traite des lignes d'un client (bytes sans fin de ligne), dans l'ordre."""
        said: list[str] = []  # messages consécutifs, qui partiront en un seul morceau
        for line in lines:
            if client.leaving:
                break
            try:
                text = protocol.decode_line(line)
                verb, rest = protocol.parse(text)
                if verb == "nothing":
                    continue
                if client.name is None:
                    self.enter(client, verb, text)
                elif verb == "message":
                    said.append(f"{client.name} : {protocol.clean(rest)}")
                else:
                    self.broadcast(said, sender=client)
                    said = []
                    self.execute(client, verb, rest)
            except Refused as reason:
                self.refuse(client, str(reason))
        self.broadcast(said, sender=client)

    def enter(self, client: Client, verb: str, text: str) -> None:
        """Admet un client sous le nom qu'il donne, ou lève Refused."""
        if verb == "quit":
            return self.leave(client)
        name = protocol.normalize_name(text)
        key = protocol.name_key(name)
        if key in self.members:
            raise Refused(f"Le nom {name} est déjà pris : choisissez-en un autre.")
        self.reply(client, f"{NOTICE}Bienvenue, {name} ! (/aide : les commandes)")
        shown = f"{name} ({client.host}) a rejoint le chat."
        self.broadcast([f"{NOTICE}{name} a rejoint le chat."], console_lines=[shown])
        client.name = name
        client.deadline = math.inf
        self.members[key] = client

    def leave(self, client: Client) -> None:
        """Retire un client, et l'annonce s'il était membre. Sans effet la seconde fois."""
        if client.leaving:
            return
        client.leaving, client.deadline = True, time.monotonic() + FAREWELL_SECONDS
        if client.name and self.members.pop(protocol.name_key(client.name), None):
            shown = f"{client.name} a quitté le chat."
            self.broadcast([f"{NOTICE}{shown}"], console_lines=[shown])

    def dismiss_everyone(self, clients: list[Client]) -> None:
        """Annonce l'arrêt du serveur à chaque client, mais à personne le départ des autres."""
        self.members.clear()
        for client in clients:
            if not client.leaving:
                self.reply(client, f"{NOTICE}Le serveur s'arrête.")
                client.leaving, client.deadline = True, time.monotonic() + LAST_SECONDS

    def refuse(self, client: Client, reason: str) -> None:
        """Dit à un client que sa ligne est refusée ; sans nom, il a un nombre limité d'essais."""
        if client.name is None:
            client.refusals += 1
            if client.refusals == MAX_REFUSALS:
                reason += f" C'était le dernier des {MAX_REFUSALS} essais."
                self.leave(client)
        self.reply(client, f"{ERROR}{reason}")

    def execute(self, client: Client, verb: str, rest: str) -> None:
        """Exécute une commande d'un membre, ou lève Refused."""
        match verb:
            case "quit":
                self.reply(client, f"{protocol.FAREWELL}{client.name}.")
                self.leave(client)
            case "list":
                names = protocol.alphabetical(member.name for member in self.members.values())
                self.reply(client, f"{NOTICE}Connectés ({len(names)}) : {', '.join(names)}")
            case "help":
                self.reply(client, render(protocol.HELP_LINES, NOTICE))
            case "private":
                self.send_privately(client, *protocol.cut_word(rest))
            case "unknown":
                raise Refused(f"Commande inconnue : {rest} (tapez /aide).")

    def send_privately(self, sender: Client, recipient: str, text: str) -> None:
        """Envoie un message à un seul membre, ou lève Refused."""
        member = self.members.get(protocol.name_key(recipient))
        if not protocol.strip(text):
            raise Refused("Il manque le nom ou le message : /privé NOM message")
        if member is None:
            raise Refused(f"Personne ne s'appelle {protocol.quote(recipient)} ici (tapez /liste).")
        if member is sender:
            raise Refused("Ce message est pour vous-même : choisissez un autre nom (tapez /liste).")
        self.reply(member, f"{self.timestamp}{sender.name} (privé) : {protocol.clean(text)}")
        self.reply(sender, f"{NOTICE}Message privé envoyé à {member.name}.")

    def reply(self, client: Client, line: str) -> None:
        """Ajoute une ligne à l'outbox d'un seul client."""
        client.outbox.append(protocol.encode_line(line))
        self.queued_bytes += len(client.outbox[-1])

    def broadcast(self, lines: list[str], sender: Client | None = None, console_lines=None) -> None:
        """Ajoute des lignes à l'outbox des membres sauf `sender` ; les montre, ou `console_lines`."""
        if not lines:
            return
        piece = protocol.encode_line(render(lines, self.timestamp))
        for member in self.members.values():
            if member is not sender:
                member.outbox.append(piece)
        self.queued_bytes += len(piece)
        self.console_lines += console_lines or lines


def render(lines: list[str], prefix: str) -> str:
    """Renvoie ces lignes en un texte, chacune après `prefix`, sans la dernière fin de ligne."""
    return prefix + f"\n{prefix}".join(lines)


# --- Les tournées : ce que les clients reçoivent ---------------------------------

ROUND_BYTES = 256 * 1024  # octets à envoyer par tournée : chaque client lent en garde une copie
TICK_SECONDS = 0.005  # s avant de réessayer d'envoyer ce que le système n'a pas accepté
IDLE_SECONDS = 1  # s entre deux tournées du veilleur, pour surveiller les délais
SUSPENDED_SECONDS = 5  # s sans tournée : le serveur était en pause (Ctrl+Z, machine endormie)
LATE_BYTES = 1024 * 1024  # octets de retard à partir desquels on attend un client
CATCH_UP_SECONDS = 1  # s qu'il a pour tout recevoir : les autres attendent au plus ce temps
STOP_SECONDS = 2.5  # s pour s'arrêter : CATCH_UP_SECONDS, LAST_SECONDS et une marge


class Broadcaster:
    """Fait les tournées. Un thread qui trouve leur verrou pris n'attend pas, sauf à l'arrêt."""

    def __init__(self, log: "Log | None", has_timestamps: bool) -> None:
        self.errors = Writer(sys.stderr)
        self.console = Writer(sys.stdout, self.errors)
        # Tout thread y dépose (client, lignes), puis (client, None) ; la tournée prend à gauche.
        self.inbox: collections.deque = collections.deque()
        # Les clients, nommés ou non : le thread principal ajoute, la tournée retire.
        self.clients: set[Client] = set()
        self.bell = threading.Event()  # réveille le veilleur ; tout thread peut le faire
        self.is_stopping = False  # écrit une fois, par le thread principal
        # Le thread qui tient ce verrou fait la tournée ; lui seul modifie les champs suivants.
        self.round_lock = threading.Lock()
        self.room = Room()
        self.log = log  # None sans --journal
        self.has_timestamps = has_timestamps
        self.late: set[Client] = set()  # en retard : tant qu'il y en a, l'inbox reste fermée
        self.is_busy = False  # il reste quelque chose à envoyer ou à fermer
        self.last_round_at = time.monotonic()
        self.has_failed = False  # une tournée a échoué : le serveur doit s'arrêter

    def post(self, client: Client, lines: list[bytes] | None) -> None:
        """Dépose des lignes, ou None quand il n'y en aura plus. Tout thread."""
        self.inbox.append((client, lines))
        self.try_round()

    def try_round(self) -> None:
        """Fait une tournée, sauf si un autre thread en fait une. Tout thread."""
        if not self.round_lock.acquire(blocking=False):
            return
        try:
            self.make_round()
        except Exception:
            # Le salon est peut-être incohérent : on garde exprès le verrou, donc plus de tournée.
            self.errors.put(traceback.format_exc())
            self.has_failed = True
            return
        self.round_lock.release()
        if self.inbox and not self.late:  # déposées pendant la tournée
            self.bell.set()

    def watch(self) -> None:
        """Thread veilleur : fait une tournée quand on le réveille, sinon une par seconde."""
        while not self.is_stopping:
            self.bell.wait(TICK_SECONDS if self.is_busy else IDLE_SECONDS)
            self.bell.clear()  # avant la tournée : un dépôt qui vient ensuite le réveillera aussi
            self.try_round()

    def make_round(self) -> None:
        """Fait une tournée : traite les dépôts, envoie, surveille les délais, montre, ferme."""
        now = time.monotonic()
        pause, self.last_round_at = now - self.last_round_at, now
        if pause > SUSPENDED_SECONDS:
            for client in list(self.clients):
                client.deadline += pause
        self.room.start_round(time.strftime("[%H:%M] ") if self.has_timestamps else "")
        if not self.late:
            self.open_inbox()
        clients = list(self.clients)  # une copie : le thread principal peut en ajouter
        if self.is_stopping and not self.inbox:
            self.room.dismiss_everyone(clients)
        for client in clients:
            self.serve(client, now)
        if lines := self.room.console_lines:
            self.console.put(render(lines, self.room.timestamp))
        if self.log and (lines or self.log.missing_lines):
            self.log.append(lines, self.errors)
        was_busy = self.is_busy
        self.is_busy = any(client.outbox or client.leaving for client in clients)
        if self.is_busy and not was_busy:
            self.bell.set()  # ensuite, il fera une tournée toutes les TICK_SECONDS

    def open_inbox(self) -> None:
        """Traite les dépôts présents, dans la limite d'une tournée."""
        for _ in range(len(self.inbox)):
            client, lines = self.inbox.popleft()
            if lines is None:
                client.gone = True
                self.room.leave(client)
            else:
                client.deposit_slot.release()
                self.room.receive(client, lines)
            if self.room.queued_bytes >= ROUND_BYTES:
                return

    def serve(self, client: Client, now: float) -> None:
        """Envoie à un client, surveille son délai, le ferme."""
        if client.outbox:
            self.send(client, now)
        if now > client.deadline:
            self.disconnect(client)
        if client.leaving and not client.outbox:
            self.close(client)

    def send(self, client: Client, now: float) -> None:
        """Envoie à un client ce que le système accepte sans attendre."""
        data = b"".join(client.outbox)
        try:
            data = data[send_now(client.sock, data) :]
        except OSError:  # la connexion est coupée ; son lecteur s'en apercevra
            data = b""
        client.outbox = [data] if data else []  # ce qui n'est pas parti
        # En rattraper une partie ne suffit pas : tout le monde l'attendrait encore.
        if client.leaving:
            self.late.discard(client)
        elif client in self.late and not data:
            self.late.remove(client)
            client.deadline = math.inf
        elif client not in self.late and len(data) > LATE_BYTES:
            self.late.add(client)
            client.deadline = now + CATCH_UP_SECONDS

    def disconnect(self, client: Client) -> None:
        """Déconnecte un client qui n'a pas fait à temps ce qu'on attendait de lui."""
        if client.name is None and not client.leaving:
            self.room.reply(client, f"{ERROR}Aucun nom reçu en {NAME_SECONDS} s : connexion fermée.")
            return self.room.leave(client)
        if not client.leaving:
            problem = f"ne lit plus ses messages ({len(client.outbox[0])} octets en attente)"
            self.errors.put(f"{client.name} ({client.host}) : connexion coupée, {problem}.")
            # SO_LINGER de 0 s : close jettera les Mio que le système garde encore pour lui.
            with contextlib.suppress(OSError):
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.room.leave(client)
        self.late.discard(client)
        client.outbox.clear()
        client.deadline = math.inf
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)  # le recv de son lecteur se termine aussitôt
        if CLOSE_WAKES_RECV:
            client.sock.close()

    def close(self, client: Client) -> None:
        """Ferme en deux temps : nos envois d'abord, le socket quand le client a fermé aussi."""
        # Fermer tout de suite, avec des octets non lus, ferait envoyer par TCP un « reset », qui
        # peut détruire l'au revoir en chemin (RFC 1122, 4.2.2.13).
        if client.gone:
            client.sock.close()
            self.clients.discard(client)
        else:
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)

    def stop(self) -> int:
        """Annonce l'arrêt, ferme tout, renvoie le code de sortie. Thread principal."""
        self.is_stopping = True
        self.bell.set()
        deadline = time.monotonic() + STOP_SECONDS
        while self.clients and not self.has_failed and time.monotonic() < deadline:
            self.try_round()
            time.sleep(TICK_SECONDS)
        # Le verrou n'est plus libéré : aucune tournée n'écrira dans le journal fermé.
        if (self.has_failed or self.round_lock.acquire(timeout=OUTPUT_SECONDS)) and self.log:
            self.log.file.close()
        if not self.has_failed:
            self.errors.put("Serveur arrêté.")
        has_finished = [self.console.finish(), self.errors.finish()]
        if not all(has_finished) and not protocol.session_goes_on():
            os._exit(int(self.has_failed))  # Python attendrait le verrou d'un thread bloqué
        return int(self.has_failed)


DONT_WAIT: int | None = getattr(socket, "MSG_DONTWAIT", None)  # Windows ne l'a pas
SMALL_SEND_BYTES = 16 * 1024  # octets par envoi sous Windows : moins que son tampon
CLOSE_WAKES_RECV = os.name == "nt"  # sous Windows, shutdown ne réveille pas recv (CPython 91913)


def send_now(sock: socket.socket, data: bytes) -> int:
    """Envoie ce que le système accepte sans attendre ; renvoie le nombre d'octets acceptés."""
    if DONT_WAIT is not None:  # le socket reste bloquant : son lecteur, lui, doit attendre
        try:
            return sock.send(data, DONT_WAIT)
        except BlockingIOError:
            return 0
    sent = 0
    while sent < len(data) and select.select([], [sock], [], 0)[1]:
        sent += sock.send(data[sent : sent + SMALL_SEND_BYTES])
    return sent


# --- Les sorties : console, stderr, journal --------------------------------------

WAITING_CHARS = 8 * 1024 * 1024  # caractères qui attendent une sortie que personne ne lit
WRITE_PAUSE_SECONDS = 0.005  # s entre deux écritures : un réveil par ligne coûterait trop cher
OUTPUT_SECONDS = 1  # s au plus pour écrire ce qui attend, à la fin


class Writer:
    """Un thread qui écrit dans un flux, comme print ; lui seul attend s'il bloque (Ctrl+S)."""

    def __init__(self, stream, errors: "Writer | None" = None) -> None:
        protocol.set_up_stream(stream)
        self.stream = stream  # sys.stdout ou sys.stderr ; None s'il était fermé au lancement
        self.errors = errors  # celui qui signale que cette sortie est perdue
        self.is_lost = False  # True si une écriture a échoué ; son thread seul l'écrit
        # Il faut tenir ce verrou pour toucher aux champs suivants ; jamais pendant une écriture.
        self.changed = threading.Condition()
        self.waiting: list[str] = []  # textes à écrire, dans l'ordre
        self.waiting_chars = 0
        self.skipped_lines = 0  # lignes en trop, pas encore signalées
        self.is_ending = False
        self.thread = threading.Thread(target=self.run, name="écriture", daemon=True)
        self.thread.start()

    def put(self, text: str) -> None:
        """Ajoute des lignes, sans la dernière fin de ligne ; n'attend jamais. Tout thread."""
        with self.changed:
            if self.skipped_lines or self.waiting_chars + len(text) > WAITING_CHARS:
                self.skipped_lines += text.count("\n") + 1
            else:
                self.waiting.append(f"{text}\n")
                self.waiting_chars += len(text)
            self.changed.notify()

    def run(self) -> None:
        """Thread d'écriture : jusqu'à ce que tout soit écrit, après `finish`."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.skipped_lines or self.is_ending)
                text = "".join(self.waiting)
                if count := self.skipped_lines:
                    some = "1 ligne non affichée" if count == 1 else f"{count} lignes non affichées"
                    text += f"… {some}.\n"
                self.waiting, self.waiting_chars, self.skipped_lines = [], 0, 0
            if not text:
                return
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError, AttributeError) as error:  # cassé, fermé, absent
                self.is_lost = True
                if self.errors:
                    reason = protocol.explain(error)
                    self.errors.put(f"Impossible d'écrire dans la console ({reason}). Le chat continue.")
                return
            time.sleep(WRITE_PAUSE_SECONDS)

    def finish(self) -> bool:
        """Fait écrire ce qui attend, OUTPUT_SECONDS au plus ; dit si tout est écrit."""
        with self.changed:
            self.is_ending = True
            self.changed.notify()
        self.thread.join(OUTPUT_SECONDS)
        return not self.thread.is_alive() and not self.is_lost


class Log:
    """Le journal. La tournée y écrit elle-même : aucune ligne n'attend dans une file."""

    def __init__(self, path: str) -> None:
        """Ouvre le fichier `path`, ou lève Refused."""
        where = f"Impossible d'écrire le journal {protocol.clean(path)}"
        try:
            self.file = open(path, "ab+", buffering=0)
            if not self.file.seekable():
                self.file.close()
                raise Refused(f"{where} : ce n'est pas un fichier, mais un tube ou un terminal.")
            if size := self.file.seek(0, os.SEEK_END):
                self.file.seek(size - 1)
                if self.file.read(1) != b"\n":
                    self.file.write(b"\n")  # la dernière ligne était restée inachevée
        except OSError as error:
            raise Refused(f"{where} : {protocol.explain(error)}.") from None
        self.missing_lines = 0  # lignes non écrites, que le fichier ne signale pas encore

    def append(self, lines: list[str], errors: Writer) -> None:
        """Écrit des lignes (str sans fin de ligne), chacune avec sa date : toutes, ou aucune."""
        missing, notice = self.missing_lines, []
        if missing:
            notice = ["… 1 ligne manque." if missing == 1 else f"… {missing} lignes manquent."]
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        data, written = protocol.encode_line(render(notice + lines, f"{date} ")), 0
        try:
            while written < len(data):
                written += self.file.write(data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):  # la tournée s'écrit en entier ou pas du tout
                self.file.truncate(self.file.seek(0, os.SEEK_END) - written)
            self.missing_lines += len(lines)
            if not missing:
                reason = protocol.explain(error)
                errors.put(f"Impossible d'écrire dans le journal ({reason}). Le chat continue.")
            return
        self.missing_lines = 0
        if missing:
            errors.put("Le journal s'écrit de nouveau.")


# --- Démarrer, accepter, finir ---------------------------------------------------

BACKLOG = 4096  # connexions que le système garde avant accept : une salle entière arrive à la fois
ACCEPT_SECONDS = 0.5  # s par accept au plus : on vérifie ensuite s'il faut s'arrêter
PAUSE_SECONDS = 0.2  # s après un échec d'accept, qui échouerait sinon de nouveau aussitôt
CLIENT_BUFFER_BYTES = 64 * 1024  # du système : limite ce qu'un client freiné y accumule
SPARE_FILES = 16  # fichiers ouverts que le serveur garde pour lui


def accept_clients(listener: socket.socket, broadcaster: Broadcaster, options, signals) -> None:
    """Accepte des clients jusqu'à un signal d'arrêt."""
    max_clients = min(options.max_clients, raise_file_limit(options.max_clients))
    listener.settimeout(ACCEPT_SECONDS)
    problem = ""
    while not signals and not broadcaster.has_failed:
        last_problem = problem
        try:
            sock, address = listener.accept()
            host = address[0].removeprefix("::ffff:")  # une adresse IPv4 vue par IPv6
            if len(broadcaster.clients) < max_clients:
                problem = start_reader(sock, host, broadcaster, options.debit)
            else:
                problem = f"Le serveur est complet : {host} refusé."
                refuse_full(sock)
        except (TimeoutError, ConnectionError):
            continue  # aucun client n'est venu, ou il est déjà reparti
        except OSError as error:
            problem = f"Impossible d'accepter un client : {protocol.explain(error)}."
            time.sleep(PAUSE_SECONDS)
        if problem and not last_problem:  # une seule fois, jusqu'à la prochaine arrivée
            broadcaster.errors.put(problem)


def start_reader(sock: socket.socket, host: str, broadcaster: Broadcaster, rate: int) -> str:
    """Inscrit un client et lance son lecteur ; renvoie "", ou la raison pour laquelle on refuse."""
    protocol.set_up_socket(sock)
    client = Client(sock, host)
    # D'abord l'inscrire, ensuite lancer son thread : sinon ses lignes pourraient arriver avant lui.
    broadcaster.clients.add(client)
    arguments = client, broadcaster, rate
    reader = threading.Thread(target=read_client, args=arguments, name="lecteur", daemon=True)
    try:
        reader.start()
    except RuntimeError:
        refuse_full(sock)
        broadcaster.post(client, None)
        return f"Impossible de créer un thread de plus : {host} refusé."
    return ""


def refuse_full(sock: socket.socket) -> None:
    """Dit à un client de trop que c'est complet, sans l'attendre."""
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(protocol.encode_line(f"{ERROR}Le serveur est complet, réessayez plus tard."))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(RECV_BYTES)  # son nom : fermer avec des octets non lus détruirait la réponse


def raise_file_limit(clients: int) -> int:
    """Relève la limite de fichiers ouverts ; renvoie combien de clients elle permet."""
    with contextlib.suppress(ImportError, ValueError):  # Windows n'a pas cette limite
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY:
            clients = max(1, min(clients, hard - SPARE_FILES))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, clients + SPARE_FILES), hard))
    return clients


def open_listener(host: str, port: int) -> socket.socket:
    """Renvoie le socket d'écoute, ou lève Refused avec ce qu'il faut faire."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # IPv4 d'abord (False vient avant True) : c'est là que le client cherche « localhost ».
        family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except (socket.gaierror, UnicodeError):
        raise Refused(f"Adresse inconnue : {host}. Choisissez un autre --hote.") from None
    except OSError as error:
        where, reason = f"{host}, port {port}", protocol.explain(error)
        advice = "Choisissez un autre --hote ou un autre --port, à partir de 1024."
        raise Refused(f"Impossible d'écouter sur {where} : {reason}. {advice}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CLIENT_BUFFER_BYTES)
    return listener


def greeting(listener: socket.socket) -> str:
    """Renvoie ce que stderr annonce : l'adresse, et ce qu'il faut taper sur d'autres machines."""
    host, port = listener.getsockname()[:2]
    text = f"Écoute sur {protocol.host_and_port(host, port)} (Ctrl+C pour arrêter)."
    command = "Sur les autres machines : python3 client_exo.py --hote"
    option = "" if port == protocol.DEFAULT_PORT else f" --port {port}"
    networks = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
    for family, anywhere in networks if host in ("0.0.0.0", "::") else ():
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((anywhere, 9))  # en UDP, rien n'est envoyé : le système choisit un chemin
            return f"{text}\n{command} {sock.getsockname()[0]}{option}"
    return text


def catch_signals(received: list[int]) -> dict:
    """Fait noter les signaux d'arrêt (sans verrou ni exception) ; renvoie les réglages d'avant."""
    previous = {}
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # Ctrl+C, kill, Ctrl+Pause sous Windows
        if number := getattr(signal, name, None):
            with contextlib.suppress(ValueError):  # hors du thread principal, c'est interdit
                previous[number] = signal.signal(number, lambda n, _: received.append(n))
    return previous


def main() -> int:
    """Renvoie le code de sortie : 0 après un arrêt demandé, 2 pour une option refusée, sinon 1."""
    parser = protocol.new_option_parser("Le serveur du chat.", "adresse où écouter ; 0.0.0.0 ouvre au réseau")
    parser.add_argument("--horodatage", action="store_true", help="[HH:MM] devant les messages")
    parser.add_argument("--journal", metavar="FICHIER", help="enregistre la console dans FICHIER")
    protocol.add_number(parser, "--max-clients", 1000, "clients admis en même temps", low=1)
    protocol.add_number(parser, "--debit", 20, "lignes par seconde et par client, 0 : sans limite")
    signals: list[int] = []  # les signaux d'arrêt reçus
    previous = catch_signals(signals)
    start = Writer(sys.stderr)
    code = 2
    try:
        options = protocol.parse_options(parser)
        code = 1
        log = None if options.journal is None else Log(options.journal)
        listener = open_listener(options.hote, options.port)
        start.put(greeting(listener))
        start.finish()  # d'abord stderr, ensuite la console
        broadcaster = Broadcaster(log, options.horodatage)
        broadcaster.console.put("Serveur en attente de connexions...")
        threading.Thread(target=broadcaster.watch, name="veilleur", daemon=True).start()
        with listener:
            accept_clients(listener, broadcaster, options, signals)
        return broadcaster.stop()
    except Refused as reason:
        start.put(str(reason))
        return code
    finally:
        start.finish()
        for number, handler in previous.items():  # une session qui continue retrouve ses réglages
            signal.signal(number, handler if protocol.session_goes_on() else signal.SIG_IGN)


if __name__ == "__main__":
    code = main()
    if not protocol.session_goes_on():
        sys.exit(code)
