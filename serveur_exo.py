#!/usr/bin/env python3
"""Le serveur du chat : TCP, des lignes de texte, un thread par client.

À essayer dans trois terminaux :

    python3 serveur_exo.py
    nc 127.0.0.1 12345          (tapez un nom, puis des messages)
    nc 127.0.0.1 12345

Chaque thread a un métier :

    accepteur   le thread principal : accepte, et lance un lecteur par client
    lecteur     un par client : recv, des lignes entières, un courrier pour le facteur
    facteur     fait des tournées : ouvrir le courrier, appliquer les règles, envoyer
    greffiers   écrivent, l'un la console, l'autre stderr et le journal

Une seule tournée a lieu à la fois, et elle seule touche au salon et sert ses membres : tous
voient donc les lignes dans le même ordre. Elle ne reste jamais bloquée dans un envoi.
Quand le facteur est libre, le lecteur qui a du courrier fait la tournée à sa place.
"""

from __future__ import annotations  # une classe peut en nommer une qui vient plus bas

import argparse
import contextlib
import datetime
import enum
import errno
import os
import queue
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chat_protocol as protocol
from chat_protocol import Refused

# --- Limites -----------------------------------------------------------------

BACKLOG = 4096  # connexions que le système garde avant accept : toute une salle d'un coup
ACCEPT_SECONDS = 0.05  # s par accept au plus : entre deux, on regarde s'il faut s'arrêter
PAUSE_SECONDS = 0.2  # s ; après un échec d'accept, qui sinon échouerait sans fin à 100 % CPU
DEFAULT_MAX_CLIENTS = 1000
SPARE_FILES = 32  # fichiers ouverts que le serveur garde pour lui

RECV_BYTES = 64 * 1024  # octets par recv : plusieurs lignes d'un coup, donc moins d'appels
QUIET_RECV_BYTES = 2048  # octets, pour qui parle peu : recv réserve cette place tant qu'il attend
RECEIVE_BUFFER_BYTES = 64 * 1024  # octets gardés par le système : un bavard freiné en laisse peu
LINES_PER_MAIL = 512  # lignes par courrier sans limite de débit : borne sa mémoire
ROUND_BYTES = 256 * 1024  # octets ; au-delà, la tournée envoie : chacun peut en garder une copie

NAME_SECONDS = 60  # s pour donner un nom : sinon, mille muets prendraient toute la place
MAX_REFUSALS = 5  # noms refusés avant de fermer
DEFAULT_RATE = 20  # lignes par seconde et par client : plus vite que l'on ne tape
BURST_LINES = 100  # lignes d'avance : un texte collé passe d'un coup

IDLE_SECONDS = 1  # s au plus entre deux tournées : pour voir qui tarde à donner son nom
TICK_SECONDS = 0.005  # s avant de réessayer ce que le système n'a pas pris
LATE_BYTES = 1024 * 1024  # octets de retard à partir desquels on attend un client
CATCH_UP_SECONDS = 1  # s qu'il a pour tout prendre : c'est ce qu'il peut coûter aux autres
FAREWELL_SECONDS = 5  # s laissées à qui part pour lire ce qui l'attend encore
END_SECONDS = 1  # s laissées à tous de même quand le serveur s'arrête
SLACK_SECONDS = 1  # s de plus, si une tournée est en cours
OUTPUTS_SECONDS = 1  # s au plus pour écrire ce qui attend la console
LAST_WORD_SECONDS = 0.5  # s au plus pour le journal et le dernier mot ; ces quatre durées : 3,5 s


# --- Ce que les threads s'envoient -------------------------------------------


class Event(enum.Enum):
    CONNECTED = "un client est là, sans nom encore"
    LINES = "des lignes entières d'un client"
    GONE = "la connexion d'un client est finie : son lecteur s'arrête"
    WAKE = "rien : le facteur doit se réveiller"


class Mail(NamedTuple):
    """Un courrier pour le facteur : n'importe quel thread le poste, une tournée l'ouvre."""

    event: Event
    client: Client | None = None
    lines: Sequence[bytes] = ()  # sans fin de ligne


