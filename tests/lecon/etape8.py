"""Étape 8 : on dépose ses lignes, et celui qui a le verrou travaille pour tous.

Ce qui gêne : à cent clients, chaque recv coûte un envoi à chacun, et tous attendent le verrou.
L'idée : un lecteur dépose ses lignes et essaie le verrou. S'il l'a, il sert tous les dépôts à la
fois : un seul envoi porte les lignes de tout le monde. Sinon, il reprend sa lecture.
Pour l'essayer : python3 tests/lecon/loupe.py --etape 8 rafale ; sa vitesse est dans MESURES.md.
Ce que serveur_exo.py ajoute : console à part, débit, délais, journal, options, arrêt, Windows.
"""

import collections
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # le dossier de chat_protocol.py
import chat_protocol as protocol
from chat_protocol import ERROR, NOTICE, Refused

LATE_BYTES = 1024 * 1024  # octets de retard à partir desquels on coupe un client
DEPARTURE = None  # déposé à la place de lignes : ce client n'en enverra plus
TICK_SECONDS = 0.005  # s avant de réessayer d'envoyer ce que le système n'a pas accepté


class Client:
    def __init__(self, sock):
        self.sock = sock
        self.name = None  # pas encore reçu
        self.deposit_slot = threading.Lock()  # un seul dépôt de lignes à la fois dans l'inbox
        self.outbox = []  # octets à envoyer, dans l'ordre ; b"" : la fin de nos envois
        self.has_left = False  # il quitte le chat : ses lignes sont ignorées
        self.is_read_out = False  # son lecteur a fini


clients = []
inbox = collections.deque()  # tout thread y dépose (client, lignes), la tournée prend
round_lock = threading.Lock()  # qui le tient fait la tournée ; personne ne l'attend
bell = threading.Event()  # réveille le veilleur


def tell(client, text):
    client.outbox.append(protocol.encode_line(text))


def broadcast(text, sender=None):
    print(text.removeprefix(NOTICE))
    for client in clients:
        if client.name and client is not sender and not client.has_left:
            tell(client, text)


def receive(client, lines):
    for line in lines:
        if client.has_left:
            return
        try:
            text = protocol.decode_line(line)
            verb, rest = protocol.parse(text)
            if verb == "nothing":
                continue
            if client.name is None:
                enter(client, verb, text)
            else:
                execute(client, verb, rest)
        except Refused as reason:
            tell(client, f"{ERROR}{reason}")


def enter(client, verb, text):
    if verb == "quit":
        return leave(client)
    name = protocol.normalize_name(text)
    if protocol.name_key(name) in [protocol.name_key(other.name or "") for other in clients]:
        raise Refused(f"Le nom {name} est déjà pris : choisissez-en un autre.")
    tell(client, f"{NOTICE}Bienvenue, {name} !")
    broadcast(f"{NOTICE}{name} a rejoint le chat.")
    client.name = name


def execute(client, verb, rest):
    if verb == "quit":
        tell(client, f"{protocol.FAREWELL}{client.name}.")
        leave(client)
    elif verb == "message":
        broadcast(f"{client.name} : {protocol.clean(rest)}", client)
    else:
        raise Refused("La seule commande de cette étape est exit.")


def leave(client):
    if not client.has_left:
        client.has_left = True
        client.outbox.append(b"")  # même si rien ne reste à envoyer, il faut signaler la fin
        if client.name:
            broadcast(f"{NOTICE}{client.name} a quitté le chat.")


def post(client, lines):
    inbox.append((client, lines))
    try_round()


def try_round():
    if round_lock.acquire(blocking=False):
        try:
            make_round()
        finally:
            round_lock.release()
        if inbox:  # déposé pendant la tournée, par un lecteur qui n'a pas attendu
            bell.set()


def make_round():
    empty_inbox()
    for client in clients[:]:  # une copie : on en retire
        if client.outbox:
            send(client)
        if client.is_read_out and not client.outbox:
            clients.remove(client)
            client.sock.close()


def empty_inbox():
    for _ in range(len(inbox)):
        client, lines = inbox.popleft()
        if lines is DEPARTURE:
            client.is_read_out = True
            leave(client)
        else:
            client.deposit_slot.release()
            receive(client, lines)


def send(client):
    data = b"".join(client.outbox)
    try:
        data = data[send_now(client.sock, data) :]
        if len(data) > LATE_BYTES:
            client.sock.shutdown(socket.SHUT_RDWR)  # le recv de son lecteur se termine aussitôt
            data = b""
        elif client.has_left and not data:
            client.sock.shutdown(socket.SHUT_WR)
    except OSError:
        data = b""  # ce client est parti : son lecteur s'en apercevra
    client.outbox = [data] if data else []


def send_now(sock, data):
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0


def watch():
    while True:
        bell.wait(TICK_SECONDS)
        bell.clear()
        try_round()


def read_client(client):
    buffer = protocol.LineBuffer()
    try:
        while data := client.sock.recv(1024):
            submit(client, buffer.feed(data))
        submit(client, buffer.last_line())
    except OSError:
        pass  # la connexion est coupée
    finally:
        post(client, DEPARTURE)


def submit(client, lines):
    if lines:
        client.deposit_slot.acquire()
        post(client, lines)


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
    listener = socket.create_server(("127.0.0.1", port))
    print("Serveur en attente de connexions...")
    threading.Thread(target=watch, name="veilleur", daemon=True).start()
    while True:
        client = Client(listener.accept()[0])
        clients.append(client)  # sans verrou : un ajout à la fin ne gêne aucune boucle
        threading.Thread(target=read_client, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()
