"""Étape 6 : les règles du salon.

Ce qui gêne : deux clients ont le même nom, ou un nom imite une ligne (« Alice : oui, et ») ; un
message commande le terminal des autres par des codes (ESC).
L'idée : `chat_protocol` dit ce que vaut une ligne ; la raison d'un refus ne va qu'à celui qui l'a
écrite. Ni `receive`, ni `enter`, ni `execute` ne connaissent les sockets.
Pour l'essayer : entrez deux fois sous le même nom ; tapez /danse.
Ce qui reste faux : un client qui ne lit plus bloque tous les autres.
"""

import contextlib
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # le dossier de chat_protocol.py
import chat_protocol as protocol
from chat_protocol import ERROR, NOTICE, Refused


class Client:
    def __init__(self, sock):
        self.sock = sock
        self.name = None  # pas encore reçu


clients = []
round_lock = threading.Lock()  # il faut le tenir pour changer la liste, la parcourir, envoyer


def tell(client, text):
    try:
        client.sock.sendall(protocol.encode_line(text))
    except OSError:
        pass  # ce client est parti : son thread s'en apercevra


def broadcast(text, sender=None):
    print(text.removeprefix(NOTICE))
    for client in clients:
        if client.name and client is not sender:
            tell(client, text)


def receive(client, lines):
    for line in lines:
        if client not in clients:
            return  # il a dit « exit »
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
    if client in clients:
        clients.remove(client)
        if client.name:
            broadcast(f"{NOTICE}{client.name} a quitté le chat.")
        with contextlib.suppress(OSError):  # la connexion est peut-être déjà coupée
            client.sock.shutdown(socket.SHUT_WR)


def read_client(client):
    buffer = protocol.LineBuffer()
    try:
        while data := client.sock.recv(1024):
            with round_lock:
                receive(client, buffer.feed(data))
        with round_lock:
            receive(client, buffer.last_line())
    except OSError:
        pass  # la connexion est coupée
    finally:
        with round_lock:
            leave(client)
        client.sock.close()


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
    listener = socket.create_server(("127.0.0.1", port))
    print("Serveur en attente de connexions...")
    while True:
        client = Client(listener.accept()[0])
        with round_lock:
            clients.append(client)
        threading.Thread(target=read_client, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()