class Client:
    """Un client vu du serveur. Chaque champ dit qui a le droit d'y écrire."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        self.sock = sock  # son lecteur y lit ; la tournée y envoie et le ferme
        self.host = host  # jamais modifié
        self.name_deadline = time.monotonic() + NAME_SECONDS  # jamais modifié
        # Pris avant de poster CONNECTED ou LINES, rendu par la tournée qui ouvre ce courrier (un
        # Lock peut être rendu par un autre thread). Si le client envoie trop vite, son lecteur
        # attend ici, puis TCP freine le client.
        self.mail_slot = threading.Lock()
        # La tournée seule écrit les champs suivants ; le lecteur n'en lit que deux,
        # name et leaving, qui ne changent qu'une fois.
        self.name: str | None = None  # None tant qu'aucun nom n'est admis
        self.refusals = 0  # noms refusés
        self.outbox: list[bytes] = []  # octets prêts à partir, dans l'ordre
        self.leaving = False  # il n'est plus du salon : ce qu'il envoie est jeté
        self.closing_deadline: float | None = None  # instant où l'on n'attend plus qu'il ferme
        self.gone = False  # son lecteur a fini

    def add_line(self, text: str) -> None:
        """Met une ligne (str sans fin de ligne) dans l'outbox ; ne l'envoie pas encore."""
        self.outbox.append(protocol.encode_line(text))


# --- L'accepteur ---------------------------------------------------------------


class Acceptor:
    """Le thread principal : accepte les clients et donne un lecteur à chacun."""

    def __init__(self, postman: Postman, rate: int) -> None:
        self.postman = postman  # à qui les lecteurs parlent, et l'accepteur aussi
        self.rate = rate  # lignes par seconde et par client
        self.is_in_trouble = False  # un refus est signalé : les suivants, non, jusqu'à une arrivée
        self.is_stopping = False  # écrit par stop, une fois

    def run(self, listener: socket.socket) -> None:
        """Accepte des clients jusqu'à l'arrêt."""
        listener.settimeout(ACCEPT_SECONDS)
        while not self.is_stopping and not self.postman.defect:
            self.accept(listener)
        listener.setblocking(False)
        for _ in range(BACKLOG):  # ceux que le système gardait encore seront prévenus aussi
            if not self.accept(listener):
                break

    def accept(self, listener: socket.socket) -> bool:
        """Accepte un client, ou le refuse ; rend False s'il n'y en a pas, ou plus moyen."""
        try:
            sock, address = listener.accept()
        except ConnectionError:
            return True  # reparti avant d'être accepté
        except (TimeoutError, BlockingIOError):
            return False  # personne
        except OSError as error:  # plus de fichiers, par exemple : cela échouerait sans fin
            self.report(f"Impossible d'accepter un client : {protocol.explain(error)}.")
            time.sleep(PAUSE_SECONDS)
            return False
        host = address[0].removeprefix("::ffff:")  # une adresse IPv4 vue par IPv6
        if self.postman.admission.acquire(blocking=False):
            self.start_reader(sock, host)
        else:
            self.report(f"Le serveur est complet : {host} refusé.")
            say_full(sock)
            sock.close()
        return True

    def start_reader(self, sock: socket.socket, host: str) -> None:
        prepare(sock)
        client = Client(sock, host)
        # D'abord l'inscrire, ensuite lancer son thread : dans l'ordre inverse, ses
        # lignes pourraient arriver avant lui.
        client.mail_slot.acquire()
        self.postman.inbox.put(Mail(Event.CONNECTED, client))
        reader = threading.Thread(
            target=read_client, args=(client, self.postman, self.rate), name="lecteur", daemon=True
        )
        try:
            reader.start()
            self.is_in_trouble = False
        except RuntimeError:
            self.report(f"Le système ne donne plus de thread : {host} refusé.")
            say_full(sock)
            self.postman.inbox.put(Mail(Event.GONE, client))

    def report(self, text: str) -> None:
        if not self.is_in_trouble:
            self.is_in_trouble = True
            self.postman.outputs.report(text)

    def stop(self, *_: object) -> None:  # un signal passe deux arguments, inutiles ici
        """Demande l'arrêt. Appelée au milieu de n'importe quoi, quand un signal arrive.

        Elle ne fait donc que noter : ni exception, ni verrou qui serait peut-être déjà tenu.
        """
        self.is_stopping = True


def say_full(sock: socket.socket) -> None:
    """Dit à un client de trop que c'est complet, sans l'attendre."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        line = protocol.error_line("Le serveur est complet, réessayez plus tard.")
        sock.send(protocol.encode_line(line))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(RECV_BYTES)  # son nom, s'il est déjà là : non lu, il ferait perdre la réponse


KEEPALIVE_IDLE = 60  # s de silence avant de sonder une machine peut-être disparue
KEEPALIVE_INTERVAL = 15  # s entre deux sondes
KEEPALIVE_PROBES = 4  # sondes sans réponse : 60 + 4 × 15 = 120 s en tout
UNANSWERED_MILLISECONDS = 120_000  # ms sans accusé de réception, dans un salon qui parle


def prepare(sock: socket.socket) -> None:
    """Règle un socket accepté : envois immédiats, sondes contre les machines disparues."""
    sock.setblocking(True)  # ailleurs que sous Linux, il hérite du mode de l'écoute
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),  # sinon, jusqu'à 40 ms d'attente par envoi
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNANSWERED_MILLISECONDS),
    ]
    for level, name, value in options:
        if hasattr(socket, name):  # tous les systèmes n'ont pas tout
            with contextlib.suppress(OSError):  # déjà coupé : son lecteur le dira
                sock.setsockopt(level, getattr(socket, name), value)


# --- La vie d'un client : ce qu'il envoie --------------------------------------


