"""La solution habituelle de l'exercice, pour comparer : À NE PAS IMITER.

Elle marche quand on l'essaie seul et se défait en classe (tests/test_pieges.py le montre) :
un recv y vaut un message ; le nom et le premier message se collent ; un caractère coupé tue le
thread ; une fermeture propre tourne à 100 % de processeur ; la liste change pendant qu'on la
parcourt ; qui ne lit plus bloque tout le monde ; un client mort tue le thread d'un autre ; une
connexion coupée net arrête l'accueil ; le thread démarre avant que son client soit inscrit ; les
noms ne sont pas vérifiés ; l'écoute se fait sur toutes les interfaces.
"""

import socket
import sys
import threading

clients = []
names = {}


def broadcast(message, sender=None):
    for client in clients:
        if client is not sender:
            client.sendall(message.encode())


def handle_client(client):
    while True:
        message = client.recv(1024).decode()
        if message.strip() == "exit":
            break
        print(f"{names[client]} : {message}", end="", flush=True)
        broadcast(f"{names[client]} : {message}", client)
    clients.remove(client)
    client.close()
    broadcast(f"{names[client]} a quitté le chat.\n")


server = socket.create_server(("", int(sys.argv[1])))
print(f"Écoute sur le port {server.getsockname()[1]}", flush=True)
while True:
    client, address = server.accept()
    name = client.recv(1024).decode().strip()
    threading.Thread(target=handle_client, args=(client,), daemon=True).start()
    names[client] = name
    clients.append(client)
    broadcast(f"{name} a rejoint le chat.\n", client)
