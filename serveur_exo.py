"""Le serveur du chat : TCP, des lignes de texte, un thread par client.

Pour l'essayer : python3 serveur_exo.py, puis nc 127.0.0.1 12345 dans d'autres terminaux.

    principal    accepte les clients et lance un lecteur pour chacun
    lecteur      un par client : reçoit des octets, en fait des lignes, les dépose dans l'inbox
    veilleur     fait une tournée quand on l'appelle, et après 5 ms (s'il reste à envoyer) ou 1 s
    écriture     deux threads : l'un écrit la console, l'autre stderr

Le thread qui dépose des lignes fait ensuite une *tournée* (round) : il vide l'inbox, applique les
règles du salon, envoie à chaque client ce que le système peut prendre tout de suite, écrit le
journal. Une seule a lieu à la fois, et elle seule touche au salon et aux envois : tous les clients
reçoivent donc les lignes dans le même ordre.
"""

import collections
import contextlib
import datetime
import errno
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback

import chat_protocol as protocol
from chat_protocol import ERROR, NOTICE, Refused

# --- Un client, et ce qu'il envoie ---------------------------------------------

BURST_LINES = 100  # lignes d'avance sur le débit permis : un texte collé passe tout de suite
RECV_BYTES = 64 * 1024  # octets par recv : plusieurs lignes à la fois, donc moins d'appels
QUIET_RECV_BYTES = 2048  # octets pour un client calme : Python les réserve dès l'appel de recv
DEPOSIT_LINES = 512  # lignes par dépôt : 64 Kio à envoyer, si « a » et un long nom font 130 octets
DEPARTURE = None  # déposé à la place de lignes : ce client n'en enverra plus

# L'état d'un client : ce que l'on attend de lui, tant de secondes ; ensuite, Hub.expire décide.
STATE_SECONDS = {
    "naming": 60,  # qu'il donne un nom, sinon des clients muets occuperaient toutes les places
    "member": math.inf,  # rien : il parle quand il veut
    "late": 1,  # qu'il lise tout ce qui l'attend, car tout le salon l'attend aussi
    "leaving": 5,  # qu'il lise ses dernières lignes, puis ferme
    "cut": math.inf,  # que son lecteur finisse : sa connexion est coupée
}


class Client:
    """Un client vu du serveur."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        # Son lecteur y reçoit ; la tournée y envoie, et le ferme (ou refuse_full, sans lecteur).
        self.sock, self.host = sock, host
        # Une seule place pour ses lignes dans l'inbox : son lecteur la prend, empty_inbox la rend.
        # Si ce client envoie trop vite, son lecteur attend donc ici, et TCP freine ce client.
        self.deposit_slot = threading.Lock()
        # La tournée seule modifie les champs suivants ; son lecteur peut les lire.
        self.name: str | None = None  # None tant qu'aucun nom n'est admis
        self.refusals = 0  # noms refusés
        self.outbox: list[bytes] = []  # octets à envoyer, dans l'ordre
        self.is_read_out = False  # son lecteur a fini
        self.become("naming")  # crée state, deadline et has_left

    def become(self, state: str) -> None:
        """Change d'état, et donc de délai ; note si ce client a quitté le chat."""
        self.state, self.deadline = state, time.monotonic() + STATE_SECONDS[state]
        self.has_left = state in ("leaving", "cut")  # ses lignes sont alors ignorées


class TokenBucket:
    """Le débit d'un client : un seau, un jeton par ligne. Son lecteur seul s'en sert."""

    def __init__(self, rate: int) -> None:
        self.rate = rate  # jetons gagnés par seconde ; 0 : sans limite
        self.tokens, self.counted_at = float(BURST_LINES), time.monotonic()

    def take(self, wanted: int) -> int:
        """Renvoie combien de lignes peuvent passer, sur `wanted` ; attend qu'une le puisse."""
        if not self.rate:
            return wanted
        now = time.monotonic()
        self.tokens = min(BURST_LINES, self.tokens + (now - self.counted_at) * self.rate)
        self.counted_at = now
        count = min(wanted, max(1, int(self.tokens)))
        self.tokens -= count
        if self.tokens < 0:
            time.sleep(-self.tokens / self.rate)  # le temps de gagner le jeton pris d'avance
        return count