class Allowance:
    """Le débit d'un client : un seau à jetons, un par ligne. Son lecteur seul s'en sert."""

    def __init__(self, rate: int) -> None:
        self.rate = rate  # jetons par seconde ; 0 : sans limite
        self.tokens = float(BURST_LINES)
        self.counted_at = time.monotonic()

    def allowed_lines(self) -> int:
        """Rend combien de lignes prendre maintenant, une au moins."""
        return max(1, int(self.tokens)) if self.rate else LINES_PER_MAIL

    def spend(self, lines: int) -> float:
        """Paie des lignes ; rend les secondes à attendre avant de les transmettre."""
        if not self.rate:
            return 0
        now = time.monotonic()
        earned = (now - self.counted_at) * self.rate
        self.counted_at = now
        self.tokens = min(BURST_LINES, self.tokens + earned) - lines
        return max(0, -self.tokens / self.rate)


def read_client(client: Client, postman: Postman, rate: int) -> None:
    """Thread lecteur : de la connexion d'un client à sa fin."""
    buffer, allowance = protocol.LineBuffer(), Allowance(rate)
    size = QUIET_RECV_BYTES
    try:
        while data := client.sock.recv(size):
            if client.leaving:
                continue  # lu et jeté : des octets non lus feraient perdre l'au revoir
            size = QUIET_RECV_BYTES if len(data) < QUIET_RECV_BYTES else RECV_BYTES
            buffer.feed(data)
            while not client.leaving and (lines := buffer.take(allowance.allowed_lines())):
                hand_over(lines, client, postman, allowance)
        if last := buffer.take_last():
            hand_over(last, client, postman, allowance)
    except TimeoutError:  # ni accusé de réception ni réponse aux sondes
        postman.outputs.report(f"{client.name} ({client.host}) ne répond plus.")
    except OSError:
        pass  # connexion coupée net : elle est finie, comme les autres
    finally:
        postman.inbox.put(Mail(Event.GONE, client))


def hand_over(
    lines: list[bytes], client: Client, postman: Postman, allowance: Allowance
) -> None:
    """Transmet des lignes au facteur, au débit permis ; OSError si le client a été coupé."""
    delay = allowance.spend(len(lines))
    if delay > 0:
        time.sleep(delay)
        # Les lignes d'un client coupé restent lisibles : à ce débit, un fantôme parlerait
        # des heures. getpeername échoue dès que la connexion n'existe plus.
        client.sock.getpeername()
    client.mail_slot.acquire()
    postman.bring(Mail(Event.LINES, client, lines))


# --- Le salon : les règles, sans socket ni thread -----------------------------


