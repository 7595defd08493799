"""Envoie par `send` sans lire ce qu'il renvoie ; inscrit le client après avoir lancé son thread."""

import socket
import threading
import time

names = {}


def serve(client):
    while True:
        data = client.recv(1024)
        if not data:
            break
        line = f"{names[client]} dit {data.decode().strip()}"
        print(time.strftime("%H:%M"), line)
        for other in list(names):
            if other is not client:
                other.send(line.encode() + b"\n")
    del names[client]


listener = socket.create_server(("127.0.0.1", 4000))
while True:
    client, _ = listener.accept()
    name = client.recv(100).decode().strip()
    threading.Thread(target=serve, args=(client,)).start()
    names[client] = name
