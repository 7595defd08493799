"""La solution habituelle de l'exercice, pour comparer : À NE PAS IMITER. Chaque recv y compte pour
un message, nom compris ; un caractère coupé ou une déconnexion y arrête un thread, ou l'accueil ; la
fin d'un flux donne une boucle sans fin ; la liste change pendant qu'on la parcourt ; un client qui ne
lit plus bloque tous les autres.
"""

import socket
import sys
import threading

clients, names = [], {}


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