class Room:
    """Qui est là, et ce que chaque ligne y fait. La tournée seule s'en sert."""

    def __init__(self) -> None:
        self.members: dict[str, Client] = {}  # name_key(nom) → client admis
        self.stamp = ""  # « [HH:MM] » de la tournée, ou rien
        self.news: list[str] = []  # lignes de console de la tournée, sans horodatage
        self.posted_bytes = 0  # octets donnés dans cette tournée, comptés une fois pour tous

    def start_round(self, stamp: str) -> None:
        """Commence une tournée, dont toutes les lignes auront le même horodatage."""
        self.stamp = stamp
        self.news = []
        self.posted_bytes = 0

    def receive(self, client: Client, lines: list[bytes]) -> None:
        """Traite des lignes d'un client (bytes sans fin de ligne), dans l'ordre."""
        said: list[str] = []  # messages qui se suivent : un seul morceau pour chacun
        for line in lines:
            if client.leaving:
                break
            try:
                text = protocol.decode_line(line)
                command = protocol.parse(text)
                if protocol.is_blank(text):
                    pass
                elif client.name is not None and isinstance(command, protocol.Message):
                    said.append(protocol.message_line(client.name, command.text))
                elif client.name is not None:
                    self.broadcast(said, said, sender=client)
                    said = []
                    self.obey(client, command)
                elif command == protocol.Quit():
                    client.leaving = True
                else:
                    self.join(client, protocol.normalize_name(text))
            except Refused as reason:
                self.refuse(client, str(reason))
        self.broadcast(said, said, sender=client)  # aux membres et à la console, à l'identique

    def join(self, client: Client, name: str) -> None:
        """Admet un client sous ce nom (normalisé), ou lève Refused si ce nom est pris."""
        key = protocol.name_key(name)
        if key in self.members:
            raise Refused(f"Le nom {name} est déjà pris : choisissez-en un autre.")
        client.add_line(protocol.notice_line(f"Bienvenue, {name} ! (/aide : les commandes)"))
        self.announce(f"{name} a rejoint le chat.", f"{name} ({client.host}) a rejoint le chat.")
        client.name = name
        self.members[key] = client

    def leave(self, client: Client) -> None:
        """Retire un client, et l'annonce s'il était du salon."""
        client.leaving = True
        if client.name is None or self.members.pop(protocol.name_key(client.name), None) is None:
            return
        line = f"{client.name} a quitté le chat."
        self.announce(line, line)

    def refuse(self, client: Client, reason: str) -> None:
        """Dit à un client que sa ligne n'est pas recevable ; sans nom, c'est un essai de moins."""
        if client.name is None:
            client.refusals += 1
            if client.refusals == MAX_REFUSALS:
                reason += f" C'était le dernier des {MAX_REFUSALS} essais."
                client.leaving = True
        self.answer(client, protocol.error_line(reason))

    def obey(self, client: Client, command: protocol.Command) -> None:
        """Exécute une commande d'un membre, ou lève Refused."""
        match command:
            case protocol.Quit():
                self.answer(client, protocol.farewell_line(client.name))
                self.leave(client)
            case protocol.ListMembers():
                names = protocol.alphabetical(member.name for member in self.members.values())
                line = f"Connectés ({len(names)}) : {', '.join(names)}"
                self.answer(client, protocol.notice_line(line))
            case protocol.Help():
                for line in protocol.HELP_LINES:
                    self.answer(client, protocol.notice_line(line))
            case protocol.PrivateMessage(recipient, text):
                self.send_privately(client, recipient, text)
            case protocol.UnknownCommand(word):
                raise Refused(f"Commande inconnue : {word} (tapez /aide).")

    def send_privately(self, sender: Client, recipient: str, text: str) -> None:
        """Donne un message à un seul membre, ou lève Refused."""
        member = self.members.get(protocol.name_key(recipient))
        if not text:
            raise Refused("Il manque le nom ou le message : /privé NOM message")
        if member is None:
            raise Refused(f"Personne ne s'appelle {protocol.quote(recipient)} ici (tapez /liste).")
        if member is sender:
            raise Refused("Ce message est pour vous-même : choisissez un autre nom (tapez /liste).")
        self.answer(member, self.stamp + protocol.private_line(sender.name, text))
        self.answer(sender, protocol.notice_line(f"Message privé envoyé à {member.name}."))

    def answer(self, client: Client, line: str) -> None:
        """Donne une ligne à un seul client."""
        client.add_line(line)
        self.posted_bytes += len(client.outbox[-1])

    def announce(self, text: str, console_line: str) -> None:
        """Donne une arrivée ou un départ à tous les membres et à la console."""
        self.broadcast([protocol.notice_line(text)], [console_line])

    def broadcast(self, lines: list[str], news: list[str], sender: Client | None = None) -> None:
        """Donne des lignes à chaque membre sauf `sender`, encodées une fois pour tous."""
        if not lines:
            return
        piece = b"".join(protocol.encode_line(self.stamp + line) for line in lines)
        for member in self.members.values():
            if member is not sender:
                member.outbox.append(piece)
        self.posted_bytes += len(piece)
        self.news += news


# --- La vie d'un client : ce qu'il reçoit --------------------------------------


