"""Deux recv par message : la longueur sur quatre chiffres, puis le texte."""

import socket
import threading

clients = []


def serve(client):
    while length := client.recv(4):
        text = client.recv(int(length))
        for other in clients:
            if other is not client:
                other.sendall(length + text)


listener = socket.create_server(("127.0.0.1", 7000))
while True:
    client, _ = listener.accept()
    clients.append(client)
    threading.Thread(target=serve, args=(client,)).start()