def read_client(client: Client, hub: "Hub", rate: int) -> None:
    """Thread lecteur : reçoit ce qu'un client envoie, toute sa vie, d'état en état.

    naming   il vient d'être inscrit (start_reader) ; sa première ligne est son nom (Room.enter)
    member   chaque ligne suivante est un message ou une commande (Room.receive)
    late     il ne lit plus : tout le salon l'attend, une seconde au plus (Hub.send)
    leaving  « exit », ou la fin de son flux : c'est annoncé, et il lit l'au revoir (Room.leave)
    cut      il n'a pas fait à temps ce qu'on attendait de lui (Hub.expire)
    fin      recv se termine ; ce thread dépose DEPARTURE, une tournée ferme le socket (Hub.serve)
    """
    buffer, bucket, size = protocol.LineBuffer(), TokenBucket(rate), QUIET_RECV_BYTES
    try:
        while data := client.sock.recv(size):
            size = QUIET_RECV_BYTES if len(data) < QUIET_RECV_BYTES else RECV_BYTES
            submit(buffer.feed(data), client, hub, bucket)
        submit(buffer.last_line(), client, hub, bucket)
    except OSError:
        pass  # la connexion est coupée, ou l'autre machine ne répond plus : c'est une fin aussi
    finally:
        hub.post(client, DEPARTURE)


def submit(lines: list, client: Client, hub: "Hub", bucket: TokenBucket) -> None:
    """Dépose des lignes au débit permis, sauf après un départ ; OSError : connexion coupée."""
    while lines and not client.has_left and not hub.is_stopping:
        count = bucket.take(min(len(lines), DEPOSIT_LINES))
        if count < len(lines):
            # Ce client est freiné. Même rompue, sa connexion livrerait, des heures durant, les
            # lignes que le système a déjà reçues.
            client.sock.getpeername()  # lève OSError si elle est rompue (pas seulement finie)
        client.deposit_slot.acquire()
        hub.post(client, lines[:count])
        del lines[:count]


# --- Le salon : les règles, sans socket ni thread -------------------------------

MAX_REFUSALS = 5  # noms refusés avant de fermer la connexion