class Postman:
    """Le facteur : il fait des tournées, qui seules touchent au salon et servent ses membres.

    Une tournée envoie en tenant un verrou, mais sans jamais attendre : le verrou est vite rendu.
    Dans la solution habituelle, `sendall` attend en tenant le verrou, et tous attendent avec lui.
    """

    def __init__(
        self, admission: threading.BoundedSemaphore, outputs: Outputs, with_stamps: bool
    ) -> None:
        # Par où tous les autres threads lui parlent. Cette file n'a pas de borne : un client n'y a
        # jamais qu'un courrier à la fois (Client.mail_slot), et une fois sa fin ; WAKE est rare.
        self.inbox: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        self.is_stopping = False  # écrit par l'accepteur, une fois
        self.admission = admission  # une place par client, de l'accueil à la fermeture
        self.outputs = outputs
        self.with_stamps = with_stamps
        # Tenu le temps d'une tournée, qui seule écrit les champs suivants. On lit late, is_idle et
        # defect sans le tenir : au pire, une tournée de trop, ou trop tôt.
        self.round_lock = threading.Lock()
        self.defect: Exception | None = None  # ce qui a fait échouer une tournée : tout s'arrête
        self.room = Room()
        self.clients: set[Client] = set()  # tous, nommés ou non
        # Ceux qui sont en retard, et l'instant où ils seront déconnectés. Tant qu'il y en a, le
        # courrier reste fermé.
        self.late: dict[Client, float] = {}
        self.is_idle = True  # rien à faire avant le prochain courrier

    def run(self) -> None:
        """Thread facteur : des tournées jusqu'à l'arrêt, puis la fermeture."""
        while not self.is_stopping:
            mail = self.wait_for_mail(IDLE_SECONDS if self.is_idle else TICK_SECONDS)
            with self.round_lock:
                self.make_round(mail, self.inbox.qsize())
        with self.round_lock:
            self.close_everything()

    def stop(self) -> None:
        """Demande l'arrêt, sans l'attendre. Accepteur seul."""
        self.is_stopping = True
        self.inbox.put(Mail(Event.WAKE))  # réveille le facteur, qui dort peut-être

    def bring(self, mail: Mail) -> None:
        """Apporte les lignes d'un client. Son lecteur seul.

        Si le facteur est libre, le lecteur fait la tournée à sa place : dans un salon calme,
        réveiller un autre thread coûterait plus cher qu'elle.
        """
        is_calm = self.inbox.empty() and not self.late
        if is_calm and self.round_lock.acquire(blocking=False):
            try:
                self.make_round(mail)
                if not self.is_idle:
                    self.inbox.put(Mail(Event.WAKE))
            finally:
                self.round_lock.release()
        else:
            self.inbox.put(mail)

    def wait_for_mail(self, seconds: float) -> Mail | None:
        """Rend le courrier suivant, ou None s'il n'en vient pas en `seconds` ou s'il est fermé."""
        if self.late:
            time.sleep(TICK_SECONDS)  # le courrier attend qu'ils aient tout pris
            return None
        try:
            return self.inbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def make_round(self, mail: Mail | None, more: int = 0) -> None:
        """Une tournée : ouvrir le courrier, distribuer, afficher. À n'appeler que sous round_lock.

        `more` : combien de courriers ouvrir après `mail`. Le facteur seul vide la boîte : sinon,
        pendant qu'il attend le verrou avec les derniers mots d'un client, un lecteur ouvrirait
        avant lui le départ de ce client.
        """
        try:
            self.room.start_round(time.strftime("[%H:%M] ") if self.with_stamps else "")
            if mail:
                self.open_all(mail, more)
            self.deliver()
            self.outputs.show(self.room.news, self.room.stamp)
        except Exception as defect:  # le salon n'est peut-être plus cohérent : tout s'arrêtera
            self.defect = self.defect or defect

    def open_all(self, mail: Mail, more: int) -> None:
        """Ouvre un courrier, et `more` autres dans la limite d'une tournée."""
        self.open_one(mail)
        for _ in range(more):
            if self.late or self.room.posted_bytes >= ROUND_BYTES:
                return
            self.open_one(self.inbox.get_nowait())

    def open_one(self, mail: Mail) -> None:
        client = mail.client
        match mail.event:
            case Event.CONNECTED:
                self.clients.add(client)
                client.mail_slot.release()
            case Event.LINES:
                client.mail_slot.release()
                self.room.receive(client, mail.lines)
            case Event.GONE:
                client.gone = True
                self.room.leave(client)

    def deliver(self) -> None:
        """Envoie à chacun ce qu'il prend tout de suite, et ferme ceux qui ont fini."""
        self.is_idle = True
        for client in list(self.clients):
            if client.name is None:
                self.dismiss_if_unnamed(client)
            if client.outbox:
                self.send_to(client)
            if client.leaving:
                self.close_when_done(client)
            if client.outbox or client.leaving:
                self.is_idle = False

    def dismiss_if_unnamed(self, client: Client) -> None:
        """Fait partir un client qui n'a pas donné de nom à temps."""
        if not client.leaving and time.monotonic() > client.name_deadline:
            client.add_line(protocol.error_line(f"Pas de nom en {NAME_SECONDS} s : au revoir."))
            client.leaving = True

    def send_to(self, client: Client) -> None:
        data = b"".join(client.outbox)
        try:
            sent = send_now(client.sock, data)
        except OSError:  # plus personne au bout ; son lecteur finit de lire, et le dira
            sent = len(data)
            shut(client.sock, socket.SHUT_RDWR)
        client.outbox = [data[sent:]] if sent < len(data) else []
        if not client.leaving:
            self.watch_delay(client, len(data) - sent)

    def watch_delay(self, client: Client, behind: int) -> None:
        """Si un client a plus d'un Mio de retard, lui donne une seconde, puis le déconnecte.

        Une seconde pour tout prendre, et non « un peu » : qui lirait un octet à la fois tiendrait
        le salon à son pas.
        """
        if not behind:
            self.late.pop(client, None)
        elif client not in self.late:
            if behind > LATE_BYTES:
                self.late[client] = time.monotonic() + CATCH_UP_SECONDS
        elif time.monotonic() > self.late[client]:
            self.drop(client, behind)

    def drop(self, client: Client, behind: int) -> None:
        """Déconnecte un client qui ne lit plus."""
        self.outputs.report(
            f"{client.name} ({client.host}) déconnecté : il ne lit plus ({behind} octets attendent)."
        )
        client.outbox.clear()
        # Le système garderait sinon des Mio pour lui : SO_LINGER de 0 s, close les jettera.
        with contextlib.suppress(OSError):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        shut(client.sock, socket.SHUT_RDWR)
        self.room.leave(client)

    def close_when_done(self, client: Client) -> None:
        """Ferme en deux temps : l'envoi, puis le socket quand le client a fermé ou trop tardé.

        Fermer d'un coup, avec des octets non lus, ferait envoyer par TCP un « reset »
        qui peut détruire l'au revoir en chemin (RFC 1122, 4.2.2.13).
        """
        self.late.pop(client, None)  # qui part n'est plus attendu
        if client.closing_deadline is None:
            client.closing_deadline = time.monotonic() + FAREWELL_SECONDS
        is_expired = time.monotonic() > client.closing_deadline
        if client.gone and (is_expired or not client.outbox):
            client.sock.close()
            self.clients.remove(client)
            self.admission.release()
        elif is_expired:
            shut(client.sock, socket.SHUT_RDWR)  # réveille son lecteur, qui dira GONE
        elif not client.outbox:
            shut(client.sock, socket.SHUT_WR)

    def close_everything(self) -> None:
        """Prévient chacun que le serveur s'arrête, et ferme, en END_SECONDS au plus."""
        self.late.clear()
        self.make_round(self.wait_for_mail(0), self.inbox.qsize())  # au-delà, le courrier est jeté
        self.room.members.clear()  # plus de salon : personne ne verra partir les autres
        deadline = time.monotonic() + END_SECONDS
        while self.clients and time.monotonic() < deadline:
            for client in self.clients:
                if not client.leaving:
                    client.add_line(protocol.notice_line("Le serveur s'arrête."))
                    client.leaving = True
            self.make_round(self.wait_for_mail(TICK_SECONDS), self.inbox.qsize())


