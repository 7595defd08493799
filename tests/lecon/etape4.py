"""Étape 4 : un recv n'est pas un message.

Ce qui gêne : TCP transporte des octets. Deux messages peuvent arriver en un seul recv, le nom collé
au premier, ou un « é » coupé en deux, que decode refuse : son thread s'arrête.
L'idée : on coupe les octets sur les fins de ligne, on garde ce qui n'en a pas encore, et l'on ne
décode qu'une ligne entière.
Pour l'essayer : nc 127.0.0.1 12345 < README.md, dont chaque ligne devient un message.
Ce qui reste faux : deux threads peuvent toucher à la liste, ou à un même socket, en même temps.
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
            receive(client, lines)
    except OSError:
        pass  # la connexion est coupée
    finally:
        leave(client)
        client.sock.close()


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
    listener = socket.create_server(("127.0.0.1", port))
    print("Serveur en attente de connexions...")
    while True:
        client = Client(listener.accept()[0])
        clients.append(client)
        threading.Thread(target=read_client, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()
