"""Pose une question sans fin de ligne, dans le thread du client ; un dictionnaire de noms."""

from socket import *
from threading import Thread

clients = {}


def diffuser(texte, auteur=None):
    for client in clients:
        if client != auteur:
            client.send(bytes(texte, "utf8"))


def ecouter(client):
    client.send(bytes("Entrez votre pseudo : ", "utf8"))
    pseudo = client.recv(1024).decode("utf8")
    diffuser(f"{pseudo} vient d'arriver")
    clients[client] = pseudo
    while True:
        texte = client.recv(1024).decode("utf8")
        if texte == "" or texte == "quit":
            del clients[client]
            client.close()
            diffuser(f"{pseudo} est parti")
            return
        print(pseudo, ">", texte)
        diffuser(f"{pseudo} > {texte}", client)


serveur = socket(AF_INET, SOCK_STREAM)
serveur.bind(("", 5000))
serveur.listen(5)
while True:
    client, adresse = serveur.accept()
    Thread(target=ecouter, args=(client,)).start()