DONT_WAIT: int | None = getattr(socket, "MSG_DONTWAIT", None)  # Windows ne l'a pas
SMALL_SEND_BYTES = 16 * 1024  # octets par envoi sous Windows : moins que son tampon


def send_now(sock: socket.socket, data: bytes) -> int:
    """Envoie ce que le système prend tout de suite ; rend le nombre d'octets pris, 0 peut-être.

    Le socket reste bloquant : son lecteur s'en sert aussi, et a besoin d'attendre.
    """
    if DONT_WAIT is None:
        is_ready = select.select([], [sock], [], 0)[1]
        return sock.send(data[:SMALL_SEND_BYTES]) if is_ready else 0
    try:
        return sock.send(data, DONT_WAIT)
    except BlockingIOError:
        return 0


def shut(sock: socket.socket, how: int) -> None:
    """shutdown, sans effet si la connexion n'existe plus."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)


# --- Les sorties : stderr, console, journal ------------------------------------


OUTPUT_BYTES = 8 * 1024 * 1024  # octets qui attendent une sortie que personne ne lit
PIPE_BYTES = getattr(select, "PIPE_BUF", 512)  # octets qu'un tube « prêt » prend sans bloquer
BLOCKED_SECONDS = 0.05  # s d'attente d'une sortie bloquée avant de regarder l'autre
CONSOLE_PAUSE_SECONDS = 0.005  # s entre deux écritures : un réveil par ligne serait trop cher


class Output:
    """Un descripteur, et ce qui attend qu'un greffier l'y écrive.

    On écrit avec os.write et non dans un fichier Python : une écriture bloquée
    (Ctrl+S, tube plein) y tiendrait un verrou que la fin du programme attend.
    """

    def __init__(self, descriptor: int, label: str, clerk: Clerk) -> None:
        self.descriptor = descriptor
        self.label = label  # comment la nommer à l'exploitant
        self.encoding = os.device_encoding(descriptor) or "utf-8"  # celui du terminal
        self.clerk = clerk  # celui qui y écrit
        # À tenir pour changer les champs suivants, jamais pendant une écriture.
        self.lock = threading.Lock()
        self.waiting = bytearray()  # dans l'ordre : put ajoute à la fin, le greffier ôte au début
        self.skipped_lines = 0  # lignes sautées faute de place, pas encore signalées
        self.is_broken = False  # rien ne s'y écrit plus
        clerk.outputs.append(self)

    def put(self, lines: list[str]) -> None:
        """Ajoute des lignes (str sans fin de ligne) ; n'attend jamais. N'importe quel thread."""
        data = self.encode("\n".join(lines))
        with self.lock:
            if self.is_broken:
                return
            if self.skipped_lines or len(self.waiting) + len(data) > OUTPUT_BYTES:
                self.skipped_lines += len(lines)
            else:
                self.waiting += data
        self.clerk.bell.set()

    def encode(self, text: str) -> bytes:
        """Rend les octets de `text` et de sa fin de ligne, « ? » pour ce qui ne peut se montrer."""
        return f"{text}\n".encode(self.encoding, errors="replace")

    def next_piece(self) -> bytes:
        """Rend ce qu'il faut écrire maintenant, en fin de ligne s'il se peut ; b"" s'il n'y a rien.

        PIPE_BYTES au plus : au-delà, un tube « prêt » peut bloquer, et un kill -9 au milieu d'une
        grande écriture couperait une ligne.
        """
        with self.lock:
            # On attend d'en avoir écrit la moitié : sinon, une annonce par ligne sautée.
            if self.skipped_lines and len(self.waiting) <= OUTPUT_BYTES // 2:
                notice = f"… {self.skipped_lines} lignes non affichées."
                self.waiting += self.encode(notice)
                self.skipped_lines = 0
            end = self.waiting.rfind(b"\n", 0, PIPE_BYTES) + 1
            return bytes(self.waiting[: end or PIPE_BYTES])

    def write_what_fits(self) -> None:
        """Écrit ce qui attend, sans bloquer ; lève OSError si rien ne s'y écrit plus."""
        while (piece := self.next_piece()) and is_writable([self.descriptor]):
            try:
                written = os.write(self.descriptor, piece)
            except BlockingIOError:  # un descripteur non bloquant, hérité tel quel
                return
            with self.lock:
                del self.waiting[:written]


