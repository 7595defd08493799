"""select sur le clavier et le socket, sans thread ; l'adresse et le port à la ligne de commande."""

import select
import socket
import sys

server = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    for ready in select.select([sys.stdin, server], [], [])[0]:
        if ready is server:
            data = server.recv(4096)
            if not data:
                sys.exit("Le serveur est parti.")
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        else:
            line = sys.stdin.readline()
            server.sendall(line.encode())
            if line.strip() == "exit":
                sys.exit()
