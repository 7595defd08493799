"""Le client habituel de l'exercice, pour comparer : À NE PAS IMITER. Il affiche ce qu'il reçoit au milieu
de ce que l'on tape, exécute les codes de terminal qu'un message contient, ne voit la fin du serveur
qu'au deuxième envoi, et son `close` ne réveille pas le thread qui reçoit.
"""

import socket
import sys
import threading


def receive(sock):
    while True:
        message = sock.recv(1024).decode()
        if not message:
            break
        print(message, end="", flush=True)


sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall((input("Entrez votre nom : ") + "\n").encode())
threading.Thread(target=receive, args=(sock,)).start()
while True:
    message = input("Votre message : ")
    sock.sendall((message + "\n").encode())
    if message == "exit":
        break
sock.close()