def is_writable(descriptors: list[int], seconds: float = 0) -> bool:
    """Dit si l'un d'eux prend des octets sans bloquer, en attendant `seconds` au plus."""
    try:
        return bool(select.select([], descriptors, [], seconds)[1])
    except OSError:  # Windows, ou un descripteur fermé : write le dira
        return True


class Clerk:
    """Un greffier : un thread qui écrit dans ses sorties, là où cela ne bloque pas."""

    def __init__(self, report: Callable[[str], None], pause: float = 0) -> None:
        self.report = report  # à qui signaler une sortie perdue
        self.pause = pause  # s de repos après une écriture : les lignes qui suivent se regroupent
        self.outputs: list[Output] = []  # où écrire ; lui seul en ôte, Output y ajoute
        self.bell = threading.Event()  # quelque chose attend, ou c'est la fin
        self.is_ending = False  # écrit par l'accepteur, une fois
        self.thread = threading.Thread(target=self.run, name="greffier", daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Thread greffier : jusqu'à ce que tout soit écrit après `finish`."""
        blocked: list[Output] = []
        while blocked or not self.is_ending:
            if blocked:
                is_writable([output.descriptor for output in blocked], BLOCKED_SECONDS)
            else:
                self.bell.wait()
            self.bell.clear()  # avant de regarder : ce qui vient après la fera sonner de nouveau
            for output in list(self.outputs):
                self.write(output)
            blocked = [output for output in self.outputs if output.waiting]
            time.sleep(self.pause)

    def write(self, output: Output) -> None:
        try:
            output.write_what_fits()
        except OSError as error:
            with output.lock:
                output.is_broken = True
            self.outputs.remove(output)
            self.report(loss_report(output.label, protocol.explain(error)))

    def finish(self, seconds: float) -> None:
        """Fait écrire ce qui peut l'être, pendant `seconds` au plus. Accepteur seul."""
        self.is_ending = True
        self.bell.set()
        self.thread.join(seconds)


def loss_report(label: str, reason: str) -> str:
    return f"Plus rien ne s'écrit dans {label} ({reason}) ; le chat continue."


class Outputs:
    """Où va ce que l'exploitant doit voir. La tournée seule appelle show, tout thread report."""

    def __init__(self) -> None:
        # Deux greffiers : une console bloquée ne retient ni stderr ni le journal.
        self.console_clerk = Clerk(self.report, CONSOLE_PAUSE_SECONDS)
        self.file_clerk = Clerk(self.report)
        self.console = Output(1, "la console", self.console_clerk)
        self.errors = Output(2, "stderr", self.file_clerk)
        self.log: Output | None = None
        # Un descripteur fermé au départ désignera peut-être un fichier ouvert depuis.
        self.console.is_broken, self.errors.is_broken = sys.stdout is None, sys.stderr is None

    def keep_log(self, descriptor: int) -> None:
        """Ajoute un journal, avant toute ligne."""
        self.log = Output(descriptor, "le journal", self.file_clerk)

    def greet(self, address: tuple) -> None:
        """Annonce l'écoute, sur stderr d'abord."""
        complain(f"Écoute sur {protocol.host_and_port(*address[:2])} (Ctrl+C pour arrêter).")
        if self.console.is_broken:
            self.report(loss_report(self.console.label, "fermée"))
        self.console.put(["Serveur en attente de connexions..."])

    def report(self, text: str) -> None:
        """Écrit une phrase sur stderr. N'importe quel thread."""
        self.errors.put([text])

    def show(self, lines: list[str], stamp: str) -> None:
        """Écrit des lignes à la console, et au journal avec leur date entière. Tournée seule."""
        if not lines:
            return
        self.console.put([stamp + line for line in lines])
        if self.log:
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            self.log.put([f"{now} {line}" for line in lines])

    def close(self, last_word: str) -> None:
        """Fait écrire ce qui peut l'être, puis `last_word` sur stderr. Accepteur seul."""
        self.console_clerk.finish(OUTPUTS_SECONDS)
        self.report(last_word)
        self.file_clerk.finish(LAST_WORD_SECONDS)


# --- Le démarrage et la fin ----------------------------------------------------


def open_listener(host: str, port: int) -> socket.socket:
    """Rend le socket d'écoute, ou lève Refused avec ce qu'il faut faire."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(
            address[:2],
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (socket.gaierror, UnicodeError):
        raise Refused(f"Adresse inconnue : {host}. Choisissez un autre --hote.") from None
    except OSError as error:
        raise Refused(f"Impossible d'écouter sur {host}, port {port} : {advice(error)}") from None
    # Hérité par chaque client : c'est tout ce que le système garde d'un bavard freiné.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return listener


def advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "ce port est déjà pris. Arrêtez l'autre serveur ou choisissez un autre --port."
        case errno.EACCES:
            return "ce port est réservé à l'administrateur. Choisissez un --port à partir de 1024."
        case errno.EADDRNOTAVAIL:
            return "cette adresse n'est pas celle de cette machine. Choisissez un autre --hote."
        case _:
            return f"{protocol.explain(error)}. Choisissez un autre --hote ou un autre --port."


def open_log(path: str) -> int:
    """Rend le descripteur du journal, prêt à être continué, ou lève Refused."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(descriptor).st_size
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":
                os.write(descriptor, b"\n")  # finit la ligne qu'une fin brutale a coupée
    except OSError as error:
        reason = protocol.explain(error)
        shown = protocol.clean(path)
        raise Refused(f"Impossible d'écrire le journal {shown} : {reason}.") from None
    return descriptor


def fit_to_file_limit(max_clients: int) -> int:
    """Relève la limite de fichiers ouverts ; rend le nombre de clients qu'elle permet."""
    try:
        import resource  # Windows ne l'a pas, ni cette limite
    except ImportError:
        return max_clients
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_clients + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_clients
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    return min(max_clients, max(1, soft - SPARE_FILES))


STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)  # Windows n'a pas le dernier
]


