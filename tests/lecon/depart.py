"""Départ : un chat à plusieurs, où l'on ne sait pas qui parle.

L'exercice : afficher « Alice : Bonjour ! » au lieu de simplement « Bonjour ! ».
Pour l'essayer : python3 tests/lecon/depart.py, puis python3 client_exo.py dans deux terminaux (le
nom qu'il demande n'est ici qu'un premier message). Ctrl+C l'arrête ; sous Windows, Ctrl+Pause.
"""

import socket
import sys
import threading


class Client:
    def __init__(self, sock):
        self.sock = sock


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
        tell(client, "Au revoir.")
        leave(client)
    else:
        broadcast(text, client)


def leave(client):
    clients.remove(client)


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
        tell(client, "Bienvenue !")
        clients.append(client)
        threading.Thread(target=read_client, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()
