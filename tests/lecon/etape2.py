"""Étape 2 : une connexion se ferme en deux temps.

Ce qui gêne : fermer alors que des octets du client ne sont pas lus fait envoyer par TCP un
« reset », qui peut détruire l'au revoir en chemin.
L'idée : `shutdown` dit que nous n'enverrons plus rien ; on lit encore, sans rien en faire, jusqu'à
ce que le client ferme aussi.
Pour l'essayer : à la main, il faut de la chance ; python3 tests/lecon/etapes.py le fait à coup sûr.
Ce qui reste faux : tant qu'un client n'a pas donné son nom, personne d'autre ne peut entrer.
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
        with contextlib.suppress(OSError):  # la connexion est peut-être déjà coupée
            client.sock.shutdown(socket.SHUT_WR)


def read_client(client):
    try:
        while data := client.sock.recv(1024):
            if client in clients:
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
