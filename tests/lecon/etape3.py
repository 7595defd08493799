"""Étape 3 : chacun donne son nom dans son propre thread.

Ce qui gêne : un client qui se connecte et ne dit rien empêche les autres d'entrer ; s'il est coupé
avant de dire son nom, le serveur entier s'arrête. Et tout le réseau peut se connecter.
L'idée : la boucle d'accept n'attend plus que des connexions, sur cette machine seule (127.0.0.1).
Pour l'essayer : nc 127.0.0.1 12345 sans rien taper, puis python3 client_exo.py.
Ce qui reste faux : deux messages envoyés ensemble n'en font qu'un.
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


def receive(client, text):
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
    try:
        while data := client.sock.recv(1024):
            if client in clients:
                receive(client, data.decode().strip())
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
