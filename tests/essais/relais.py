"""Relaie les octets, sans nom, sous un verrou ; le port est à la ligne de commande."""

import socket
import sys
import threading

clients = set()
lock = threading.Lock()


def relay(client):
    try:
        while data := client.recv(4096):
            with lock:
                for other in list(clients):
                    if other is not client:
                        try:
                            other.sendall(data)
                        except OSError:
                            clients.discard(other)
    except OSError:
        pass
    with lock:
        clients.discard(client)
    client.close()


if len(sys.argv) != 2:
    sys.exit("usage : relais.py PORT")
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = listener.accept()
    with lock:
        clients.add(client)
    threading.Thread(target=relay, args=(client,), daemon=True).start()
