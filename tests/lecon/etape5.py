"""Étape 5 : un seul verrou, pour la liste et pour les envois.

Ce qui gêne : un départ change la liste qu'un autre thread parcourt, et quelqu'un ne reçoit pas le
message ; deux threads qui envoient se doublent, et tous ne lisent pas le même ordre, ou leurs
octets se mêlent dans un même socket.
L'idée : chacun à son tour ; qui tient `round_lock` sert tout le monde avant de le rendre.
Pour l'essayer : à la main, il faut de la chance ; python3 tests/lecon/etapes.py le fait à coup sûr.
Ce qui reste faux : on peut prendre le nom d'un autre, et commander son terminal.
"""

import contextlib
import socket
import sys
import threading


class Client:
    def __init__(self, sock):
        self.sock = sock
        self.name = None  # pas encore reçu


clients = []
round_lock = threading.Lock()  # il faut le tenir pour changer la liste, la parcourir, envoyer


def tell(client, text):
    try:
        client.sock.sendall(f"{text}\n".encode())
    except OSError:
        pass  # ce client est parti : son thread s'en apercevra


def broadcast(text, sender=None):
    print(text)
    for client in clients:
        if client.name and client is not sender:
            tell(client, text)


def receive(client, lines):
    for line in lines:
        if client not in clients:
            return  # il a dit « exit »
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            tell(client, "Ligne illisible : elle doit être en UTF-8.")
            continue
        if client.name is None:
            enter(client, text)
        else:
            execute(client, text)


def enter(client, name):
    tell(client, f"Bienvenue, {name} !")
    broadcast(f"{name} a rejoint le chat.")
    client.name = name


def execute(client, text):
    if text == "exit":
        tell(client, f"Au revoir, {client.name}.")
        leave(client)
    else:
        broadcast(f"{client.name} : {text}", client)


def leave(client):
    if client in clients:
        clients.remove(client)
        if client.name:
            broadcast(f"{client.name} a quitté le chat.")
        with contextlib.suppress(OSError):  # la connexion est peut-être déjà coupée
            client.sock.shutdown(socket.SHUT_WR)


def read_client(client):
    rest = b""  # le début d'une ligne dont la fin n'est pas encore arrivée
    try:
        while data := client.sock.recv(1024):
            *lines, rest = (rest + data).split(b"\n")
            with round_lock:
                receive(client, lines)
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
