"""Attend un mot du serveur pour donner son nom, et reçoit dans un thread ; boucle sur la fin."""

import socket
import threading

name = input("Choose your name: ")
client = socket.socket()
client.connect(("127.0.0.1", 55555))


def receive():
    while True:
        try:
            message = client.recv(1024).decode("ascii")
            if message == "NAME?":
                client.send(name.encode("ascii"))
            else:
                print(message)
        except OSError:
            break


threading.Thread(target=receive).start()
while True:
    client.send(f"{name}: {input()}".encode("ascii"))