class Room:
    """La liste des membres et l'effet de chaque ligne. La tournée seule s'en sert."""

    def __init__(self) -> None:
        self.members: dict[str, Client] = {}  # name_key(nom) → client admis
        # Les champs suivants ne durent qu'une tournée, qui les remet à zéro.
        self.timestamp = ""  # « [HH:MM] », ou rien : le même pour toute la tournée
        self.console_lines: list[str] = []  # lignes à montrer, sans horodatage
        self.queued_bytes = 0  # octets ajoutés aux outbox, comptés une fois pour tous les membres

    def receive(self, client: Client, lines: list[bytes]) -> None:
        """Traite des lignes d'un client (bytes sans fin de ligne), dans l'ordre."""
        said: list[str] = []  # messages consécutifs, qui partiront en un seul morceau
        for line in lines:
            if client.has_left:
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
        self.tell(client, f"{NOTICE}Bienvenue, {name} ! (/aide : les commandes)")
        shown = f"{name} ({client.host}) a rejoint le chat."
        self.broadcast([f"{NOTICE}{name} a rejoint le chat."], console_lines=[shown])
        client.name = name
        client.become("member")
        self.members[key] = client

    def leave(self, client: Client) -> None:
        """Retire un client, et l'annonce s'il était membre. Sans effet la seconde fois."""
        if client.has_left:
            return
        client.become("leaving")
        client.outbox.append(b"")  # rien, mais Hub.send est appelé, et signale la fin de nos envois
        if client.name and self.members.pop(protocol.name_key(client.name), None):
            shown = f"{client.name} a quitté le chat."
            self.broadcast([f"{NOTICE}{shown}"], console_lines=[shown])

    def dismiss_everyone(self, clients: list[Client]) -> None:
        """Annonce l'arrêt du serveur à chaque client, mais à personne le départ des autres."""
        for client in clients:
            if not client.has_left:
                self.tell(client, f"{NOTICE}Le serveur s'arrête.")
                client.become("leaving")  # sans `leave`, qui annoncerait son départ

    def refuse(self, client: Client, reason: str) -> None:
        """Dit à un client que sa ligne est refusée ; sans nom, il a un nombre limité d'essais."""
        if client.name is None:
            client.refusals += 1
            client.become("naming")  # son délai repart de zéro
        if client.refusals == MAX_REFUSALS:
            reason += f" C'était le dernier des {MAX_REFUSALS} essais."
        self.tell(client, f"{ERROR}{reason}")
        if client.refusals == MAX_REFUSALS:
            self.leave(client)

    def execute(self, client: Client, verb: str, rest: str) -> None:
        """Exécute une commande d'un membre, ou lève Refused."""
        match verb:
            case "quit":
                self.tell(client, f"{protocol.FAREWELL}{client.name}.")
                self.leave(client)
            case "list":
                names = protocol.alphabetical(member.name for member in self.members.values())
                self.tell(client, f"{NOTICE}Connectés ({len(names)}) : {', '.join(names)}")
            case "help":
                self.tell(client, render(protocol.HELP_LINES, NOTICE))
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
        self.tell(member, f"{self.timestamp}{sender.name} (privé) : {protocol.clean(text)}")
        self.tell(sender, f"{NOTICE}Message privé envoyé à {member.name}.")

    def tell(self, client: Client, line: str) -> None:
        """Ajoute une ligne à l'outbox d'un seul client."""
        client.outbox.append(protocol.encode_line(line))
        self.queued_bytes += len(client.outbox[-1])

    def broadcast(self, lines: list[str], sender: Client | None = None, console_lines=None) -> None:
        """Ajoute des lignes à toutes les outbox, sauf celle de `sender`, et à la console."""
        if not lines:
            return
        piece = protocol.encode_line(render(lines, self.timestamp))
        for member in self.members.values():
            if member is not sender:
                member.outbox.append(piece)
        self.queued_bytes += len(piece)
        self.console_lines += console_lines or lines  # la console peut montrer autre chose


def render(lines: list[str], prefix: str) -> str:
    """Renvoie `lines` en un texte, chacune après `prefix`, la dernière sans « \n »."""
    return prefix + f"\n{prefix}".join(lines)


# --- Les tournées : ce que les clients reçoivent ---------------------------------

ROUND_BYTES = 256 * 1024  # octets de lignes par tournée : une outbox grandit d'autant, ou presque
TICK_SECONDS = 0.005  # s avant de réessayer d'envoyer ce que le système n'a pas accepté
IDLE_SECONDS = 1  # s entre deux tournées du veilleur, pour surveiller les délais
LATE_BYTES = 1024 * 1024  # octets de retard à partir desquels on attend un client
STOP_SECONDS = 2  # s pour s'arrêter : une s'il y a un retard, une pour lire l'au revoir

DONT_WAIT: int | None = getattr(socket, "MSG_DONTWAIT", None)  # Windows ne l'a pas
SMALL_SEND_BYTES = 16 * 1024  # octets par envoi sous Windows : moins que son tampon
CLOSE_WAKES_RECV = os.name == "nt"  # sous Windows, shutdown ne réveille pas recv (CPython 91913)


def send_now(sock: socket.socket, data: bytes) -> int:
    """Envoie ce que le système peut prendre tout de suite ; renvoie le nombre d'octets pris."""
    if DONT_WAIT is not None:  # le socket reste bloquant : son lecteur, lui, doit attendre
        try:
            return sock.send(data, DONT_WAIT)
        except BlockingIOError:
            return 0
    sent = 0
    while sent < len(data) and select.select([], [sock], [], 0)[1]:
        sent += sock.send(data[sent : sent + SMALL_SEND_BYTES])
    return sent


