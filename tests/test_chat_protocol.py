"""Les règles de la conversation, sans rien d'autre : des octets et du texte."""

import ast
from pathlib import Path

import chat_protocol as protocol
import pytest

SESSION = "Élise\r\nBonjour\n\u2028même ligne\nfin".encode()


@pytest.mark.parametrize("size", [1, 2, 5, len(SESSION)], ids=lambda n: f"par_{n}")
def test_toute_decoupe_donne_les_memes_lignes(size):
    buffer, lines = protocol.LineBuffer(), []
    for start in range(0, len(SESSION), size):
        buffer.feed(SESSION[start : start + size])
        lines += buffer.take()
    lines += buffer.take_last()
    assert [line.decode() for line in lines] == ["Élise", "Bonjour", "\u2028même ligne", "fin"]


def test_une_ligne_de_4096_octets_passe_avec_son_retour_chariot():
    buffer = protocol.LineBuffer()
    buffer.feed(b"x" * 4096 + b"\r\n")
    assert protocol.decode_line(buffer.take()[0]) == "x" * 4096


def test_une_ligne_trop_longue_est_rendue_une_fois_et_sa_suite_jetee():
    buffer = protocol.LineBuffer()
    buffer.feed(b"x" * 5000)
    (long_line,) = buffer.take()
    with pytest.raises(protocol.Refused):
        protocol.decode_line(long_line)
    buffer.feed(b"x" * 100_000)
    assert buffer.take() == []
    buffer.feed(b"x\nsuite\n")
    assert buffer.take() == [b"suite"]


@pytest.mark.parametrize("name", ["Alice", "Élise", "O'Neil", "李", "नमिता", "7", "a.b-c_d", "D’Or"])
def test_un_nom_correct_est_accepte(name):
    assert protocol.normalize_name(f" {name}\t") == name


@pytest.mark.parametrize(
    "name", ["", "exit", "ＥＸＩＴ", "-a", "a b", "a:b", "*", "[x", "a\u034f", "a\ufe0f", "\u3164", "a" * 33, "a\u200db"]
)
def test_un_nom_trompeur_est_refuse(name):
    with pytest.raises(protocol.Refused):
        protocol.normalize_name(name)


def test_deux_ecritures_du_meme_nom_sont_le_meme_nom():
    assert protocol.name_key("STRASSE") == protocol.name_key("straße")
    assert protocol.name_key("e\u0301lise") == protocol.name_key("Élise")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("exit", protocol.Quit()),
        (" EXIT\t", protocol.Quit()),
        ("/Quitter vite", protocol.Quit()),
        ("exit vite", protocol.Message("exit vite")),
        ("/liste", protocol.ListMembers()),
        ("/help", protocol.Help()),
        ("//liste", protocol.Message("/liste")),
        ("a\x1b[2J\u202e", protocol.Message("a\ufffd[2J\ufffd")),
        ("/privé Bob  x ", protocol.PrivateMessage("Bob", " x ")),
        ("/danse", protocol.UnknownCommand("/danse")),
        ("/" + "d" * 50, protocol.UnknownCommand("/" + "d" * 39)),
    ],
)
def test_chaque_ligne_devient_la_bonne_commande(line, command):
    assert protocol.parse(line) == command


def test_la_liste_range_elise_avant_zoe():
    assert protocol.alphabetical(["Zoé", "alice", "Élise", "Alice"]) == [
        "Alice", "alice", "Élise", "Zoé",
    ]  # fmt: skip


def test_le_protocole_n_importe_que_du_calcul():
    tree = ast.parse(Path(protocol.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported == {"argparse", "errno", "re", "unicodedata", "collections.abc", "dataclasses"}
