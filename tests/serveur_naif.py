"""La solution habituelle de l'exercice, pour comparer : À NE PAS IMITER. Un recv y vaut un message,
nom compris ; un caractère coupé, un client mort, une coupure nette y tuent un thread ou l'accueil ;
une fin de flux tourne sans fin ; la liste change en plein parcours ; un bloqué bloque tout le monde.
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