class Hub:
    """Fait les tournées. Un thread qui trouve leur verrou pris n'attend pas, sauf à l'arrêt."""

    def __init__(self, log: "Log | None", errors: "Writer", has_timestamps: bool) -> None:
        self.errors, self.console = errors, Writer(sys.stdout, errors)  # `stop` les finit
        self.inbox = collections.deque()  # tout thread y dépose (client, lignes), la tournée prend
        self.clients: set[Client] = set()  # le thread principal les ajoute, la tournée les retire
        self.bell = threading.Event()  # réveille le veilleur : tout thread sonne, lui seul efface
        self.is_stopping = False  # écrit une fois, par le thread principal
        # Le thread qui tient ce verrou fait la tournée ; lui seul modifie les champs suivants.
        self.round_lock = threading.Lock()
        self.room, self.log = Room(), log  # pas de journal : None ; `stop` le ferme
        self.has_timestamps = has_timestamps
        self.has_unsent = False  # il reste quelque chose à envoyer
        self.has_late = False  # un client est en retard : on ne vide pas l'inbox

    def post(self, client: Client, lines: list[bytes] | None) -> None:
        """Dépose des lignes ou DEPARTURE ; fait une tournée si le verrou est libre. Tout thread."""
        self.inbox.append((client, lines))
        # Si le verrou est pris, celui qui l'a verra ce dépôt ensuite, et réveillera le veilleur.
        self.try_round()

    def try_round(self) -> None:
        """Fait une tournée, sauf si un autre thread en fait une. Tout thread."""
        if not self.round_lock.acquire(blocking=False):
            return
        try:
            self.make_round()
        except Exception:  # le salon est peut-être incohérent : le processus se termine
            sentence = "Le serveur s'arrête : une tournée a échoué (voir ci-dessus)."
            self.errors.put(traceback.format_exc() + sentence)
            self.console.flush()
            self.errors.flush()
            os._exit(1)
        self.round_lock.release()
        # Une fois le verrou rendu : regarder avant oublierait un dépôt fait entre-temps.
        if self.inbox and not self.has_late:  # en retard, il passe toutes les 5 ms
            self.bell.set()

    def watch(self) -> None:
        """Thread veilleur : fait une tournée quand on le réveille, ou que son délai est passé."""
        while not self.is_stopping:
            self.bell.wait(TICK_SECONDS if self.has_unsent else IDLE_SECONDS)
            self.bell.clear()  # avant la tournée : un dépôt qui vient ensuite le réveillera aussi
            self.try_round()

    def make_round(self) -> None:
        """Traite l'inbox, sert chaque client, montre ce qui s'est dit, note ce qui reste."""
        self.room.timestamp = time.strftime("[%H:%M] ") if self.has_timestamps else ""
        if not self.has_late:
            self.empty_inbox()
        clients = list(self.clients)  # une copie : le thread principal peut en ajouter
        if self.is_stopping and not self.inbox:  # tout ce qui était déposé est traité
            self.room.dismiss_everyone(clients)
        now = time.monotonic()
        for client in clients:
            self.serve(client, now)
        if lines := self.room.console_lines:
            self.console.put(render(lines, self.room.timestamp))
        if self.log and (lines or self.log.missing_lines):
            self.log.append(lines, self.errors)
        self.room.console_lines, self.room.queued_bytes = [], 0
        remaining = [client for client in clients if client.outbox]
        self.has_late = any(client.state == "late" for client in remaining)
        had_unsent, self.has_unsent = self.has_unsent, bool(remaining)
        if self.has_unsent and not had_unsent:
            self.bell.set()  # le veilleur dort peut-être pour IDLE_SECONDS : il y a plus pressé

    def empty_inbox(self) -> None:
        """Traite les dépôts présents, dans la limite d'une tournée."""
        for _ in range(len(self.inbox)):
            client, lines = self.inbox.popleft()
            if lines is DEPARTURE:
                client.is_read_out = True
                self.room.leave(client)
            else:
                client.deposit_slot.release()
                self.room.receive(client, lines)
            if self.room.queued_bytes >= ROUND_BYTES:
                return

    def serve(self, client: Client, now: float) -> None:
        """Envoie à un client ce qui l'attend, surveille son délai, le ferme s'il a fini."""
        if client.outbox:
            self.send(client)
        if now > client.deadline:
            self.expire(client)
        if client.is_read_out and not client.outbox:
            client.sock.close()
            self.clients.discard(client)

    def send(self, client: Client) -> None:
        """Envoie ce que le système peut prendre tout de suite, et en tire l'état du client."""
        data = b"".join(client.outbox)
        try:
            data = data[send_now(client.sock, data) :]
        except OSError:  # la connexion est coupée ; son lecteur s'en apercevra
            data = b""
        client.outbox = [data] if data else []  # ce qui n'est pas parti, en un seul morceau
        # Sous 1 Mio, rien ; au-dessus, tout le salon attend une seconde au plus ; ensuite, coupé.
        # Il doit tout lire : s'il suffisait d'un octet, il ferait attendre tout le monde sans fin.
        if client.state == "member" and len(data) > LATE_BYTES:
            client.become("late")
        elif client.state == "late" and not data:
            client.become("member")
        elif client.state == "leaving" and not data:
            # Notre côté d'abord, le socket quand il aura fermé le sien : avec des octets non lus,
            # close coupe net, et l'au revoir peut se perdre (RFC 1122, 4.2.2.13).
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)

    def expire(self, client: Client) -> None:
        """Délai passé : sans nom, il part ; en retard, il part, coupé ; parti, il est coupé."""
        match client.state:
            case "naming":
                reason = f"Aucun nom admis en {STATE_SECONDS['naming']} s : connexion fermée."
                self.room.tell(client, f"{ERROR}{reason}")
                self.room.leave(client)
            case "late":
                backlog = len(client.outbox[0])  # send n'a laissé qu'un morceau
                reason = f"ce client ne lit plus ses messages ({backlog} octets en attente)"
                self.errors.put(f"{client.name} ({client.host}) : connexion coupée, {reason}.")
                self.room.leave(client)  # l'annonce aux autres
                self.cut(client)
            case "leaving":
                self.cut(client)

    def cut(self, client: Client) -> None:
        """Coupe la connexion d'un client : le recv de son lecteur se termine aussitôt."""
        client.become("cut")
        client.outbox.clear()
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)
        if CLOSE_WAKES_RECV:
            client.sock.close()

    def stop(self) -> None:
        """Annonce l'arrêt, ferme les connexions (la fin du programme ferme celles qui restent)."""
        self.is_stopping = True  # la première tournée à trouver l'inbox vide annonce l'arrêt
        self.bell.set()
        deadline = time.monotonic() + STOP_SECONDS
        while self.clients and time.monotonic() < deadline:
            self.try_round()
            time.sleep(TICK_SECONDS)
        # On ne rend plus ce verrou : aucune tournée n'écrira dans le journal fermé.
        if self.round_lock.acquire(timeout=OUTPUT_SECONDS) and self.log:
            self.log.file.close()
        is_console_written = self.console.flush(is_last=True)
        self.errors.put("Serveur arrêté.")
        is_written = self.errors.flush(is_last=True) and is_console_written
        if not is_written and not protocol.session_goes_on():
            os._exit(0)  # Python attendrait le verrou du flux, qu'un thread bloqué tient


