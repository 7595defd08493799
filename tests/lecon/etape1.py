"""Étape 1 : une connexion finit toujours, et de trois façons.

Ce qui gêne : quand un client ferme, recv renvoie b"" sans fin ; quand il est coupé, recv lève
OSError, et sendall aussi, dans le thread d'un autre client, qui s'arrête.
L'idée : b"" et OSError sont une fin, comme « exit » ; `finally` fait partir le client dans tous les
cas, et `leave` ne l'annonce qu'une fois.
Pour l'essayer : fermez la fenêtre d'un client ; les autres lisent qu'il est parti.
Ce qui reste faux : l'au revoir peut se perdre, si le client écrivait encore.
"""

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
        if client is not sender:
            tell(client, text)


def execute(client, text):
    if text == "exit":
        tell(client, f"Au revoir, {client.name}.")
        leave(client)
    else:
        broadcast(f"{client.name} : {text}", client)


def leave(client):
    if client in clients:
        clients.remove(client)
        broadcast(f"{client.name} a quitté le chat.")


def read_client(client):
    try:
        while client in clients and (data := client.sock.recv(1024)):
            execute(client, data.decode().strip())
    except OSError:
        pass  # la connexion est coupée
    finally:
        leave(client)
        client.sock.close()


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
    listener = socket.create_server(("", port))
    print("Serveur en attente de connexions...")
    while True:
        client = Client(listener.accept()[0])
        client.name = client.sock.recv(1024).decode().strip()
        tell(client, f"Bienvenue, {client.name} !")
        broadcast(f"{client.name} a rejoint le chat.")
        clients.append(client)
        threading.Thread(target=read_client, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()
