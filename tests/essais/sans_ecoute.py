"""Oublie d'écouter, et attend."""

import socket
import threading

server = socket.socket()
server.bind(("127.0.0.1", 12345))
print("Serveur prêt")
threading.Event().wait()