# --- Les sorties : console, stderr, journal --------------------------------------

WAITING_CHARS = 8 * 1024 * 1024  # caractères qui attendent une sortie que personne ne lit
WRITE_PAUSE_SECONDS = 0.005  # s entre deux écritures : un réveil par ligne coûterait trop cher
OUTPUT_SECONDS = 1  # s au plus pour écrire ce qui attend, à la fin


class Writer:
    """Un thread qui écrit dans un flux, comme print : s'il bloque (Ctrl+S), lui seul attend."""

    def __init__(self, stream, errors: "Writer | None" = None) -> None:
        protocol.set_up_stream(stream)
        self.stream = stream  # sys.stdout ou sys.stderr, ou None (fermé) ; le thread seul y écrit
        self.errors = errors  # celui qui signale que cette sortie est perdue
        self.changed = threading.Condition()  # à tenir pour modifier les cinq champs suivants
        self.waiting, self.waiting_chars = [], 0  # textes à écrire, et leur longueur
        self.skipped_lines = 0  # lignes en trop, pas encore signalées
        self.is_idle = False  # tout est écrit
        self.is_ending = False  # flush demande au thread de finir, une fois tout écrit
        self.thread = threading.Thread(target=self.run, name="écriture", daemon=True)
        self.thread.start()

    def put(self, text: str) -> None:
        """Ajoute des lignes, la dernière sans « \n », sans attendre l'écriture. Tout thread."""
        with self.changed:
            if self.skipped_lines or self.waiting_chars + len(text) > WAITING_CHARS:
                self.skipped_lines += text.count("\n") + 1  # les suivantes aussi, jusqu'à `take`
            else:
                self.waiting.append(f"{text}\n")
                self.waiting_chars += len(text)
            self.is_idle = False
            self.changed.notify()

    def run(self) -> None:
        """Thread d'écriture : écrit tout ce qui attend, jusqu'au dernier flush, ou à une erreur."""
        while text := self.take():
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError, AttributeError) as error:  # cassé, fermé, absent
                if os.name == "nt" and getattr(error, "errno", None) == errno.EINVAL:
                    error.errno = errno.EPIPE  # Windows le dit ainsi d'un tube que nul ne lit plus
                if self.errors:
                    problem = f"Impossible d'écrire dans la console ({protocol.explain(error)})."
                    self.errors.put(f"{problem} Le chat continue.")
                return
            time.sleep(WRITE_PAUSE_SECONDS)

    def take(self) -> str:
        """Attend des lignes et les prend toutes ; renvoie "" s'il n'y en aura plus."""
        with self.changed:
            self.is_idle = not (self.waiting or self.skipped_lines)  # le texte d'avant est écrit
            self.changed.wait_for(lambda: not self.is_idle or self.is_ending)
            text = "".join(self.waiting)
            if count := self.skipped_lines:
                some = "1 ligne non affichée" if count == 1 else f"{count} lignes non affichées"
                text += f"… {some}.\n"
            self.waiting, self.waiting_chars, self.skipped_lines = [], 0, 0
            return text

    def flush(self, is_last: bool = False) -> bool:
        """Attend que tout soit écrit, OUTPUT_SECONDS au plus ; `is_last` finit aussi le thread."""
        deadline = time.monotonic() + OUTPUT_SECONDS
        while not self.is_idle and self.thread.is_alive() and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
        with self.changed:
            self.is_ending = is_last
            self.changed.notify()
            return self.is_idle