def handle_stop_signals(handler: Callable | signal.Handlers) -> None:
    """Confie à `handler` Ctrl+C, `kill` et la fermeture du terminal (que nohup veut ignorer)."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def parse_options() -> argparse.Namespace:
    """Rend les options de la ligne de commande, ou lève Refused."""
    parser = protocol.new_option_parser("Le serveur du chat.")
    parser.add_argument(
        "--horodatage", action="store_true", help="[HH:MM] devant messages, arrivées et départs"
    )
    parser.add_argument("--journal", metavar="FICHIER", help="garde aussi la console dans FICHIER")
    parser.add_argument(
        "--max-clients", metavar="N", default=DEFAULT_MAX_CLIENTS,
        type=lambda text: protocol.whole_number(text, "--max-clients", 1),
        help="clients admis en même temps (%(default)s par défaut)",
    )  # fmt: skip
    parser.add_argument(
        "--debit", metavar="N", default=DEFAULT_RATE,
        type=lambda text: protocol.whole_number(text, "--debit", 0),
        help="lignes par seconde et par client (%(default)s par défaut ; 0 : sans limite)",
    )  # fmt: skip
    return parser.parse_args()


def serve(listener: socket.socket, outputs: Outputs, options: argparse.Namespace) -> int:
    """Tient le chat jusqu'à un signal ; rend le code de sortie."""
    max_clients = fit_to_file_limit(options.max_clients)
    admission = threading.BoundedSemaphore(max_clients)
    postman = Postman(admission, outputs, options.horodatage)
    acceptor = Acceptor(postman, options.debit)
    handle_stop_signals(acceptor.stop)
    postman_thread = threading.Thread(target=postman.run, name="facteur", daemon=True)
    outputs.greet(listener.getsockname())
    if max_clients < options.max_clients:
        outputs.report(f"{max_clients} clients au plus : le système limite les fichiers ouverts.")
    postman_thread.start()
    with listener:
        acceptor.run(listener)
    handle_stop_signals(signal.SIG_IGN)  # un second Ctrl+C, même au dernier instant, n'y fait rien
    postman.stop()
    postman_thread.join(END_SECONDS + SLACK_SECONDS)
    if postman.defect:
        outputs.close("".join(traceback.format_exception(postman.defect)))
        return 1
    outputs.close("Serveur arrêté.")
    return 0


def complain(text: object) -> None:
    """Écrit une phrase sur stderr tout de suite, sans passer par un greffier."""
    if sys.stderr is not None:  # None si elle est fermée : son numéro n'est plus à elle
        with contextlib.suppress(OSError):
            os.write(2, protocol.encode_line(str(text)))


def main() -> int:
    """Rend le code de sortie : 0 après un arrêt demandé, 2 si une option est refusée, sinon 1."""
    try:
        options = parse_options()
    except Refused as reason:
        complain(reason)
        return 2
    outputs = Outputs()
    try:
        if options.journal is not None:
            outputs.keep_log(open_log(options.journal))
        listener = open_listener(options.hote, options.port)
    except Refused as reason:
        complain(reason)
        return 1
    except KeyboardInterrupt:  # pendant la recherche de l'adresse, qui peut durer
        return 0
    return serve(listener, outputs, options)


if __name__ == "__main__":
    sys.exit(main())
