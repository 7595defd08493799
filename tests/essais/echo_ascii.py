"""Renvoie chaque message à tous, son auteur compris, en ASCII ; demande l'hôte et le port."""

import socket
import threading

host = input("Adresse du serveur : ")
port = int(input("Port : "))
clients = []


def serve(client):
    name = client.recv(1024).decode("ascii")
    clients.append(client)
    while True:
        message = client.recv(1024).decode("ascii")
        if not message or message == "FIN":
            break
        print(f"[{name}] {message}")
        for other in clients[:]:
            other.sendall(f"[{name}] {message}\n".encode("ascii"))
    clients.remove(client)
    client.close()


listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, port))
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