class Log:
    """Le journal, où la tournée écrit elle-même. Log(path) ouvre ce fichier, ou lève Refused."""

    def __init__(self, path: str) -> None:
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
            with contextlib.suppress(OSError):  # on retire ce qui est déjà écrit de cette tournée
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
ACCEPT_SECONDS = 0.5  # s par accept au plus, ou après son échec : on vérifie s'il faut s'arrêter
CLIENT_BUFFER_BYTES = 64 * 1024  # octets d'un client freiné que le système garde ; accept en hérite
SPARE_FILES = 16  # fichiers ouverts que le serveur garde pour lui


def accept_clients(listener: socket.socket, hub: Hub, options, signals) -> None:
    """Accepte des clients jusqu'à un signal d'arrêt."""
    max_clients = raise_file_limit(options.max_clients)
    listener.settimeout(ACCEPT_SECONDS)
    problem = ""  # ce qui a empêché la dernière arrivée
    while not signals:
        last_problem = problem
        try:
            sock, address = listener.accept()
            host = address[0].removeprefix("::ffff:")  # une adresse IPv4 vue par IPv6
            if len(hub.clients) < max_clients:
                problem = start_reader(sock, host, hub, options.debit)
            else:
                problem = f"Le serveur est complet : {host} refusé."
                refuse_full(sock)
        except (TimeoutError, ConnectionError):
            continue  # aucun client n'est venu, ou il est déjà reparti
        except OSError as error:
            problem = f"Impossible d'accepter un client : {protocol.explain(error)}."
            time.sleep(ACCEPT_SECONDS)  # il échouerait sinon de nouveau aussitôt
        if problem and not last_problem:  # une seule fois, jusqu'à la prochaine arrivée
            hub.errors.put(problem)


def start_reader(sock: socket.socket, host: str, hub: Hub, rate: int) -> str:
    """Inscrit un client et lance son lecteur ; renvoie "", ou la raison pour laquelle on refuse."""
    protocol.set_up_socket(sock, is_server=True)
    client = Client(sock, host)
    # D'abord l'inscrire, ensuite lancer son thread : sinon ses lignes pourraient arriver avant lui.
    hub.clients.add(client)
    arguments = client, hub, rate
    reader = threading.Thread(target=read_client, args=arguments, name="lecteur", daemon=True)
    try:
        reader.start()
    except RuntimeError:
        refuse_full(sock)
        hub.post(client, DEPARTURE)
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
            clients = min(clients, hard - SPARE_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, clients + SPARE_FILES), hard))
    return clients


