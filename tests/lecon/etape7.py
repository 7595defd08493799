"""Étape 7 : une boîte d'envoi par client, et l'on n'attend jamais pour envoyer.

Ce qui gêne : quand un client ne lit plus, sendall l'attend, et tout le chat attend avec lui.
L'idée : `tell` ajoute à l'outbox du client ; une tournée (round) envoie à chacun ce que le système
peut prendre tout de suite, un veilleur la refait pour le reste. Qui a trop de retard est coupé.
Pour l'essayer : Ctrl+Z dans un client, puis yes | python3 client_exo.py --nom Bavard ailleurs.
Ce qui reste faux : à cent, chaque recv coûte un envoi à chacun, et tous attendent le verrou.
Windows n'a pas MSG_DONTWAIT : `send_now`, dans serveur_exo.py, s'en passe.
"""

import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # le dossier de chat_protocol.py
import chat_protocol as protocol
from chat_protocol import ERROR, NOTICE, Refused

LATE_BYTES = 1024 * 1024  # octets de retard à partir desquels on coupe un client
TICK_SECONDS = 0.005  # s avant de réessayer d'envoyer ce que le système n'a pas accepté


class Client:
    def __init__(self, sock):
        self.sock = sock
        self.name = None  # pas encore reçu
        self.outbox = []  # octets à envoyer, dans l'ordre ; b"" : la fin de nos envois
        self.has_left = False  # il quitte le chat : ses lignes sont ignorées
        self.is_read_out = False  # son lecteur a fini


clients = []
round_lock = threading.Lock()  # il faut le tenir pour changer la liste, la parcourir, envoyer


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


def make_round():
    for client in clients[:]:  # une copie : on en retire
        if client.outbox:
            send(client)
        if client.is_read_out and not client.outbox:
            clients.remove(client)
            client.sock.close()


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
        time.sleep(TICK_SECONDS)
        with round_lock:
            make_round()


def read_client(client):
    buffer = protocol.LineBuffer()
    try:
        while data := client.sock.recv(1024):
            with round_lock:
                receive(client, buffer.feed(data))
                make_round()
        with round_lock:
            receive(client, buffer.last_line())
    except OSError:
        pass  # la connexion est coupée
    finally:
        with round_lock:
            client.is_read_out = True
            leave(client)
            make_round()


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
    listener = socket.create_server(("127.0.0.1", port))
    print("Serveur en attente de connexions...")
    threading.Thread(target=watch, name="veilleur", daemon=True).start()
    while True:
        client = Client(listener.accept()[0])
        with round_lock:
            clients.append(client)
        threading.Thread(target=read_client, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()
