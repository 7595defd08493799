"""Parle le premier, par un mot pour le client ; attend le nom dans la boucle d'accept ; relaie."""

import socket
import threading

clients, names = [], []


def broadcast(data):
    for client in clients:
        client.send(data)


def handle(client):
    while True:
        try:
            broadcast(client.recv(1024))
        except OSError:
            name = names.pop(clients.index(client))
            clients.remove(client)
            client.close()
            broadcast(f"{name} left".encode("ascii"))
            break


server = socket.socket()
server.bind(("127.0.0.1", 55555))
server.listen()
while True:
    client, address = server.accept()
    client.send(b"NAME?")
    name = client.recv(1024).decode("ascii")
    names.append(name)
    clients.append(client)
    print(f"{name} connected from {address}")
    broadcast(f"{name} joined".encode("ascii"))
    threading.Thread(target=handle, args=(client,)).start()
