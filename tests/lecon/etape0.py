"""Étape 0 : des noms, comme on les fait d'habitude.

Ce qui gêne : on ne sait pas qui parle.
L'idée : le premier message d'un client est son nom ; le serveur l'écrit devant chaque message.
Pour l'essayer : python3 tests/lecon/etape0.py, puis python3 client_exo.py dans deux terminaux.
Ce qui reste faux : avec nc comme client, fermez sa fenêtre sans taper « exit » (gardez Ctrl+C prêt).
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
    client.sock.sendall(f"{text}\n".encode())


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
    clients.remove(client)
    broadcast(f"{client.name} a quitté le chat.")


def read_client(client):
    while client in clients:
        execute(client, client.sock.recv(1024).decode().strip())
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
