"""Un seul thread : envoie, puis attend une réponse ; ne montre rien pendant que l'on tape."""

import socket

client = socket.socket()
client.connect(("localhost", 12345))
client.send(input("Votre nom : ").encode())
while True:
    text = input("Votre message : ")
    client.send(text.encode())
    if text == "fin":
        break
    print(client.recv(1024).decode())
client.close()