def open_listener(host: str, port: int) -> socket.socket:
    """Renvoie le socket d'écoute, ou lève Refused avec ce qu'il faut faire."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # IPv4 d'abord (False vient avant True) : c'est là que le client cherche « localhost ».
        family, *_, addr = min(found, key=lambda info: info[0] != socket.AF_INET)
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(addr, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except (socket.gaierror, UnicodeError):
        raise Refused(f"Adresse inconnue : {host}. Choisissez un autre --hote.") from None
    except OSError as error:
        problem = f"Impossible d'écouter sur {host}, port {port} : {protocol.explain(error)}."
        advice = "Choisissez un autre --hote ou un autre --port, à partir de 1024."
        raise Refused(f"{problem} {advice}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CLIENT_BUFFER_BYTES)
    return listener


def greeting(listener: socket.socket) -> str:
    """Renvoie ce que stderr annonce : l'adresse, et ce qu'il faut taper sur d'autres machines."""
    host, port = listener.getsockname()[:2]
    text = f"Écoute sur {protocol.host_and_port(host, port)} (Ctrl+C pour arrêter)."
    command = "Sur les autres machines : python3 client_exo.py --hote"
    option = "" if port == protocol.DEFAULT_PORT else f" --port {port}"
    ipv4, ipv6 = (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")  # des exemples
    for family, anywhere in {"0.0.0.0": [ipv4], "::": [ipv4, ipv6]}.get(host, []):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((anywhere, 9))  # en UDP, rien n'est envoyé : le système choisit un chemin
            return f"{text}\n{command} {sock.getsockname()[0]}{option}"
    return text


def catch_signals(received: list[int]) -> dict:
    """À chaque signal d'arrêt, ajoute son numéro à `received` ; renvoie les réglages d'avant."""
    previous = {}
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # Ctrl+C, kill, Ctrl+Pause sous Windows
        if number := getattr(signal, name, None):
            with contextlib.suppress(ValueError):  # hors du thread principal, c'est interdit
                previous[number] = signal.signal(number, lambda n, _: received.append(n))
    return previous


def main() -> int:
    """Renvoie le code de sortie : 0 après un arrêt demandé, 2 pour une option refusée, sinon 1."""
    parser = protocol.new_option_parser("Le serveur", "où écouter ; 0.0.0.0 ouvre au réseau")
    parser.add_argument("--horodatage", action="store_true", help="[HH:MM] devant les messages")
    parser.add_argument("--journal", metavar="FICHIER", help="enregistre la console dans FICHIER")
    protocol.add_number(parser, "--max-clients", 1000, "clients admis en même temps", low=1)
    protocol.add_number(parser, "--debit", 20, "lignes par seconde et par client, 0 : sans limite")
    errors, signals, code = Writer(sys.stderr), [], 2
    previous = catch_signals(signals)
    try:
        options = protocol.parse_options(parser)
        code = 1
        log = None if options.journal is None else Log(options.journal)
        listener = open_listener(options.hote, options.port)
        errors.put(greeting(listener))
        errors.flush()  # d'abord stderr, ensuite la console
        hub = Hub(log, errors, options.horodatage)
        hub.console.put("Serveur en attente de connexions...")
        threading.Thread(target=hub.watch, name="veilleur", daemon=True).start()
        with listener:
            accept_clients(listener, hub, options, signals)
        hub.stop()
        return 0
    except Refused as reason:
        errors.put(str(reason))
        return code
    finally:
        errors.flush(is_last=True)
        # Celui qui a appelé main retrouve ses réglages ; sinon, on ignore un second Ctrl+C.
        is_ending = __name__ == "__main__" and not protocol.session_goes_on()
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if is_ending else handler)


if __name__ == "__main__":
    code = main()
    if not protocol.session_goes_on():
        sys.exit(code)
